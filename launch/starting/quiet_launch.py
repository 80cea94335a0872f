"""DeepSpeed's launcher of one host; what it prints itself goes to the log of the run.

    python -m launch.starting.quiet_launch ARGUMENTS of deepspeed.launcher.launch

The ranks that it starts inherit the descriptors 1 and 2, so only Python's streams change here
(`launch.supervision.launcher_log`).
"""

import io
import sys

from data_shards.waiting import waiting
from launch.hidden_library import hidden
from launch.supervision.launcher_log import LogWriter


class LazyLog(io.TextIOBase):
    """Opens the log when something is to be written: a launcher that is stopped before a rank runs leaves nothing."""

    def __init__(self, host: int) -> None:
        super().__init__()
        self._log = LogWriter(host)

    def write(self, text: str) -> int:
        """Append a text, or write it to stderr where the log cannot be written."""
        self._log.write(text.encode(errors="replace"))
        return len(text)


def main() -> None:
    """Run the launcher with the arguments of this process."""
    host = next((int(word.partition("=")[2]) for word in sys.argv if word.startswith("--node_rank=")), 0)
    with waiting("DeepSpeed's launcher to load", shown=host == 0), hidden("mlflow"):
        sys.stdout = sys.stderr = LazyLog(host)
        from deepspeed.launcher.launch import main as launch

    launch()


if __name__ == "__main__":
    main()
