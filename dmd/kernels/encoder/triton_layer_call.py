"""What a call of a layer is to its Triton kernels, beside its tensors: constants of every launch."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from dmd.kernels.attention.triton_launch import AttentionLaunch, TritonAttended
from dmd.kernels.common.block_sizes import slot
from dmd.kernels.common.measured_sizes import row_sizes_on
from dmd.kernels.dropout.rng import keep_scale, threshold

DOT_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
"""Triton's names of the types of a product's operands."""


@dataclass(frozen=True, kw_only=True)
class LayerCall:
    """What a call of a layer is, beside its tensors."""

    dim: int
    """d, channels of every encoder."""
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

    @property
    def slot(self) -> int:
        """S, channels of a slot of d."""
        return slot(self.dim)

    def sizes(self, kernel: str) -> dict[str, Any]:
        """Constants of a launch over rows, for the kernel of that name."""
        blocks = row_sizes_on(self.attention.capability, kernel, self.dim, half=self.dtype != torch.float32)
        channels = {"DIM": self.dim, "SLOT": self.slot}
        return {**channels, "DOT": DOT_TYPES[self.dtype], "PRECISION": self.attention.precision, **blocks}

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
    """Rows of a layer of E encoders that its backward pass needs. Tq is T, or 1 where only the last step is wanted."""

    x: Tensor
    """[E, B, T, S], float32: the input."""
    source: Tensor | None
    """[E, B, Tk, S], float32, normalised: what keys and values come from; None: from x."""
    query: Tensor
    """[E, B, Tq, S], of the type of products."""
    key: Tensor
    """[E, B, Tk, S], of the type of products."""
    value: Tensor
    """[E, B, Tk, S], of the type of products: the slot behind that of the key."""
    mixed: Tensor
    """[E, B, Tq, S], of the type of products: output of the attention."""
    log_sums: Tensor
    """[E, B * H, Tq], float32: the attention's log-sums (see `TritonAttended`)."""
    middle: Tensor
    """[E, B, Tq, S], float32: the residual stream between attention and MLP."""

    def attended(self) -> TritonAttended:
        """What the attention kept."""
        return TritonAttended(self.query, self.key, self.value, self.mixed, self.log_sums)


class WeightOperands(NamedTuple):
    """Rows that the gradients of a layer's weights are products of, of the type of products."""

    grad_query: Tensor
    """[E, B, Tq, S]."""
    grad_key: Tensor
    """[E, B, Tk, S]; that of the value is the slot behind it."""
    normed: Tensor
    """[E, B, T, S], the normalised input."""
    mixed: Tensor
    """[E, B, Tq, S], output of the attention."""
    others: Tensor
    """[E, B, Tq, ...], of the output projection and the MLP, as `operand_places` says."""


def operand_places(dim: int) -> dict[str, int]:
    """Constants: where each slot begins in a row of `WeightOperands.others`, and the channels of slots and row.

    GRAD_HIDDEN (4d) are gradients of the hidden units before the ReLU, HIDDEN (4d) the hidden units, NORMED the MLP's
    normalised input, BRANCH the gradient of the MLP's output and PROJECTED that of the output projection's result, both
    after dropout. WIDE_SLOT are the channels of a slot of 4d, OPERANDS those of the row.
    """
    narrow, wide = slot(dim), slot(4 * dim)
    narrows = ("NORMED", "BRANCH", "PROJECTED")
    places = {name: 2 * wide + number * narrow for number, name in enumerate(narrows)}
    row = 2 * wide + len(narrows) * narrow
    return {"GRAD_HIDDEN": 0, "HIDDEN": wide, **places, "WIDE_SLOT": wide, "OPERANDS": row}
