"""Everything that can be checked about a training before a rank starts."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from data_shards.format.index_file import INDEX_NAME
from data_shards.format.schema import DatasetInfo
from data_shards.places import PlaceLike
from data_shards.reading.reader import ShardReader
from data_shards.reading.stream import stream_bytes
from data_shards.sources.memory import free_memory
from dmd.checkpoint.format import checkpoint_paths, read_state
from dmd.checkpoint.resume import Resume, choose_checkpoint
from dmd.checkpoint.saver import CHECKPOINTS
from dmd.checkpoint.state import check_continues
from dmd.config import Config
from dmd.data.label_density import check_label_density
from dmd.data.plan import EpochPlan
from dmd.data.targets import check_targets, resolve_task
from dmd.encoder_files import check_encoder_files
from dmd.encoder_tokenizer import check_encoder_tokenizer, config_for_shards
from dmd.kernels.backend import default_device
from dmd.model.text import TextEncoder, build_text_encoder, check_tokens, encoder_config
from dmd.model.text_depth import depths
from dmd.system.system import TrainingSystem
from dmd.training.logging.trackers.table import check_trackers
from dmd.training.step import make_plan
from launch.trainer.adam import check_adam


def open_shards(data: PlaceLike, config: Config) -> ShardReader:
    """The shards of a training.

    Raises:
        ValueError: no index there, or a split that a training needs is missing.
    """
    reader = ShardReader(data, check=config.data.check)
    place = reader.index.root
    for split in ("train", "valid"):
        if reader.index.num_samples(split) == 0:
            there = ", ".join(reader.index.info.counts) or "none"
            raise ValueError(
                f"{place} has no {split} split (it has: {there}), which a training needs; shard a file that holds it"
            )
    return reader


def check_command(
    config: Config,
    data: PlaceLike,
    run: Path,
    *,
    resume: Resume,
    overrides: Sequence[str],
    num_ranks: int,
    here: bool,
) -> None:
    """Reject a `dmd train` that cannot be done; print a warning of overrides that it does not read.

    Args:
        here: as `check_training`.

    Raises:
        ValueError: as `open_shards`, `check_training` and `check_resume`.
    """
    with open_shards(data, config) as reader:
        config = resolve_task(config, reader.index.info)
        check_training(config, reader, run, num_ranks, here=here)
        check_resume(config, reader, run, resume)
        for override in unread_overrides(overrides, reader.index.info):
            why = f"{reader.index.root} holds text features, so there is no text encoder"
            print(f"warning: {override} has no effect: {why}", file=sys.stderr, flush=True)


def check_training(config: Config, reader: ShardReader, run: Path, num_ranks: int, *, here: bool = True) -> EpochPlan:
    """Reject, before anything is written, what cannot be trained; builds the network, but for the encoder's weights.

    On the meta device the network's own few million weights would cost nothing, but torch imports its compiler for
    them, which takes two seconds.

    Args:
        here: whether ranks run on this machine, whose device must then have what the config asks for.

    Raises:
        ValueError: as `resolve_task` and `plan_training`, sequences shorter than their convolution, statistics that the
            index lacks, an encoder directory without whole weights, an encoder with another tokenizer than that of the
            token ids, adapters that do not fit it, an optimizer that the device lacks, a tracker whose library is
            missing, or a stream that the memory cannot hold.
    """
    config = resolve_task(config, reader.index.info)
    plan = plan_training(config, reader, run, num_ranks)
    if here:
        check_trackers(config)
        check_adam(config, default_device())
        _check_stream_memory(config, reader.index.info, num_ranks)
    else:
        config = replace(config, train=replace(config.train, kernels="auto", precision="auto"))
    info = reader.index.info
    if info.text_kind == "tokens":
        check_encoder_files(config.text.encoder)
        check_encoder_tokenizer(config.text.encoder, info)
    encoder = None if info.text_kind == "features" else _meta_encoder(config)
    TrainingSystem(config, info, encoder, default_device()).take_statistics(info)
    check_label_density(config, reader.index)
    return plan


def unread_overrides(overrides: Sequence[str], info: DatasetInfo) -> list[str]:
    """Overrides that a training on these shards does not read: of the text encoder, where there is none."""
    return [override for override in overrides if override.startswith("text.") and info.text_kind == "features"]


def plan_training(config: Config, reader: ShardReader, run: Path, num_ranks: int) -> EpochPlan:
    """The plan of a training's epochs, of a config whose task is resolved; cheap, every rank makes it.

    Raises:
        ValueError: more ranks than samples of a step, a file or shards in the place of the run directory, an encoder
            that is not there or does not fit the tokens, or targets that are all equal.
    """
    info = reader.index.info
    check_targets(config, reader.index)
    plan = make_plan(config, info.counts["train"], num_ranks)
    if run.exists() and not run.is_dir():
        raise ValueError(f"the run directory {run} is a file; give another --run")
    if (run / INDEX_NAME).exists():
        raise ValueError(f"the run directory {run} holds shards ({INDEX_NAME}); give another --run")
    if info.text_kind == "tokens" and not checkpoint_paths(run / CHECKPOINTS):
        check_tokens(
            config_for_shards(config.text.encoder, info), vocab_size=info.vocab_size, length=info.lengths["text"]
        )
    return plan


def check_resume(config: Config, reader: ShardReader, run: Path, resume: Resume) -> None:
    """Reject a run directory that the training cannot continue; reads whole checkpoints.

    The digest of a text encoder that checkpoints name is compared later, by the ranks that load its weights
    (`Training`).

    Raises:
        ValueError: as `choose_checkpoint`, or a run of another training.
    """
    path, _ = choose_checkpoint(run / CHECKPOINTS, resume)
    if path is not None:
        check_continues(read_state(path), config, reader.index.info, run)


def _check_stream_memory(config: Config, info: DatasetInfo, num_ranks: int) -> None:
    """Raise ValueError for a stream whose windows do not fit into the memory of this machine, even for one rank.

    What several ranks of a host take together is not asked, since how many run here is not known.
    """
    needed, free = stream_bytes(info, "train", window=config.data.window, ranks=num_ranks), free_memory()
    if config.data.reader == "stream" and needed > free:
        raise ValueError(
            f"data.reader=stream holds two windows of {config.data.window} shards, {needed / 2**30:.1f} GiB on each "
            f"rank, and {free / 2**30:.1f} GiB of memory are free; lower data.window, or shard with fewer "
            "--samples-per-shard"
        )


def _meta_encoder(config: Config) -> TextEncoder:
    """The text encoder without memory for its weights.

    Raises:
        ValueError: what the config asks of it and it does not have.
    """
    with torch.device("meta"):
        settings = encoder_config(config.text.encoder)
        text = config.text
        encoder = build_text_encoder(settings, frozen=text.frozen, lora=text.lora, quantize=text.quantize)
    if config.text.gradient_checkpointing:
        encoder.checkpoint_gradients()
    if config.text.layer_decay < 1:
        depths(encoder.network)
    return encoder
