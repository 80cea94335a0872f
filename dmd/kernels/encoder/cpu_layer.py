"""An encoder layer in PyTorch, forward and backward, made for CPUs: one encoder and some samples at a time.

Everything between the input and the output of such a chunk stays in the cache, and its products are of two matrices.
The numbers are those that `PortableBackend.layer` composes from single operations, up to rounding:

    normed = norm(x)
    heads = projections of normed (queries), and of source or normed (keys and values)
    between = x + factors.attended * out(attention(heads))
    middle = norm(between)
    hidden = factors.hidden * relu(fc1(middle))
    output = between + factors.mlp * fc2(hidden)

Backward goes through these lines from the last to the first. A variable there holds the gradient of what has its name
here; values are read from `saved`, parameters from `w`.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmd.kernels.attention.cpu_blocks import AttentionCall, BlockAttention, CpuAttended, Heads

CHUNK_STEPS = 8192
"""Time steps of all samples of a chunk, at most."""
EPSILON = 1e-5
"""Of the layer norms, as in torch."""


class CpuWeights(NamedTuple):
    """Parameters of E encoders as the products read them; of one encoder, without the axis E.

    The gain and shift of each layer norm are inside the projection after it, the scale of the scores is inside the
    query's, and channels of queries, keys and values are sorted by channel of a head and then by head.
    """

    query_weight: Tensor
    """[E, d, d]."""
    query_bias: Tensor
    """[E, d]."""
    key_value_weight: Tensor
    """[E, 2d, d]."""
    key_value_bias: Tensor
    """[E, 2d]."""
    out_weight: Tensor
    """[E, d, d]."""
    out_bias: Tensor
    """[E, d]."""
    fc1_weight: Tensor
    """[E, 4d, d]."""
    fc1_bias: Tensor
    """[E, 4d]."""
    fc2_weight: Tensor
    """[E, d, 4d]."""
    fc2_bias: Tensor
    """[E, d]."""

    def by_encoder(self) -> list["CpuWeights"]:
        """Those of each encoder."""
        return [CpuWeights(*own) for own in zip(*(weight.unbind() for weight in self), strict=True)]


@dataclass(frozen=True, kw_only=True)
class DropoutFactors:
    """0 where dropout drops an element, else 1 / (1 - rate); None: no dropout."""

    attended: Tensor | None
    """Of the attention's branch, [E, B, Tq, d]; of a chunk [n, d], for n = samples * time steps."""
    hidden: Tensor | None
    """Of the hidden units, [E, B, Tq, 4d]; of a chunk [n, 4d]."""
    mlp: Tensor | None
    """Of the MLP's branch, [E, B, Tq, d]; of a chunk [n, d]."""

    def of(self, encoder: int, samples: slice) -> "DropoutFactors":
        """Those of a chunk."""

        def part(factors: Tensor | None) -> Tensor | None:
            return None if factors is None else factors[encoder, samples].flatten(0, 1)

        return DropoutFactors(attended=part(self.attended), hidden=part(self.hidden), mlp=part(self.mlp))


class Saved(NamedTuple):
    """What a chunk keeps for backward; n = samples * time steps."""

    query: Tensor
    """[h, M, Tq]: see `Heads`."""
    key_value: Tensor
    """[2, h, M, Tk]."""
    mixed: Tensor
    """[h, M, Tq]: see `CpuAttended`."""
    inverse: Tensor
    top: Tensor | None
    normed: Tensor
    """The normalised input, [n, d]."""
    normed_rstd: Tensor
    """1 / the standard deviation of each row of the input, [n, 1]."""
    middle: Tensor
    """The normalised sum of input and attention, [n, d]."""
    middle_rstd: Tensor
    hidden: Tensor
    """After the ReLU and its dropout, [n, 4d]."""


