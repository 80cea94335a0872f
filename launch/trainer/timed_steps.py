"""A few steps of a training in a process of their own, which writes nothing: how long they take, and how much memory.

    facts = time_steps(request)

The system, its optimizer, its shards and its passes are those of a rank of the training. The rank is alone: what
gradients cost on their way to other ranks is not in the time, and at ZeRO stages 1 to 3 it holds what they would share.
"""

import itertools
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from data_shards.places import Place
from data_shards.reading.reader import ShardReader
from data_shards.spawned_processes import SpawnedProcesses
from dmd.checkpoint.storage_trial import checkpoint_sizes
from dmd.config import Config
from dmd.data.loader import Batch, num_evaluation_batches, training_steps
from dmd.data.plan import EpochPlan
from dmd.data.targets import resolve_task
from dmd.distributed.engine import SystemSizes
from dmd.evaluation.evaluate import predict_share
from dmd.kernels.backend import set_float32_products
from dmd.losses.sharing import WHOLE, Sharing
from dmd.system.modules import BATCH_SIZE
from dmd.system.system import TrainingSystem
from dmd.training.passes import optimizer_bytes, settle_passes, settled
from dmd.training.step import make_plan, train_step
from launch.network.ports import free_port
from launch.network.rank_environment import rank_environment
from launch.trainer.build import build_system
from launch.trainer.determinism import make_deterministic
from launch.trainer.engine import DeepSpeedEngine, join_process_group
from launch.trainer.host_tuning import keep_freed_memory
from launch.trainer.peak_memory import peak_bytes, reset_peak
from launch.trainer.preflight import open_shards
from launch.trainer.threads import VARIABLE, set_threads

FEWEST, ENOUGH_SECONDS = 5, 10.0
"""Steps are timed until there are so many, or until they have taken so long."""


@dataclass(frozen=True, kw_only=True)
class TimingRequest:
    """Which training."""

    config: Config
    data: Place
    run: Path
    """Its directory, which is only read: the threads of earlier sessions."""
    ranks: int
    """Of the training."""
    ranks_here: int
    """Of this machine, which share its cores."""


