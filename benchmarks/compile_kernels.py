"""Compile every Triton kernel of a training step for cards that need not be there, and report what it takes of each.

    python -m benchmarks.compile_kernels --archs 86 90 --cases mosi-aligned dim256 --precisions bf16 fp32 \
        --out benchmarks/results/compiled.csv --details benchmarks/results/compiled_mosi_aligned.csv

Forward, losses and backward run on the CPU over a driver that compiles each launch for the card, with the arguments of
a step: ten ghost batches at once and one alone, the alignment of every view, integers that are 1 or divisible by 16.
A kernel that does not compile, or that needs more shared memory than the card gives a block, fails here and not there.
Rows of the CSV that an earlier run wrote are replaced where card, case and precision are the same.
"""

import argparse
import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton

from benchmarks.offline_driver import Kernel, OfflineDriver, offline  # before a kernel is defined

# isort: split
import torch

from benchmarks.step_sides import LENGTHS, SIZE, STEP, shapes
from benchmarks.tables import write_rows
from dmd.config.loading import load_config
from dmd.kernels.backend import float32_products
from dmd.kernels.common.cards import SHARED_MEMORY
from dmd.kernels.dropout.keys import DropoutKeys, number_samples
from dmd.kernels.dropout.rng import DropoutRNG
from dmd.losses import Objective
from dmd.model import DMD
from dmd.training.logging.provenance import git_commit

PRECISIONS = ("bf16", "fp32", "tf32")
WIDTHS = {16: 2, 32: 4, 64: 8, 100: 10, 128: 8, 192: 8, 256: 8}
"""Heads of each `model.dim` that is compiled beside the presets' 50."""
SHOWN = (
    "WIDTH",
    "M",
    "CHUNK",
    "BLOCK_M",
    "BLOCK_N",
    "SIDE",
    "LAST",
    "QUERY",
    "KEY",
    "SELF",
    "NORM",
    "PRECISION",
    "num_warps",
    "num_stages",
)
"""Constants that tell a kernel's variants apart for a reader."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A configuration whose step is compiled."""

    preset: str
    overrides: tuple[str, ...] = ()
    ghosts: tuple[int, ...] = (STEP, 1)
    """Ghost batches of a pass, one pass after the other."""


CASES: dict[str, Case] = {
    **{preset: Case(preset=preset) for preset in LENGTHS},
    **{
        f"dim{dim}": Case(
            preset="mosi-aligned",
            overrides=(f"model.dim={dim}", f"model.heads={heads}", "model.levels=1"),
            ghosts=(STEP,),
        )
        for dim, heads in WIDTHS.items()
    },
    "one head of 256": Case(
        preset="mosi-aligned", overrides=("model.dim=256", "model.heads=1", "model.levels=1"), ghosts=(STEP,)
    ),
    "every dropout": Case(
        preset="mosi-aligned", overrides=("model.res_dropout=0.1", "model.relu_dropout=0.1"), ghosts=(STEP,)
    ),
    "masked padding": Case(preset="mosi-aligned", overrides=("model.masked_padding=true",), ghosts=(STEP,)),
    "classes": Case(preset="mosi-aligned", overrides=("model.task=3",), ghosts=(STEP,)),
    "paper": Case(
        preset="mosi-aligned",
        ghosts=(STEP,),
        overrides=("objective.orthogonality=feature", "objective.margin=constant", "objective.prior=none"),
    ),
}


def run_step(case: Case, precision: str, ghosts: int) -> None:
    """Forward, losses and backward, for what they launch."""
    from dmd.kernels.triton_backend import TRITON

    config = load_config(case.preset, ["model.task=regression", *case.overrides])
    dims, lengths = shapes(case.preset)
    model = DMD(config.model, dims, lengths, backend=TRITON)
    losses = Objective(config.objective, config.model, backend=TRITON)
    parts = [torch.zeros(ghosts * SIZE, lengths[m], dims[m]) for m in dims]
    rng = DropoutRNG(
        seed=1,
        step=0,
        samples=number_samples(range(ghosts), range(SIZE)),
        device=torch.device("cpu"),
        keys=DropoutKeys(),
    )
    labels = torch.zeros(ghosts, SIZE)
    with float32_products(tf32=precision == "tf32"):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            output = model(*parts, rng)
        losses(output, labels, torch.ones_like(labels))["total"].sum().backward()


