"""Numbered tasks in forked processes, results in order; used to write shards.

Process `w` of `n` takes tasks `w, w + n, ...` and hands results over a pipe of its own, so results come in order, no
process runs far ahead of the others, and when the parent dies, however it dies, so do its workers at their next
result. Forking shares what the parent has in memory, above all the source.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import TypeVar

Result = TypeVar("Result")


@contextmanager
def ordered(
    run: Callable[[int], Result], count: int, *, processes: int, close: Sequence[int] = ()
) -> Iterator[Iterator[Result]]:
    """`run(0), run(1), ..., run(count - 1)`, in this process if `processes` is 1.

    When the context is left, by an error too, no worker is alive: none writes into a directory that is removed next.

    Args:
        run: may raise `ValueError` or `OSError`, which then is raised here.
        close: file descriptors that the workers must not keep open, such as locks.

    Raises:
        ValueError: a worker was killed.
    """
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
            worker = context.Process(target=_work, args=(run, tasks, sender, list(receivers), close), daemon=True)
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
    run: Callable[[int], object], tasks: range, sender: Connection, receivers: list[Connection], close: Sequence[int]
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is told, and ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for receiver in receivers:  # else a dead parent would go unnoticed
        receiver.close()
    for handle in close:
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
