"""Gradients of a layer's weights from stored operands: several shares of the rows, encoders of different lengths."""

import pytest
import torch
from torch import Tensor

from tests.dmd.kernels.forms import interpreted

DIM = 12
SLOT = 16
"""Channels of a slot of DIM."""
QUERIES, KEYS = (5, 37), (37, 7)
"""One encoder's sequences are shorter than a block of rows, so that samples change several times within one."""


def _stored(batch: int, steps: tuple[int, ...], slot: int, *, channels: int) -> Tensor:
    """Rows [E, B, T, slot], random, not-a-number past an encoder's length and past `channels`."""
    memory = torch.full((len(steps), batch, max(steps), slot), torch.nan)
    for encoder, length in enumerate(steps):
        memory[encoder, :, :length, :channels] = torch.randn(batch, length, channels)
    return memory


def _sums(y: Tensor, x: Tensor, lengths: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Of each encoder's rows: y^T x [E, Y, X] and y [E, Y], in float64."""
    pairs = [(y[e, :, :length].double(), x[e, :, :length].double()) for e, length in enumerate(lengths)]
    products = torch.stack([torch.einsum("bty,btx->yx", *pair) for pair in pairs])
    return products, torch.stack([own.sum((0, 1)) for own, _ in pairs])


def check_shares(device: str, batch: int, last: bool) -> None:
    """Against sums in float64. Nothing that is stored depends on what is not a number.

    Args:
        last: queries are of each sample's last step alone.
    """
    from dmd.kernels.attention.triton_launch import AttentionLaunch
    from dmd.kernels.common.triton_rows import COLUMNS
    from dmd.kernels.encoder.plan import LayerWeights
    from dmd.kernels.encoder.triton_layer_call import LayerCall, WeightOperands, operand_places
    from dmd.kernels.encoder.weight_gradient_kernels import rows_of_a_share, weight_gradients

    torch.manual_seed(0)
    shapes = {"in_proj": (3 * DIM, DIM), "out_proj": (DIM, DIM), "fc1": (4 * DIM, DIM), "fc2": (DIM, 4 * DIM)}
    parts = {}
    for name, (rows, cols) in shapes.items():
        parts |= {f"{name}_weight": torch.randn(2, rows, cols), f"{name}_bias": torch.randn(2, rows)}
    weights = LayerWeights(**parts, norm_weight=torch.randn(2, 2, DIM), norm_bias=torch.randn(2, 2, DIM))
    places = operand_places(DIM)
    wide, row = places.pop("WIDE_SLOT"), places.pop("OPERANDS")
    assert row == 2 * wide + 3 * SLOT
    asked = (1, 1) if last else QUERIES
    others = torch.full((2, batch, max(asked), row), torch.nan)
    stored = {}
    for name, place in places.items():
        channels = 4 * DIM if "HIDDEN" in name else DIM
        stored[name] = others[..., place : place + channels]
        stored[name].copy_(_stored(batch, asked, channels, channels=channels))
    query, mixed = (_stored(batch, asked, SLOT, channels=DIM) for _ in range(2))
    pair = torch.full((2, batch, max(KEYS), 2 * SLOT), torch.nan)
    key, value = pair.split(SLOT, dim=-1)
    key.copy_(_stored(batch, KEYS, SLOT, channels=DIM))
    value.copy_(_stored(batch, KEYS, SLOT, channels=DIM))
    normed, source = _stored(batch, QUERIES, SLOT, channels=DIM), _stored(batch, KEYS, SLOT, channels=DIM)
    table = torch.zeros(2, COLUMNS.value, dtype=torch.int32)
    table[:, 0], table[:, 1] = torch.tensor(QUERIES), torch.tensor(KEYS)
    attention = AttentionLaunch(table, torch.ones(2), None, None, dim=DIM, heads=1, last_step=last)
    call = LayerCall(dim=DIM, table=table, attention=attention, last=last, dtype=torch.float32, queries=QUERIES)
    assert rows_of_a_share(tuple(batch * steps for steps in QUERIES), 9, 32) < batch * max(asked), "several shares"
    operands = WeightOperands(grad_query=query, grad_key=key, normed=normed, mixed=mixed, others=others)
    found = weight_gradients(call, weights, source, operands)

    query, key, value, normed, mixed, source = (x[..., :DIM] for x in (query, key, value, normed, mixed, source))
    if last:
        normed = torch.stack([own[:, length - 1 : length] for own, length in zip(normed, QUERIES, strict=True)])
    sums = [_sums(query, normed, asked), _sums(key, source, KEYS), _sums(value, source, KEYS)]
    in_proj, in_bias = torch.cat([x for x, _ in sums], 1), torch.cat([x for _, x in sums], 1)
    out_proj, out_bias = _sums(stored["PROJECTED"], mixed, asked)
    fc1, fc1_bias = _sums(stored["GRAD_HIDDEN"], stored["NORMED"], asked)
    fc2, fc2_bias = _sums(stored["BRANCH"], stored["HIDDEN"], asked)
    gain, shift = weights.norm_weight.double(), weights.norm_bias.double()
    folded = [
        (product, bias, weight.double())
        for product, bias, weight in (
            (in_proj, in_bias, weights.in_proj_weight),
            (fc1, fc1_bias, weights.fc1_weight),
        )
    ]
    expected = LayerWeights(
        in_proj_weight=in_proj * gain[0][:, None] + in_bias[..., None] * shift[0][:, None],
        in_proj_bias=in_bias,
        out_proj_weight=out_proj,
        out_proj_bias=out_bias,
        fc1_weight=fc1 * gain[1][:, None] + fc1_bias[..., None] * shift[1][:, None],
        fc1_bias=fc1_bias,
        fc2_weight=fc2,
        fc2_bias=fc2_bias,
        norm_weight=torch.stack([(product * weight).sum(1) for product, _, weight in folded]),
        norm_bias=torch.stack([(bias[..., None] * weight).sum(1) for _, bias, weight in folded]),
    )
    for name, own, right in zip(LayerWeights._fields, found, expected, strict=True):
        error = float((own.double() - right).abs().max() / right.abs().max())
        assert error < 1e-6, (name, error)


@pytest.mark.parametrize(("batch", "last"), [(24, False), (300, True)], ids=["all steps", "last steps"])
def test_shares_of_rows_add_up_to_the_gradients_of_weights(batch, last):
    interpreted(__name__, "check_shares", batch, last)


@pytest.mark.parametrize("rows", [(7360,) * 6, (8000, 60000, 80000), (160,), (1, 1)])
def test_shares_make_one_wave_and_are_as_small_as_it_allows(rows):
    from dmd.kernels.encoder.weight_gradient_kernels import LEAST_BLOCKS, WAVE, rows_of_a_share

    jobs, block = 13, 64

    def programs(size: int) -> int:
        return jobs * sum(-(-count // size) for count in rows)

    size = rows_of_a_share(rows, jobs, block)
    assert size % block == 0
    assert programs(size) <= max(WAVE, jobs * len(rows))
    assert size == LEAST_BLOCKS * block or programs(size - block) > WAVE