def compile_case(case: Case, precision: str, driver: OfflineDriver) -> list[tuple[int, Kernel, int]]:
    """(ghost batches, kernel, launches) of every variant that the case's passes launch."""
    found: dict[tuple[int, int], tuple[int, Kernel, int]] = {}
    for ghosts in case.ghosts:
        driver.launches.clear()
        run_step(case, precision, ghosts)
        for launch in driver.launches:
            key = ghosts, id(launch.kernel)
            found[key] = ghosts, launch.kernel, found.get(key, (0, launch.kernel, 0))[2] + 1
    return list(found.values())


def summary(variants: list[tuple[int, Kernel, int]], limit: int) -> dict[str, Any]:
    """One row about the variants of a case."""
    kernels = list({id(kernel): kernel for _, kernel, _ in variants}.values())
    largest, spilling = (max(kernels, key=lambda kernel: getattr(kernel, name)) for name in ("shared", "spills"))
    assert largest.shared <= limit
    return {
        "variants": len(kernels),
        "most_shared_bytes": largest.shared,
        "by": largest.name,
        "limit_bytes": limit,
        "most_spill_bytes": spilling.spills,
        "spilled_by": spilling.name if spilling.spills else "",
        "variants_that_spill": sum(kernel.spills > 0 for kernel in kernels),
        "compile_seconds": round(sum(kernel.seconds for kernel in kernels), 1),
    }


def detail(ghosts: int, kernel: Kernel, launches: int, limit: int) -> dict[str, Any]:
    """One row about a variant."""
    constants = " ".join(f"{name}={kernel.constants[name]}" for name in SHOWN if name in kernel.constants)
    return {
        "ghosts": ghosts,
        "module": kernel.module.rpartition(".")[2],
        "kernel": kernel.name,
        "launches": launches,
        "constants": constants,
        "shared_bytes": kernel.shared,
        "limit_bytes": limit,
        "registers": kernel.registers,
        "spill_bytes": kernel.spills,
        "matrix_instructions": kernel.matrix,
        "seconds": round(kernel.seconds, 2),
    }


def merge(path: Path | None, rows: list[dict[str, Any]], keys: tuple[str, ...]) -> None:
    """Write rows into a CSV in place of those with the same keys."""
    if path is None or not rows:
        return
    new = {tuple(str(row[key]) for key in keys) for row in rows}
    kept: list[dict[str, Any]] = []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as stream:
            kept = [row for row in csv.DictReader(stream) if tuple(row[key] for key in keys) not in new]
    write_rows(path, kept + rows)


def main() -> None:
    """Compile cases for cards and write the CSVs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archs", nargs="+", type=int, choices=SHARED_MEMORY, default=list(SHARED_MEMORY))
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--out", type=Path, help="CSV of a row per card, case and precision")
    parser.add_argument("--details", type=Path, help="CSV of a row per variant of mosi-aligned")
    options = parser.parse_args()
    for arch in options.archs:
        limit = SHARED_MEMORY[arch]
        with offline(arch, cached=False) as driver:
            for name in options.cases:
                for precision in options.precisions:
                    variants = compile_case(CASES[name], precision, driver)
                    about = {"arch": f"sm_{arch}", "case": name, "precision": precision}
                    versions = {"triton": triton.__version__, "commit": git_commit()}
                    row = {**about, **summary(variants, limit), **versions}
                    driver.say(row)
                    merge(options.out, [row], tuple(about))
                    if name == "mosi-aligned":
                        rows = [{**about, **detail(*variant, limit), **versions} for variant in variants]
                        merge(options.details, rows, tuple(about))


if __name__ == "__main__":
    main()
