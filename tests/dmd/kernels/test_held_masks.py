"""The CPU layer holds the dropout masks of attention weights for its backward pass, those of short sequences alone."""

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from dmd.kernels.attention import cpu_blocks
from tests.dmd.kernels.small_layer import BATCH, HEADS, make

MATRICES = BATCH * HEADS
BOTH = (0.3, 0.3)
CASES = [  # (a layer, weights of a matrix in the blocks of each encoder whose masks are held; None: nothing is held)
    ({"queries": (20, 2), "rates": BOTH}, (4 * 20 + 16 * 16, 2 * 2)),
    ({"queries": (20, 2), "rates": (0.3, 0.0)}, (4 * 20 + 16 * 16, None)),
    ({"queries": (64, 65), "rates": BOTH}, (16 * (64 + 48 + 32 + 16), None)),
    ({"cross": True, "queries": (20, 2), "keys": (3, 65), "rates": BOTH}, (20 * 3, None)),
    ({"cross": True, "queries": (65, 2), "keys": (3, 64), "rates": BOTH}, (None, 2 * 64)),
    ({"last_step": True, "rates": BOTH}, (3, 2)),
    ({"rates": (0.0, 0.0)}, (None, None)),
]


@pytest.fixture
def attended(monkeypatch) -> list[cpu_blocks.CpuAttended]:
    """What the attention of each chunk gave."""
    found = []
    forward = cpu_blocks.BlockAttention.forward

    def recorded(*arguments, **options):
        found.append(forward(*arguments, **options))
        return found[-1]

    monkeypatch.setattr(cpu_blocks.BlockAttention, "forward", recorded)
    return found


@pytest.fixture
def drawn(monkeypatch) -> list[Tensor]:
    """The masks of attention weights that are drawn, block after block."""
    found = []
    draw = cpu_blocks.draw_keep_mask

    def recorded(*arguments):
        found.append(draw(*arguments))
        return found[-1]

    monkeypatch.setattr(cpu_blocks, "draw_keep_mask", recorded)
    return found


def gradients(run: Callable[..., Tensor], parts: list[Tensor], times: int = 1) -> list[list[Tensor]]:
    """Those of one graph, so many times."""
    out = run(*parts)
    total = (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum()
    return [list(torch.autograd.grad(total, parts, retain_graph=True)) for _ in range(times)]


@pytest.mark.parametrize("layer, sizes", CASES)
def test_a_byte_a_weight_of_short_sequences(attended, layer, sizes):
    """Autograd keeps them, so that they go with the graph; the function keeps no other."""
    saved = []
    run, parts = make(**layer)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        run(*parts)
    want = [None if size is None else MATRICES * size for size in sizes]
    assert [None if a.keep_masks is None else a.keep_masks.nbytes for a in attended] == want
    assert [x.untyped_storage().nbytes() for x in saved if x.dtype == torch.uint8] == [n for n in want if n]


@pytest.mark.parametrize("enabled, required", [(False, True), (True, False)])
def test_nothing_is_held_where_no_backward_pass_can_follow(attended, enabled, required):
    run, parts = make(queries=(20, 2), rates=BOTH)
    with nullcontext() if enabled else torch.no_grad():
        run(*(part.requires_grad_(required) for part in parts))
    assert [a.keep_masks for a in attended] == [None, None]


@pytest.mark.parametrize("queries, again", [((64, 20), False), ((65, 20), True)])
def test_backward_draws_the_masks_of_long_sequences_alone(drawn, queries, again):
    run, parts = make(queries=queries, rates=BOTH)
    out = run(*parts)
    forward = [mask.shape for mask in drawn]
    assert len(forward) == (2 if again else 4) + 2
    drawn.clear()
    out.sum().backward()
    assert [mask.shape for mask in drawn] == (forward[:2] if again else [])


@pytest.mark.parametrize("elements", [1, 700, 2**19])
@pytest.mark.parametrize("cross", [False, True])
def test_the_gradients_are_those_of_masks_drawn_again(monkeypatch, drawn, cross, elements):
    """Bitwise, in blocks of one matrix, of some and of all."""
    monkeypatch.setattr(cpu_blocks, "BLOCK_ELEMENTS", elements)
    run, parts = make(cross=cross, queries=(37, 20), keys=(15, 40), rates=BOTH)
    (held,) = gradients(run, parts)
    forward = len(drawn)
    monkeypatch.setattr(cpu_blocks, "LONG", 0)
    monkeypatch.setattr(cpu_blocks, "LONG_BLOCK_ROWS", cpu_blocks.BLOCK_ROWS)
    (again,) = gradients(run, parts)
    assert len(drawn) == 3 * forward  # the second pass held nothing
    assert all(torch.equal(a, b) for a, b in zip(held, again, strict=True))


@pytest.mark.parametrize("queries", [(37, 20), (70, 20)])
def test_a_second_backward_pass_gives_the_same_gradients(queries):
    first, second = gradients(*make(queries=queries, rates=BOTH), times=2)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
