"""Compile every Triton kernel of a training step for cards that need not be there, and tell what it takes of them.

    python -m benchmarks.compile_kernels --out benchmarks/results/compiled.csv

A step of the model runs on the CPU with `benchmarks.offline_driver` in the place of the card's: launches are bound and
specialised with the real arguments of a step, views and all, and compiled by the ptxas that Triton brings; nothing is
computed. A row says how many variants a model has on a card, the most shared memory that one of them takes, the card's
limit, and the most bytes that one spills. A kernel that does not compile, or takes too much, ends the program.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.offline_driver import SHARED_LIMIT, Kernel, Launch, OfflineDriver, offline  # before any kernel

import torch  # isort: skip
import triton  # isort: skip

from benchmarks.step_sides import SIZE, shapes
from benchmarks.tables import write_rows
from dmd.kernels.keys import DropoutKeys
from dmd.kernels.noise import Noise
from dmd.losses import Objective
from dmd.model import DMD
from dmd.presets import load_config
from dmd.training.provenance import git_commit

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model and a pass of it."""

    preset: str
    ghosts: int
    overrides: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """For the table."""
        return " ".join([self.preset, *self.overrides])


def width(dim: int, heads: int) -> tuple[str, ...]:
    """Overrides for encoders of `dim` channels."""
    return f"model.dim={dim}", f"model.heads={heads}", "model.levels=1"


PRESETS = (
    Case(preset="mosi-aligned", ghosts=10),
    Case(preset="mosi-aligned", ghosts=1),
    Case(preset="mosi-unaligned", ghosts=10),
    Case(preset="mosei-aligned", ghosts=10),
    Case(preset="mosei-unaligned", ghosts=10),
    Case(preset="mosi-aligned", ghosts=10, overrides=("model.masked_padding=true",)),
    Case(preset="mosi-aligned", ghosts=10, overrides=("model.task=3", "objective.orthogonality=feature")),
)
WIDTHS = tuple(
    Case(preset="mosi-aligned", ghosts=1, overrides=width(dim, heads))
    for dim, heads in ((16, 2), (32, 4), (64, 8), (100, 10), (128, 8), (192, 8), (256, 8))
)
"""Memory encoders are twice as wide; of more than 256 channels they run in plain torch, their attention in Triton."""


def step(case: Case, *, half: bool) -> None:
    """Two passes, forward, objective and backward; the second finds its dropout keys in the table."""
    config = load_config(case.preset, case.overrides)
    dims, lengths = shapes(case.preset)
    model = DMD(config.model, dims, lengths, fused=True)
    losses = Objective(config.objective, config.model, fused=True)
    samples = case.ghosts * SIZE
    parts = [torch.zeros(samples, lengths[m], dims[m]) for m in dims]
    labels = torch.zeros(case.ghosts, SIZE)
    keys = DropoutKeys()
    for number in range(2):
        noise = Noise(seed=1, step=number, ghosts=range(case.ghosts), ghost_size=SIZE, device=CPU, keys=keys)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            output = model(*parts, noise)
        losses(output, labels, torch.ones_like(labels))["total"].sum().backward()


def compile_cases(
    capability: int, cases: tuple[Case, ...], precisions: list[str]
) -> Iterator[tuple[Case, str, list[Kernel]]]:
    """The kernels of each case in each precision, compiled for a card; each variant is compiled once."""
    used: dict[int, Kernel] = {}

    def note(launch: Launch) -> None:
        used[id(launch.kernel)] = launch.kernel

    with offline(capability, cached=False, on_launch=note) as driver:
        for case in cases:
            for precision in precisions:
                used.clear()
                step(case, half=precision == "bf16")
                yield case, precision, list(used.values())
        check_limit(driver)


def check_limit(driver: OfflineDriver) -> None:
    """Every kernel fits; Triton itself refuses a launch that does not."""
    for kernel in driver.kernels.values():
        assert kernel.shared <= driver.limit, kernel


def summary(capability: int, case: Case, precision: str, kernels: list[Kernel]) -> dict[str, object]:
    """A row of the table."""
    largest = max(kernels, key=lambda kernel: kernel.shared)
    spilling = max(kernels, key=lambda kernel: kernel.spills)
    return {
        "card": f"sm_{capability}", "model": case.name, "ghost_batches": case.ghosts, "precision": precision,
        "variants": len(kernels), "shared_bytes": largest.shared, "limit_bytes": SHARED_LIMIT[capability],
        "by": largest.name, "spill_bytes": spilling.spills, "spilling": spilling.name if spilling.spills else "",
        "matrix_instructions": " ".join(sorted({kernel.matrix for kernel in kernels} - {"none"})),
        "seconds": round(sum(kernel.seconds for kernel in kernels), 1),
    }  # fmt: skip


def main() -> None:
    """Compile and write the table, row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cards", type=int, nargs="+", choices=SHARED_LIMIT, default=list(SHARED_LIMIT))
    parser.add_argument("--cases", nargs="+", choices=["presets", "widths"], default=["presets", "widths"])
    parser.add_argument("--precisions", nargs="+", choices=["bf16", "fp32"], default=["bf16", "fp32"])
    parser.add_argument("--kernels", action="store_true", help="print each kernel of each case")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    cases = (*(PRESETS if "presets" in options.cases else ()), *(WIDTHS if "widths" in options.cases else ()))
    about = {"triton": triton.__version__, "commit": git_commit()}
    rows: list[dict[str, object]] = []
    for capability in options.cards:
        for case, precision, kernels in compile_cases(capability, cases, options.precisions):
            rows.append({**summary(capability, case, precision, kernels), **about})
            print(*(f"{name}={value}" for name, value in rows[-1].items()), file=sys.__stdout__, flush=True)
            if options.kernels:
                for kernel in kernels:
                    print(f"  {kernel}", file=sys.__stdout__, flush=True)
            if options.out is not None:
                write_rows(options.out, rows)


if __name__ == "__main__":
    main()
