"""One of two ranks of `benchmarks.communication`: steps of a BERT-base encoder whose reductions take turns.

Each rank limits its own host's link before a phase, then makes one step in each reduction, round after round. Rank 0
prints a line of JSON per step.
"""

import argparse
import json
import os
import subprocess
import time
from datetime import timedelta
from types import SimpleNamespace, TracebackType

import torch
import torch.distributed as dist

from dmd.config.loading import load_config
from dmd.data.synthetic import random_batch
from dmd.model.text import build_text_encoder
from dmd.system.system import TrainingSystem
from dmd.training.step import make_plan, train_step
from launch.trainer.deepspeed_config import PRECISIONS
from launch.trainer.engine import DeepSpeedEngine, join_process_group
from launch.trainer.reduction import GradientReduction

BERT = {"model_type": "bert"}
LENGTH = 50
"""Of a sentence; audio and vision are as long."""
VOCABULARY = 30522
WHOLE = 10**12
"""Bytes of a bucket that holds any gradient."""
REDUCTIONS = {
    "DeepSpeed's": None,
    "fp32, one bucket": ("fp32", WHOLE),
    "fp32, 25 MB": ("fp32", 25_000_000),
    "bf16, one bucket": ("bf16", WHOLE),
    "bf16, 25 MB": ("bf16", 25_000_000),
}
"""Precision and bytes of a bucket; DeepSpeed's own starts one bucket when backward has ended. "One bucket" is one of
the text encoder, and a small one of the rest."""


class TimedReduction(GradientReduction):
    """Notes when the last backward pass began, when it ended, when its first bucket started, and when all was there."""

    began = ended = first = done = 0.0

    def __enter__(self) -> None:
        super().__enter__()
        self.began = time.perf_counter()
        self.first = 0.0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ended = time.perf_counter()
        super().__exit__(kind, error, trace)
        self.done = time.perf_counter()

    def _start_next(self) -> None:
        self.first = self.first or time.perf_counter()
        super()._start_next()


class DeepSpeedReduction(GradientReduction):
    """DeepSpeed's own, which starts when backward has ended."""

    def __init__(self, engine: DeepSpeedEngine) -> None:
        super().__init__(engine.system.weights, precision=torch.float32)
        self._engine = engine._engine

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for weights in self.weights:
            weights.join_gradients()
        self._engine.allreduce_gradients()


def make_engine(settings: list[str], bucket: int, info: SimpleNamespace, device: torch.device) -> DeepSpeedEngine:
    """An engine whose gradients are joined in buckets of so many elements."""
    megabytes = bucket * torch.float32.itemsize / 1e6
    config = load_config("mosi-aligned", ["model.task=regression", *settings, f"train.reduce_bucket_mb={megabytes}"])
    torch.manual_seed(0)
    system = TrainingSystem(config, info, build_text_encoder(BERT, frozen=False), device)  # type: ignore[arg-type]
    system.train()
    ranks = dist.get_world_size()
    return DeepSpeedEngine(system, config, make_plan(config, config.train.ghost_batch_size * ranks, ranks), device)


def limit(megabits: int) -> None:
    """Limit what this host sends, by a token bucket."""
    rate = ("tbf", "rate", f"{megabits}mbit", "burst", "256kb", "latency", "50ms")
    subprocess.run(["tc", "qdisc", "replace", "dev", "eth0", "root", *rate], check=True)


def main() -> None:
    """Join the other rank, then make steps."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabits", type=int, nargs="+", required=True)
    parser.add_argument("--rounds", type=int, nargs="+", required=True)
    parser.add_argument("--samples", type=int, required=True)
    options = parser.parse_args()
    device = join_process_group(timedelta(minutes=10))
    torch.set_num_threads(1)
    rank, ranks = dist.get_rank(), dist.get_world_size()
    settings = [f"train.ghost_batch_size={options.samples}", f"train.ghost_batches_per_step={ranks}"]
    settings.append("train.ghost_batches_per_forward=1")
    config = load_config("mosi-aligned", ["model.task=regression", *settings])
    info = SimpleNamespace(
        dims={"text": 0, "audio": 5, "vision": 20},
        lengths=dict.fromkeys(("text", "audio", "vision"), LENGTH),
        text_kind="tokens",
        vocab_size=VOCABULARY,
    )
    plan = make_plan(config, options.samples * ranks, ranks)
    engines: dict[int, DeepSpeedEngine] = {}
    reductions: dict[str, tuple[DeepSpeedEngine, GradientReduction]] = {}
    for name, how in REDUCTIONS.items():
        precision, bucket_bytes = how or ("fp32", WHOLE)
        bucket = min(bucket_bytes // PRECISIONS[precision].itemsize, WHOLE // 4)
        engine = engines.get(bucket) or engines.setdefault(bucket, make_engine(settings, bucket, info, device))
        timed = TimedReduction(engine.system.weights, precision=PRECISIONS[precision])
        reductions[name] = engine, timed if how else DeepSpeedReduction(engine)
    batches = [random_batch(info, 1, options.samples)]  # type: ignore[arg-type]
    number = 0

    def step(name: str) -> dict[str, object]:
        nonlocal number
        engine, reduction = reductions[name]
        engine.reduction = reduction
        dist.barrier()
        begin = time.perf_counter()
        train_step(engine, batches, config, plan, step=number, step_in_epoch=0, flags=lambda: (False,) * 4)
        end = time.perf_counter()
        number += 1
        parts: dict[str, float] = {}
        if isinstance(reduction, TimedReduction):
            parts = {
                "forward": reduction.began - begin,
                "backward": reduction.ended - reduction.began,
                "hides": max(0.0, reduction.ended - reduction.first),
                "waiting": reduction.done - reduction.ended,
                "update": end - reduction.done,
            }
        return {"reduction": name, "seconds": end - begin, **parts}

    for name in reductions:
        step(name)
    for megabits, rounds in zip(options.megabits, options.rounds, strict=True):
        limit(megabits)
        for turn in range(rounds):
            for name in reductions:
                found = step(name)
                if rank == 0:
                    where = {"megabits": megabits, "round": turn, "load": os.getloadavg()[0]}
                    print(json.dumps(where | found), flush=True)
    if rank == 0:
        sizes = {
            name: [bucket.weights.whole.numel() for bucket in reduction.buckets]
            for name, (_, reduction) in reductions.items()
            if isinstance(reduction, TimedReduction)
        }
        weights = reductions[name][0].system.weights
        total = sum(parameter.numel() for each in weights for parameter in each.parameters.values())
        print(json.dumps({"parameters": total, "buckets": sizes}), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
