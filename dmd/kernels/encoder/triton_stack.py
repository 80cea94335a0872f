"""A stack of encoders as Triton kernels, all encoders together (see `dmd.kernels.encoder.plan`).

TritonBackend.encode -> run_stack -> FusedEmbed, FusedLayer for each level, FusedNorm
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dmd.kernels.attention.triton_launch import AttentionLaunch
from dmd.kernels.common.triton_rows import KEYS, QUERIES
from dmd.kernels.dropout.rng import DropoutRNG
from dmd.kernels.encoder.plan import EncoderStack
from dmd.kernels.encoder.triton_embed import MAX_INPUTS, EmbedCall, FusedEmbed
from dmd.kernels.encoder.triton_layer import FusedLayer
from dmd.kernels.encoder.triton_layer_call import LayerCall
from dmd.kernels.encoder.triton_norm import FusedNorm


def run_stack(
    stack: EncoderStack,
    inputs: Sequence[Tensor] | Tensor,
    sources: Sequence[Tensor] | None,
    rng: DropoutRNG | None,
    key_ranges: Sequence[Tensor] | None = None,
) -> Tensor:
    """The stack's output [E, B, T, d] (steps past an encoder's length are undefined), or [E, B, 1, d] of last steps.

    It is a view of rows of S channels (`dmd.kernels.common.rows`).

    Args:
        inputs: [B, T, d] of each encoder; or one [2 E, B, T, d / 2], whose pairs lie side by side in the channels.
        sources: [B, Tk, d] of each encoder; None for self-attention.
        key_ranges: (begin, end) of each sample's unpadded key frames, [B, 2] of each encoder; None: all are. The
            last unpadded frame is then the last step.
    """
    plan, table = stack.plan, stack.tables["table"]
    keys = {} if rng is None else plan.dropout_keys(rng, sources=sources is not None)
    x = _embed(stack, inputs, keys.get("embed"), side=QUERIES.value)
    source = None if sources is None else _embed(stack, sources, keys.get("source"), side=KEYS.value)
    dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else torch.float32
    ranges = None if key_ranges is None else torch.stack(list(key_ranges)).to(torch.int32)  # [E, B, 2]
    for level, weights in enumerate(stack.layers):
        last = plan.last_step and level == plan.levels - 1
        attention = AttentionLaunch(
            stack.tables["shape"],
            stack.tables["scales"],
            keys.get(f"attention{level}"),
            ranges,
            dim=plan.dim,
            heads=plan.heads,
            last_step=last,
        )
        own = {kind: keys[f"{kind}{level}"] for kind in ("res", "relu", "mlp") if f"{kind}{level}" in keys}
        call = LayerCall(
            dim=plan.dim,
            table=table,
            attention=attention,
            last=last,
            dtype=dtype,
            queries=plan.queries,
            keys=own,
            res_rate=plan.res_rate,
            relu_rate=plan.relu_rate,
        )
        x = FusedLayer.apply(x, source, call, *weights)
    return FusedNorm.apply(x, stack.norm_weight, stack.norm_bias, table, plan.last_step)


def _embed(stack: EncoderStack, inputs: Sequence[Tensor] | Tensor, keys: Tensor | None, *, side: int) -> Tensor:
    """Rows [E, B, T, S]: the embedded inputs, or the embedded and normalised sources (side KEYS)."""
    plan = stack.plan
    lengths = plan.queries if side == QUERIES.value else plan.keys
    readers: tuple[int, ...] = ()
    if isinstance(inputs, Tensor):
        tensors, parts = [inputs], 2
    else:
        tensors = list({id(x): x for x in inputs}.values())
        readers, parts = tuple(next(i for i, x in enumerate(tensors) if x is own) for own in inputs), 0
    if len(tensors) > MAX_INPUTS:
        tensors, readers, parts = [torch.stack([_lengthened(x, max(lengths)) for x in inputs])], (), 1
    call = EmbedCall(
        table=stack.tables["table"],
        positions=stack.tables["positions"],
        side=side,
        norm=side == KEYS.value,
        steps=max(lengths),
        rate=plan.embed_rate,
        keys=keys,
        readers=readers,
        parts=parts,
    )
    return FusedEmbed.apply(call, *tensors)


def _lengthened(x: Tensor, length: int) -> Tensor:
    """x [B, T, d] padded to [B, length, d]."""
    return F.pad(x, (0, 0, 0, length - x.shape[1]))
