"""What the ranks decide together: whether any of them raises a flag, what the first one says, how they fail as one."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from dmd.distributed.engine import Engine
from dmd.distributed.errors import OnEveryRank, StorageFailed, TakenOver


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
    message = text if rank == 0 and not storage else f"rank {rank} on {host}: {text}"
    raise StorageFailed(message) if storage else OnEveryRank(message)


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
