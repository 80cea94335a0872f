"""One rank's training on a DeepSpeed engine: what `launch.train` runs, and what a trial on a Ray cluster runs."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from data_shards.places import Where
from dmd.config import Config
from dmd.kernels.backend import set_float32_products
from dmd.training.epoch_report import EpochReport
from dmd.training.loop import Training
from dmd.training.passes import settle_passes, settled
from dmd.training.resume import Resume
from dmd.training.step import make_plan
from launch.engine import DeepSpeedEngine
from launch.setup import build_system, keep_freed_memory, open_shards, plan_training


def make_training(
    config: Config, data: Where, run: Path, *, device: torch.device, resume: Resume = "auto",
    stop_requested: Callable[[], bool] = lambda: False, on_epoch: Callable[[EpochReport], None] = lambda report: None,
    heartbeat: Callable[[], None] = lambda: None,
) -> Training:
    """Build a rank's part of a training; `launch.engine.join_process_group` has been called. See `Training`.

    Raises:
        ValueError: what `open_shards` and `plan_training` refuse.
    """
    if device.type == "cpu":
        keep_freed_memory()
    reader = open_shards(data, config)
    num_ranks = dist.get_world_size()
    plan_training(config, reader, run, num_ranks)
    system, text_encoder = build_system(config, reader.index.info, device)
    set_float32_products(tf32=system.execution.tf32)
    config = settled(config, settle_passes(system, config, reader.index.info, num_ranks))
    plan = make_plan(config, reader.index.num_samples("train"), num_ranks)
    engine = DeepSpeedEngine(system, config, plan, device)
    return Training(
        engine, config, reader, run, text_encoder=text_encoder, resume=resume, stop_requested=stop_requested,
        on_epoch=on_epoch, heartbeat=heartbeat,
    )  # fmt: skip
