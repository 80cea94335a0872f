"""A ghost batch on one rank against the same one shared by two and four: step time, CPU time, loss and gradient.

    python -m benchmarks.sharing OUT.csv [--preset mosi-aligned] [--steps 12]

Steps of one ghost batch of the preset's shapes, random samples, DeepSpeed engine, one thread per rank, gloo over the
loopback. Where there are fewer cores than ranks, wall time says nothing about more cores: then CPU seconds of a rank
are what a core of its own would compute, waiting left out. The gradient is Adam's first moment after the first step
without a clip. About a minute on two idle cores.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.cluster_runs import finish, start
from benchmarks.loader_sides import prepare
from benchmarks.step_training import SHAPES
from benchmarks.tables import Table, commit
from data_shards.reading.reader import ShardReader
from dmd.config.loading import load_config
from dmd.data.loader import training_steps
from dmd.distributed.sharing import join_sharing
from dmd.training.step import make_plan, train_step
from launch.network.ports import free_port
from launch.network.rank_environment import rank_environment
from launch.trainer.build import build_system
from launch.trainer.engine import DeepSpeedEngine, join_process_group

RANKS = (1, 2, 4)
WARM = 2
"""First steps that are not timed."""
MINUTES = timedelta(minutes=5)


def run_rank(shards: Path, preset: str, gradient: Path) -> None:
    """One rank: an epoch over the shards. Rank 0 writes the gradient of its first step and prints figures (JSON)."""
    device = join_process_group(MINUTES)
    torch.set_num_threads(1)
    rank, ranks = dist.get_rank(), dist.get_world_size()
    config = load_config(
        preset, ["model.task=regression", "train.ghost_batches_per_step=1", "train.clip=none", "train.precision=fp32"]
    )
    reader = ShardReader(shards)
    plan = make_plan(config, reader.index.num_samples("train"), ranks)
    system, _ = build_system(config, reader.index.info, device)
    system.objective.sharing = join_sharing(plan, rank, MINUTES)
    engine = DeepSpeedEngine(system, config, plan, device)
    wall, processor, losses = [], [], []
    for number, batches in enumerate(training_steps(reader, plan, config.data, seed=0, rank=rank, epoch=0)):
        dist.barrier()
        began, worked = time.perf_counter(), time.process_time()
        result = train_step(engine, batches, config, plan, step=number, step_in_epoch=number)
        wall.append(time.perf_counter() - began)
        processor.append(time.process_time() - worked)
        losses.append(result.values["total"])
        if number == 0:
            state = engine.optimizer_state()
            moments = [tensor.flatten() for name, tensor in state.items() if name.startswith("exp_avg/")]
            if rank == 0:
                torch.save(torch.cat(moments), gradient)
    slowest = torch.tensor([statistics.median(wall[WARM:]), statistics.median(processor[WARM:])])
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
    if rank == 0:
        print(json.dumps({"seconds": float(slowest[0]), "processor": float(slowest[1]), "loss": losses[0]}))
    dist.destroy_process_group()


def measure(shards: Path, preset: str, ranks: int, gradient: Path) -> dict[str, float]:
    """What rank 0 of several printed."""
    port = free_port()
    processes = [
        start(
            *("benchmarks.sharing", shards, "--preset", preset, "--gradient", gradient),
            **rank_environment(rank=rank, ranks=ranks, port=port),
            OMP_NUM_THREADS="1",
            DS_ACCELERATOR="cpu",
        )
        for rank in range(ranks)
    ]
    outputs = [finish(process) for process in processes]
    figures: dict[str, float] = json.loads(outputs[0].strip().splitlines()[-1])
    return figures


def main() -> None:
    """Measure all numbers of ranks, or be one of them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sharing", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path, metavar="OUT.csv")
    parser.add_argument("--preset", choices=SHAPES, default="mosi-aligned")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--gradient", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.gradient:
        run_rank(options.out, options.preset, options.gradient)
        return
    table = Table(options.out)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards = prepare(folder, SHAPES[options.preset], 16 * (options.steps + WARM))
        first: dict[str, Any] = {}
        for ranks in RANKS:
            found = measure(shards, options.preset, ranks, folder / f"gradient{ranks}")
            gradient = torch.load(folder / f"gradient{ranks}").double()
            first = first or {**found, "gradient": gradient}
            row = {
                "preset": options.preset,
                "ranks": ranks,
                "step ms": f"{1000 * found['seconds']:.1f}",
                "CPU ms of a rank": f"{1000 * found['processor']:.1f}",
                "loss": f"{found['loss']:.8f}",
                "loss off by": f"{abs(found['loss'] / first['loss'] - 1):.1e}",
                "gradient off by": f"{float((gradient - first['gradient']).norm() / first['gradient'].norm()):.1e}",
                "commit": commit(),
                "command": "python -m benchmarks.sharing " + " ".join(sys.argv[1:]),
            }
            table.add(row)
            print(row, flush=True)


if __name__ == "__main__":
    main()
