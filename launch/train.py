"""The script that the DeepSpeed launcher runs on every rank.

    deepspeed --num_accelerators 2 launch/train.py --preset mosi-aligned --data SHARDS --run RUN [section.key=value ...]

`dmd train` starts the launcher itself. Exit codes: `launch.exit_codes`.
"""

import sys

from launch.supervise import Channels, StopRequest, supervise


def _train(stop: StopRequest, channels: Channels) -> int:
    from launch.rank import main  # heavy; the supervisor does without

    return main(sys.argv[1:], stop, channels)


if __name__ == "__main__":
    sys.exit(supervise(_train))
