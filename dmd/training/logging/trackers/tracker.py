"""What every tracker does, and what it is given."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from dmd.training.logging.hyperparameters import Hyperparameter

SessionEnding = Literal["finished", "stopped", "lost"]
"""How a session of a training ended: by itself, on request, or without a word."""
DEFAULT_PROJECT = "dmd"
"""Project or experiment of a tracker where its environment variables name none."""


@dataclass(frozen=True, kw_only=True)
class About:
    """What a tracker is told of a run."""

    run: Path
    name: str
    group: str | None
    """The search or experiment that it is a part of."""
    config: Mapping[str, Any]
    """Nested, as run.json has it."""
    parameters: Mapping[str, Hyperparameter]
    """The same under dotted keys."""
    tags: Mapping[str, str]
    """Preset, seed, data, generation, commit, as far as they are known."""


class Step(NamedTuple):
    """The numbers of one step by tag, as metrics.jsonl has them; NaN for null."""

    step: int
    time: float
    """Seconds since 1970."""
    numbers: Mapping[str, float]


class Picture(NamedTuple):
    """A picture of TensorBoard's log."""

    tag: str
    step: int
    png: bytes


class Tracker(Protocol):
    """A run of a tracker, as the process that sends to it sees it.

    Every method but `place` and `failures` may raise one of `failures()`; it is then called again later.
    """

    def failures(self) -> tuple[type[Exception], ...]:
        """What its library raises where the server or the network fails."""

    def place(self) -> str:
        """Where its runs are, for messages: without secrets. Elsewhere is another run."""

    def open(self, about: About, identity: str | None, *, patience: float) -> str:
        """Begin a run, or continue that of this identity; returns its identity.

        Args:
            patience: seconds that `close` may take.
        """

    def describe(self, about: About) -> None:
        """Send the parameters and tags of the open run, as far as `open` has not."""

    def send(self, steps: Sequence[Step]) -> None:
        """Add numbers; the steps rise, also from call to call."""

    def show(self, picture: Picture) -> None:
        """Add a picture, whose step may be earlier than that of the last numbers."""

    def close(self, ending: SessionEnding) -> None:
        """End the session."""
