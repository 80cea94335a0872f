"""One rank's training on a DeepSpeed engine: what `launch.train`, `dmd.train` and a trial on a Ray cluster run."""

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from data_shards.format.schema import DatasetInfo
from data_shards.places import PlaceLike, to_place
from data_shards.reading.reader import ShardReader
from data_shards.waiting import waiting
from dmd.checkpoint.resume import Resume
from dmd.config import Config
from dmd.data.targets import resolve_task
from dmd.distributed.sharing import join_sharing
from dmd.kernels.backend import set_float32_products
from dmd.model.quantize import check_quantized
from dmd.model.text import encoder_config, load_text_encoder
from dmd.system.system import TrainingSystem
from dmd.training.callbacks import Callback
from dmd.training.logging.trackers.table import check_trackers
from dmd.training.loop import Training
from dmd.training.passes import settle_passes, settled
from dmd.training.step import make_plan
from launch.supervision.launcher_log import library_output
from launch.trainer.agree import acquire_run_directory, agree, facts_of
from launch.trainer.engine import DeepSpeedEngine
from launch.trainer.offload import check_offload
from launch.trainer.preflight import open_shards, plan_training


def make_training(
    config: Config,
    data: PlaceLike,
    run: Path,
    *,
    device: torch.device,
    resume: Resume = "auto",
    stop_requested: Callable[[], bool] = lambda: False,
    callbacks: Sequence[Callback] = (),
    heartbeat: Callable[[], None] = lambda: None,
    group: str = "",
) -> Training:
    """Build a rank's part of a training; `launch.trainer.engine.join_process_group` has been called. See `Training`.

    Args:
        group: whose earlier writer to the run directory is replaced (`data_shards.sole_writer.acquire`).

    Raises:
        ValueError: as `open_shards` and `plan_training`, or ranks that were not given the same (`agree`),
            or another process that writes to the run directory.
        StorageFailed: the storage failed before the first step.
    """
    directory = acquire_run_directory(device, run, group=group)
    try:
        shown = dist.get_rank() == 0
        prepared = agree(device, directory, lambda: _prepare(config, data, run, device, resume))
        config, reader, system, text_encoder = prepared
        set_float32_products(tf32=system.execution.tf32)
        rank, num_ranks, samples = dist.get_rank(), dist.get_world_size(), reader.index.num_samples("train")
        part = make_plan(config, samples, num_ranks).part(rank)
        with waiting("the kernels to be compiled and tried", shown=shown):
            at_once = settle_passes(system, config, reader.index.info, num_ranks, part=part)
        config = settled(config, at_once)
        plan = make_plan(config, samples, num_ranks)
        system.objective.sharing = join_sharing(plan, rank, timedelta(seconds=config.train.collective_timeout))
        with waiting("DeepSpeed to build its engine", shown=shown):
            engine = DeepSpeedEngine(system, config, plan, device)
        return Training(
            engine,
            config,
            reader,
            run,
            text_encoder=text_encoder,
            resume=resume,
            stop_requested=stop_requested,
            callbacks=callbacks,
            heartbeat=heartbeat,
            lease=directory.lease,
        )
    except BaseException:
        directory.release()
        raise


def _prepare(
    config: Config, data: PlaceLike, run: Path, device: torch.device, resume: Resume
) -> tuple[tuple[Config, ShardReader, TrainingSystem, dict[str, Any] | None], dict[str, str]]:
    """The config with its task, shards, network and encoder of this rank, and what must be the same everywhere."""
    shown = dist.get_rank() == 0
    if shown:  # which writes
        check_trackers(config)
    with waiting(f"the shards at {to_place(data)}", shown=shown):
        reader = open_shards(data, config)
    config = resolve_task(config, reader.index.info)
    plan = plan_training(config, reader, run, dist.get_world_size())
    with waiting("the network, and its text encoder, to be built", shown=shown), library_output():
        system, encoder = build_system(config, reader.index.info, device)
        system.take_label_density(reader.index)
    if shown and system.objective.label_weights is not None:
        least, largest = system.objective.label_weights.span()
        print(f"objective.label_density_smoothing: samples weigh {least:.3g} to {largest:.3g}", flush=True)
    check_offload(config, system, device, num_ranks=dist.get_world_size(), environment=os.environ)
    facts = facts_of(
        config=config,
        info=reader.index.info,
        plan=plan,
        resume=str(resume),
        precision=system.execution.precision,
        encoder=encoder,
        base=system.text_base,
    )
    return (config, reader, system, encoder), facts


def build_system(
    config: Config, info: DatasetInfo, device: torch.device
) -> tuple[TrainingSystem, dict[str, Any] | None]:
    """The system with its initial weights on a device, and the text encoder's configuration for checkpoints."""
    torch.manual_seed(config.train.seed)
    encoder, settings = None, None
    if info.text_kind == "tokens":
        settings = encoder_config(config.text.encoder)
        text = config.text
        encoder = load_text_encoder(text.encoder, frozen=text.frozen, lora=text.lora, quantize=text.quantize)
        if config.text.gradient_checkpointing:
            encoder.checkpoint_gradients()
        if config.text.compile:
            encoder.network.compile()
    torch.manual_seed(config.train.seed)  # again, as an encoder's missing weights may have used the generator
    system = TrainingSystem(config, info, encoder, device)
    system.take_statistics(info)
    system.to(device)
    if encoder is not None:
        check_quantized(encoder.network, otherwise="set text.quantize=none")
    return system, settings
