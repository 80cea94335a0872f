"""What the writing rank of a training holds: its checkpoints, its log, and the right to write to the run directory."""

import socket
from contextlib import suppress
from functools import partial
from pathlib import Path

from data_shards.reading.index import ShardIndex
from data_shards.sole_writer import Lease
from dmd.checkpoint.saver import CHECKPOINTS, Saver
from dmd.checkpoint.storage_trial import checkpoint_sizes, try_storage
from dmd.config import Config
from dmd.data.plan import EpochPlan
from dmd.distributed.engine import Engine
from dmd.distributed.errors import StorageFailed


class RunOutput:
    """The run directory as its only writer sees it.

    Args:
        run: the run directory; whether it can hold checkpoints of the engine's system is tried here.
        engine: whose objective has started its training.
        resumed: step that the training continues from.
        stored_losses_until: see `dmd.training.logging.recorder.Recorder`.
        lease: the right to write there; None where the caller sees to it that nobody else does.

    Raises:
        OSError: the storage cannot hold a checkpoint or the record.
        ValueError: a damaged record.
    """

    def __init__(
        self,
        run: Path,
        config: Config,
        index: ShardIndex,
        plan: EpochPlan,
        engine: Engine,
        *,
        resumed: int | None,
        stored_losses_until: int | None,
        lease: Lease | None,
    ) -> None:
        from dmd.training.logging.logbook import Logbook, open_record  # TensorBoard, which other ranks do without
        from dmd.training.logging.trackers.processes import Senders

        run.mkdir(parents=True, exist_ok=True)
        objective = engine.system.objective.training_bytes()
        sizes = checkpoint_sizes(engine.sizes, averages=config.train.ema_decay > 0, objective=objective)
        try_storage(run / CHECKPOINTS, sizes)
        self.saver = Saver(run, config.train)
        self.log = Logbook(
            run,
            partial(open_record, run, config, index, plan, engine, stored_losses_until=stored_losses_until),
            resumed,
        )
        self.trackers = Senders(run, config.train.trackers)
        self._lease = lease

    def taken(self) -> str | None:
        """Who has taken the run directory over, if someone has; nothing may be written then."""
        return None if self._lease is None else self._lease.check()

    def failures(self) -> list[OSError]:
        """What the storage fails to do at present; does not wait for a write under way."""
        return [failure for failure in (self.saver.poll(), self.log.failure) if failure is not None]

    def close(self, metrics: dict[str, float] | None) -> list[OSError]:
        """Wait for what is being written and end the record (see `Recorder.close`); returns what could not be."""
        failures: list[OSError] = []
        for close in (self.saver.close, partial(self.log.close, metrics)):
            try:
                close()
            except OSError as error:
                failures.append(error)
        return failures

    def abandon(self) -> None:
        """After an error: end threads and close files, where that is not done yet. The record gets no end."""
        for close in (self.saver.close, self.log.abandon):
            with suppress(OSError):
                close()


def storage_error(run: Path, failures: list[OSError]) -> StorageFailed:
    """The error that ends a training on every rank over what the writing one has met (the others know of none)."""
    return StorageFailed(
        f"rank 0 on {socket.gethostname()}: {failures[0]}" if failures else f"rank 0 cannot write to {run}"
    )
