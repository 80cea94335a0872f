"""Block sizes for a card: times the candidates of each kernel and shape, and makes the table that trainings read.

    python -m benchmarks.block_sizes --out OUT.csv       on a GPU: a row for each candidate
    python -m benchmarks.block_sizes --compile 90        anywhere: compile the candidates for sm_90 into Triton's cache
    python -m benchmarks.block_sizes --choose OUT.csv    rows for dmd/kernels/common/measured_sizes.csv

A candidate is the rule of `dmd.kernels.common.block_sizes`, or some steps from it. Microseconds are of the device
alone, the median of warm replays of a CUDA graph, and of all launches of the call that the column `call` names; of
those only the kernel's own sizes vary. `error` is the relative distance of the results from those of the rule.
`--choose` takes the fastest candidate that gains enough, and is as near to the rule as the tests ask of a kernel; where
there is none, the table has no row and the rule holds. After that the tests marked `gpu` belong to the new sizes.
"""

import argparse
import csv
import itertools
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.counting import interpret_without_a_device
from benchmarks.tables import Table, commit, write_rows
from dmd.kernels.common.block_sizes import MIN_SIDE
from dmd.kernels.common.cards import SHARED_MEMORY
from dmd.kernels.common.measured_sizes import (
    ATTENTION_KERNELS,
    BLOCKS,
    COLUMNS,
    MAX_SIDE,
    OPTIONS,
    PACK,
    TABLE,
    TILES,
    read_row,
    read_table,
)

SIDES = (*BLOCKS, *TILES.values())
LEAST_GAIN = 0.05
"""Of the rule's time, below which the rule stays."""
NEAR = {16: 2e-2, 32: 2e-6}
"""Most `error`, by bits of the operands: what the kernels' tests allow against PyTorch."""
BITS = {"bf16": 16, "fp32": 32}
ROW_STEPS: tuple[dict[str, int], ...] = (
    {},
    {"M": -1},
    {"M": 1},
    {"CHUNK": -1},
    {"CHUNK": 1},
    {"num_warps": -1},
    {"M": -1, "num_warps": -1},
    {"num_stages": -1},
    {"num_stages": 1},
)
"""Candidates of the kernels over rows, as steps from the rule: of stages up and down by one, else twice and half."""
ATTENTION_STEPS: tuple[dict[str, int], ...] = (
    {},
    {"BLOCK_M": -1, "BLOCK_N": -1, "num_warps": -1},
    {"BLOCK_M": -2, "BLOCK_N": -2, "num_warps": -2},
    {"BLOCK_M": -1},
    {"BLOCK_N": -1},
    {"BLOCK_M": -1, "num_warps": -1},
    {"BLOCK_N": -1, "num_warps": -1},
    {"BLOCK_M": 1},
    {"BLOCK_N": 1},
    {"BLOCK_M": 1, "BLOCK_N": 1, "num_warps": 1},
    {"num_warps": -1},
    {"num_warps": 1},
    {"num_stages": -1},
)
TINY_CANDIDATES = 2


@dataclass(frozen=True, kw_only=True)
class Launches:
    """A call whose launches are timed, while the sizes of one of its kernels vary."""

    kernel: str
    stage: str
    """Of `benchmarks.block_sizes_calls`."""


_ALIGNED, _WIDE, _UNALIGNED = "crossmodal", "memory", "crossmodal-unaligned"
LAUNCHES = tuple(
    Launches(kernel=kernel, stage=stage)
    for stage, kernels in (
        (_ALIGNED, ("weight_shares", *reversed(ATTENTION_KERNELS))),
        (_ALIGNED, ("residual_mlp_backward", "residual_mlp", "project_backward", "project")),
        (_UNALIGNED, tuple(reversed(ATTENTION_KERNELS))),
        (_WIDE, ("weight_shares", "residual_mlp_backward", "residual_mlp")),
        (_WIDE, ("project_backward", "project")),
    )
    for kernel in kernels
)
"""In the order of what they take of a step on an H100 (docs/gpu.md): a limit cuts the last ones off."""


