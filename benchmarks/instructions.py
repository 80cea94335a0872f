"""Instructions of every Triton launch of a step, and a GPU time estimated from them, without a GPU.

    python -m benchmarks.instructions mosi-aligned --precision bf16
    python -m benchmarks.instructions mosi-aligned --only weight_shares add_up_weights --loops --out OUT.csv

Forward, losses and backward are compiled for a card as `benchmarks.compile_kernels` does, and each kernel's machine
code is read by the nvdisasm that Triton brings. A row is a variant of a kernel: instructions of a warp outside loops,
and in each loop, which is named by its `for`, with its iterations. They add up to the instructions of a warp, on the
average over the programs of the grid:

- A loop over constants runs as often as its `range` says. For a loop whose end a program reads or computes there is a
  rule here (`RULES`), from the launch's own tables. What remains counts once, with a question mark.
- A program of a kernel that chooses between jobs runs one of them: an equal part of all instructions (`JOBS`).
- A program runs whole, though those past the end of an encoder return early. A branch counts as taken.

The time of a launch is for an H100 (`CLOCK_HZ`, `MULTIPROCESSORS`), whatever the card. Programs run in waves, as many
on a multiprocessor as registers, shared memory and warps allow. An instruction of a warp takes `LATENCY` cycles behind
the one before, and a scheduler issues one every `ISSUE` cycles: a wave takes the longer of both. `START` is what a
launch takes at least. Memory and matrix units are not modelled, so nothing is told of a kernel that they bound.

**How far to trust it.** Counts are exact for what was compiled. Times are +-40 %: `LATENCY` was fitted to the MLP's and
the projections' kernels of `benchmarks/results/h100/kernel_times.csv`, of an older commit. Attention then comes out 1.4
to 1.7 times too long there, and what waits for memory in a loop too short: the two kernels that summed gradients of
weights then took 1.5 to 1.8 times as long as estimated (docs/lab-notes.md). Use it to rank changes of one kernel, not
to promise milliseconds.
"""

import argparse
import ast
import math
import re
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import triton

from benchmarks.offline_driver import Kernel, Launch, offline  # before a kernel is defined

# isort: split
from torch import Tensor

import dmd.kernels
from benchmarks.compile_kernels import CASES, PRECISIONS, run_step
from benchmarks.step_sides import STEP
from benchmarks.tables import commit, write_rows
from dmd.kernels.common.cards import SHARED_MEMORY

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
KERNELS = Path(dmd.kernels.__file__).parent
CLOCK_HZ = 1.755e9
MULTIPROCESSORS = 132
SCHEDULERS = 4
"""Of a multiprocessor."""
REGISTERS = 65536
SHARED = 227 * 1024
WARPS = 64
PROGRAMS = 32
"""Registers, bytes of shared memory, warps and programs of a multiprocessor."""
RESERVED = 1024
"""Bytes of shared memory that the driver takes of each program."""
THREADS = 32
LATENCY = 7.0
"""Cycles from an instruction of a warp to its next."""
ISSUE = 1.0
"""Cycles from an instruction of a scheduler to its next, whichever warps they are of."""
START = 2.0e-6
"""Seconds of an empty launch."""
JOBS = {"add_up_weights": 4}
"""Jobs of kernels whose programs choose one."""

Arguments = Mapping[str, Any]


