"""Numbered tasks in forked processes, results in order; used to look at files and to write shards.

Process `w` of `n` takes tasks `w, w + n, ...` and sends results through a pipe of its own. So results come in order and
no process runs far ahead of the others. When the parent dies, for whatever reason, its workers end at their next
result. A forked process shares what the parent has in memory, above all the source.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection

from data_shards.executor import Result


@dataclass(frozen=True)
class ForkedProcesses:
    """Tasks in forked processes (`data_shards.executor.Executor`)."""

    processes: int
    """1: in this process."""
    apart = False

    def __post_init__(self) -> None:
        if self.processes < 1:
            raise ValueError(f"processes: {self.processes} is too few; use at least 1")

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
        """As `Executor`; a worker that was killed is a ValueError."""
        with _forked(run, count, self.processes, close_in_workers) as results:
            yield results


@contextmanager
def _forked(
    run: Callable[[int], Result], count: int, processes: int, close_in_workers: Sequence[int]
) -> Iterator[Iterator[Result]]:
    """The results of tasks; when the context is left no worker is alive: what they write to can be removed."""
    if min(processes, count) <= 1:
        yield map(run, range(count))
        return
    context = multiprocessing.get_context("fork")
    receivers: list[Connection] = []
    workers: list[multiprocessing.context.ForkProcess] = []
    try:
        for first in range(min(processes, count)):
            receiver, sender = context.Pipe(duplex=False)
            receivers.append(receiver)
            tasks = range(first, count, processes)
            worker = context.Process(
                target=_work, args=(run, tasks, sender, list(receivers), close_in_workers), daemon=True
            )
            worker.start()
            workers.append(worker)
            sender.close()
        yield (_receive(receivers[task % processes], workers[task % processes]) for task in range(count))
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()
        for receiver in receivers:
            receiver.close()


def _receive(receiver: "Connection", worker: "multiprocessing.context.ForkProcess") -> Result:  # type: ignore[type-var]
    try:
        outcome = receiver.recv()
    except EOFError as error:
        worker.join()
        raise ValueError(f"a writer process died (exit code {worker.exitcode}); run the command again") from error
    if isinstance(outcome, (ValueError, OSError)):
        raise outcome
    result: Result = outcome
    return result


def _work(
    run: Callable[[int], object], tasks: range, sender: Connection, receivers: list[Connection], handles: Sequence[int]
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets the signal, and ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for receiver in receivers:  # else the pipe would not break when the parent dies
        receiver.close()
    for handle in handles:
        os.close(handle)
    try:
        for task in tasks:
            try:
                outcome: object = run(task)
            except (ValueError, OSError) as error:
                outcome = error
            sender.send(outcome)
    except BrokenPipeError:
        os._exit(1)
