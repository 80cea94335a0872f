"""The real model on a GPU against itself: Triton kernels and PyTorch, term by term and module by module.

    python -m benchmarks.smoke --out smoke.csv

A case is a preset and a precision; each runs in a process of its own, all at once, with dropout. The reference is
PyTorch in float64 on the same device, which is itself compared with the CPU on one ghost batch; where PyTorch fails
on the device, the CPU is the reference, for one ghost batch. Errors are |got - reference| / |reference| of every loss
term, of the eight predictions and of the gradients of each module. What is allowed is the error of PyTorch in the
same precision, some times over, and a floor. `--device cpu --tiny`: a small model in Triton's interpreter.
"""

import argparse
import csv
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

from benchmarks.apart import Apart, one_line
from benchmarks.step_sides import LENGTHS, SIZE, STEP, shapes
from benchmarks.tables import Table, commit
from dmd.config import Config
from dmd.config.loading import load_config
from dmd.data.loader import Batch
from dmd.kernels.backend import set_float32_products
from dmd.system.system import TrainingSystem
from dmd.training.passes import ghost_batches_at_once
from dmd.training.step import make_rng

COLUMNS = (
    "case",
    "kind",
    "name",
    "error",
    "plain_error",
    "allowed",
    "verdict",
    "reference",
    "reason",
    "device",
    "torch",
    "commit",
)
CASES = ("mosi-aligned:fp32", "mosi-aligned:bf16", "mosi-aligned:tf32", "mosi-unaligned:bf16")
TIMES_PLAIN = 3
"""Times the error of PyTorch in the same precision that the Triton kernels may have."""
OF_BF16 = 1 / 4
"""Times the error of PyTorch in bfloat16 that the Triton kernels may have in TF32, which keeps three bits more: cuBLAS
leaves widths that are no multiple of four in float32, so that PyTorch says little about TF32."""
FLOORS = {"fp32": 1e-5, "tf32": 2e-3, "bf16": 1e-2}
"""Errors that are allowed whatever PyTorch has."""
WITHOUT_PLAIN = {"fp32": 1e-4, "tf32": 1e-2, "bf16": 1e-1}
"""The same where PyTorch failed."""
CEILINGS = {"fp32": 1e-4, "tf32": 5e-2, "bf16": 4e-1}
"""Errors that are allowed to neither implementation, whatever the other has."""
DEVICES_APART = 1e-9
"""Allowed between two devices in float64."""
TINY = (
    "model.dim=8",
    "model.heads=2",
    "model.levels=1",
    "model.kernel_text=2",
    "model.kernel_audio=1",
    "model.kernel_vision=2",
)
Found = dict[tuple[str, str], Tensor]
"""{(kind, name): tensor in float64 on the CPU}."""


