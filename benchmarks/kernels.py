"""Each group of Triton kernels against its own floor: launches, bytes and operations, and on CUDA the time.

    python -m benchmarks.kernels --out benchmarks/results/kernels.csv

The floor is the longer of two times: bytes that must be moved (every input read once, every output written once) over
the device's bandwidth, and operations that must be done over its rate of bfloat16 products; both rates are measured
first, by a large copy and a large product. Times are of the device alone: replays of a CUDA graph of many calls, in
which the host has no part; those of backward are of forward and backward, less those of forward. Then, row by row,
every kernel by name, from torch's profiler. Nothing counts while something is timed. Without a CUDA device times and
floors stay empty; launches are counted (see `benchmarks.counting`).
"""

import argparse
import platform
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.counting import Counter, TritonCounter, interpret_without_a_device
from benchmarks.kernel_times import device_times
from benchmarks.rates import rates
from benchmarks.tables import Table, commit
from dmd.kernels.attention.plan import attention_tables
from dmd.kernels.backend import set_float32_products
from dmd.kernels.encoder.plan import StackPlan
from dmd.model.transformer import TransformerStack

STAGES = {
    "shared": (50, (46,) * 3, (46,) * 3),
    "crossmodal": (50, (46,) * 6, (46,) * 6),
    "memory": (100, (46,) * 3, (46,) * 3),
    "crossmodal-unaligned": (50, (46, 46, 371, 371, 496, 496), (371, 496, 46, 496, 46, 371)),
    "memory-unaligned": (100, (46, 371, 496), (46, 371, 496)),
}
"""Channels, query lengths and key lengths of the encoders of CMU-MOSI."""
HEADS = 10


@dataclass(frozen=True, kw_only=True)
class Work:
    """A thing to measure, and what it has to do at least."""

    name: str
    forward: Callable[[], object]
    backward: Callable[[], object]
    """After a forward that has been run."""
    both: Callable[[], object]
    """Forward and then backward."""
    bytes: tuple[int, int]
    """Forward and backward."""
    operations: tuple[int, int]


def visible(queries: int, keys: int, row: int) -> int:
    """How many keys a query row sees, of sequences of so many queries and keys."""
    return min(keys, row + abs(queries - keys) + 1)


def make_attention(stage: str, batch: int, device: torch.device, dtype: torch.dtype) -> Work:
    """The attention of a stage: forward, and both launches of backward; tables lie on the device, as in a stack."""
    from dmd.kernels.attention.triton_launch import AttentionLaunch
    from dmd.kernels.common.rows import padded_rows

    dim, queries, keys = STAGES[stage]
    tables = attention_tables(queries, keys, (0.0,) * len(queries))
    shape, scales = (table.to(device) for table in tables)
    launch = AttentionLaunch(shape, scales, None, None, dim=dim, heads=HEADS, last_step=False)
    steps = (max(queries), max(keys), max(keys))
    parts = tuple(padded_rows(torch.randn(len(queries), batch, t, dim, device=device, dtype=dtype)) for t in steps)
    names = ("grad_query", "grad_key", "grad_value")
    grads = {name: torch.zeros_like(part) for name, part in zip(names, parts, strict=True)}
    out, upstream = torch.zeros_like(parts[0]), padded_rows(torch.randn_like(parts[0][..., :dim]))
    attended = launch.forward(*parts, out)
    pairs = batch * sum(visible(q, k, row) for q, k in zip(queries, keys, strict=True) for row in range(q))
    moved = batch * dim * parts[0].element_size() * (2 * sum(queries) + 2 * sum(keys))

    def both() -> None:
        launch.backward(launch.forward(*parts, out), upstream, **grads)

    return Work(
        name=f"attention {stage}",
        forward=lambda: launch.forward(*parts, out),
        both=both,
        backward=lambda: launch.backward(attended, upstream, **grads),
        bytes=(moved, 2 * moved),
        operations=(4 * pairs * dim, 10 * pairs * dim),
    )


def one_layer(dim: int, queries: tuple[int, ...], keys: tuple[int, ...], *, attention_rate: float = 0.0) -> StackPlan:
    """The plan of a stack of one layer over encoders of these lengths; no dropout but the attention's."""
    return StackPlan(
        dim=dim,
        heads=HEADS,
        levels=1,
        queries=queries,
        keys=keys,
        attn_rates=(attention_rate,) * len(queries),
        relu_rate=0.0,
        res_rate=0.0,
        embed_rate=0.0,
        last_step=False,
    )


