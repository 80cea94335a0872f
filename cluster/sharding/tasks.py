"""Numbered tasks on the nodes of a Ray cluster, results in order, for a build of shards.

What tasks run is put into Ray's object store once and loaded once by each worker process. A task that is lost with its
node or its process, or whose storage fails, runs again, on any node. A mistake in the data is a result: it is not
tried again, and it is raised where the results are taken, as by `data_shards.writing.process_pool`.
"""

import logging
import pickle
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle
from ray.exceptions import RayError, RayTaskError

from cluster.ray_runtime.session import live_nodes
from data_shards.executor import Result

_log = logging.getLogger(__name__)
IDLE_MEMORY = 256 << 20
"""Bytes of a worker process before it reads anything: Python, Ray, numpy and pyarrow."""
_LOOK_SECONDS = 1.0
"""Between two looks at tasks that run."""
_SETTLE_SECONDS = 20.0
"""How long a failed build waits for tasks whose uploads it must know, before it kills them."""
_KILL_SECONDS = 10.0
"""How long it waits for killed tasks; a node that is cut off never answers."""
_LASTING = (FileNotFoundError, PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError)
"""What another attempt would meet again."""


class TasksLost(Exception):
    """Tasks do not run, or are lost at every attempt."""


@dataclass(frozen=True, kw_only=True)
class RayTasks:
    """Tasks of one CPU each on the cluster that this process is connected to (`data_shards.executor.Executor`)."""

    paths: tuple[Path, ...]
    """Absolute paths that every node must see."""
    memory: int | None = None
    """Bytes that each task claims; None: those of an idle process and what it is said to take."""
    in_flight: int | None = None
    """Tasks that have not ended, at most; None: two for each CPU of the cluster."""
    max_retries: int
    patience: float
    """Seconds without any task that ends, before the tasks are given up."""
    apart = True

    @contextmanager
    def map_in_order(
        self,
        run: Callable[[int], Result],
        count: int,
        *,
        memory: int,
        close_in_workers: Sequence[int] = (),
        settle: Callable[[Result], None] | None = None,
    ) -> Iterator[Iterator[Result]]:
        """As `Executor`.

        Raises:
            ValueError: no node has the memory for a task. TasksLost: nothing runs for long, or a task is lost at every
                attempt; raised where the results are taken.
        """
        claim = IDLE_MEMORY + memory if self.memory is None else self.memory
        _check_memory(claim)
        task = _run.options(
            memory=claim,
            max_retries=self.max_retries,
            retry_exceptions=[OSError],
            scheduling_strategy="SPREAD",
        )
        shared = ray.put(cloudpickle.dumps(run))  # type: ignore[no-untyped-call]
        waiting: deque[ray.ObjectRef[Any]] = deque()
        try:
            yield self._results(lambda number: task.remote([shared], number, self.paths), count, waiting)
        finally:
            _end(waiting, settle)

    def _results(
        self, start: Callable[[int], "ray.ObjectRef[Any]"], count: int, waiting: "deque[ray.ObjectRef[Any]]"
    ) -> Iterator[Any]:
        """Results in order; `waiting` holds the tasks whose results were not taken."""
        started = 0
        while waiting or started < count:
            limit = _in_flight() if self.in_flight is None else self.in_flight
            while started < count and len(waiting) < limit:
                waiting.append(start(started))
                started += 1
            self._wait(waiting)
            result = _outcome(waiting[0])  # a request to stop meanwhile leaves it to those that are settled
            waiting.popleft()
            if isinstance(result, ValueError | OSError):
                raise result
            yield result

    def _wait(self, waiting: "deque[ray.ObjectRef[Any]]") -> None:
        """Wait for the first of some tasks, as long as any of them ends now and then."""
        ended, since = 0, time.monotonic()
        while not ray.wait([waiting[0]], timeout=_LOOK_SECONDS, fetch_local=False)[0]:
            done = len(ray.wait(list(waiting), num_returns=len(waiting), timeout=0, fetch_local=False)[0])
            if done > ended:
                ended, since = done, time.monotonic()
            if time.monotonic() - since > self.patience:
                free, there = ray.available_resources(), ray.cluster_resources()  # type: ignore[no-untyped-call]
                raise TasksLost(
                    f"no task has ended for {time.monotonic() - since:.0f} s (free: {free.get('CPU', 0):g} of "
                    f"{there.get('CPU', 0):g} CPU, {free.get('memory', 0) / 2**30:.1f} of "
                    f"{there.get('memory', 0) / 2**30:.1f} GiB): others hold the cluster, or the storage does not "
                    "answer; --patience waits longer"
                )


