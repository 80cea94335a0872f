"""Numbered tasks in processes that may die: a process that is killed costs its task an attempt, and no other task.

Each process is started from scratch, so what tasks load is not shared, and no thread of this process is there. It is
given one task after the other. When this process ends, for whatever reason, they end with their task.
"""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from data_shards.executor import Ending, Result

_CONTEXT = multiprocessing.get_context("spawn")
_READY = "ready"


@dataclass(frozen=True, kw_only=True)
class SpawnedProcesses:
    """Independent tasks in processes of this machine (`data_shards.executor.IndependentExecutor`)."""

    processes: int
    attempts: int
    """At a task, before it is given up."""

    def __post_init__(self) -> None:
        for name, value in (("processes", self.processes), ("attempts", self.attempts)):
            if value < 1:
                raise ValueError(f"{name}: {value} is too few; use at least 1")

    @contextmanager
    def map_independent(
        self, run: Callable[[int], Result], count: int, *, memory: int
    ) -> Iterator[Iterator[Ending[Result]]]:
        """As `IndependentExecutor`."""
        tasks = _Tasks(run, count, self.attempts)
        try:
            yield tasks.endings(min(self.processes, count))
        finally:
            tasks.stop()


@dataclass(frozen=True)
class _Bug:
    """An error that one task meets, of a library or ours."""

    text: str


@dataclass(eq=False)
class _Worker:
    """A process, and the task that it has."""

    process: Any
    connection: Connection
    task: int | None = None
    is_ready: bool = False
    """Whether it has loaded what it runs."""


@dataclass
class _Tasks:
    """Tasks that wait, and those that run."""

    run: Callable[[int], Any]
    count: int
    attempts: int
    waiting: deque[int] = field(default_factory=deque)
    failures: dict[int, int] = field(default_factory=dict)
    workers: list[_Worker] = field(default_factory=list)

    def endings(self, processes: int) -> Iterator[Ending[Any]]:
        """As tasks end."""
        self.waiting.extend(range(self.count))
        while self.waiting or any(worker.task is not None for worker in self.workers):
            wanted = min(processes, len(self.waiting) + sum(worker.task is not None for worker in self.workers))
            while len(self.workers) < wanted:
                self.workers.append(_start(self.run))
            for worker in self.workers:
                if worker.task is None and self.waiting:
                    self._give(worker, self.waiting.popleft())
            busy = {worker.connection: worker for worker in self.workers if worker.task is not None}
            for connection in wait(list(busy)):
                ending = self._receive(busy[connection])  # type: ignore[index]
                if ending is not None:
                    yield ending

    def stop(self) -> None:
        """End all processes."""
        for worker in self.workers:
            worker.process.kill()
        for worker in self.workers:
            worker.process.join()
            worker.connection.close()
        self.workers.clear()

    def _give(self, worker: _Worker, task: int) -> None:
        worker.task = task
        with suppress(OSError):  # of a process that has died meanwhile; what it sends next says so
            worker.connection.send(task)

    def _receive(self, worker: _Worker) -> Ending[Any] | None:
        """What a process sent; None where its task is tried again, or where it has just started."""
        task = worker.task
        assert task is not None
        try:
            outcome = worker.connection.recv()
        except (EOFError, OSError):
            self.workers.remove(worker)
            worker.process.join()
            worker.connection.close()
            code = worker.process.exitcode
            if code > 0 and not worker.is_ready:
                raise ValueError(f"a process cannot start (exit code {code}); its error is above") from None
            return self._failed(task, _reason(code))
        if isinstance(outcome, str) and outcome == _READY:
            worker.is_ready = True
            return None
        worker.task = None
        if isinstance(outcome, ValueError):
            raise outcome
        if isinstance(outcome, OSError):
            return self._failed(task, str(outcome))
        if isinstance(outcome, _Bug):
            return Ending(number=task, lost=outcome.text)
        return Ending(number=task, result=outcome)

    def _failed(self, task: int, reason: str) -> Ending[Any] | None:
        self.failures[task] = self.failures.get(task, 0) + 1
        if self.failures[task] < self.attempts:
            self.waiting.appendleft(task)
            return None
        attempts = f" (attempts: {self.attempts})" if self.attempts > 1 else ""
        return Ending(number=task, lost=f"{reason}{attempts}")


def _start(run: Callable[[int], Any]) -> _Worker:
    ours, theirs = _CONTEXT.Pipe()
    process = _CONTEXT.Process(target=_work, args=(run, theirs), daemon=True)
    with _inherited():
        process.start()
    theirs.close()
    return _Worker(process, ours)


@contextmanager
def _inherited() -> Iterator[None]:
    """What processes that start within the block inherit: no Ctrl-C of the terminal, after which this process ends
    them, and one thread for numerical libraries, as Ray gives its tasks, unless the user says how many."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    is_said = "OMP_NUM_THREADS" in os.environ
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        yield
    finally:
        if not is_said:
            del os.environ["OMP_NUM_THREADS"]
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _reason(code: int) -> str:
    if code == -signal.SIGALRM:
        return "it took longer than a task may"
    if code == -signal.SIGKILL:
        return "its process was killed, as the kernel does where memory is short"
    if code < 0:
        return f"its process died of {signal.Signals(-code).name}"
    return f"its process ended with exit code {code}"


def _work(run: Callable[[int], Any], connection: Connection) -> None:
    try:
        connection.send(_READY)
        while True:
            task = connection.recv()
            try:
                outcome: Any = run(task)
            except (ValueError, OSError) as error:
                outcome = error
            except Exception as error:
                outcome = _Bug(f"{type(error).__name__}: {error}")
            connection.send(outcome)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        os._exit(1)
