"""Each group of Triton kernels against its own floor: launches, bytes and operations, and on CUDA the time.

    python -m benchmarks.kernels --out benchmarks/results/kernels.csv

The floor is the longer of two times: bytes that must be moved (every input read once, every output written once) over
the device's bandwidth, and operations that must be done over its rate of bfloat16 products; both rates are measured
first, by a large copy and a large product. Without a CUDA device the times and floors stay empty; the launches are
counted (see `benchmarks.launches`).
"""

import argparse
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.launches import Counter, TritonCounter
from benchmarks.tables import write_rows
from dmd.kernels.attention import AttentionPlan, attention
from dmd.model.transformer import TransformerStack
from dmd.training.provenance import git_commit

CUDA = torch.cuda.is_available()
STAGES = {
    "shared": (50, (46,) * 3, (46,) * 3), "crossmodal": (50, (46,) * 6, (46,) * 6),
    "memory": (100, (46,) * 3, (46,) * 3),
    "crossmodal-unaligned": (50, (46, 46, 371, 371, 496, 496), (371, 496, 46, 496, 46, 371)),
    "memory-unaligned": (100, (46, 371, 496), (46, 371, 496)),
}  # fmt: skip
"""Channels, query lengths and key lengths of the encoders of CMU-MOSI."""
HEADS = 10


@dataclass(frozen=True, kw_only=True)
class Work:
    """A thing to measure, and what it has to do at least."""

    name: str
    forward: Callable[[], list[Tensor]]
    bytes: tuple[int, int]
    """Forward and backward."""
    operations: tuple[int, int]


def make_attention(stage: str, batch: int, device: torch.device, dtype: torch.dtype) -> Work:
    """The attention of a stage: forward, and both launches of backward."""
    dim, queries, keys = STAGES[stage]
    plan = AttentionPlan(heads=HEADS, queries=queries, keys=keys, rates=(0.0,) * len(queries), fused=True)
    steps = (max(queries), max(keys), max(keys))
    parts = [
        torch.randn(len(queries), batch, t, dim, device=device, dtype=dtype, requires_grad=True) for t in steps
    ]
    pairs = batch * sum(plan.visible(e, row) for e, length in enumerate(queries) for row in range(length))
    moved = batch * dim * parts[0].element_size() * (2 * sum(queries) + 2 * sum(keys))
    return Work(
        name=f"attention {stage}", forward=lambda: [attention(*parts, plan, None)], bytes=(moved, 2 * moved),
        operations=(4 * pairs * dim, 10 * pairs * dim),
    )  # fmt: skip


def make_layer(stage: str, batch: int, device: torch.device, dtype: torch.dtype) -> Work:
    """A stack of one layer: embedding, layer and last norm."""
    dim, queries, keys = STAGES[stage]
    stack = TransformerStack(
        dim, HEADS, 1, queries=queries, keys=keys, attn_dropout=[0.0] * len(queries), relu_dropout=0.0,
        res_dropout=0.0, embed_dropout=0.0, last_step=False, fused=True,
    ).to(device)  # fmt: skip
    given = {t: torch.randn(batch, t, dim, device=device, requires_grad=True) for t in {*queries, *keys}}
    own, sources = [given[t] for t in queries], [given[t] for t in keys]
    cross = stage.startswith("crossmodal")

    def forward() -> list[Tensor]:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return stack(own, sources if cross else None)

    weights = len(queries) * 12 * dim * dim
    rows_q, rows_k = batch * sum(queries), batch * sum(keys)
    lengths = zip(queries, keys, strict=True)
    pairs = batch * sum(min(k, row + abs(q - k) + 1) for q, k in lengths for row in range(q))
    products = 2 * dim * dim * (10 * rows_q + 2 * rows_k)
    moved = 4 * (sum(x.numel() for x in given.values()) + rows_q * dim + weights)
    return Work(
        name=f"layer {stage}", forward=forward, bytes=(moved, 2 * moved),
        operations=(products + 4 * pairs * dim, 2 * products + 10 * pairs * dim),
    )  # fmt: skip


def rates(device: torch.device) -> tuple[float, float]:
    """Bytes and bfloat16 operations per second of the device."""
    from triton.testing import do_bench

    source = torch.randn(2**28, device=device)
    target = torch.empty_like(source)
    copied = do_bench(lambda: target.copy_(source), return_mode="median")
    square = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    product = do_bench(lambda: square @ square, return_mode="median")
    return 2 * source.numel() * 4 / copied * 1e3, 2 * 8192**3 / product * 1e3


def measure(work: Work, device: torch.device, ceilings: tuple[float, float] | None) -> list[dict[str, object]]:
    """A row for forward and one for backward."""
    rows = []
    outs = work.forward()
    upstream = [torch.randn_like(out) for out in outs]

    def backward(outs: list[Tensor]) -> None:
        torch.autograd.backward(outs, upstream, retain_graph=True)

    passes: list[Callable[[], object]] = [work.forward, lambda: backward(outs)]
    for number, (name, run) in enumerate(zip(("forward", "backward"), passes, strict=True)):
        with TritonCounter() as launches, Counter() as torchs:
            run()
        row: dict[str, object] = {
            "kernels": work.name, "pass": name, "triton": launches.names.total(), "torch": torchs.names.total(),
            "megabytes": round(work.bytes[number] / 1e6, 2),
            "megaoperations": round(work.operations[number] / 1e6, 1), "floor_us": "", "median_us": "",
        }  # fmt: skip
        if ceilings is not None:
            from triton.testing import do_bench

            floor = max(work.bytes[number] / ceilings[0], work.operations[number] / ceilings[1])
            row["floor_us"] = round(floor * 1e6, 1)
            row["median_us"] = round(do_bench(run, return_mode="median") * 1e3, 1)
        rows.append(row)
    return rows


def main() -> None:
    """Measure everything and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=160 if CUDA else 2)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = torch.device("cuda" if CUDA else "cpu")
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    ceilings = rates(device) if CUDA else None
    about = {
        "samples": options.samples, "precision": options.precision,
        "device": torch.cuda.get_device_name() if CUDA else f"{platform.machine()} CPU, not run",
        "bandwidth_gb_s": round(ceilings[0] / 1e9) if ceilings else "",
        "rate_tflop_s": round(ceilings[1] / 1e12) if ceilings else "", "torch_version": torch.__version__,
        "commit": git_commit(),
    }  # fmt: skip
    rows = []
    for stage in STAGES:
        for make in (make_attention, make_layer):
            with TritonCounter():  # where kernels are only counted, none runs here either
                work = make(stage, options.samples, device, dtype)
                for row in measure(work, device, ceilings):
                    rows.append({**row, **about})
                    print(row, flush=True)
    if options.out is not None:
        write_rows(options.out, rows)


if __name__ == "__main__":
    main()
