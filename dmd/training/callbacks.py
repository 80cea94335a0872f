"""What a caller lets a training do after each step and each validation.

    class Curve(Callback):
        def __init__(self):
            self.losses = []

        def on_epoch(self, report):
            self.losses.append(report.loss)

    dmd.train("mosi-aligned", data, "runs/first", callbacks=[Curve()])

Callbacks see the training and the validation split, never the test split.
"""

from collections.abc import Callable, Sequence
from typing import Any

from dmd.training.outcome import EpochReport, StepReport


class Callback:
    """Base of callbacks, each method of which does nothing. An object that has one of them alone serves as well.

    A training calls them on the first rank, one after the other, and waits for them. An exception ends the training:
    it writes a checkpoint, closes its log and raises the exception; `StopTraining` stops it, as Ctrl-C does.
    """

    def on_step(self, report: StepReport) -> None:
        """After each optimizer step."""

    def on_epoch(self, report: EpochReport) -> None:
        """After each validation, whose checkpoint is on its way to the storage."""


class StopTraining(Exception):
    """Raised by a callback: the training stops after a checkpoint, and its caller gets an outcome."""


class Callbacks:
    """The callbacks of this rank.

    Args:
        callbacks: as the caller gave them.
        may_save: whether this rank can write a checkpoint by itself, so that an exception waits for it; where there are
            others it is raised at once.

    Raises:
        ValueError: no list, a class, or an object with neither method.
    """

    def __init__(self, callbacks: Sequence[Callback], *, may_save: bool) -> None:
        if not isinstance(callbacks, Sequence):
            raise ValueError(f"callbacks is {callbacks!r:.60}; give a list, such as [Curve()]")
        for callback in callbacks:
            if isinstance(callback, type):
                name = callback.__name__
                raise ValueError(f"callbacks has the class {name}; give an object of it: {name}()")
        self._on_step = _methods(callbacks, "on_step")
        self._on_epoch = _methods(callbacks, "on_epoch")
        self._may_save = may_save
        self._failure: Exception | None = None
        self.ended = False
        """Whether a callback has failed or asked for a stop; none is called any more."""
        for callback in callbacks:
            if not (hasattr(callback, "on_step") or hasattr(callback, "on_epoch")):
                raise ValueError(
                    f"the callback {callback!r:.60} has neither on_step(report) nor on_epoch(report); give it one, or "
                    "derive it from dmd.Callback"
                )

    def step(self, report: StepReport) -> None:
        """Call those that look at steps."""
        self._call(self._on_step, report)

    def epoch(self, report: EpochReport) -> None:
        """Call those that look at validations."""
        self._call(self._on_epoch, report)

    def raise_failure(self) -> None:
        """Raise what a callback raised, with its own traceback."""
        if self._failure is not None:
            raise self._failure

    def _call(self, methods: list[Callable[[Any], object]], report: StepReport | EpochReport) -> None:
        if self.ended:
            return
        try:
            for method in methods:
                method(report)
        except Exception as error:
            if not self._may_save:
                raise
            self.ended = True
            self._failure = None if isinstance(error, StopTraining) else error


def _methods(callbacks: Sequence[Callback], name: str) -> list[Callable[[Any], object]]:
    return [getattr(callback, name) for callback in callbacks if hasattr(callback, name)]