@ray.remote(num_cpus=1)
def _run(shared: "list[ray.ObjectRef[bytes]]", number: int, paths: tuple[Path, ...]) -> Any:
    """What a task runs: the result of one number, or the error that ends the build.

    Args:
        shared: what is run, in a list so that Ray does not fetch it for each task.

    Raises:
        OSError: of a storage that may work at another attempt.
    """
    host = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    for path in paths:
        if not path.exists():
            return _unseen(host, path)
    try:
        return _load(shared[0])(number)
    except FileNotFoundError as error:
        return _unseen(host, error.filename or error)
    except (ValueError, *_LASTING) as error:
        return error


@lru_cache(maxsize=1)
def _load(shared: "ray.ObjectRef[bytes]") -> Callable[[int], Any]:
    """What tasks run, in this worker process; its own errors are raised as they are."""
    run: Callable[[int], Any] = pickle.loads(ray.get(shared))
    return run


def _unseen(host: str, path: object) -> ValueError:
    return ValueError(
        f"node {host} does not see {path}; put FEATURES and SHARDS on storage that all nodes share (NFS, Lustre, ...), "
        "under the same path"
    )


def _outcome(task: "ray.ObjectRef[Any]") -> Any:
    """What a task that has ended returned.

    Raises:
        OSError: its storage failed at every attempt. TasksLost: it was lost at every attempt.
    """
    try:
        return ray.get(task)
    except RayTaskError as error:
        if isinstance(error.cause, OSError):
            return error.cause
        raise
    except RayError as error:
        reason = " ".join(str(error).split()).partition(". ")[0]  # Ray goes on with where else to look
        raise TasksLost(f"a task was lost at every attempt: {type(error).__name__}: {reason}") from error


def _end(waiting: "deque[ray.ObjectRef[Any]]", settle: Callable[[Any], None] | None) -> None:
    """See to it that no task runs any more, and that what they have left is known."""
    tasks = list(waiting)
    if not tasks:
        return
    if settle is not None:
        done, tasks = ray.wait(tasks, num_returns=len(tasks), timeout=_SETTLE_SECONDS, fetch_local=False)
        for task in done:
            try:
                result = _outcome(task)
            except (RayError, TasksLost):
                continue
            if not isinstance(result, ValueError | OSError):
                settle(result)
    for task in tasks:
        ray.cancel(task, force=True)
    if tasks:
        _, alive = ray.wait(tasks, num_returns=len(tasks), timeout=_KILL_SECONDS, fetch_local=False)
        if settle is not None or alive:
            _log.warning("%d tasks were killed or do not answer; a file that one was writing may be left", len(tasks))


def _in_flight() -> int:
    """Two tasks for each CPU of the cluster as it is now, so that no CPU waits for the driver."""
    return max(2, 2 * int(ray.cluster_resources().get("CPU", 0)))  # type: ignore[no-untyped-call]


def _check_memory(claim: int) -> None:
    """Raise ValueError where no node could ever run a task of so many bytes."""
    nodes = [node.get("memory", 0.0) for node in live_nodes() if node.get("CPU", 0) >= 1]
    if nodes and claim > max(nodes):
        raise ValueError(
            f"a task takes up to {claim / 2**30:.1f} GiB of memory, and the largest node offers "
            f"{max(nodes) / 2**30:.1f}; write the features in smaller files or row groups, or claim less with "
            "--memory-per-task"
        )
