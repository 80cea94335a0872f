"""What the ranks decide together, and in test mode a record of what each of them did.

`DMD_AUDIT=DIR` is the test mode. Every rank appends a line `{"step", "epoch", "rank", "ids"}` per step that it made to
a file of its session in DIR, and `Audit.same` compares values over all ranks. Without the variable nothing is written
and nothing is compared.
"""

import json
import os
import socket
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dmd.training.engine import Engine


class OnEveryRank(ValueError):
    """What every rank raises alike: the message says which of them it is about."""


class Diverged(OnEveryRank):
    """The training has diverged."""


class TakenOver(OnEveryRank):
    """Another process has taken the run directory over."""


class StorageFailed(OSError):
    """The run directory could not be written where that ends the training; raised on every rank, and says of which."""


def any_rank(engine: Engine, *flags: bool) -> list[bool]:
    """For each flag whether a rank raised it; one collective, the same answer on every rank."""
    return raised_anywhere(engine.device, *flags)


def raised_anywhere(device: torch.device, *flags: bool) -> list[bool]:
    """As `any_rank`, where there is no engine yet."""
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return list(flags)
    raised = torch.tensor(flags, dtype=torch.float32, device=device)
    dist.all_reduce(raised, op=dist.ReduceOp.MAX)
    return [value > 0 for value in raised.tolist()]


@contextmanager
def all_or_none(device: torch.device) -> Iterator[None]:
    """What the user or the storage did to one rank in the block ends the block on all of them. A collective.

    Raises:
        OnEveryRank: one rank's ValueError; before any of the storage's.
        StorageFailed: one rank's OSError.
    """
    met: tuple[bool, str] | None = None
    try:
        yield
    except (ValueError, OSError) as error:
        met = isinstance(error, OSError), str(error)
    everyone: list[Any] = [(dist.get_rank() if dist.is_initialized() else 0, socket.gethostname(), met)]
    if dist.is_initialized() and dist.get_world_size() > 1:
        (own,) = everyone
        everyone = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, own)
    failed = sorted((one for one in everyone if one[2] is not None), key=lambda one: one[2][0])
    if not failed:
        return
    rank, host, (storage, text) = failed[0]
    told = text if rank == 0 and not storage else f"rank {rank} on {host}: {text}"
    raise StorageFailed(told) if storage else OnEveryRank(told)


def from_first_rank(engine: Engine, value: Any) -> Any:
    """The first rank's value, on every rank."""
    values = [value]
    if engine.num_ranks > 1:
        dist.broadcast_object_list(values, device=engine.device)
    return values[0]


def stay_sole_writer(engine: Engine, taken: str | None) -> None:
    """Raise TakenOver on every rank where the first one says who has taken the run directory over. A collective."""
    taken = from_first_rank(engine, taken)
    if taken is not None:
        raise TakenOver(taken)


class Audit:
    """The test mode of one rank's session.

    Args:
        resumed: step that the session continues from; the ledger of earlier sessions counts up to there.
    """

    def __init__(self, engine: Engine, resumed: int) -> None:
        self._engine = engine
        folder = os.environ.get("DMD_AUDIT")
        self._path = None
        if folder:
            session = from_first_rank(engine, f"{len(list(Path(folder).iterdir())):05d}-{uuid.uuid4().hex}")
            self._path = Path(folder) / f"{session}-rank{engine.rank}.jsonl"
            self._append({"resumed": resumed})

    @property
    def on(self) -> bool:
        """Whether there is something to write to."""
        return self._path is not None

    def step(self, *, epoch: int, step: int, ids: Sequence[str]) -> None:
        """Note the samples that this rank consumed in a step."""
        self._append({"step": step, "epoch": epoch, "rank": self._engine.rank, "ids": list(ids)})

    def same(self, **values: Any) -> None:
        """Assert that every rank holds the same values."""
        if self.on and self._engine.num_ranks > 1:
            everyone: list[Any] = [None] * self._engine.num_ranks
            dist.all_gather_object(everyone, values)
            assert all(other == values for other in everyone), f"ranks disagree: {everyone}"

    def _append(self, line: dict[str, Any]) -> None:
        assert self._path is not None
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
