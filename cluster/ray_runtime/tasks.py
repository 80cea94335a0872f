"""Numbered tasks on the nodes of a Ray cluster: results in order for a build of shards, or as they end for clips.

What tasks run is put into Ray's object store once and loaded once by each worker process. A task that is lost with its
node or its process, or whose storage fails, runs again, on any node. A mistake in the data is a result: it is not
tried again, and it is raised where the results are taken, as by `data_shards.writing.process_pool`.

No module here needs more than Ray and `data_shards`, since each worker process loads it.
"""

import logging
import pickle
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle
from ray.exceptions import RayError, RayTaskError

from cluster.ray_runtime.session import live_nodes
from data_shards.executor import Ending, Result, TasksLost

_log = logging.getLogger(__name__)
IDLE_MEMORY = 256 << 20
"""Bytes of a worker process before it reads anything: Python, Ray, numpy and pyarrow."""
_LOOK_SECONDS = 1.0
"""Between two looks at tasks that run."""
_SETTLE_SECONDS = 20.0
"""How long a failed build waits for tasks whose uploads it must know, before it kills them."""
_MOMENT_SECONDS = 1.0
"""How long it waits for other tasks: Ray aborts the driver where a task that it kills ends at that moment ("Tried to
complete task that was not pending", seen with Ray 2.60 where all tasks ended with an error at once)."""
_KILL_SECONDS = 10.0
"""How long it waits for killed tasks; a node that is cut off never answers."""
_LASTING = (FileNotFoundError, PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError)
"""What another attempt would meet again."""


@dataclass(frozen=True, kw_only=True)
class RayTasks:
    """Tasks of one CPU each on the cluster that this process is connected to (`data_shards.executor.Executor` and
    `IndependentExecutor`)."""

    paths: tuple[Path, ...]
    """Absolute paths that every node must see."""
    places: str
    """What names them on the command line, such as "FEATURES and SHARDS"."""
    to_need_less: str
    """What makes tasks take less memory, such as "write the features in smaller files"."""
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
        start = self._starter(run, memory)
        waiting: deque[ray.ObjectRef[Any]] = deque()
        try:
            yield self._results(start, count, waiting)
        finally:
            _end(waiting, settle)

    @contextmanager
    def map_independent(
        self, run: Callable[[int], Result], count: int, *, memory: int
    ) -> Iterator[Iterator[Ending[Result]]]:
        """As `IndependentExecutor`.

        Raises:
            ValueError: no node has the memory for a task, or does not see the paths. TasksLost: nothing runs for long.
        """
        start = self._starter(run, memory)
        running: dict[ray.ObjectRef[Any], int] = {}
        try:
            yield self._endings(start, count, running)
        finally:
            _end(running, None)

    def _starter(self, run: Callable[[int], Any], memory: int) -> Callable[[int], "ray.ObjectRef[Any]"]:
        """What starts a task. Raises ValueError where no node has the memory for one."""
        claim = IDLE_MEMORY + memory if self.memory is None else self.memory
        _check_memory(claim, self.to_need_less)
        task = _run.options(
            memory=claim,
            max_retries=self.max_retries,
            retry_exceptions=[OSError],
            scheduling_strategy="SPREAD",
        )
        shared = ray.put(cloudpickle.dumps(run))  # type: ignore[no-untyped-call]
        return lambda number: task.remote([shared], number, self.paths, self.places)

    def _limit(self) -> int:
        """Tasks that have not ended, at most."""
        return _in_flight() if self.in_flight is None else self.in_flight

    def _endings(
        self, start: Callable[[int], "ray.ObjectRef[Any]"], count: int, running: "dict[ray.ObjectRef[Any], int]"
    ) -> Iterator[Ending[Any]]:
        """How tasks ended, as they do; `running` holds those whose ending was not taken."""
        started = 0
        while running or started < count:
            limit = self._limit()
            while started < count and len(running) < limit:
                running[start(started)] = started
                started += 1
            for task in self._wait_for_any(running):
                ending = _ending(running[task], task)
                del running[task]
                yield ending

    def _wait_for_any(self, running: "dict[ray.ObjectRef[Any], int]") -> "list[ray.ObjectRef[Any]]":
        """The tasks that have ended, at least one."""
        since = time.monotonic()
        while True:
            ended, _ = ray.wait(list(running), num_returns=1, timeout=_LOOK_SECONDS, fetch_local=False)
            if ended:
                return ended
            self._check_patience(since)

    def _results(
        self, start: Callable[[int], "ray.ObjectRef[Any]"], count: int, waiting: "deque[ray.ObjectRef[Any]]"
    ) -> Iterator[Any]:
        """Results in order; `waiting` holds the tasks whose results were not taken."""
        started = 0
        while waiting or started < count:
            limit = self._limit()
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
            self._check_patience(since)

    def _check_patience(self, since: float) -> None:
        """Raise TasksLost where no task has ended for too long."""
        waited = time.monotonic() - since
        if waited <= self.patience:
            return
        free, there = ray.available_resources(), ray.cluster_resources()  # type: ignore[no-untyped-call]
        raise TasksLost(
            f"no task has ended for {waited:.0f} s (free: {free.get('CPU', 0):g} of "
            f"{there.get('CPU', 0):g} CPU, {free.get('memory', 0) / 2**30:.1f} of "
            f"{there.get('memory', 0) / 2**30:.1f} GiB): others hold the cluster, or the storage does not "
            "answer; --patience waits longer"
        )


