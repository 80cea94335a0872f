"""Where numbered tasks run: in this process, in forked ones (`writing.process_pool`), or on a cluster.

with executor.map_in_order(run, 100, memory=0) as results:
    for result in results:      # run(0), run(1), ..., run(99)
        ...

Where a task may be lost without harm to the others (`data_shards.spawned_processes`, or a cluster):

with executor.map_independent(run, 100, memory=0) as endings:
    for ending in endings:      # of any task, as they end
        ...
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

Result = TypeVar("Result")


class TasksLost(Exception):
    """Tasks do not run, or are lost at every attempt; the same command may work later."""


class Executor(Protocol):
    """Runs tasks; a build and the look at the files of a source are made of such tasks."""

    @property
    def apart(self) -> bool:
        """Whether tasks run on other hosts: what they run is pickled, and of this host's directories they see those
        that are shared."""

    def map_in_order(
        self,
        run: Callable[[int], Result],
        count: int,
        *,
        memory: int,
        close_in_workers: Sequence[int] = (),
        settle: Callable[[Result], None] | None = None,
    ) -> AbstractContextManager[Iterator[Result]]:
        """`run(0), run(1), ..., run(count - 1)`. When the context is left, also by an error, no task runs any more.

        Args:
            run: may raise `ValueError` or `OSError`, which then is raised here. It may run more than once for a number.
            memory: bytes that a task takes at most, beside those of an idle process.
            close_in_workers: file descriptors that other processes of this host must not keep open, such as locks.
            settle: where tasks on other hosts leave something behind that a failure must remove: takes each result
                that was not yielded.
        """


@dataclass(frozen=True, kw_only=True)
class Ending(Generic[Result]):
    """How a task of several ended, none of which needs another."""

    number: int
    result: Result | None = None
    lost: str = ""
    """Why there is no result: its process or node was lost, or its storage failed, at every attempt; or an error that
    is neither `ValueError` nor `OSError`, such as a library's, by its type and text."""


class IndependentExecutor(Protocol):
    """Runs tasks none of which needs another."""

    def map_independent(
        self, run: Callable[[int], Result], count: int, *, memory: int
    ) -> AbstractContextManager[Iterator[Ending[Result]]]:
        """How each of `run(0), ..., run(count - 1)` ended, as they end; they begin in this order. When the context is
        left, also by an error, no task runs any more.

        Args:
            run: pickled. It may raise `ValueError`, which ends everything and is raised here, or `OSError`, after which
                the task is tried again. It may run more than once for a number.
            memory: bytes that a task takes at most, beside those of an idle process.
        """


class InThisProcess:
    """One task after the other, here."""

    apart = False

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
        """As `Executor`."""
        yield map(run, range(count))
