"""A layer of two small encoders with every dropout, as a function of its inputs and weights."""

from collections.abc import Callable

import torch
from torch import Tensor

from dmd.kernels.attention.plan import AttentionPlan
from dmd.kernels.cpu import CPU
from dmd.kernels.dropout.keys import number_samples
from dmd.kernels.dropout.rng import DropoutRNG
from dmd.kernels.encoder.plan import LayerPlan, LayerWeights
from dmd.kernels.portable import PortableBackend

DIM, HEADS, BATCH, QUERIES, KEYS = 4, 2, 4, (3, 2), (2, 4)


def make(
    *,
    cross: bool = False,
    last_step: bool = False,
    dropping: bool = True,
    backend: PortableBackend = CPU,
    queries: tuple[int, int] = QUERIES,
    keys: tuple[int, int] | None = None,
    rates: tuple[float, float] = (0.3, 0.0),
) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """The layer, and its inputs and weights in float64, which require gradients.

    Args:
        cross: attend to a source.
        last_step: compute the last step of each sample alone.
        dropping: drop residual branches and hidden units as well as attention weights.
        queries: length of each encoder's input.
        keys: length of each encoder's source; None: `KEYS`. Without a source it is `queries`.
        rates: dropout of each encoder's attention weights.
    """
    generator = torch.Generator().manual_seed(0)
    keys = (keys or KEYS) if cross else queries
    attention = AttentionPlan(heads=HEADS, queries=queries, keys=keys, rates=rates, last_step=last_step)
    plan = LayerPlan(attention=attention, relu_rate=0.5 * dropping, res_rate=0.5 * dropping)
    shapes = ((12, 4), (12,), (4, 4), (4,), (16, 4), (16,), (4, 16), (4,))

    def draw(*shape: int) -> Tensor:
        return torch.randn(2, *shape, generator=generator, dtype=torch.float64)

    parts = [draw(BATCH, max(queries), DIM)]
    parts += [draw(BATCH, max(keys), DIM)] if cross else []
    parts += [draw(*shape) for shape in (*shapes, (2, DIM), (2, DIM))]
    last = torch.tensor([[2, 1, 0, 2], [1, 0, 1, 1]]) if last_step else None  # of each sample, inside QUERIES

    def run(x: Tensor, *rest: Tensor) -> Tensor:
        rng = DropoutRNG(seed=1, step=2, samples=number_samples([3, 8], range(BATCH // 2)), device=torch.device("cpu"))
        source, weights = (rest[0], rest[1:]) if cross else (None, rest)
        own = LayerWeights(*weights)
        return backend.layer(x, source, own, plan, members=torch.arange(2), last=last, rng=rng, key_ranges=None)

    return run, [part.requires_grad_() for part in parts]
