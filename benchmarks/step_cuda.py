"""A step of 160 samples on a GPU: ours, PyTorch as a user would write it, compiled or not, the text encoder alone.

    python -m benchmarks.step_cuda --out OUT.csv

Forward, objective and backward, on random samples that lie on the device. The implementations
(`benchmarks.step_implementations`) run in alternation in one process, warm, and every call ends with a synchronisation;
`times_fused` is the median over rounds of an implementation's time over that of the Triton kernels (`fused`). Each
compiled one runs in a process of its own, again in alternation with the Triton kernels; what fails, or compiles for
longer than `--limit`, is a row with the reason. `first_s` is the first step, compilation included.
Peaks are torch's allocator's, less what was there before. The floor is the operations of all products (counted on the
reference implementation) at the device's own rate of bfloat16 products. A case is a preset, with `+bert` for a text
encoder of BERT-base's shape. `--device cpu --tiny` tries the program: its times are of no use.
"""

import argparse
import csv
import statistics
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.apart import Apart, one_line
from benchmarks.paired_timing import alternate
from benchmarks.rates import rates
from benchmarks.step_implementations import COMPILED, IMPLEMENTATIONS, Side, synchronise
from benchmarks.step_profile import flops
from benchmarks.step_sides import LENGTHS, SIZE, STEP
from benchmarks.tables import Table, commit
from dmd.kernels.backend import set_float32_products

COLUMNS = (
    "preset",
    "text",
    "precision",
    "samples",
    "side",
    "at_once",
    "ms",
    "times_fused",
    "rounds",
    "peak_gib",
    "first_s",
    "captured",
    "reason",
    "device",
    "torch",
    "commit",
)
WARMUPS = 3
"""Steps before the first that counts: a pass is captured in the second."""
EAGER_LIMIT = 150
"""Seconds for the implementations that are not compiled."""
CASES = [f"{preset}{text}" for preset in LENGTHS for text in ("", "+bert")]


def peak(step: Callable[[], None], device: torch.device) -> float | str:
    """GiB that a step adds to what is allocated."""
    if device.type != "cuda":
        return ""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return round((torch.cuda.max_memory_allocated() - before) / 2**30, 3)


