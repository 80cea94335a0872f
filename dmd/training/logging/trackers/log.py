"""What there is to send of a run, whole steps of metrics.jsonl and pictures of event files, and what a tracker has."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from data_shards.durable import is_same_file, replace_file
from dmd.documents import LINES, encode, parse_line, parse_object
from dmd.training.logging.trackers.origin import Origin
from dmd.training.logging.trackers.tracker import Picture, Step

FOLDER = "trackers"
"""Directory in the run: what each tracker has, and what its process printed."""


@dataclass(kw_only=True)
class Sent:
    """What a tracker has of a run."""

    place: str
    identity: str
    origin: Origin
    """Of which training."""
    step: int = -1
    """The last one."""
    pictures: dict[str, int] = field(default_factory=dict)
    """Step of the last picture by tag."""


def sent_path(run: Path, name: str) -> Path:
    """Where it is noted what a tracker has."""
    return run / FOLDER / f"{name}.json"


def read_sent(run: Path, name: str) -> Sent | None:
    """What a tracker has; None where there is no note, or none that can be understood."""
    try:
        values = parse_object(sent_path(run, name).read_bytes())
    except FileNotFoundError:
        return None
    try:
        return None if values is None else Sent(**{**values, "origin": Origin(**values["origin"])})
    except (TypeError, KeyError):
        return None


def write_sent(run: Path, name: str, sent: Sent) -> None:
    """Note what a tracker has."""
    replace_file(sent_path(run, name), encode(asdict(sent)))


class LogReader:
    """Follows metrics.jsonl, which a resume replaces."""

    def __init__(self, run: Path) -> None:
        self._path = run / LINES
        self._file: BinaryIO | None = None
        self._torn = b""
        self._steps: dict[int, Step] = {}

    def steps(self, after: int, *, ended: bool) -> list[Step]:
        """The steps after one, in their order; the last one only where the session has `ended`: more may follow of it.

        Raises OSError where the log cannot be read.
        """
        for line in self._new_lines():
            step = int(line["step"])
            before = self._steps.get(step, Step(step, line.get("time", 0.0), {}))
            self._steps[step] = before._replace(numbers={**before.numbers, **_numbers(line)})
        for step in [step for step in self._steps if step <= after]:
            del self._steps[step]
        last = max(self._steps, default=0)
        return [self._steps[step] for step in sorted(self._steps) if ended or step < last]

    def _new_lines(self) -> Iterator[dict[str, Any]]:
        if self._file is not None and not is_same_file(self._file.fileno(), self._path):
            self._file.close()
            self._file = None
        if self._file is None:
            if not self._path.exists():
                return
            self._file, self._torn, self._steps = self._path.open("rb"), b"", {}
        *texts, self._torn = (self._torn + self._file.read()).split(b"\n")
        for text in texts:
            line = parse_line(text)
            if line is not None:
                yield line


def _numbers(line: Mapping[str, Any]) -> dict[str, float]:
    return {tag: math.nan if value is None else float(value) for tag, value in line.items() if "/" in tag}


class PictureReader:
    """Follows the pictures in the event files of a run."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._loaders: dict[Path, Any] = {}

    def pictures(self) -> Iterator[Picture]:
        """Those that have come since the last call."""
        from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

        for path in sorted(self._run.glob("events.out.tfevents.*")):
            if path not in self._loaders:
                self._loaders[path] = LegacyEventFileLoader(str(path))
            for event in self._loaders[path].Load():
                for value in event.summary.value:
                    if value.HasField("image"):
                        yield Picture(value.tag, event.step, value.image.encoded_image_string)