def cpu_layer(
    x: Tensor,
    source: Tensor | None,
    weights: CpuWeights,
    attention: AttentionCall,
    factors: DropoutFactors,
) -> Tensor:
    """One pre-norm layer of E encoders: attention and a ReLU MLP of width 4d, each with its residual.

    Args:
        x: [E, B, Tq, d], the steps that queries and outputs are of.
        source: normalised key and value input [E, B, Tk, d]; None for self-attention.
        weights: of the E encoders.
        attention: its plan, key ranges and dropout.
        factors: of the other dropouts.

    Returns:
        like x. Under autocast it is computed in float32 all the same.
    """
    steps = max(x.shape[2], 0 if source is None else source.shape[2])
    slices = even_slices(x.shape[1], CHUNK_STEPS // steps)
    chunks = [(encoder, samples) for encoder in range(len(x)) for samples in slices]
    sizes = [samples.stop - samples.start for _, samples in chunks]
    inputs = x.flatten(0, 1).split(sizes)
    sources = [None] * len(chunks) if source is None else source.flatten(0, 1).split(sizes)
    own = weights.by_encoder()
    outputs: list[Tensor] = []
    for (encoder, samples), part, source_part in zip(chunks, inputs, sources, strict=True):
        output = ChunkLayer.apply(
            part,
            source_part,
            attention.of(encoder, samples),
            factors.of(encoder, samples),
            *own[encoder],
        )
        assert isinstance(output, Tensor)
        outputs.append(output)
    return torch.cat(outputs).view(x.shape)


def even_slices(count: int, at_most: int) -> list[slice]:
    """As few runs of `count` places as can be, of about equal lengths, at most `at_most` each (but at least 1)."""
    size = math.ceil(count / math.ceil(count / max(1, at_most)))
    return [slice(begin, min(begin + size, count)) for begin in range(0, count, size)]


class ChunkLayer(torch.autograd.Function):
    """The layer of one encoder on some samples. Attention weights are not kept, but computed again."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)  # type: ignore[untyped-decorator]
    def forward(
        ctx: Any,
        x: Tensor,
        source: Tensor | None,
        attention: BlockAttention,
        factors: DropoutFactors,
        *weights: Tensor,
    ) -> Tensor:
        """x [b, Tq, d], source [b, Tk, d] or None, and the encoder's `CpuWeights` -> [b, Tq, d]; n = b * Tq."""
        w = CpuWeights(*weights)
        batch, _, dim = x.shape
        rows = x.reshape(-1, dim)  # [n, d]
        normed, normed_rstd = _normalise(rows)
        attended_to = normed if source is None else source.reshape(-1, dim)
        query = torch.addmm(w.query_bias.unsqueeze(1), w.query_weight, normed.t())  # [d, n]
        key_value = torch.addmm(w.key_value_bias.unsqueeze(1), w.key_value_weight, attended_to.t())  # [2d, n]
        width, matrices = dim // attention.heads, attention.heads * batch
        heads = Heads(query.view(width, matrices, -1), key_value.view(2, width, matrices, -1))
        attended = attention.forward(heads)
        branch = torch.addmm(w.out_bias, attended.mixed.view(dim, -1).t(), w.out_weight.t())
        if factors.attended is not None:
            branch *= factors.attended
        between = branch.add_(rows)
        middle, middle_rstd = _normalise(between)
        hidden = torch.addmm(w.fc1_bias, middle, w.fc1_weight.t()).relu_()
        if factors.hidden is not None:
            hidden *= factors.hidden
        branch = torch.addmm(w.fc2_bias, hidden, w.fc2_weight.t())
        if factors.mlp is not None:
            branch *= factors.mlp
        saved = Saved(
            **heads._asdict(),
            **attended._asdict(),
            normed=normed,
            normed_rstd=normed_rstd,
            middle=middle,
            middle_rstd=middle_rstd,
            hidden=hidden,
        )
        ctx.save_for_backward(source, *weights, *saved)
        ctx.attention, ctx.factors = attention, factors
        return branch.add_(between).view(x.shape)

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of x, source and weights."""
        source, *rest = ctx.saved_tensors
        count = len(CpuWeights._fields)
        w, saved = CpuWeights(*rest[:count]), Saved(*rest[count:])
        factors: DropoutFactors = ctx.factors
        attention: BlockAttention = ctx.attention
        dim = saved.normed.shape[1]
        out = gradients[0].reshape(-1, dim)  # [n, d]

        branch = out if factors.mlp is None else out * factors.mlp
        hidden = torch.mm(branch, w.fc2_weight)  # [n, 4d]
        if factors.hidden is not None:
            hidden *= factors.hidden
        hidden = torch.ops.aten.threshold_backward.grad_input(hidden, saved.hidden, 0, grad_input=hidden)
        fc2_weight, fc2_bias = torch.mm(branch.t(), saved.hidden), branch.sum(0)
        fc1_weight, fc1_bias = torch.mm(hidden.t(), saved.middle), hidden.sum(0)
        middle = torch.mm(hidden, w.fc1_weight)
        between = _normalise_backward(middle, saved.middle, saved.middle_rstd).add_(out)

        branch = between if factors.attended is None else between * factors.attended
        mixed = torch.mm(w.out_weight.t(), branch.t())  # [d, n]
        out_weight, out_bias = torch.mm(branch.t(), saved.mixed.view(dim, -1).t()), branch.sum(0)
        heads = attention.backward(
            Heads(saved.query, saved.key_value),
            CpuAttended(saved.mixed, saved.inverse, saved.top),
            mixed.view(saved.mixed.shape),
        )
        query, key_value = heads.query.view(dim, -1), heads.key_value.view(2 * dim, -1)  # [d, n] and [2d, n]
        attended_to = saved.normed if source is None else source.reshape(-1, dim)
        query_weight, query_bias = torch.mm(query, saved.normed), query.sum(1)
        key_value_weight, key_value_bias = torch.mm(key_value, attended_to), key_value.sum(1)
        normed = torch.mm(query.t(), w.query_weight)
        grad_source = torch.mm(key_value.t(), w.key_value_weight)
        if source is None:
            normed += grad_source
        x = _normalise_backward(normed, saved.normed, saved.normed_rstd).add_(between)
        return (
            x.view(gradients[0].shape),
            None if source is None else grad_source.view(source.shape),
            None,
            None,
            *CpuWeights(
                query_weight=query_weight,
                query_bias=query_bias,
                key_value_weight=key_value_weight,
                key_value_bias=key_value_bias,
                out_weight=out_weight,
                out_bias=out_bias,
                fc1_weight=fc1_weight,
                fc1_bias=fc1_bias,
                fc2_weight=fc2_weight,
                fc2_bias=fc2_bias,
            ),
        )


def _normalise(x: Tensor) -> tuple[Tensor, Tensor]:
    """Layer norm of x [n, d] without gain, and 1 / its standard deviation [n, 1]."""
    normed, _, rstd = torch.native_layer_norm(x, x.shape[-1:], None, None, EPSILON)
    return normed, rstd


def _normalise_backward(grad: Tensor, normed: Tensor, rstd: Tensor) -> Tensor:
    """Gradient [n, d] through a layer norm, from its result: rstd * (grad - mean(grad) - normed * mean(grad * normed)).

    In torch's function the result stands for the input, of mean 0 and deviation 1, so that the input need not be kept.
    """
    result, *_ = torch.ops.aten.native_layer_norm_backward(
        grad, normed, grad.shape[-1:], torch.zeros_like(rstd), torch.ones_like(rstd), None, None, [True, False, False]
    )
    assert isinstance(result, Tensor)
    return result.mul_(rstd)
