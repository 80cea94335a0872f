"""Actors that hold a model, and tasks for them, through Ray Data.

A task is a small dict; an actor answers it with bytes. Ray Data keeps two tasks at an actor, restarts an actor whose
process or node is gone, and gives its tasks to it again. A mistake in the data and storage that fails are no reason to
try again: the actor answers with the fault, and the driver raises it.
"""

import logging
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import pyarrow as pa
import ray.data
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import RayActorError

from cluster.prediction.request import PoolRequest
from cluster.ray_runtime.patience import Unavailable, what_is_free
from cluster.ray_runtime.process_group import hide_gpus, require_gpu
from cluster.ray_runtime.resources import slots
from cluster.ray_runtime.session import has_gpus, live_nodes
from data_shards.durable import Unreadable
from data_shards.waiting import waiting
from dmd.errors import first_line

Task = dict[str, Any]
_FAULTS: dict[str, type[Exception]] = {"Unreadable": Unreadable, "OSError": OSError, "ValueError": ValueError}
"""What an actor reports, the more special ones first."""
_ANSWER = pa.schema([("payload", pa.binary()), ("kind", pa.string()), ("fault", pa.string())])


class Actor:
    """Computes tasks, one at a time; a subclass says how.

    Args:
        on_gpu: whether Ray gives it a GPU.
    """

    def __init__(self, *, on_gpu: bool) -> None:
        self._on_gpu = on_gpu
        self._is_ready = False

    def prepare(self) -> None:
        """Called once, before the first task."""
        raise NotImplementedError

    def compute(self, task: Task) -> bytes:
        """The answer to a task. Raises ValueError or OSError where another attempt would not help."""
        raise NotImplementedError

    def __call__(self, tasks: pa.Table) -> pa.Table:
        """As Ray Data calls it, with one task."""
        (task,) = tasks.to_pylist()
        payload, kind, fault = b"", "", ""
        try:
            if not self._is_ready:
                (require_gpu if self._on_gpu else hide_gpus)()
                self.prepare()
                self._is_ready = True
            payload = self.compute(task)
        except (ValueError, OSError) as error:
            kind = next(name for name, known in _FAULTS.items() if isinstance(error, known))
            fault = str(error)
        return pa.table([[payload], [kind], [fault]], schema=_ANSWER)


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Actors on the cluster that this process is connected to."""

    claim: dict[str, float]
    """What each takes, by Ray's names."""
    actors: int
    patience: int
    verbose: bool


def make_pool(request: PoolRequest) -> Pool:
    """The pool that is asked for; nothing is started.

    Raises:
        ValueError: an actor that can never be placed.
    """
    claim = request.claim(has_gpus=has_gpus())
    actors = request.actors or _fitting(claim)
    return Pool(claim=claim, actors=actors, patience=request.patience, verbose=request.verbose)


@contextmanager
def answers(
    actor: type[Actor], arguments: dict[str, Any], tasks: Sequence[Task], pool: Pool
) -> Iterator[Iterator[bytes]]:
    """Compute tasks; inside the block their answers, as they come. No task runs behind it.

    A thread of Ray Data's asks for tasks until its iterator is closed, which a reference in a traceback puts off. One
    that outlived the connection would start a cluster of its own.

    Args:
        actor: what computes them.
        arguments: of its constructor, beside `on_gpu`.

    Raises:
        ValueError, OSError: what an actor has met; or an actor that cannot be started.
        Unavailable: no task has ended for too long.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = pool.verbose
    context.execution_no_progress_timeout_s = pool.patience
    logging.getLogger("ray.data").setLevel(logging.INFO if pool.verbose else logging.CRITICAL)
    gpus = pool.claim.get("GPU", 0)
    mapped = ray.data.from_items(list(tasks), override_num_blocks=len(tasks)).map_batches(
        actor,
        fn_constructor_kwargs={**arguments, "on_gpu": gpus > 0},
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=min(pool.actors, len(tasks))),
        num_cpus=pool.claim["CPU"],
        num_gpus=gpus,
    )
    with closing(_payloads(mapped, pool)) as payloads:
        yield payloads


def _payloads(mapped: ray.data.Dataset, pool: Pool) -> Generator[bytes, None, None]:
    """What the actors answer. Closes Ray Data's iterator at its end, whatever that is."""
    blocks = iter(mapped.iter_batches(batch_size=None, batch_format="pyarrow"))
    assert isinstance(blocks, Generator), "Ray Data's iterator, whose close() ends the execution"
    try:
        with waiting("actors to start and to end a first task"):
            first = list(islice(blocks, 1))
        for block in chain(first, blocks):
            assert isinstance(block, pa.Table), "as the format says"
            for answer in block.to_pylist():
                if answer["kind"]:
                    raise _FAULTS[answer["kind"]](answer["fault"])
                yield answer["payload"]
    except ExecutionTimeoutError as error:
        raise Unavailable(
            f"no actor has ended a task for {pool.patience} s (free: {what_is_free()}): others hold the cluster, or a "
            "task takes longer; --patience waits longer"
        ) from error
    except RayActorError as error:
        raise ValueError(
            f"an actor cannot start: {first_line(error, 300)}; are the packages of all nodes the same?"
        ) from error
    finally:
        blocks.close()


def _fitting(claim: dict[str, float]) -> int:
    """How many actors the nodes hold at once."""
    nodes = live_nodes()
    found = slots(claim, nodes)
    if not found:
        there = "; ".join(f"{node.get('CPU', 0.0):g} CPU, {node.get('GPU', 0.0):g} GPU" for node in nodes) or "none"
        wanted = " and ".join(f"{amount:g} {name}" for name, amount in claim.items())
        raise ValueError(
            f"an actor wants {wanted}; no node of the cluster has that ({there}): it could never start. Lower "
            "--cpus-per-actor or --gpus-per-actor, add nodes, or give --actors where an autoscaler will"
        )
    return found
