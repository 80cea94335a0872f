"""The encoders that models are made of, by the config: what DMD, MulT and the text alone have in common."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from dmd.kernels.encoder.plan import StackPlan
from dmd.model.config import MODALITIES, ModelConfig

LEAST_MEMORY_LEVELS = 3
"""Layers of the memory encoders at least (published code)."""


def stack_plan(
    config: ModelConfig,
    steps: Mapping[str, int],
    targets: Sequence[str],
    sources: Sequence[str],
    *,
    last_step: bool,
) -> StackPlan:
    """Encoders of `config.dim` channels, one of each target, which attends to its source.

    Args:
        config: the network's hyperparameters.
        steps: of each modality, behind its convolution.
        targets: modality of each encoder's input.
        sources: modality of each encoder's keys.
        last_step: whether the last step alone is wanted.

    Raises:
        ValueError: heads that do not divide the channels.
    """
    config.check_heads()
    return StackPlan(
        dim=config.dim,
        heads=config.heads,
        levels=config.levels,
        queries=tuple(steps[m] for m in targets),
        keys=tuple(steps[m] for m in sources),
        attn_rates=tuple(config.source_dropout[m] for m in sources),
        relu_rate=config.relu_dropout,
        res_rate=config.res_dropout,
        embed_rate=config.embed_dropout,
        last_step=last_step,
    )


def memory_plan(config: ModelConfig, steps: Mapping[str, int]) -> StackPlan:
    """Encoders of each modality's 2 * `config.dim` channels, what two crossmodal ones give side by side; their last
    steps are wanted. See `stack_plan`."""
    return replace(
        stack_plan(config, steps, MODALITIES, MODALITIES, last_step=True),
        dim=2 * config.dim,
        levels=max(config.levels, LEAST_MEMORY_LEVELS),
        attn_rates=(config.attn_dropout,) * len(MODALITIES),
    )
