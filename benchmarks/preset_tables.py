"""What each preset is used on, and the tables of docs/expected-times.md, from what this machine and an H100 took.

python -m benchmarks.preset_tables
"""

import csv
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from data_shards.labels import Labels

RESULTS = Path(__file__).resolve().parent / "results"
MEASURED = RESULTS / "preset_times.csv"
H100 = RESULTS / "h100" / "step.csv"
H100_STEP = 160
"""Samples of the steps that are shown of it: those of the published step."""
SIDES = {"fused": "Triton", "graph": "Triton as a CUDA graph", "plain": "PyTorch"}
SEVEN = ("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger")
SIX = ("happy", "sad", "anger", "surprise", "disgust", "fear")


@dataclass(frozen=True, kw_only=True)
class DataShape:
    """What a preset is used on."""

    steps: tuple[int, int, int]
    """Time steps of text, audio and vision."""
    features: tuple[int, int, int]
    """Features per time step."""
    train: int
    """Samples of the split."""
    valid: int
    labels: Labels | None = None
    """None: sentiments in [-3, 3]."""


_MOSI, _MOSEI = (768, 5, 20), (768, 74, 35)
_ALIGNED = (50, 50, 50)
SHAPES = {
    "demo": DataShape(steps=_ALIGNED, features=_MOSI, train=448, valid=64),
    "mosi-aligned": DataShape(steps=_ALIGNED, features=_MOSI, train=1284, valid=229),
    "recommended": DataShape(steps=_ALIGNED, features=_MOSI, train=1284, valid=229),
    "mosi-unaligned": DataShape(steps=(50, 375, 500), features=_MOSI, train=1284, valid=229),
    "mosei-aligned": DataShape(steps=_ALIGNED, features=_MOSEI, train=16326, valid=1871),
    "mosei-unaligned": DataShape(steps=(50, 500, 500), features=_MOSEI, train=16326, valid=1871),
    "mosei-emotions": DataShape(steps=_ALIGNED, features=_MOSEI, train=16326, valid=1871, labels=Labels(emotions=SIX)),
    "sims": DataShape(steps=(39, 400, 55), features=(768, 33, 709), train=1368, valid=456),
    "simsv2": DataShape(steps=(50, 925, 232), features=(768, 25, 177), train=2722, valid=647),
    "iemocap": DataShape(
        steps=(20, 20, 20),
        features=(300, 74, 35),
        train=2717,
        valid=798,
        labels=Labels(emotions=("neutral", "happy", "sad", "angry"), protocol="iemocap"),
    ),
    "meld": DataShape(
        steps=_ALIGNED, features=_MOSEI, train=9989, valid=1109, labels=Labels(kind="classes", class_names=SEVEN)
    ),
    "urfunny": DataShape(
        steps=_ALIGNED,
        features=_MOSEI,
        train=7614,
        valid=980,
        labels=Labels(kind="binary", class_names=("serious", "humorous")),
    ),
}
"""Shapes and sizes as of the files that MMSA (MOSI, MOSEI, CH-SIMS) and MulT (IEMOCAP) read. MELD and UR-FUNNY have no
customary features: their splits, with the shapes of MOSEI."""


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def _duration(value: float) -> str:
    """Seconds for people: two digits below a minute."""
    if value < 60:
        return f"{value:.2g} s" if value < 9.95 else f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 5400 else f"{value / 3600:.1f} h"


def _row(cells: Iterable[object]) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def cpu_table(rows: list[dict[str, str]]) -> list[str]:
    """A line for each preset: step and epoch for each number of threads; of one thread by its CPU time."""
    threads = sorted({row["threads"] for row in rows}, key=int)
    titles = [f"{what}, {count} thread{'s' * (count != '1')}" for count in threads for what in ("step", "epoch")]
    lines = [_row(("preset", "time steps", "samples of an epoch", "steps", *titles)), _row(["---"] * (4 + len(titles)))]
    for preset, shape in SHAPES.items():
        found = {row["threads"]: row for row in rows if row["preset"] == preset}
        cells: list[object] = [f"`{preset}`", " / ".join(map(str, shape.steps)), shape.train]
        cells.append(next(iter(found.values()))["steps"])
        for count in threads:
            row, clock = found[count], "cpu_s" if count == "1" else "s"
            step, steps = float(row[f"step_{clock}"]), int(row["steps"])
            epoch = steps * step + int(row["valid"]) * float(row[f"valid_sample_{clock}"])
            cells += [_duration(step), _duration(epoch)]
        lines.append(_row(cells))
    return lines


def h100_table(rows: list[dict[str, str]]) -> list[str]:
    """A line for each measured preset and backend, the last measurement of each."""
    last = {
        (row["preset"], row["text"], row["side"]): row
        for row in rows
        if row["side"] in SIDES and row["samples"] == str(H100_STEP) and row["precision"] == "bf16"
    }
    titles = ("preset", "text", "backend", "forward, objective, backward", "times the steps of an epoch", "commit")
    lines = [_row(titles), _row(["---"] * len(titles))]
    for (preset, text, side), row in last.items():
        steps = math.ceil(SHAPES[preset].train / H100_STEP)
        what = "features" if text == "features" else "BERT-base"
        taken = f"{float(row['ms']):.{0 if float(row['ms']) >= 100 else 1}f} ms"
        epoch = f"{steps} x {taken} = {_duration(steps * float(row['ms']) / 1000)}"
        lines.append(_row((f"`{preset}`", what, SIDES[side], taken, epoch, row["commit"][:7])))
    return lines


def tables() -> str:
    """Both tables, as docs/expected-times.md has them."""
    return "\n".join([*cpu_table(_read(MEASURED)), "", *h100_table(_read(H100)), ""])


if __name__ == "__main__":
    sys.stdout.write(tables())
