"""How fast a training goes, and how long it will take at that pace."""

import time
from typing import NamedTuple

_MEMORY = 0.9
"""Weight of what came before, at each step."""


class _Lap(NamedTuple):
    """Steps one after the other."""

    samples: int
    seconds: float

    @property
    def rate(self) -> float:
        return self.samples / self.seconds if self.seconds > 0 else 0.0


class Throughput:
    """Samples per second of the steps of an epoch, or of the rest of one."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """The first step begins."""
        self._began = self._lap_began = time.perf_counter()
        self._samples = self._in_lap = 0
        self._last: _Lap | None = None

    def step(self, samples: int) -> None:
        """A step of so many samples, over all ranks, has ended."""
        self._samples += samples
        self._in_lap += samples

    def lap(self) -> float:
        """The rate of the steps since the last call.

        The step that ends an epoch may hold a few samples, and takes nearly as long as any: steps with fewer samples
        than those of the call before count together with them.
        """
        now = time.perf_counter()
        lap = _Lap(self._in_lap, now - self._lap_began)
        if self._last is not None and lap.samples < self._last.samples:
            lap = _Lap(lap.samples + self._last.samples, lap.seconds + self._last.seconds)
        self._last, self._lap_began, self._in_lap = lap, now, 0
        return lap.rate

    def whole(self) -> float:
        """The rate of all steps so far."""
        return _Lap(self._samples, time.perf_counter() - self._began).rate


class Pace:
    """The time of steps and validations in this session.

    Args:
        steps_per_epoch: of every epoch.
        epochs: how many there are at most.
        max_steps: after how many the training ends; None: after the epochs.
    """

    def __init__(self, *, steps_per_epoch: int, epochs: int, max_steps: int | None) -> None:
        self._steps_per_epoch = steps_per_epoch
        self._epochs = epochs
        self._max_steps = max_steps
        self._step_seconds: float | None = None
        self._validation_seconds = 0.0
        self._since: float | None = None

    def begin(self) -> None:
        """A step or a validation begins, after something else."""
        self._since = time.perf_counter()

    def step(self) -> None:
        """A step has ended, and the next one begins."""
        seconds = self._lap()
        known = self._step_seconds
        self._step_seconds = seconds if known is None else _MEMORY * known + (1 - _MEMORY) * seconds

    def first_step(self) -> None:
        """The same of the first step, which takes longer than others and is not counted once there are others."""
        self._lap()

    def validation(self) -> None:
        """A validation has ended."""
        self._validation_seconds = self._lap()

    def _lap(self) -> float:
        assert self._since is not None
        before, self._since = self._since, time.perf_counter()
        return self._since - before

    def left_in_epoch(self, place: int) -> float | None:
        """Seconds of the steps that an epoch has left after `place` of them; None: not known yet."""
        return None if self._step_seconds is None else (self._steps_per_epoch - place) * self._step_seconds

    def left(self, step: int, epoch: int, place: int) -> float | None:
        """Seconds to the end of the training, at most: early stopping may end it before. None: not known yet.

        Args:
            step: steps that were made.
            epoch: the one that is under way, from 0.
            place: steps of it that were made.
        """
        if self._step_seconds is None:
            return None
        steps = (self._epochs - epoch) * self._steps_per_epoch - place
        if self._max_steps is not None:
            steps = min(steps, self._max_steps - step)
        validations = -(-(steps + place) // self._steps_per_epoch)
        return max(steps, 0) * self._step_seconds + validations * self._validation_seconds