def candidates(kernel: str, rule: Mapping[str, int], lengths: Mapping[str, Any]) -> list[dict[str, int]]:
    """Sizes of a kernel that are tried, the rule's first.

    Args:
        rule: what `dmd.kernels.common.block_sizes` gives.
        lengths: `rows` and `keys` of the attention, padded, and `pack`, heads of a tile.
    """
    found: list[dict[str, int]] = []
    for steps in ATTENTION_STEPS if kernel in ATTENTION_KERNELS else ROW_STEPS:
        sizes = {**rule, **{name: _stepped(name, rule[name], by) for name, by in steps.items()}}
        if sizes not in found and all(_possible(name, size, lengths) for name, size in sizes.items()):
            found.append(sizes)
    return found


def _stepped(name: str, size: int, by: int) -> int:
    if name == "num_stages":
        return size + by
    return size << by if by > 0 else size >> -by


def _possible(name: str, size: int, lengths: Mapping[str, Any]) -> bool:
    """Whether a block or an option may be that large; of a tile no more than its sequence."""
    if name in OPTIONS:
        return 1 <= size <= OPTIONS[name]
    longest = {side: lengths[length] for length, side in TILES.items()}
    if lengths[PACK]:
        longest[TILES["rows"]] *= lengths[PACK]
    return name in ("WIDTH", "PACK", "ALIGN") or MIN_SIDE <= size <= longest.get(name, MAX_SIDE)


def machine(device: str) -> dict[str, Any]:
    """Columns of every row."""
    import torch
    import triton

    from benchmarks.visit_device import said

    cuda = device == "cuda"
    major, minor = torch.cuda.get_device_capability() if cuda else (0, 0)
    return {
        "card": torch.cuda.get_device_name() if cuda else "CPU, interpreted",
        "capability": 10 * major + minor,
        "driver": said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") if cuda else "none",
        "torch": torch.__version__,
        "triton": triton.__version__,
        "commit": commit(),
    }


@dataclass(kw_only=True)
class Outcome:
    """What came of the candidates so far."""

    number: int = 0
    failed: int = 0
    gains: list[tuple[float, str]] = field(default_factory=list)
    """(the rule's time / the best one, launches) of launches that were timed."""


def measure(options: argparse.Namespace) -> str:
    """Time every candidate until the limit; what came of it, in a line."""
    deadline, device = time.monotonic() + options.limit, interpret_without_a_device()
    from benchmarks.block_sizes_calls import Calls

    about, table, outcome = machine(device.type), Table(options.out), Outcome()
    for precision, launches in itertools.product(options.precisions, LAUNCHES):
        if options.tiny and launches.stage != _ALIGNED:
            continue
        calls = Calls(launches.stage, precision=precision, device=device, tiny=options.tiny)
        for row in timed(calls, launches, f"{launches.kernel} {launches.stage} {precision}", options, outcome):
            table.add({**row, **about})
            if time.monotonic() > deadline:
                said = f"{outcome.number} candidates, {outcome.failed} failed, cut off at {options.limit} s"
                return f"{said}; {_best(outcome.gains)}"
    return f"{outcome.number} candidates, {outcome.failed} failed; {_best(outcome.gains)}"


def timed(
    calls: Any, launches: Launches, name: str, options: argparse.Namespace, outcome: Outcome
) -> Iterator[dict[str, Any]]:
    """A row for each candidate of some launches, as it is timed; nothing where the rule itself fails."""
    from benchmarks.block_sizes_calls import distance, seconds
    from dmd.kernels.common.cards import KernelError

    kernel = launches.kernel
    place, rule = calls.place(kernel)
    tried = candidates(kernel, rule, place)[: TINY_CANDIDATES if options.tiny else None]
    try:
        want = calls.run(kernel, rule)
    except KernelError as error:
        print(f"{name}: the rule itself fails: {error.reason}", flush=True)
        return
    times: dict[tuple[Any, ...], float] = {}
    # The rule is timed again at the end, since a device that has just begun is slower.
    for sizes in [*tried, rule]:
        row: dict[str, Any] = {"kernel": kernel, "stage": launches.stage, "call": calls.call(kernel)}
        row |= {"samples": calls.samples, **place}
        row |= {side: sizes.get(side, "") for side in (*SIDES, *OPTIONS)}
        row |= {"shared_bytes": "", "rule": sizes == rule, "microseconds": "", "error": "", "failed": ""}
        outcome.number += 1
        try:
            row["error"] = f"{distance(calls.run(kernel, sizes), want):.1e}"
            row["microseconds"] = round(1e6 * seconds(calls, kernel, sizes), 2)
            row["shared_bytes"] = calls.shared_bytes(kernel, sizes)
        except KernelError as error:
            row["failed"] = error.reason
            outcome.failed += 1
        else:
            key = tuple(sizes.items())
            times[key] = min(row["microseconds"], times.get(key, row["microseconds"]))
        yield row
    if (own := times.get(tuple(rule.items()))) is not None:
        outcome.gains.append((own / min(times.values()), name))
        print(f"{name}: rule {own} us, best {min(times.values())} of {len(tried)}", flush=True)