class Case:
    """One preset and precision: the same weights, samples and dropout in every implementation."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.name = name
        self.device = torch.device(options.device)
        self.tiny = options.tiny
        preset, _, self.precision = name.partition(":")
        self.config = load_config(preset, ["model.task=regression", *(TINY if self.tiny else ())])
        dims, lengths = shapes(preset)
        self.ghosts, self.size = (2, 2) if self.tiny else (STEP, SIZE)
        if self.tiny:
            dims, lengths = {"text": 5, "audio": 3, "vision": 4}, {"text": 6, "audio": 5, "vision": 7}
        self.info = SimpleNamespace(dims=dims, lengths=lengths)
        generator = torch.Generator().manual_seed(1)
        count = self.ghosts * self.size
        self.parts = {m: torch.randn(count, lengths[m], dims[m], generator=generator) for m in lengths}
        for part in self.parts.values():
            part[::3, : part.shape[1] // 3] = 0  # padding in front, as real samples have it
        self.labels = torch.randint(-15, 16, (self.ghosts, self.size), generator=generator) / 5

    def configured(self, kernels: str, precision: str) -> Config:
        """The config of one implementation."""
        train = replace(
            self.config.train,
            kernels=kernels,
            precision=precision,
            cuda_graph="off",
            ghost_batch_size=self.size,
            ghost_batches_per_step=self.ghosts,
        )
        return replace(self.config, train=train)

    def run(self, kernels: str, precision: str, device: torch.device, ghosts: int, *, exact: bool = False) -> Found:
        """Terms, predictions and gradients of the first `ghosts` ghost batches; `exact`: in float64."""
        config = self.configured(kernels, precision)
        torch.manual_seed(0)
        system = TrainingSystem(config, self.info, None, device)
        kind = torch.float64 if exact else torch.float32
        system.to(device, kind).train()
        at_once = ghosts
        if kernels == "plain":
            at_once = min(ghosts, ghost_batches_at_once(self.config.train, self.info.lengths, "cpu"))
        gathered: dict[tuple[str, str], list[Tensor]] = {}
        for forward, first in enumerate(range(0, ghosts, at_once)):
            batch = self._batch(range(first, min(first + at_once, ghosts)), device, kind)
            rng = make_rng(batch, config, step=0, forward=forward, device=device, keys=system.fresh_keys())
            output = system.predict(batch, rng)
            terms = system.objective(output, system.targets(batch), batch.mask)
            terms["total"].sum().backward()
            for place, tensors in (("term", terms), ("prediction", output.predictions)):
                for name, tensor in tensors.items():
                    gathered.setdefault((place, name), []).append(tensor.detach().double().cpu())
        found = {place: torch.cat(parts) for place, parts in gathered.items()}
        return found | {("gradient", name): gradient for name, gradient in gradients(system).items()}

    def _batch(self, ghosts: range, device: torch.device, kind: torch.dtype) -> Batch:
        rows = slice(ghosts.start * self.size, ghosts.stop * self.size)
        labels = self.labels[ghosts.start : ghosts.stop].to(device, kind)
        parts = {m: part[rows].to(device, kind) for m, part in self.parts.items()}
        rows_of_split = torch.zeros(labels.shape, dtype=torch.int64)
        return Batch(**parts, labels=labels, mask=torch.ones_like(labels), rows=rows_of_split, ghosts=tuple(ghosts))


def gradients(system: TrainingSystem) -> dict[str, Tensor]:
    """{module: the gradients of its parameters, one after the other}."""
    found: dict[str, list[Tensor]] = {}
    for name, parameter in system.named_parameters():
        assert parameter.grad is not None, name
        found.setdefault(".".join(name.split(".")[:2]), []).append(parameter.grad.double().flatten().cpu())
    return {name: torch.cat(parts) for name, parts in found.items()}


def errors(got: Found, want: Found) -> dict[tuple[str, str], float]:
    """|got - want| / |want| of each tensor; infinite where a value is not finite."""
    found = {}
    for place, reference in want.items():
        error = float((got[place] - reference).norm() / reference.norm().clamp(min=1e-12))
        found[place] = error if got[place].isfinite().all() else float("inf")
    return found


class Smoke:
    """Runs a case and adds its rows to a table."""

    def __init__(self, name: str, options: argparse.Namespace, table: Table) -> None:
        self.name = name
        self.options = options
        self.table = table

    def run(self) -> None:
        """Reference, PyTorch and Triton."""
        prepare(self.options)
        case = Case(self.name, self.options)
        set_float32_products(tf32=case.precision == "tf32")
        ghosts, reference, plain = case.ghosts, "plain float64 on the device", None
        cpu = torch.device("cpu")
        first = case.run("plain", "fp32", cpu, 1, exact=True)
        try:
            apart = errors(case.run("plain", "fp32", case.device, 1, exact=True), first)
            self._add("plain float64 against the CPU", apart, dict.fromkeys(apart, DEVICES_APART))
            exact = case.run("plain", "fp32", case.device, ghosts, exact=True)
            plain = errors(case.run("plain", case.precision, case.device, ghosts), exact)
        except RuntimeError as error:  # CUDA's, or what torch says of tensors on two devices
            self.row("plain", "", verdict="FAILED", reason=one_line(error))
            ghosts, reference, exact = 1, "plain float64 on the CPU, one ghost batch", first
        found = errors(case.run("fused", case.precision, case.device, ghosts), exact)
        if plain is None:
            self._add(reference, found, dict.fromkeys(found, WITHOUT_PLAIN[case.precision]))
            return
        self._add("plain torch in the same precision", plain, dict.fromkeys(plain, CEILINGS[case.precision]))
        rounded = dict.fromkeys(plain, 0.0)
        if case.precision == "tf32":
            rounded = errors(case.run("plain", "bf16", case.device, ghosts), exact)
        bounds = {place: allowed(case.precision, plain[place], rounded[place]) for place in found}
        self._add(reference, found, bounds, plain)

    def _add(
        self,
        reference: str,
        found: Mapping[tuple[str, str], float],
        allowed: Mapping[tuple[str, str], float],
        plain: Mapping[tuple[str, str], float] | None = None,
    ) -> None:
        for place, error in found.items():
            self.row(
                *place,
                error=f"{error:.2e}",
                plain_error=f"{plain[place]:.2e}" if plain else "",
                allowed=f"{allowed[place]:.2e}",
                verdict="ok" if error <= allowed[place] else "TOO FAR",
                reference=reference,
            )

    def row(self, kind: str, name: str, **more: object) -> None:
        """Add a row."""
        self.table.add({"case": self.name, "kind": kind, "name": name, **self.options.about, **more})


def allowed(precision: str, plain: float, rounded: float) -> float:
    """The error that the Triton kernels may have.

    Args:
        plain: that of PyTorch in the same precision.
        rounded: that of PyTorch in bfloat16, where the precision is TF32.
    """
    return min(CEILINGS[precision], max(FLOORS[precision], TIMES_PLAIN * plain, OF_BF16 * rounded))


def prepare(options: argparse.Namespace) -> None:
    """Without a GPU: Triton's interpreter as the tests prepare it."""
    options.about = {"device": "CPU, interpreted", "torch": torch.__version__, "commit": options.commit}
    if options.device == "cuda":
        options.about["device"] = torch.cuda.get_device_name()
        return
    os.environ["TRITON_INTERPRET"] = "1"
    from tests.dmd.kernels.forms import prepare_interpreter

    prepare_interpreter()


