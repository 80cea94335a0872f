"""A model of step time over ranks (docs/scaling.md), fitted at one rank and held against two.

    python -m benchmarks.cluster_scaling      what the model says of a GPU per rank, as the table of docs/scaling.md

`python -m benchmarks.cluster OUT.csv scaling` measures; this module is the model and its parts.
"""

import json
import math
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
import torch.distributed as dist

SMALL_COLLECTIVES = 1
"""All-reduces of a step beside those of the gradient's buckets: loss terms, and with them whether to stop or save."""
SHARING_COLLECTIVES = 2
"""Of ranks that share a ghost batch: features gathered, sums added; each takes hops like an all-reduce."""
GHOST_BATCH_SIZE = 16
NETWORKS = {"100 Gbit/s": (12.5e9, 2e-5), "10 Gbit/s": (1.25e9, 5e-5)}
"""Bytes per second of a link and seconds of a hop, assumed."""
PARAMETERS = 4_405_582
"""Of `mosi-aligned` on features of 768 + 5 + 20."""


@dataclass(frozen=True, kw_only=True)
class StepModel:
    """Step time of R ranks for G ghost batches.

    compute: [fixed + share(R, G) * per_ghost_batch] * crowding, of the slowest of R ranks: times 1 + jitter * m(R),
    m(R) the expected maximum of R standard normal draws (Blom's approximation). Then what backward does not hide of a
    ring all-reduce of the gradient, 2 (R - 1) / R * bytes / bandwidth, but at least its last bucket, which starts when
    backward has ended; and the hops of all collectives, (buckets + 1) * 2 ceil(log2 R) * latency, and of those of k
    ranks that share a ghost batch, 2 * 2 ceil(log2 k) * latency.
    """

    fixed: float
    """Seconds of a step that no rank can share."""
    per_ghost_batch: float
    gradient_bytes: int
    jitter: float
    """Relative deviation of a rank's compute."""
    bandwidth: float
    """Bytes per second of one link."""
    latency: float
    """Seconds of a hop."""
    buckets: int = 1
    last_bucket_bytes: int = 0
    """Of several buckets, the one that starts last."""
    hides: float = 0.0
    """Seconds of the last backward pass that are left when the first of several buckets starts."""

    def compute(self, ranks: int, ghost_batches: int, crowding: float = 1.0) -> float:
        """Seconds until the slowest rank has its gradient; ranks that share a machine slow each other by `crowding`."""
        own = self.fixed + share(ranks, ghost_batches) * self.per_ghost_batch
        slowest = NormalDist().inv_cdf((ranks - 0.375) / (ranks + 0.25)) if ranks > 1 else 0.0
        return own * crowding * (1 + self.jitter * slowest)

    def reduce(self, ranks: int) -> float:
        """Seconds of the step's collectives that no computing hides."""
        of_a_byte = 2 * (ranks - 1) / ranks / self.bandwidth
        wire = max(self.gradient_bytes * of_a_byte - self.hides, self.last_bucket_bytes * of_a_byte)
        return wire + (self.buckets + SMALL_COLLECTIVES) * 2 * math.ceil(math.log2(ranks)) * self.latency

    def seconds(self, ranks: int, ghost_batches: int, crowding: float = 1.0) -> float:
        """Seconds of one step."""
        sharers = math.ceil(ranks / ghost_batches)
        hops = SHARING_COLLECTIVES * 2 * math.ceil(math.log2(sharers))
        return self.compute(ranks, ghost_batches, crowding) + self.reduce(ranks) + hops * self.latency


def share(ranks: int, ghost_batches: int) -> float:
    """Ghost batches of the rank that has the most: whole ones, or a part of one that R // G ranks share."""
    if ranks <= ghost_batches:
        return math.ceil(ghost_batches / ranks)
    return math.ceil(GHOST_BATCH_SIZE / (ranks // ghost_batches)) / GHOST_BATCH_SIZE


def line(points: dict[int, float]) -> tuple[float, float]:
    """Least squares through seconds by number of ghost batches: (fixed, per ghost batch)."""
    slope, fixed = statistics.linear_regression(list(points), list(points.values()))
    return fixed, slope


def spread(seconds: Sequence[float]) -> float:
    """Relative deviation of step times, from the middle two thirds: an interruption of the machine does not count."""
    ordered = sorted(seconds)
    low, high = ordered[len(ordered) // 6], ordered[-1 - len(ordered) // 6]
    return (high - low) / 2 / statistics.median(ordered)


def assumed(network: str, ghost_batch: float = 0.004) -> StepModel:
    """One GPU per rank: 20 ms fixed, 4 ms per ghost batch, jitter 5 %."""
    bandwidth, latency = NETWORKS[network]
    return StepModel(
        fixed=0.02,
        per_ghost_batch=ghost_batch,
        gradient_bytes=4 * PARAMETERS,
        jitter=0.05,
        bandwidth=bandwidth,
        latency=latency,
    )


def predictions() -> str:
    """The table of docs/scaling.md."""
    fast, slow = (assumed(network) for network in NETWORKS)
    lines = [
        "| ranks | published step, G = 10: 100 / 10 Gbit/s | grown step, G = 10 R: 100 / 10 Gbit/s | efficiency of the "
        "grown step |",
        "|---|---|---|---|",
    ]
    for ranks in (1, 2, 8, 10, 20, 40, 160, 512):
        ten = [f"{1000 * model.seconds(ranks, 10):.0f}" for model in (fast, slow)]
        grown = [model.seconds(ranks, 10 * ranks) for model in (fast, slow)]
        published = f"{ten[0]} / {ten[1]} ms" if ranks <= 10 * GHOST_BATCH_SIZE else "-"
        efficiency = " / ".join(f"{fast.seconds(1, 10) / seconds:.2f}" for seconds in grown)
        lines.append(f"| {ranks} | {published} | {1000 * grown[0]:.0f} / {1000 * grown[1]:.0f} ms | {efficiency} |")
    return "\n".join(lines)


def time_all_reduce(rank: int, ranks: int, port: int, gradient: int, rounds: int = 30) -> None:
    """One of `ranks` processes: rank 0 prints seconds of all-reduces of 64 and `gradient` bytes over gloo (JSON)."""
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    result = {}
    for size in (64, gradient):
        tensor = torch.ones(size // 4)
        seconds = []
        for _ in range(rounds):
            dist.barrier()
            begin = time.perf_counter()
            dist.all_reduce(tensor)
            seconds.append(time.perf_counter() - begin)
        result[size] = statistics.median(seconds)
    if rank == 0:
        print(json.dumps(result))
    dist.destroy_process_group()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        time_all_reduce(*map(int, sys.argv[1:]))
    else:
        print(predictions())
