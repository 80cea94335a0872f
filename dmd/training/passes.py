"""How many ghost batches a rank runs at once, and whether its Triton kernels run at all: settled before the first step.

    at_once = settle_passes(system, config, info, num_ranks)

On CUDA a pass of the real size is tried, forward and backward on synthetic samples. It compiles the kernels; where one
cannot run, the system falls back to PyTorch, and where memory is short, or a tensor larger than the kernels can count,
it tries fewer ghost batches. The system is whole then; where ranks will divide its gradients (ZeRO stages 2 and 3), the
trial keeps none.
"""

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import torch
from torch import nn

from data_shards.format.schema import DatasetInfo
from dmd.config import Config, TrainConfig
from dmd.data.synthetic import random_batch
from dmd.distributed.collectives import raised_anywhere
from dmd.kernels.common.cards import current_device
from dmd.kernels.common.rows import PassTooLarge
from dmd.losses.consistency import PASSES
from dmd.losses.sharing import WHOLE, Part, Sharing
from dmd.system.fallback import fall_back
from dmd.system.system import ADAM_MOMENTS, TrainingSystem
from dmd.training.step import make_rng

LONG = 64
"""Time steps from which on a CPU runs few ghost batches at once: attention takes the square of them."""
OF_LONG_SEQUENCES, OF_SHORT_SEQUENCES = 2, 10
"""Ghost batches that a CPU runs at once (docs/performance.md has the times)."""
SPARE = 0.1
"""Share of a GPU's memory that a pass has to leave free, beside the optimizer's: fragmentation and validation."""


def ghost_batches_at_once(
    train: TrainConfig, lengths: Mapping[str, int], device_type: str, *, consistency: float = 0.0
) -> int:
    """Ghost batches of a pass, at most, before memory has been tried.

    Args:
        lengths: time steps of each modality.
        consistency: `objective.consistency`, with which a pass holds each ghost batch twice.
    """
    if train.ghost_batches_per_forward != "auto":
        return train.ghost_batches_per_forward
    if device_type == "cpu":
        most = OF_LONG_SEQUENCES if max(lengths.values()) > LONG else OF_SHORT_SEQUENCES
        return most // PASSES if consistency else most
    return train.ghost_batches_per_step


def settled(config: Config, at_once: int) -> Config:
    """The config with the number of ghost batches that run at once."""
    return replace(config, train=replace(config.train, ghost_batches_per_forward=at_once))


def settle_passes(
    system: TrainingSystem, config: Config, info: DatasetInfo, num_ranks: int, *, part: Part = WHOLE
) -> int:
    """Ghost batches that every rank runs at once; a collective where there are several ranks.

    Args:
        part: what this rank runs of each.

    Raises:
        ValueError: a kernel that was asked for (`train.kernels=fused`) cannot run, or the ghost batches that the config
            asks for are more than the kernels can count.
        torch.OutOfMemoryError: not even one ghost batch fits, or not as many as the config asks for.
    """
    if num_ranks > config.train.ghost_batches_per_step:
        system.run_eagerly("ranks share ghost batches, and a captured pass would hold their collectives")
    at_once = ghost_batches_at_once(
        config.train, info.lengths, system.device.type, consistency=config.objective.consistency
    )
    if system.device.type == "cpu":
        return at_once
    asked_for = config.train.ghost_batches_per_forward != "auto"
    at_once = min(at_once, -(-config.train.ghost_batches_per_step // num_ranks))
    while True:
        fits = _fits(system, config, info, at_once, num_ranks, part=part, last=asked_for or at_once == 1)
        too_large, fallen_back_somewhere = raised_anywhere(system.device, not fits, not system.execution.fused)
        if not too_large:
            break
        at_once = -(-at_once // 2)
    if fallen_back_somewhere and system.execution.fused:
        system.use_pytorch("a kernel cannot run on another rank's device")
    if at_once * num_ranks < config.train.ghost_batches_per_step:
        system.run_eagerly("a step is more than one pass, for want of memory")
    return at_once


def optimizer_bytes(train: TrainConfig, trained: int, num_ranks: int) -> int:
    """Bytes on a rank's device that the optimizer takes beside what a trial pass held.

    Args:
        trained: bytes of the whole system's trained weights, float32.
    """
    if train.zero_stage == 0:
        return ADAM_MOMENTS * trained
    if train.offload == "cpu":
        return 0
    copies = ADAM_MOMENTS + 1 + divides_gradients(train)  # DeepSpeed's float32 copy, and the gradient that is kept
    return copies * trained // num_ranks


def divides_gradients(train: TrainConfig) -> bool:
    """Whether no rank keeps a whole gradient."""
    return train.zero_stage >= 2


@contextmanager
def dropping_gradients(module: nn.Module) -> Iterator[None]:
    """Backward frees each weight's gradient as soon as it is there."""

    def drop(weight: torch.Tensor) -> None:
        weight.grad = None

    trained = [weight for weight in module.parameters() if weight.requires_grad]
    hooks = [weight.register_post_accumulate_grad_hook(drop) for weight in trained]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _fits(
    system: TrainingSystem,
    config: Config,
    info: DatasetInfo,
    at_once: int,
    num_ranks: int,
    *,
    part: Part,
    last: bool,
) -> bool:
    """Run a pass forward and backward; whether device and kernels hold it. Falls back to PyTorch for good.

    Args:
        last: there is nothing smaller to try: what is too large is an error.
    """
    batch = random_batch(info, at_once, config.train.ghost_batch_size, part=part, config=config)

    def attempt() -> None:
        there = batch.to(system.device)
        rng = make_rng(there, config, step=0, forward=0, device=system.device, keys=system.fresh_keys())
        system.terms(there, rng)["total"].sum().backward()

    system.train()
    system.objective.sharing = None if part == WHOLE else Sharing(part, group=None)
    try:
        divided = divides_gradients(config.train)
        with current_device(system.device), dropping_gradients(system) if divided else nullcontext():
            if system.execution.fused:
                fall_back(system, attempt, asked_for=config.train.kernels == "fused")
            if not system.execution.fused:
                attempt()
            return last or _leaves_room(system, config.train, num_ranks)
    except (torch.OutOfMemoryError, PassTooLarge):
        if last:
            raise
        return False
    finally:
        system.objective.sharing = None
        system.zero_grad()
        if system.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(system.device)


def _leaves_room(system: TrainingSystem, train: TrainConfig, num_ranks: int) -> bool:
    """Whether the peak of the last pass leaves room for the optimizer and what is spare."""
    if system.device.type != "cuda":
        return True
    trained = sum(p.numel() * p.element_size() for p in system.parameters() if p.requires_grad)
    total = torch.cuda.get_device_properties(system.device).total_memory
    held = torch.cuda.max_memory_reserved(system.device) + optimizer_bytes(train, trained, num_ranks)
    return held < (1 - SPARE) * total