def conclusion(path: Path) -> bool:
    """Print what is too far, the worst of each case, and a last line; whether all is well."""
    with path.open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    bad = [row for row in rows if row["verdict"] != "ok"]
    worst_of_cases = []
    for case in dict.fromkeys(row["case"] for row in rows):
        compared = [row for row in rows if row["case"] == case and row["plain_error"]]
        print(f"{case}\n  {'':<44} {'fused':>9} {'plain':>9} {'allowed':>9}")
        for row in compared:
            what = f"{row['kind']} {row['name']}"
            print(f"  {what:<44} {row['error']:>9} {row['plain_error']:>9} {row['allowed']:>9}  {row['verdict']}")
        if compared:
            worst = max(compared, key=lambda row: float(row["error"]) / float(row["allowed"]))
            worst_of_cases.append(
                f"{case} worst {worst['error']} of {worst['allowed']} ({worst['kind']} {worst['name']})"
            )
    for row in bad:
        print("NOT WELL:", ", ".join(f"{name} {value}" for name, value in row.items() if value))
    print(f"{len(rows) - len(bad)} of {len(rows)} within bounds; {'; '.join(worst_of_cases)}", flush=True)
    return bool(rows) and not bad


def main() -> int:
    """Run the cases; 1: one is out of bounds or failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=CASES, metavar="PRESET:PRECISION")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--limit", type=float, default=100, help="seconds for a case, of which compilation takes most")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.commit, options.about = commit(), {}
    for name in options.cases:
        preset, _, precision = name.partition(":")
        if preset not in LENGTHS or precision not in FLOORS:
            parser.error(f"--cases has {name!r}; write PRESET:PRECISION, such as {CASES[0]}")
    table = Table(options.out, COLUMNS)
    cases = [name for name in options.cases if options.device == "cuda" or not name.endswith("tf32")]
    smokes = [Smoke(name, options, table) for name in cases]
    running = [(smoke, Apart(smoke.run)) for smoke in smokes]
    for smoke, apart in running:
        reason = apart.reason(options.limit)
        if reason:
            smoke.row("case", "", verdict="FAILED", reason=reason)
    return 0 if conclusion(options.out) else 1


if __name__ == "__main__":
    raise SystemExit(main())
