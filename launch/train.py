"""The script that the DeepSpeed launcher runs on every rank.

    deepspeed --num_accelerators 2 launch/train.py --preset mosi-aligned --data SHARDS --run RUN [section.key=value ...]

`dmd train` starts the launcher itself. Exit codes: `dmd.exit_codes`.
"""

import os
import sys

from data_shards.waiting import waiting
from dmd.streams import lasting_streams, open_closed_streams
from launch.supervision.channels import Channels
from launch.supervision.launcher_log import divert_libraries, library_output
from launch.supervision.supervise import StopRequest, supervise


def _train(stop: StopRequest, channels: Channels) -> int:
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # about a store that is gone: supervisors report the cause
    divert_libraries(os.environ)
    with waiting("PyTorch to load on the ranks", shown=os.environ.get("RANK", "0") == "0"), library_output():
        from launch.devices import restore_visible_devices  # imports torch, which the supervisor does without

        restore_visible_devices(os.environ)
        from launch.trainer.main import main

    return main(sys.argv[1:], stop, channels)


if __name__ == "__main__":
    open_closed_streams()
    with lasting_streams():
        code = supervise(_train)
    sys.exit(code)