@dataclass(frozen=True)
class Code:
    """A kernel's machine code."""

    instructions: int
    loops: tuple[tuple[str, int], ...]
    """The `for` of each loop, and instructions of its body, those of inner loops left out."""
    registers: int


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _attention_keys(at: Arguments) -> float:
    """Blocks of keys of a program of `forward` and `backward_query`."""
    m, n = at["BLOCK_M"] // at["PACK"], at["BLOCK_N"]
    counts = []
    for queries, keys, _ in at["shape"].tolist():
        first = queries - 1 if at["LAST"] else 0
        rows = 1 if at["LAST"] else queries
        for block in range(at["BLOCKS"]):
            end = min(keys, first + (block + 1) * m + abs(queries - keys))
            counts.append(-(-end // n) if block * m < rows else 0)
    return _mean(counts)


def _attention_queries(at: Arguments) -> float:
    """Blocks of queries of a program of `backward_key`."""
    m, n = at["BLOCK_M"] // at["PACK"], at["BLOCK_N"]
    counts = []
    for queries, keys, _ in at["shape"].tolist():
        first = queries - 1 if at["LAST"] else 0
        for block in range(at["BLOCKS"]):
            start = max(0, block * n - abs(queries - keys) - first) // m * m
            counts.append(-(-max(0, queries - first - start) // m) if block * n < keys else 0)
    return _mean(counts)


def _share_of_rows(at: Arguments) -> float:
    """Blocks of rows of a program that has a share of an encoder's rows."""
    rows = [at["batch"] * (1 if at["LAST"] else length) for length in at["table"][:, 0].tolist()]
    keys = [at["batch"] * length for length in at["table"][:, 1].tolist()]
    splits = -(-max(rows + keys) // at["share_rows"])
    return _mean([(10 * a + 2 * b) / 12 / at["M"] / splits for a, b in zip(rows, keys, strict=True)])


RULES: dict[str, Callable[[Arguments], float]] = {
    "forward": _attention_keys,
    "backward_query": _attention_keys,
    "backward_key": _attention_queries,
    "weight_shares": _share_of_rows,
}
"""Iterations of a loop over data, by kernel."""


@lru_cache
def _source(path: str) -> list[str]:
    """Lines of a source file. Triton's cache may have a kernel of another checkout, with the same lines."""
    _, found, inside = path.rpartition("/dmd/kernels/")
    return Path(KERNELS / inside if found else path).read_text(encoding="utf-8").splitlines()


@lru_cache
def read_code(binary: str) -> Code:
    """Instructions and loops of a cubin. A loop is a branch back, and named by the source line that it belongs to."""
    text = subprocess.run([TOOLS / "nvdisasm", "-c", "-g", binary], check=True, capture_output=True, text=True).stdout
    usage = subprocess.run([TOOLS / "cuobjdump", "-res-usage", binary], check=True, capture_output=True, text=True)
    registers = re.search(r"REG:(\d+)", usage.stdout)
    assert registers is not None, usage.stdout
    count, labels, spans, where = 0, {}, [], ("", 0)
    for line in text.splitlines():
        if found := re.search(r'//## File "([^"]+)", line (\d+)', line):
            where = found[1], int(found[2])
        elif found := re.match(r"\s*(\.L_x_\d+):", line):
            labels[found[1]] = count
        elif (found := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\d+\s+)?([A-Z0-9_.]+)(.*)", line)) is None:
            continue
        elif found[1] != "NOP":
            count += 1
            target = re.search(r"`\((\.L_x_\d+)\)", found[2])
            if found[1].startswith("BRA") and target and labels.get(target[1], count) < count - 1:
                spans.append((labels[target[1]], count, where))
    loops = []
    for first, last, (path, number) in spans:
        inner = [(a, b) for a, b, _ in spans if first <= a and b <= last and (a, b) != (first, last)]
        body = last - first - sum(b - a for a, b in inner if not _nested((a, b), inner))
        name = _source(path)[number - 1].strip() if path else ""
        loops.append((name if name.startswith("for ") else f"line {number}", body))
    return Code(count, tuple(loops), int(registers[1]))


def _nested(span: tuple[int, int], spans: list[tuple[int, int]]) -> bool:
    return any(first <= span[0] and span[1] <= last and (first, last) != span for first, last in spans)


def iterations(loop: str, kernel: str, at: Arguments) -> float | None:
    """How often a program runs a loop, from its `for` line or by rule; None: unknown."""
    if loop.startswith("for "):
        statement = ast.parse(f"{loop}\n pass").body[0]
        assert isinstance(statement, ast.For)
        assert isinstance(statement.iter, ast.Call)
        bounds = [_number(bound, at) for bound in statement.iter.args]
        known = [bound for bound in bounds if bound is not None]
        if len(known) == len(bounds):
            return len(range(*known))
    rule = RULES.get(kernel)
    return None if rule is None else rule(at)


def _number(bound: ast.expr, at: Arguments) -> int | None:
    """A bound of a `range` from names, numbers and their products; None: it is of something else."""
    if isinstance(bound, ast.Constant):
        return int(bound.value)
    if isinstance(bound, ast.Name):
        value = at.get(bound.id)
        return value if isinstance(value, int) else None
    if isinstance(bound, ast.BinOp) and isinstance(bound.op, ast.Mult):
        left, right = _number(bound.left, at), _number(bound.right, at)
        return None if left is None or right is None else left * right
    return None


def of_a_warp(kernel: Kernel, code: Code, at: Arguments) -> tuple[float, str]:
    """Instructions of a warp of an average program, and what they are made of, in words."""
    outside = code.instructions - sum(body for _, body in code.loops)
    total, words = float(outside), [f"{outside}"]
    for loop, body in code.loops:
        times = iterations(loop, kernel.name, at)
        total += body * (1 if times is None else times)
        words.append(f"{body} x {'?' if times is None else round(times, 2)} [{loop}]")
    jobs = JOBS.get(kernel.name, 1)
    return total / jobs, " + ".join(words) + (f", one of {jobs} jobs" if jobs > 1 else "")


def seconds(kernel: Kernel, code: Code, programs: int, instructions: float) -> float:
    """Estimated time of a launch."""
    warps = kernel.constants["num_warps"]
    together = min(
        REGISTERS // (code.registers * THREADS * warps),
        SHARED // (kernel.shared + RESERVED),
        WARPS // warps,
        PROGRAMS,
    )
    cycles = 0.0
    while programs > 0:
        on_one = min(together, -(-programs // MULTIPROCESSORS))
        a_scheduler = max(1.0, on_one * warps / SCHEDULERS)
        cycles += instructions * max(LATENCY, a_scheduler * ISSUE)
        programs -= on_one * MULTIPROCESSORS
    return START + cycles / CLOCK_HZ


def named(launch: Launch) -> dict[str, Any]:
    """A launch's arguments by name. Tensors are real where the kernels read small tables."""
    return dict(zip(launch.kernel.parameters, launch.arguments, strict=True))


def count_launches(launches: Iterable[Launch]) -> list[dict[str, Any]]:
    """A row for each kernel, variant and grid of some launches, the longest first."""
    found: dict[tuple[Any, ...], list[Launch]] = {}
    for launch in launches:
        numbers = [x for x in launch.arguments if not isinstance(x, Tensor)]
        found.setdefault((id(launch.kernel), launch.grid, *numbers), []).append(launch)
    rows = []
    for alike in found.values():
        kernel, programs = alike[0].kernel, math.prod(alike[0].grid)
        warps, code = kernel.constants["num_warps"], read_code(kernel.binary)
        instructions, words = of_a_warp(kernel, code, named(alike[0]))
        us = seconds(kernel, code, programs, instructions) * 1e6
        rows.append(
            {
                "kernel": kernel.name,
                "dim": kernel.constants.get("DIM", kernel.constants.get("HEAD", "-")),
                "launches": len(alike),
                "programs": programs,
                "warps": warps,
                "registers": code.registers,
                "shared_bytes": kernel.shared,
                "static": code.instructions,
                "a_warp": round(instructions),
                "all_millions": round(instructions * programs * warps * len(alike) / 1e6, 2),
                "us": round(us, 1),
                "all_us": round(us * len(alike), 1),
                "made_of": words,
            }
        )
    return sorted(rows, key=lambda row: -row["all_us"])


def by_kernel(rows: list[dict[str, Any]]) -> dict[str, tuple[int, float, float]]:
    """{kernel: (launches, millions of instructions of warps, estimated microseconds)}, in the order of rows."""
    sums: dict[str, tuple[int, float, float]] = {}
    for row in rows:
        launches, millions, us = sums.get(row["kernel"], (0, 0.0, 0.0))
        sums[row["kernel"]] = launches + row["launches"], millions + row["all_millions"], us + row["all_us"]
    return dict(sorted(sums.items(), key=lambda item: -item[1][2]))


def main() -> None:
    """Count a step's instructions, print them and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=CASES, help="a preset, or another case of benchmarks.compile_kernels")
    parser.add_argument("--precision", choices=PRECISIONS, default="bf16")
    parser.add_argument("--ghosts", type=int, default=STEP, help="ghost batches of 16 samples in one pass")
    parser.add_argument("--card", type=int, choices=SHARED_MEMORY, default=90, help="compute capability, 90 for 9.0")
    parser.add_argument("--only", nargs="+", metavar="KERNEL", help="count these kernels alone")
    parser.add_argument("--loops", action="store_true", help="print what the instructions are made of")
    parser.add_argument("--out", type=Path, help="CSV of a row per kernel, variant and grid")
    options = parser.parse_args()
    with offline(options.card) as driver:
        run_step(CASES[options.case], options.precision, options.ghosts)
    wanted = [launch for launch in driver.launches if options.only is None or launch.kernel.name in options.only]
    if not wanted:
        names = ", ".join(sorted({launch.kernel.name for launch in driver.launches}))
        parser.error(f"--only {' '.join(options.only)}: no such kernel is launched; there are {names}")
    rows = count_launches(wanted)
    shown = ("kernel", "dim", "launches", "programs", "warps", "registers", "shared_bytes", "static", "a_warp", "us")
    print(*shown)
    for row in rows:
        print(*(row[name] for name in shown), *([row["made_of"]] if options.loops else []))
    print("\nkernel launches millions_of_warp_instructions estimated_us")
    sums = by_kernel(rows)
    for name, (launches, millions, us) in sums.items():
        print(name, launches, round(millions, 1), round(us))
    print("all", *(round(sum(part)) for part in zip(*sums.values(), strict=True)))
    if options.out:
        about = {"case": options.case, "precision": options.precision, "ghosts": options.ghosts}
        versions = {"card": f"sm_{options.card}", "triton": triton.__version__, "commit": commit()}
        write_rows(options.out, [{**about, **row, **versions} for row in rows])


if __name__ == "__main__":
    main()
