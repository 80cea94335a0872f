"""The end of a run's log, read from its last line back, so that a long log costs no more than a short one."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from data_shards.durable import read_regular
from dmd.documents import LINES, parse_line

_BLOCK = 1 << 16
_VALIDATION = b'"kind": "valid",'
_BEST = b'"kind": "best_valid",'


@dataclass(frozen=True, kw_only=True)
class LogEnd:
    """What the end of a log says."""

    step: int = 0
    """The last one."""
    time: float | None = None
    """Of the last line, in seconds since 1970."""
    epochs: int = 0
    """Validated ones."""
    best: dict[str, Any] | None = None
    """The line of the validation that was asked for; None where it is not there."""


def read_end(run: Path, step: int | None) -> LogEnd:
    """Read the log of a run back to the validation of a step.

    Args:
        step: of the checkpoint that stands for the run; None: there is none, the last validation that was the best is
            meant.

    Raises:
        ValueError: a damaged line among those that are read; the last one may be torn, by a kill or a write under way.
            Or the log is no regular file.
        OSError: the log cannot be read.
    """
    path = run / LINES
    if not path.exists():
        return LogEnd()
    last: dict[str, Any] | None = None
    epochs: int | None = None
    best: dict[str, Any] | None = None
    with read_regular(path) as file:
        for text in _lines_back(file):
            is_validation = _VALIDATION in text
            is_best = _BEST in text if step is None else is_validation
            if last is not None and not is_validation and not is_best:
                continue
            line = parse_line(text)
            if line is None:
                raise ValueError(f"{path} has a damaged line, {text[:40].decode(errors='replace')!r}; remove it")
            last = last or line
            if is_validation and epochs is None:
                epochs = int(line.get("valid/epoch") or 0) + 1
            if best is None and is_best and step in (None, line["step"]):
                best = line
            passed = is_validation and step is not None and line["step"] <= step
            if epochs is not None and (best is not None or passed):  # "best_valid" stands behind its "valid"
                break
    if last is None:
        return LogEnd()
    return LogEnd(step=last["step"], time=last.get("time"), epochs=epochs or 0, best=best)


def _lines_back(file: BinaryIO) -> Iterator[bytes]:
    """The whole lines of a file from the last to the first; what stands behind the last newline is left out."""
    end = file.seek(0, os.SEEK_END)
    tail: bytes | None = None
    while end > 0:
        begin = max(0, end - _BLOCK)
        file.seek(begin)
        block = file.read(end - begin)
        first, *lines = block.split(b"\n")
        if tail is None:
            if not lines:
                end = begin
                continue
            lines.pop()
        elif lines:
            lines[-1] += tail
        else:
            first += tail
        yield from (line for line in reversed(lines) if line)
        tail, end = first, begin
    if tail:
        yield tail