def _best(gains: Sequence[tuple[float, str]]) -> str:
    return "largest gain {:.2f} ({})".format(*max(gains)) if gains else "nothing was measured"


def compile_candidates(arch: int, precisions: Sequence[str]) -> str:
    """Compile every candidate for a card; what came of it, in a line.

    Raises:
        KernelError: a candidate that the card cannot run.
    """
    from benchmarks.offline_driver import offline  # before a kernel is defined

    # isort: split
    import torch

    from benchmarks.block_sizes_calls import Calls

    number, largest = 0, 0
    with offline(arch) as driver:
        for precision in precisions:
            for launches in LAUNCHES:
                calls = Calls(launches.stage, precision=precision, device=torch.device("cpu"))
                place, rule = calls.place(launches.kernel)
                for sizes in candidates(launches.kernel, rule, place):
                    driver.launches.clear()
                    calls.run(launches.kernel, sizes)
                    shared = calls.shared_bytes(launches.kernel, sizes)
                    number, largest = number + 1, max(largest, int(shared))
    return (
        f"{number} candidates compile for sm_{arch}: at most {largest} of {SHARED_MEMORY[arch]} bytes of shared memory"
    )


def chosen(measured: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Rows of the table, of what was measured: where a candidate gains enough, the fastest that is near the rule."""
    groups: dict[tuple[str, ...], list[Mapping[str, str]]] = defaultdict(list)
    for row in measured:
        if row["microseconds"] and float(row["error"]) <= NEAR[int(row["bits"])]:
            groups[_place(row)].append(row)
    found = []
    for rows in groups.values():
        rule = [float(row["microseconds"]) for row in rows if row["rule"] == "True"]
        best = min(rows, key=lambda row: float(row["microseconds"]))
        if rule and float(best["microseconds"]) <= (1 - LEAST_GAIN) * min(rule):
            found.append({name: best[name] for name in COLUMNS})
            read_row(found[-1])
    return found


def _place(row: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(row[name] for name in ("capability", "kernel", "width", "bits", *TILES, PACK))


def merge(measured: Path, table: Path) -> str:
    """Write the chosen rows into a table, in place of all rows about what was measured; says which, in a line.

    Raises:
        ValueError: the table that is there has a row that cannot be right.
    """
    read_table(table)
    with measured.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    with table.open(newline="", encoding="utf-8") as stream:
        others = [row for row in csv.DictReader(stream) if _place(row) not in {_place(own) for own in rows}]
    own = chosen(rows)
    write_rows(table, [*others, *own], COLUMNS)
    return f"{table}: {len(own)} rows of {len({_place(row) for row in rows})} kernels and shapes, {len(others)} others"


def main() -> None:
    """Measure, compile or choose."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], help="reject another; default: CUDA where there is one")
    parser.add_argument("--precisions", nargs="+", choices=BITS, default=["bf16"])
    parser.add_argument("--limit", type=float, default=1e9, help="seconds after which no further candidate is tried")
    parser.add_argument("--tiny", action="store_true", help="one sample, short sequences, one stage, few candidates")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--compile", type=int, choices=SHARED_MEMORY, help="compile for this compute capability only")
    parser.add_argument("--choose", type=Path, metavar="OUT.csv", help="write the table")
    options = parser.parse_args()
    if options.compile:
        said = compile_candidates(options.compile, options.precisions)
    elif options.choose:
        said = merge(options.choose, TABLE)
    else:
        device = interpret_without_a_device().type
        if options.device not in (None, device):
            parser.error(f"--device {options.device}, but this machine has {device}")
        said = measure(options)
    print(said)


if __name__ == "__main__":
    main()
