"""A step of 160 samples on a GPU: fused, the same as a CUDA graph, the straightforward form, the text encoder alone.

    python -m benchmarks.step_cuda --out benchmarks/results/step_cuda.csv

Forward, objective and backward, on random samples that lie on the device; BERT-base has random weights (and needs
transformers). Sides take turns in one process; every call ends with a synchronisation. Peaks are torch's allocator's,
less what was there before. The floor is the operations of all products (counted on the straightforward form) at the
device's own rate of bfloat16 products. `--device cpu` runs plain forms, to try the program: its times are of no use.
"""

import argparse
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch

from benchmarks.kernels import rates
from benchmarks.step_profile import flops
from benchmarks.step_sides import LENGTHS, SIZE, STEP, random_samples, shapes
from benchmarks.straightforward import straightforward
from benchmarks.tables import write_rows
from benchmarks.turns import alternate
from dmd.data.loader import Batch
from dmd.model.text import build_text_encoder
from dmd.presets import load_config
from dmd.training.provenance import git_commit
from dmd.training.step import make_noise
from dmd.training.system import TrainingSystem

WARMUPS = 3
"""Steps before the first that counts: a pass is captured in the second."""


class Side:
    """One form of a preset's training system, with samples for a step.

    Args:
        form: `fused`, `graph` or `straightforward`.
        at_once: ghost batches per pass.
    """

    def __init__(self, preset: str, *, form: str, bert: bool, precision: str, ghosts: int, at_once: int,
                 device: torch.device) -> None:  # fmt: skip
        torch.manual_seed(0)
        plain = form == "straightforward" or device.type == "cpu"
        config = load_config(preset)
        train = replace(
            config.train, kernels="plain" if plain else "fused", cuda_graph="auto" if form == "graph" else "off",
            precision=precision, ghost_batches_per_step=ghosts, ghost_batches_per_forward=at_once,
        )  # fmt: skip
        self.config = replace(config, train=train)
        dims, lengths = shapes(preset)
        encoder = build_text_encoder({"model_type": "bert"}, frozen=False) if bert else None
        system = TrainingSystem(self.config, SimpleNamespace(dims=dims, lengths=lengths), encoder, device)
        if form == "straightforward":
            straightforward(system.dmd)
        self.system, self.device = system.to(device), device
        parts, labels = random_samples(preset, ghosts, bert=bert, device=device)
        passes = zip(
            *(x.split(at_once * SIZE) for x in parts), labels.split(at_once), torch.arange(ghosts).split(at_once),
            strict=True,
        )  # fmt: skip
        self.batches = [
            Batch(
                text=text, audio=audio, vision=vision, labels=own, mask=torch.ones_like(own),
                rows=torch.zeros(own.shape, dtype=torch.int64), ghosts=tuple(numbers.tolist()),
            )
            for text, audio, vision, own, numbers in passes
        ]  # fmt: skip
        self.number = 0

    def step(self) -> None:
        """Forward, objective and backward of all ghost batches."""
        for forward, batch in enumerate(self.batches):
            noise = make_noise(
                batch, self.config, step=self.number, forward=forward, device=self.device, keys=self.system.keys
            )
            self.system(batch, noise)["total"].sum().backward()
        self._end()

    def text_encoder(self) -> None:
        """Forward and backward of the text encoder alone, in the same precision."""
        encoder = self.system.dmd.text_encoder
        assert encoder is not None
        half = self.system.execution.autocast
        for batch in self.batches:
            with torch.autocast(self.device.type, half, enabled=half is not None):
                encoded = encoder(batch.text)
            encoded.float().sum().backward()
        self._end()

    def _end(self) -> None:
        self.system.zero_grad()
        self.number += 1
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def peak(step: Callable[[], None], device: torch.device) -> float | None:
    """GiB that a step adds to what is allocated."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return (torch.cuda.max_memory_allocated() - before) / 2**30


def measure(
    preset: str, options: argparse.Namespace, rate: float | None, *, bert: bool, precision: str
) -> list[dict[str, object]]:
    """Seconds and peak of each side, how many times as long as the fused form it takes, and the floor at a rate."""
    device = torch.device(options.device)
    sides = {
        form: Side(preset, form=form, bert=bert, precision=precision, ghosts=options.ghosts,
                   at_once=1 if form == "straightforward" else options.ghosts, device=device)
        for form in ("fused", "graph", "straightforward")
    }  # fmt: skip
    steps = {form: side.step for form, side in sides.items()}
    if bert:
        steps["text encoder"] = sides["fused"].text_encoder
    operations = flops(sides["straightforward"].step)
    for step in list(steps.values()) * WARMUPS:
        step()
    times = {name: [wall for wall, _ in found] for name, found in alternate(steps, options.rounds).items()}
    rows: list[dict[str, object]] = []
    for name, step in steps.items():
        ratio = statistics.median(own / fused for own, fused in zip(times[name], times["fused"], strict=True))
        rows.append({"side": name, "seconds": statistics.median(times[name]), "times_fused": ratio,
                     "peak_gib": peak(step, device)})  # fmt: skip
    if rate is not None:
        rows.append({"side": "floor", "seconds": operations / rate, "times_fused": None, "peak_gib": None})
    about = {"preset": preset, "text": "bert-base" if bert else "features", "precision": precision,
             "samples": options.ghosts * SIZE, "captured": sides["graph"].system.captured}  # fmt: skip
    return [{**about, **row} for row in rows]


def main() -> None:
    """Measure and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", choices=LENGTHS, default=list(LENGTHS))
    parser.add_argument("--texts", nargs="+", choices=["features", "bert-base"], default=["features", "bert-base"])
    parser.add_argument("--precisions", nargs="+", choices=["bf16", "fp32"], default=["bf16"])
    parser.add_argument("--ghosts", type=int, default=STEP, help="ghost batches of 16 in a step, all in one pass")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --device cpu tries the program without one")
    where = torch.cuda.get_device_name() if options.device == "cuda" else "CPU, plain forms"
    about = {"device": where, "torch": torch.__version__, "commit": git_commit()}
    rate = rates(torch.device("cuda"))[1] if options.device == "cuda" else None
    rows: list[dict[str, object]] = []
    for preset in options.presets:
        for text in options.texts:
            for precision in options.precisions:
                found = measure(preset, options, rate, bert=text == "bert-base", precision=precision)
                rows += [{**row, **about} for row in found]
                print(*found, sep="\n", flush=True)
                write_rows(options.out, rows)


if __name__ == "__main__":
    main()