@dataclass(frozen=True, kw_only=True)
class StepFacts:
    """What steps of one rank took."""

    device: str
    threads: int
    kernels: str
    precision: str
    passes: int
    """Forward passes of a step."""
    at_once: int
    """Ghost batches of a pass."""
    first: float
    """Seconds of the first step, which also reads, compiles and allocates for the first time."""
    seconds: tuple[float, ...]
    """Of the steps behind it; of the first where that took so long that it stands for all."""
    validation: float
    """Seconds of a validation by all ranks, from one batch of it."""
    sizes: SystemSizes
    optimizer: int
    """Bytes of the optimizer on a rank of the training."""
    peak: int
    """Bytes at most: of the device, or on a CPU of the process beyond what libraries take."""
    libraries: int
    """Bytes of the process before it built anything; 0 where `peak` is of a device."""
    checkpoint: dict[str, int]
    """Bytes of a checkpoint, by file."""

    @property
    def step(self) -> float:
        """Seconds of a step: the median."""
        return sorted(self.seconds)[len(self.seconds) // 2]


def time_steps(request: TimingRequest) -> StepFacts | str:
    """Time steps in a new process; why there are none where it was lost, such as for want of memory.

    Raises:
        ValueError: as `launch.trainer.build.make_training`.
    """
    chosen = os.environ.get(VARIABLE)
    processes = SpawnedProcesses(processes=1, attempts=1)
    with processes.map_independent(partial(_measure, request, chosen), 1, memory=0) as endings:
        ending = next(endings)
    return ending.lost if ending.result is None else ending.result


def _measure(request: TimingRequest, threads: str | None, number: int) -> StepFacts:
    """The task of that process.

    Args:
        threads: what the user has chosen.
        number: of the task.
    """
    os.environ.update(rank_environment(rank=0, ranks=1, port=free_port()))
    os.environ.pop(VARIABLE)  # given by `SpawnedProcesses`, where the user has not chosen
    if threads is not None:
        os.environ[VARIABLE] = threads
    if request.config.train.deterministic:
        make_deterministic(os.environ)
    device = join_process_group()
    os.environ |= {"LOCAL_SIZE": str(request.ranks_here), "WORLD_SIZE": str(request.ranks)}
    set_threads(request.run, device)
    if device.type == "cpu":
        keep_freed_memory()
    with open_shards(request.data, request.config) as reader:
        return _facts(resolve_task(request.config, reader.index.info), reader, request.ranks, device)


def _facts(config: Config, reader: ShardReader, ranks: int, device: torch.device) -> StepFacts:
    info, samples = reader.index.info, reader.index.num_samples("train")
    reset_peak()
    libraries = peak_bytes() if device.type == "cpu" else 0
    system, _ = build_system(config, info, device)
    system.take_label_density(reader.index)
    set_float32_products(tf32=system.execution.tf32)
    part = make_plan(config, samples, ranks).part(0)
    config = settled(config, settle_passes(system, config, info, ranks, part=part))
    plan = make_plan(config, samples, ranks)
    system.objective.sharing = None if part == WHOLE else Sharing(part, group=None)
    engine = DeepSpeedEngine(system, config, _alone(plan), device)
    system.objective.start_training(samples, device)
    system.train()
    first, seconds = _time(engine, config, reader, plan)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_bytes() - libraries
    with engine.whole_weights():
        validation = _validation_seconds(system, reader, config, device) / ranks
    return StepFacts(
        device=str(device) if device.type == "cpu" else torch.cuda.get_device_name(device),
        threads=torch.get_num_threads(),
        kernels=system.execution.kernels,
        precision=system.execution.precision,
        passes=plan.forwards_per_step,
        at_once=plan.ghost_batches_at_once,
        first=first,
        seconds=tuple(seconds),
        validation=validation,
        sizes=engine.sizes,
        optimizer=optimizer_bytes(config.train, engine.sizes.trained_bytes, ranks),
        peak=peak,
        libraries=libraries,
        checkpoint=checkpoint_sizes(
            engine.sizes, averages=config.train.ema_decay > 0, objective=system.objective.training_bytes()
        ),
    )


def _alone(plan: EpochPlan) -> EpochPlan:
    """The plan of a training of one rank, whose steps are as long as those of a rank of this one."""
    return replace(
        plan,
        num_ranks=1,
        ghost_batches_per_step=plan.ghost_batches_at_once * plan.forwards_per_step,
        ghost_batches_per_forward=plan.ghost_batches_at_once,
    )


def _time(engine: DeepSpeedEngine, config: Config, reader: ShardReader, plan: EpochPlan) -> tuple[float, list[float]]:
    """Seconds of the first step, and of those that are timed."""
    seconds: list[float] = []
    steps = _steps(config, reader, plan)
    begin = time.perf_counter()
    for number, (place, batches) in enumerate(steps):
        result = train_step(engine, batches, config, plan, step=number, step_in_epoch=place)
        engine.system.objective.after_step(epoch=0, applied=result.applied)
        end = time.perf_counter()
        seconds.append(end - begin)
        print(f"  step {len(seconds)}: {seconds[-1]:.2f} s", flush=True)
        begin = end
        timed = seconds[1:]
        if len(timed) == FEWEST or sum(timed) > ENOUGH_SECONDS or seconds[0] > ENOUGH_SECONDS:
            break
    return seconds[0], seconds[1:] or seconds


def _steps(config: Config, reader: ShardReader, plan: EpochPlan) -> Iterator[tuple[int, list[Batch]]]:
    """The passes of the first rank, epoch after epoch, each step with its place in its epoch."""
    for epoch in itertools.count():
        yield from enumerate(training_steps(reader, plan, config.data, seed=config.train.seed, rank=0, epoch=epoch))


def _validation_seconds(system: TrainingSystem, reader: ShardReader, config: Config, device: torch.device) -> float:
    """Seconds that one rank would take for the whole validation split."""
    begin = time.perf_counter()
    predict_share(system, reader, "valid", config, device=device, numbers=range(1))
    return (time.perf_counter() - begin) * num_evaluation_batches(reader, "valid", BATCH_SIZE)
