"""The script that the DeepSpeed launcher runs on every rank.

    deepspeed --num_accelerators 2 launch/train.py --preset mosi-aligned --data SHARDS --run RUN [section.key=value ...]

`dmd train` starts the launcher itself. Exit codes: `dmd.exit_codes`.
"""

import os
import sys

from launch.supervision.channels import Channels
from launch.supervision.supervise import StopRequest, supervise


def _train(stop: StopRequest, channels: Channels) -> int:
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a store that is gone is no news: supervisors tell the cause
    from launch.devices import take_choice  # heavy, as torch is; the supervisor does without

    take_choice(os.environ)
    from launch.trainer.main import main

    return main(sys.argv[1:], stop, channels)


if __name__ == "__main__":
    sys.exit(supervise(_train))
