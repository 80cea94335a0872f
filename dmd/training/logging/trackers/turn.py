"""One sender for each tracker of a run: the next one waits until the one before has ended.

The sender of a training that was killed lives on for a few seconds, in which it still sends. The kernel's lock
RUN/trackers/NAME.lock ends with it. On a file system without locks (NFS with `nolock`) nobody waits, and both send.
"""

import time
from collections.abc import Callable
from pathlib import Path

from data_shards.durable import open_regular
from data_shards.sole_writer import Lock, try_to_lock
from dmd.training.logging.trackers.log import FOLDER

_POLL_SECONDS = 0.1


def wait_for_turn(run: Path, name: str, *, say: Callable[[str], None]) -> int:
    """Wait until no other process sends to a tracker; returns a descriptor that keeps others waiting while it is open.

    Raises OSError where the run directory cannot be written, ValueError where the lock is no regular file.
    """
    handle = open_regular(run / FOLDER / f"{name}.lock")
    if try_to_lock(handle) is Lock.TAKEN:
        say(f"{name}: waits for another process that still sends the numbers of {run}")
        while try_to_lock(handle) is Lock.TAKEN:
            time.sleep(_POLL_SECONDS)
    return handle