class Group:
    """Implementations of one case, timed in alternation; adds their rows to a table."""

    def __init__(self, case: str, names: Sequence[str], options: argparse.Namespace, table: Table) -> None:
        self.preset, _, text = case.partition("+")
        self.bert = text == "bert"
        self.names = names
        self.options = options
        self.table = table
        self.steps: dict[str, Callable[[], None]] = {}
        self.rows: dict[str, dict[str, object]] = {}

    def about(self, side: str, **more: object) -> dict[str, object]:
        """A row's columns that do not depend on a measurement."""
        return {
            "preset": self.preset,
            "text": "bert-base" if self.bert else "features",
            "side": side,
            "precision": self.options.precision,
            "samples": self.options.ghosts * SIZE,
            "torch": torch.__version__,
            "commit": self.options.commit,
            **more,
        }

    def run(self) -> None:
        """Build, warm up, measure."""
        device = torch.device(self.options.device)
        set_float32_products(tf32=self.options.precision == "tf32")
        where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU, tiny model"
        for name in self.names:
            self._warm(name, device)
        rounds = self._rounds()
        times = {name: [wall for wall, _ in found] for name, found in alternate(self.steps, rounds).items()}
        for name, step in self.steps.items():
            ratio: float | str = ""
            if "fused" in times:
                ratio = round(statistics.median(a / b for a, b in zip(times[name], times["fused"], strict=True)), 3)
            row = self.rows[name] | {
                "ms": round(1e3 * statistics.median(times[name]), 3),
                "times_fused": ratio,
                "rounds": rounds,
                "peak_gib": peak(step, device),
                "device": where,
            }
            self._add(row)
        if "reference" in self.steps:
            work = flops(self.steps["reference"])
            floor = round(1e3 * work / rates(device)[1], 3) if device.type == "cuda" else ""
            self._add(self.about("floor", ms=floor, device=where, reason=f"{work / 1e9:.1f} GFLOP of products"))

    def _warm(self, implementation: str, device: torch.device) -> None:
        """Build an implementation and run it; a failure is a row, and the others go on."""
        began = time.perf_counter()
        try:
            side = Side(
                self.preset,
                implementation=implementation,
                bert=self.bert,
                precision=self.options.precision,
                device=device,
                ghosts=self.options.ghosts,
                tiny=self.options.tiny,
            )
            own = {implementation: side.step}
            if implementation == "fused" and self.bert:
                own["text encoder"] = side.text_encoder
            for name, step in own.items():
                began = time.perf_counter()
                step()
                first = round(time.perf_counter() - began, 2)
                for _ in range(WARMUPS - 1):
                    step()
                self.steps[name] = step
                self.rows[name] = self.about(name, at_once=side.at_once, first_s=first, captured=side.system.captured)
        except Exception as error:  # a compiler may raise anything
            traceback.print_exc()
            self._add(self.about(implementation, reason=one_line(error), first_s=round(time.perf_counter() - began, 2)))
            synchronise(device)  # raises where the context is broken: the rest would only repeat it

    def _rounds(self) -> int:
        """Rounds that fit into the time for measuring."""
        began = time.perf_counter()
        for step in self.steps.values():
            step()
        fitting = int(self.options.seconds / (time.perf_counter() - began))
        return max(self.options.least_rounds, min(self.options.rounds, fitting))

    def _add(self, row: dict[str, object]) -> None:
        self.table.add(row)
        shown = ("preset", "text", "side", "ms", "times_fused", "peak_gib", "first_s", "reason")
        print(*(f"{name}={row[name]}" for name in shown if row.get(name, "") != ""), flush=True)


def measure(case: str, options: argparse.Namespace, table: Table) -> None:
    """All implementations of a case: together, but each compiled one in a process of its own."""
    eager = [name for name in options.forms if name not in COMPILED]
    groups = [(eager, EAGER_LIMIT)] if eager else []
    groups += [(["fused", name], options.limit) for name in options.forms if name in COMPILED]
    for names, limit in groups:
        group = Group(case, names, options, table)
        reason = Apart(group.run).reason(limit)
        if reason:
            table.add(group.about(names[-1] if len(groups) > 1 else "+".join(names), reason=reason))
            print(case, *names, reason, flush=True)


def conclusion(path: Path) -> str:
    """All ratios in one line."""
    with path.open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    values: dict[str, list[str]] = {}
    for row in rows:
        if row["side"] != "floor":
            value = f"{row['times_fused']}x" if row["times_fused"] else "failed"
            value = f"{row['ms']} ms" if row["side"] == "fused" and row["ms"] else value
            values.setdefault(f"{row['preset']} {row['text']}", []).append(f"{row['side']} {value}")
    return "; ".join(f"{case}: {', '.join(of_case)}" for case, of_case in values.items())


def main() -> None:
    """Measure and write the CSV, row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES, metavar="PRESET[+bert]")
    parser.add_argument("--forms", nargs="+", choices=IMPLEMENTATIONS, default=IMPLEMENTATIONS)
    parser.add_argument("--precision", choices=["bf16", "tf32", "fp32"], default="bf16")
    parser.add_argument("--ghosts", type=int, default=STEP, help="ghost batches of 16 in a step")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--least-rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8, help="for the rounds of one group of implementations")
    parser.add_argument(
        "--limit", type=float, default=300, help="seconds for a compiled implementation, compilation included"
    )
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.commit = commit()
    table = Table(options.out, COLUMNS)
    for case in options.cases:
        measure(case, options, table)
    print(conclusion(options.out))


if __name__ == "__main__":
    main()