@ray.remote(num_cpus=1)
def _run(shared: "list[ray.ObjectRef[bytes]]", number: int, paths: tuple[Path, ...], places: str) -> Any:
    """What a task runs: the result of one number, or the error that ends the build.

    Args:
        shared: what is run, in a list so that Ray does not fetch it for each task.
        paths: what must be there.
        places: what names them, for errors.

    Raises:
        OSError: of a storage that may work at another attempt.
    """
    host = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    for path in paths:
        if not path.exists():
            return _unseen(host, path, places)
    try:
        return _load(shared[0])(number)
    except FileNotFoundError as error:
        return _unseen(host, error.filename or error, places)
    except (ValueError, *_LASTING) as error:
        return error


@lru_cache(maxsize=1)
def _load(shared: "ray.ObjectRef[bytes]") -> Callable[[int], Any]:
    """What tasks run, in this worker process; its own errors are raised as they are."""
    run: Callable[[int], Any] = pickle.loads(ray.get(shared))
    return run


def _unseen(host: str, path: object, places: str) -> ValueError:
    return ValueError(
        f"node {host} does not see {path}; put {places} on storage that all nodes share (NFS, Lustre, ...), "
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


def _ending(number: int, task: "ray.ObjectRef[Any]") -> Ending[Any]:
    """How a task that has ended did.

    Raises:
        ValueError: a mistake that ends them all.
    """
    try:
        result = _outcome(task)
    except TasksLost as error:
        return Ending(number=number, lost=str(error))
    except RayTaskError as error:  # a bug, of a library or ours, that this number meets
        return Ending(number=number, lost=f"{type(error.cause).__name__}: {error.cause}")
    if isinstance(result, ValueError):
        raise result
    if isinstance(result, OSError):
        return Ending(number=number, lost=str(result))
    return Ending(number=number, result=result)


def _end(waiting: "Iterable[ray.ObjectRef[Any]]", settle: Callable[[Any], None] | None) -> None:
    """See to it that no task runs any more, and that what they have left is known."""
    tasks = list(waiting)
    if not tasks:
        return
    seconds = _MOMENT_SECONDS if settle is None else _SETTLE_SECONDS
    done, tasks = ray.wait(tasks, num_returns=len(tasks), timeout=seconds, fetch_local=False)
    if settle is not None:
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


def _check_memory(claim: int, to_need_less: str) -> None:
    """Raise ValueError where no node could ever run a task of so many bytes."""
    nodes = [node.get("memory", 0.0) for node in live_nodes() if node.get("CPU", 0) >= 1]
    if nodes and claim > max(nodes):
        raise ValueError(
            f"a task takes up to {claim / 2**30:.1f} GiB of memory, and the largest node offers "
            f"{max(nodes) / 2**30:.1f}; {to_need_less}, or claim less with --memory-per-task"
        )