def make_layer(stage: str, batch: int, device: torch.device, dtype: torch.dtype) -> Work:
    """A stack of one layer: embedding, layer and last norm."""
    from dmd.kernels.triton_backend import TRITON

    dim, queries, keys = STAGES[stage]
    stack = TransformerStack(one_layer(dim, queries, keys), TRITON).to(device)
    given = {t: torch.randn(batch, t, dim, device=device, requires_grad=True) for t in {*queries, *keys}}
    own, sources = [given[t] for t in queries], [given[t] for t in keys]
    cross = stage.startswith("crossmodal")

    def forward() -> list[Tensor]:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return stack(own, sources if cross else None)

    outs, leaves = forward(), [*given.values(), *stack.parameters()]
    upstream = [torch.randn_like(out) for out in outs]

    def backward(outs: Sequence[Tensor]) -> object:
        return torch.autograd.grad(outs, leaves, upstream, retain_graph=True, allow_unused=True)

    weights = len(queries) * 12 * dim * dim
    rows_q, rows_k = batch * sum(queries), batch * sum(keys)
    lengths = zip(queries, keys, strict=True)
    pairs = batch * sum(min(k, row + abs(q - k) + 1) for q, k in lengths for row in range(q))
    products = 2 * dim * dim * (10 * rows_q + 2 * rows_k)
    moved = 4 * (sum(x.numel() for x in given.values()) + rows_q * dim + weights)
    return Work(
        name=f"layer {stage}",
        forward=forward,
        backward=lambda: backward(outs),
        both=lambda: backward(forward()),
        bytes=(moved, 2 * moved),
        operations=(products + 4 * pairs * dim, 2 * products + 10 * pairs * dim),
    )


def measure(work: Work, device: torch.device, ceilings: tuple[float, float] | None) -> list[dict[str, object]]:
    """A row for forward and one for backward, and on CUDA one for each kernel of both."""
    rows: list[dict[str, object]] = []
    for number, (name, run) in enumerate({"forward": work.forward, "backward": work.backward}.items()):
        with TritonCounter() as launches, Counter() as torchs:
            run()
        rows.append(
            {
                "kernels": work.name,
                "pass": name,
                "kernel": "all",
                "triton": launches.names.total(),
                "torch": torchs.names.total(),
                "megabytes": round(work.bytes[number] / 1e6, 2),
                "megaoperations": round(work.operations[number] / 1e6, 1),
                "floor_us": "",
                "us": "",
            }
        )
    if ceilings is None:
        return rows
    times = [replayed(work.forward), replayed(work.both)]
    for number, row in enumerate(rows):
        floor = max(work.bytes[number] / ceilings[0], work.operations[number] / ceilings[1])
        row["floor_us"] = round(floor * 1e6, 1)
        row["us"] = round(times[number] - (times[0] if number else 0), 1)
    for name, (calls, microseconds) in device_times(work.both, device, repeats=10).items():
        rows.append(
            {
                "kernels": work.name,
                "pass": "both",
                "kernel": name,
                "triton": round(calls, 1),
                "us": round(microseconds, 1),
            }
        )
    return rows


def replayed(run: Callable[[], object], *, milliseconds: int = 20) -> float:
    """Microseconds of a call on the device, the median of replays of a CUDA graph of about so many milliseconds."""
    from triton.testing import do_bench_cudagraph

    torch.cuda.synchronize()  # what it reads was made on another stream
    return 1e3 * float(do_bench_cudagraph(run, rep=milliseconds, return_mode="median"))


def main() -> None:
    """Measure everything and write the CSV, row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, help="default: 160, without a CUDA device 2")
    parser.add_argument("--precision", choices=["fp32", "tf32", "bf16"], default="bf16")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--device", choices=["cuda", "cpu"], help="reject another; default: CUDA where there is one")
    parser.add_argument("--tiny", action="store_true", help="2 samples")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = interpret_without_a_device()
    if options.device not in (None, device.type):
        parser.error(f"--device {options.device}, but this machine has {device.type}")
    cuda = device.type == "cuda"
    samples = options.samples or (160 if cuda and not options.tiny else 2)
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    set_float32_products(tf32=options.precision == "tf32")
    ceilings = rates(device) if cuda else None
    about = {
        "samples": samples,
        "precision": options.precision,
        "device": torch.cuda.get_device_name() if cuda else f"{platform.machine()} CPU, not run",
        "bandwidth_gb_s": round(ceilings[0] / 1e9) if ceilings else "",
        "rate_tflop_s": round(ceilings[1] / 1e12) if ceilings else "",
        "torch_version": torch.__version__,
        "commit": commit(),
    }
    table, last = Table(options.out), ""
    for stage in options.stages:
        for make in (make_attention, make_layer):
            with nullcontext() if cuda else TritonCounter():  # where kernels are only counted, none runs
                rows = measure(make(stage, samples, device, dtype), device, ceilings)
            for row in rows:
                table.add({**row, **about})
                if row["kernel"] == "all":
                    last = ", ".join(f"{name} {value}" for name, value in row.items() if name != "kernel")
                    print(last, flush=True)


if __name__ == "__main__":
    main()
