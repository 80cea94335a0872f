"""What a call of a layer is to its Triton kernels, beside its tensors: constants of every launch."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from dmd.kernels.attention.triton_launch import AttentionLaunch, TritonAttended
from dmd.kernels.common.block_sizes import num_blocks
from dmd.kernels.common.measured_sizes import row_sizes_on
from dmd.kernels.dropout.rng import keep_scale, threshold

DOT_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
"""Triton's names of the types of a product's operands."""
SLOT_CHANNELS = 8
"""Operands of the gradients of weights begin at multiples of so many channels: 16 bytes, a thread's widest load."""


@dataclass(frozen=True, kw_only=True)
class LayerCall:
    """What a call of a layer is, beside its tensors."""

    table: Tensor
    """[E, 5], see `dmd.kernels.common.triton_rows`."""
    attention: AttentionLaunch
    last: bool
    """Only the last step of each encoder is wanted."""
    dtype: torch.dtype
    """Of the operands of products."""
    queries: tuple[int, ...]
    """Length of each encoder's input."""
    keys: dict[str, Tensor] = field(default_factory=dict)
    """{"res", "relu", "mlp": [E, B, 2]} of the dropouts that are on."""
    res_rate: float = 0.0
    """Dropout of both branches."""
    relu_rate: float = 0.0
    """Dropout of the hidden units."""

    def sizes(self, kernel: str, dim: int) -> dict[str, Any]:
        """Constants of a launch over rows of `dim` channels, for the kernel of that name."""
        blocks = row_sizes_on(self.attention.capability, kernel, dim, half=self.dtype != torch.float32)
        return {"DIM": dim, "DOT": DOT_TYPES[self.dtype], "PRECISION": self.attention.precision, **blocks}

    def dropout(self) -> dict[str, Any]:
        """Constants of the dropouts after the branches and the ReLU."""
        return {
            "RES": "res" in self.keys,
            "RES_THRESHOLD": threshold(self.res_rate),
            "RES_SCALE": keep_scale(self.res_rate),
            "RELU": "relu" in self.keys,
            "RELU_THRESHOLD": threshold(self.relu_rate),
            "RELU_SCALE": keep_scale(self.relu_rate),
        }

    def dropout_keys(self) -> dict[str, Tensor]:
        """The keys of the dropouts after the branches and the ReLU, or a tensor that no kernel reads."""
        return {f"{kind}_keys": self.key(kind) for kind in ("res", "relu", "mlp")}

    def key(self, kind: str) -> Tensor:
        """A dropout's keys, or a tensor that no kernel reads."""
        return self.keys.get(kind, self.table)


class Activations(NamedTuple):
    """Of a layer of E encoders, which its backward pass needs. Tq is T, or 1 where only the last step is wanted."""

    x: Tensor
    """[E, B, T, d], float32: the input."""
    source: Tensor | None
    """[E, B, Tk, d], float32, normalised: what keys and values come from; None: from x."""
    query: Tensor
    """[E, B, Tq, d], of the type of products."""
    key_value: Tensor
    """[E, B, Tk, 2d], of the type of products: keys, values."""
    mixed: Tensor
    """[E, B, Tq, d], of the type of products: output of the attention."""
    log_sums: Tensor
    """[E, B * H, Tq], float32: the attention's log-sums (see `TritonAttended`)."""
    middle: Tensor
    """[E, B, Tq, d], float32: the residual stream between attention and MLP."""

    def attended(self) -> TritonAttended:
        """What the attention kept."""
        key, value = self.key_value.chunk(2, dim=-1)
        return TritonAttended(self.query, key, value, self.mixed, self.log_sums)


class ActivationGradients(NamedTuple):
    """What the backward pass of a layer's activations leaves to that of its weights, in the type of products."""

    query: Tensor
    """[E, B, Tq, d], of the queries."""
    key: Tensor
    """[E, B, Tk, d], of the keys."""
    value: Tensor
    """[E, B, Tk, d], of the values: a slot further than that of the keys."""
    normed: Tensor
    """[E, B, T, d], the normalised input."""
    operands: Tensor
    """[E, B, Tq, ...], of the output projection and the MLP, as `operand_places` says."""


def slot(channels: int) -> int:
    """Channels, padded to a multiple of `SLOT_CHANNELS`."""
    return num_blocks(channels, SLOT_CHANNELS) * SLOT_CHANNELS


def operand_places(dim: int) -> dict[str, int]:
    """Constants: where each operand begins in a row of `ActivationGradients.operands`, and the channels of their slots.

    GRAD_HIDDEN (4d) are gradients of the hidden units before the ReLU, HIDDEN (4d) the hidden units, NORMED the MLP's
    normalised input, BRANCH the gradient of the MLP's output, PROJECTED that of the output projection's result, both
    after dropout, and MIXED the output of the attention.
    """
    narrow, wide = slot(dim), slot(4 * dim)
    names = ("NORMED", "BRANCH", "PROJECTED", "MIXED")
    places = {name: 2 * wide + number * narrow for number, name in enumerate(names)}
    return {"GRAD_HIDDEN": 0, "HIDDEN": wide, **places, "SLOT": narrow, "WIDE_SLOT": wide}


def operand_channels(dim: int) -> int:
    """Elements of a row of `ActivationGradients.operands`."""
    return 2 * slot(4 * dim) + 4 * slot(dim)


def empty_operands(like: Tensor, steps: int, dim: int, dtype: torch.dtype) -> Tensor:
    """`ActivationGradients.operands`; kernels count in 32 bits within an encoder, and in 64 between encoders."""
    encoders, batch = like.shape[:2]
    channels = operand_channels(dim)
    assert batch * steps * channels < 2**31
    return torch.empty(encoders, batch, steps, channels, device=like.device, dtype=dtype)


def slots(like: Tensor, steps: int, count: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """`count` tensors [E, B, steps, dim] side by side in memory, a slot of each row for each."""
    return empty(like, steps, count * slot(dim), dtype).unflatten(-1, (count, slot(dim)))[..., :dim].unbind(3)


def empty(like: Tensor, steps: int, dim: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """[E, B, steps, dim]; steps past an encoder's length are never written nor read."""
    encoders, batch = like.shape[:2]
    assert encoders * batch * steps * dim < 2**31
    return torch.empty(encoders, batch, steps, dim, device=like.device, dtype=dtype)
