"""When a training saves, and what it does where the storage fails; `writer` does the writing."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dmd.checkpoint.format import Snapshot
    from dmd.config import TrainConfig

CHECKPOINTS = "checkpoints"


class Saver:
    """The checkpoints of a run, held by the rank that writes them.

    An error of the storage is told on stderr and kept in `failure` until the next write stands.
    """

    def __init__(self, run: Path, config: TrainConfig) -> None:
        from dmd.checkpoint.writer import AsyncWriter  # torch, which those who look for checkpoints do without

        self._config = config
        self._writer = AsyncWriter(run / CHECKPOINTS, config.keep_checkpoints)
        self._last = time.monotonic()
        self.failure: OSError | None = None

    def due(self, step: int) -> bool:
        """Whether a checkpoint inside the epoch is due after this step, by steps or by minutes."""
        every, minutes = self._config.save_every, self._config.save_minutes
        by_steps = every > 0 and step % every == 0
        return by_steps or (minutes > 0 and time.monotonic() - self._last >= 60 * minutes)

    def save(self, snapshot: Snapshot) -> None:
        """Write a snapshot in the background; waits for the one before."""
        self.wait()
        self._last = time.monotonic()
        self._writer.submit(snapshot)

    def poll(self) -> OSError | None:
        """The failure of the last write that has ended, without waiting for the one under way."""
        if not self._writer.busy:
            self.wait()
        return self.failure

    def wait(self) -> None:
        """Wait for the write under way and note how it ended."""
        try:
            if self._writer.wait() is not None:
                self.failure = None
        except OSError as error:
            self.failure = error
            print(f"storage: {error}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Wait for the last write and end the background thread.

        Raises:
            OSError: that write failed.
        """
        self.wait()
        self._writer.close()
        if self.failure is not None:
            raise self.failure
