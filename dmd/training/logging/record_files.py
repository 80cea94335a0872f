"""The two logs of a run as files, TensorBoard's events and JSON lines, and how both are cut at a step.

A resume at step s leaves what they say up to s and goes on from there. A run that ends without its last checkpoint (its
trial was stopped while it wrote) is cut in the same way, so that both logs end where its checkpoints do.
"""

import math
import re
import time
from pathlib import Path
from typing import Any, cast

from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard.writer import FileWriter, SummaryWriter

from data_shards.durable import replace_file
from dmd.checkpoint.standing import read_lines
from dmd.documents import LINES, parse_line

_EVENTS = re.compile(r"events\.out\.tfevents\.(\d{1,18})\..+")
"""A name that TensorBoard's writer gives, with the second of its creation; other files are not ours."""
_CLOCK_PATIENCE = 5
"""Seconds to wait at most for a clock that is behind the one that named the last event file."""


def end_logs_at(run: Path, step: int) -> None:
    """Cut both logs of a run that nobody writes any more after `step`; nothing changes where they say no more.

    Raises:
        ValueError: a damaged line before the last.
        OSError: the storage failed.
    """
    if all(line["step"] <= step for line in read_lines(run)):
        return
    of_last = cut_lines(run / LINES, step)
    writer = open_event_file(run, step)
    for line in of_last:
        draw(writer, line)
    writer.close()


def draw(writer: SummaryWriter, line: dict[str, Any]) -> None:
    """Write a line's numbers to TensorBoard as one event, at the time that the line has."""
    numbers = {tag: math.nan if value is None else value for tag, value in line.items() if "/" in tag}
    summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in numbers.items()])
    cast(FileWriter, writer.file_writer).add_summary(summary, line["step"], line["time"])


def cut_lines(path: Path, last: int | None) -> list[dict[str, Any]]:
    """Cut the JSON lines after step `last` (all of them for None) and a torn last line; return those of `last`."""
    if last is None or not path.exists():
        replace_file(path, b"")
        return []
    kept, of_last = [], []
    texts = path.read_bytes().removesuffix(b"\n").split(b"\n")
    for number, text in enumerate(texts, 1):
        line = parse_line(text)
        if line is None and number < len(texts):
            raise ValueError(f"{path}: line {number} is damaged; remove it to resume without its numbers")
        if line is not None and line["step"] <= last:
            kept.append(text + b"\n")
            of_last += [line] if line["step"] == last else []
    replace_file(path, b"".join(kept))
    return of_last


def open_event_file(run: Path, resume_step: int | None) -> SummaryWriter:
    """A new event file, in which the numbers of earlier ones no longer count from `resume_step` on (all for None).

    TensorBoard reads event files in the order of their names, which hold the second of their creation; so a session
    that follows within the same second waits for the next.
    """
    named = {path: _EVENTS.fullmatch(path.name) for path in run.glob("events.out.tfevents.*") if path.is_file()}
    earlier = {path: int(match[1]) for path, match in named.items() if match}
    if resume_step is None:
        for path in earlier:
            path.unlink()
    elif earlier:
        time.sleep(min(max(max(earlier.values()) + 1 - time.time(), 0), _CLOCK_PATIENCE))
    return SummaryWriter(str(run), purge_step=resume_step, max_queue=1000)
