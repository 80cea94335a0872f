"""Microseconds of each kernel of a step on a GPU, by name, and how much of the step the GPU is busy.

    python -m benchmarks.kernel_times --out OUT.csv

Triton kernels under bf16, ten ghost batches in one pass, by torch's profiler over a few warm steps: calls and
microseconds of a step. `busy` is the time in which at least one kernel runs; where it is far below `wall`, the host
bounds the step (the profiler itself slows the host: `wall` is measured without it). On the CPU: torch's operations of a
small model.
"""

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.step_implementations import IMPLEMENTATIONS, Side, synchronise
from benchmarks.step_sides import LENGTHS, STEP
from benchmarks.tables import Table, commit
from dmd.kernels.backend import set_float32_products

STEPS = 5


def device_times(run: Callable[[], object], device: torch.device, repeats: int) -> dict[str, tuple[float, float]]:
    """{kernel: (calls, microseconds)} of one call of `run`, longest first, with `busy` among them.

    On a CPU the operations of torch, each without those inside it.
    """
    cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as profiled:
        for _ in range(repeats):
            run()
        synchronise(device)
    found: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    spans = []
    for event in profiled.events():
        if event.device_type != (DeviceType.CUDA if cuda else DeviceType.CPU) or event.is_user_annotation:
            continue
        microseconds = event.time_range.elapsed_us() if cuda else event.self_cpu_time_total
        found[event.name][0] += 1 / repeats
        found[event.name][1] += microseconds / repeats
        spans.append((event.time_range.start, event.time_range.end))
    ordered = sorted(found.items(), key=lambda item: -item[1][1])
    return {"busy": (len(spans) / repeats, covered(spans) / repeats)} | {k: (v[0], v[1]) for k, v in ordered}


def covered(spans: list[tuple[float, float]]) -> float:
    """Length of the union of intervals."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def wall(step: Callable[[], None], rounds: int) -> float:
    """Microseconds of a step that ends with a synchronisation, in the median."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    return 1e6 * statistics.median(times)


def main() -> None:
    """Profile the presets and write the CSV, preset by preset."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", choices=LENGTHS, default=["mosi-aligned", "mosi-unaligned"])
    parser.add_argument("--forms", nargs="+", choices=IMPLEMENTATIONS, default=["fused", "graph"])
    parser.add_argument("--precision", choices=["bf16", "tf32", "fp32"], default="bf16")
    parser.add_argument("--tiny", action="store_true", help="a small model and one ghost batch")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    set_float32_products(tf32=options.precision == "tf32")
    where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU, tiny model"
    table, summary = Table(options.out), []
    for implementation in options.forms:  # a capture that fails ends the program, when the others are there
        for preset in options.presets:
            side = Side(
                preset,
                implementation=implementation,
                bert=False,
                precision=options.precision,
                device=device,
                tiny=options.tiny,
                ghosts=1 if options.tiny else STEP,
            )
            for _ in range(3):
                side.step()
            whole = wall(side.step, 10)
            found = device_times(side.step, device, STEPS)
            about = {
                "preset": preset,
                "form": implementation,
                "precision": options.precision,
                "device": where,
                "torch": torch.__version__,
                "commit": commit(),
            }
            busy = found["busy"][1]
            for name, (calls, microseconds) in {"wall": (1, whole), **found}.items():
                share = microseconds / (whole if name in ("wall", "busy") else busy)
                table.add(
                    {
                        "kernel": name,
                        "calls": round(calls, 2),
                        "microseconds": round(microseconds, 1),
                        "share": round(share, 4),
                        **about,
                    }
                )
            bound = "the host bounds it" if busy < 0.85 * whole else "the device bounds it"
            summary.append(f"{preset} {implementation}: busy {busy / 1e3:.2f} of {whole / 1e3:.2f} ms, {bound}")
            print(summary[-1], flush=True)
            for name, (calls, microseconds) in list(found.items())[1:11]:
                print(f"  {microseconds:10.1f} us {calls:7.1f} calls  {name[:90]}", flush=True)
    print("; ".join(summary))


if __name__ == "__main__":
    main()
