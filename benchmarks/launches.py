"""Launches of one optimizer step: Triton kernels and torch operations that are neither views nor allocations.

    python -m benchmarks.launches --out OUT.csv

Forward, losses and backward of all ten ghost batches in one pass. Without a CUDA device the Triton kernels are counted
and not run (`TRITON_INTERPRET=1`); torch's operations run on the CPU, so that what they compute is of no use, but there
are as many of them. `--samples` lowers the ghost batch: the counts do not depend on it. Host syncs are operations that
bring a number to the host (`_local_scalar_dense`), and copies between devices that wait.
"""

import argparse
import collections
import platform
from contextlib import nullcontext
from pathlib import Path

import torch

from benchmarks.counting import Counter, TritonCounter, interpret_without_a_device
from benchmarks.step_sides import LENGTHS, shapes
from benchmarks.tables import Table, commit
from dmd.config.loading import load_config
from dmd.kernels.backend import choose_execution
from dmd.kernels.dropout.keys import DropoutKeys, number_samples
from dmd.kernels.dropout.rng import DropoutRNG
from dmd.losses import Objective
from dmd.model import DMD
from dmd.model.text import build_text_encoder

SYNCS = ("_local_scalar_dense", "nonzero", "equal")
GHOSTS = 10
PRECISIONS, TEXTS = ("fp32", "bf16"), ("features", "bert")
BERT = {"model_type": "bert", "attention_probs_dropout_prob": 0.0}
"""BERT-base. On CUDA the dropout of its attention is inside the kernel; with it, CPUs take the attention apart."""


def count_step(
    preset: str, *, samples: int, implementation: str, text: bool, bf16: bool, device: torch.device
) -> tuple[collections.Counter[str], collections.Counter[str]]:
    """(Triton launches, torch operations) by name, of a step after one that warmed up."""
    config = load_config(preset, ["model.task=regression"])
    dims, lengths = shapes(preset)
    torch.manual_seed(0)
    encoder = build_text_encoder(BERT, frozen=False).to(device) if text else None
    execution = choose_execution(device, kernels="fused" if implementation == "fused" else "plain")
    fused, backend = execution.fused, execution.backend
    model = DMD(config.model, dims, lengths, encoder, backend=backend).to(device)
    losses = Objective(config.objective, config.model, backend=backend).to(device)
    batch = GHOSTS * samples
    parts = [torch.randn(batch, lengths[m], dims[m], device=device) for m in dims]
    if text:
        ids = torch.randint(1, 1000, (batch, lengths["text"]), device=device)
        parts[0] = torch.stack([ids, torch.ones_like(ids), torch.zeros_like(ids)], 1)
    labels = torch.randint(-15, 16, (GHOSTS, samples), device=device) / 5
    mask = torch.ones_like(labels)
    keys = DropoutKeys() if backend.keys_on_device else None
    triton_launches: collections.Counter[str] = collections.Counter()
    counter = Counter()
    for step in range(2):
        counter = Counter()
        rng = DropoutRNG(
            seed=1, step=step, samples=number_samples(range(GHOSTS), range(samples)), device=device, keys=keys
        )
        with TritonCounter() if fused else nullcontext() as launches, counter:
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                output = model(*parts, rng)
            terms = losses(output, labels, mask)
            terms["total"].sum().backward()
        triton_launches = launches.names if launches is not None else triton_launches
        for module in (model, losses):
            module.zero_grad()
    return triton_launches, counter.names


def main() -> None:
    """Count presets and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*", default=list(LENGTHS))
    parser.add_argument("--samples", type=int, default=2, help="of a ghost batch")
    parser.add_argument("--forms", nargs="+", default=["fused", "plain"])
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--text", nargs="+", choices=TEXTS, default=TEXTS)
    parser.add_argument("--names", action="store_true", help="print each operation's count")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = interpret_without_a_device()
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} CPU"
    table = Table(options.out)
    for preset in options.presets:
        for text in options.text:
            for implementation in options.forms:
                for precision in options.precisions:
                    own, torchs = count_step(
                        preset,
                        samples=options.samples,
                        implementation=implementation,
                        text=text == "bert",
                        bf16=precision == "bf16",
                        device=device,
                    )
                    row = {
                        "preset": preset,
                        "text": text,
                        "form": implementation,
                        "precision": precision,
                        "samples": options.samples * GHOSTS,
                        "triton": own.total(),
                        "torch": torchs.total(),
                        "launches": own.total() + torchs.total(),
                        "host_syncs": sum(torchs[name] for name in SYNCS),
                        "device": where,
                        "torch_version": torch.__version__,
                        "commit": commit(),
                    }
                    print(row, flush=True)
                    table.add(row)
                    if options.names:
                        print(own.most_common(), torchs.most_common(), sep="\n", flush=True)


if __name__ == "__main__":
    main()
