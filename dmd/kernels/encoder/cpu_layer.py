"""An encoder layer in PyTorch, forward and backward, made for CPUs: one encoder and some samples at a time.

The products of such a chunk are of two matrices, and it writes its outputs and gradients into those of the whole layer.
The numbers are those that `PortableBackend.layer` composes from single operations, up to rounding:

    normed = norm(x)
    heads = projections of normed (queries), and of source or normed (keys and values)
    between = x + attended_factors * out(attention(heads))
    middle = norm(between)
    hidden = hidden_factors * relu(fc1(middle))
    output = between + mlp_factors * fc2(hidden)

Backward does not need `hidden_factors`, only their scale: a hidden unit that is 0 was dropped or not positive, and has
no gradient in either case.

Backward goes through these lines from the last to the first. A variable there holds the gradient of what has its name
here; values are read from `saved`, parameters from `w`.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmd.kernels.attention.cpu_blocks import AttentionCall, BlockAttention, CpuAttended, Heads
from dmd.kernels.dropout.rng import SampleMasks, keep_scale

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
class LayerDropout:
    """The dropouts of a layer but that of the attention weights; None: no dropout."""

    attended: SampleMasks | None
    """Of the attention's branch, of Tq * d elements a sample and encoder."""
    hidden: SampleMasks | None
    """Of the hidden units, Tq * 4d."""
    mlp: SampleMasks | None
    """Of the MLP's branch, Tq * d."""


class Chunk(NamedTuple):
    """What is computed at once."""

    encoder: int
    samples: slice


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
    keep_masks: Tensor | None
    normed: Tensor
    """The normalised input, [n, d]."""
    normed_rstd: Tensor
    """1 / the standard deviation of each row of the input, [n, 1]."""
    middle: Tensor
    """The normalised sum of input and attention, [n, d]."""
    middle_rstd: Tensor
    hidden: Tensor
    """After the ReLU and its dropout, [n, 4d]."""
    attended_factors: Tensor | None
    """0 where dropout dropped an element of the attention's branch [n, d], else its scale; None: no dropout."""
    mlp_factors: Tensor | None
    """Of the MLP's branch."""


def cpu_layer(
    x: Tensor,
    source: Tensor | None,
    weights: CpuWeights,
    attention: AttentionCall,
    dropout: LayerDropout,
) -> Tensor:
    """One pre-norm layer of E encoders: attention and a ReLU MLP of width 4d, each with its residual.

    Args:
        x: [E, B, Tq, d], the steps that queries and outputs are of.
        source: normalised key and value input [E, B, Tk, d]; None for self-attention.
        weights: of the E encoders.
        attention: its plan, key ranges and dropout.
        dropout: the other dropouts.

    Returns:
        like x. Under autocast it is computed in float32 all the same.
    """
    for_backward = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, source, *weights))
    output = CpuLayer.apply(x, source, attention, dropout, for_backward, *weights)
    assert isinstance(output, Tensor)
    return output


def even_slices(count: int, at_most: int) -> list[slice]:
    """As few runs of `count` places as can be, of about equal lengths, at most `at_most` each (but at least 1)."""
    size = math.ceil(count / math.ceil(count / max(1, at_most)))
    return [slice(begin, min(begin + size, count)) for begin in range(0, count, size)]


class CpuLayer(torch.autograd.Function):
    """The layer, chunk after chunk. Attention weights are not kept, but computed again; `CpuAttended` says which of
    their dropout masks are kept."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)  # type: ignore[untyped-decorator]
    def forward(
        ctx: Any,
        x: Tensor,
        source: Tensor | None,
        attention: AttentionCall,
        dropout: LayerDropout,
        for_backward: bool,
        *weights: Tensor,
    ) -> Tensor:
        """See `cpu_layer`; `weights` are the `CpuWeights`.

        Args:
            for_backward: a backward pass can follow. Here, inside the function, torch does not tell.
        """
        steps = max(x.shape[2], 0 if source is None else source.shape[2])
        slices = even_slices(x.shape[1], CHUNK_STEPS // steps)
        own = CpuWeights(*weights).by_encoder()
        output = torch.empty_like(x, memory_format=torch.contiguous_format)
        ctx.chunks = [Chunk(encoder, samples) for encoder in range(len(x)) for samples in slices]
        ctx.attentions = [attention.of(*chunk) for chunk in ctx.chunks]
        ctx.hidden_scale = 1.0 if dropout.hidden is None else keep_scale(dropout.hidden.rate)
        saved: list[Tensor | None] = []
        for chunk, part in zip(ctx.chunks, ctx.attentions, strict=True):
            saved += chunk_forward(
                x[chunk],
                None if source is None else source[chunk],
                own[chunk.encoder],
                part,
                dropout,
                chunk,
                for_backward=for_backward,
                output=output[chunk],
            )
        ctx.save_for_backward(source, *weights, *saved)
        return output

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of x, source and weights."""
        source, *rest = ctx.saved_tensors
        count = len(CpuWeights._fields)
        weights, rest = CpuWeights(*rest[:count]), rest[count:]
        own = weights.by_encoder()
        weight_grads = CpuWeights(*(torch.zeros_like(weight) for weight in weights))
        own_grads = weight_grads.by_encoder()
        output_grad = gradients[0]
        x_grad = torch.empty_like(output_grad, memory_format=torch.contiguous_format)
        source_grad = None if source is None else torch.empty_like(source, memory_format=torch.contiguous_format)
        kept = len(Saved._fields)
        for number, chunk in enumerate(ctx.chunks):
            chunk_backward(
                output_grad[chunk],
                None if source is None else source[chunk],
                own[chunk.encoder],
                ctx.attentions[number],
                Saved(*rest[number * kept : (number + 1) * kept]),
                into=Gradients(
                    x=x_grad[chunk],
                    source=None if source_grad is None else source_grad[chunk],
                    weights=own_grads[chunk.encoder],
                ),
                hidden_scale=ctx.hidden_scale,
            )
        return x_grad, source_grad, None, None, None, *weight_grads


def chunk_forward(
    x: Tensor,
    source: Tensor | None,
    w: CpuWeights,
    attention: BlockAttention,
    dropout: LayerDropout,
    chunk: Chunk,
    *,
    for_backward: bool,
    output: Tensor,
) -> Saved:
    """The layer of one encoder on b samples.

    Args:
        x: [b, Tq, d]; n = b * Tq.
        source: [b, Tk, d]; None: the normalised x.
        w: of the encoder.
        for_backward: see `BlockAttention.forward`.
        output: [b, Tq, d], is written.
    """
    batch, _, dim = x.shape
    rows = x.reshape(-1, dim)  # [n, d]
    normed, normed_rstd = _normalise(rows)
    attended_to = normed if source is None else source.reshape(-1, dim)
    query = torch.addmm(w.query_bias.unsqueeze(1), w.query_weight, normed.t())  # [d, n]
    key_value = torch.addmm(w.key_value_bias.unsqueeze(1), w.key_value_weight, attended_to.t())  # [2d, n]
    width, matrices = dim // attention.heads, attention.heads * batch
    heads = Heads(query.view(width, matrices, -1), key_value.view(2, width, matrices, -1))
    attended = attention.forward(heads, for_backward=for_backward)
    branch = torch.addmm(w.out_bias, attended.mixed.view(dim, -1).t(), w.out_weight.t())
    attended_factors = _factors(dropout.attended, chunk, branch)
    if attended_factors is not None:
        branch *= attended_factors
    between = branch.add_(rows)
    middle, middle_rstd = _normalise(between)
    hidden = torch.addmm(w.fc1_bias, middle, w.fc1_weight.t()).relu_()
    hidden_factors = _factors(dropout.hidden, chunk, hidden)
    if hidden_factors is not None:
        hidden *= hidden_factors
    branch = torch.addmm(w.fc2_bias, hidden, w.fc2_weight.t())
    mlp_factors = _factors(dropout.mlp, chunk, branch)
    if mlp_factors is not None:
        branch *= mlp_factors
    torch.add(branch, between, out=output.view(-1, dim))
    return Saved(
        **heads._asdict(),
        **attended._asdict(),
        normed=normed,
        normed_rstd=normed_rstd,
        middle=middle,
        middle_rstd=middle_rstd,
        hidden=hidden,
        attended_factors=attended_factors,
        mlp_factors=mlp_factors,
    )


class Gradients(NamedTuple):
    """Where the gradients of a chunk go."""

    x: Tensor
    """[b, Tq, d], is written."""
    source: Tensor | None
    """[b, Tk, d], is written; None for self-attention."""
    weights: CpuWeights
    """Of the encoder; what other chunks have added stays."""


def chunk_backward(
    output_grad: Tensor,
    source: Tensor | None,
    w: CpuWeights,
    attention: BlockAttention,
    saved: Saved,
    *,
    into: Gradients,
    hidden_scale: float,
) -> None:
    """Backward of `chunk_forward`, from the gradient [b, Tq, d] of its output.

    Args:
        hidden_scale: what dropout multiplied the kept hidden units by.
    """
    dim = saved.normed.shape[1]
    grads = into.weights
    out = output_grad.reshape(-1, dim)  # [n, d]

    branch = out if saved.mlp_factors is None else out * saved.mlp_factors
    hidden = torch.mm(branch, w.fc2_weight * hidden_scale)  # [n, 4d]
    hidden = torch.ops.aten.threshold_backward.grad_input(hidden, saved.hidden, 0, grad_input=hidden)
    grads.fc2_weight.addmm_(branch.t(), saved.hidden)
    grads.fc2_bias.add_(branch.sum(0))
    grads.fc1_weight.addmm_(hidden.t(), saved.middle)
    grads.fc1_bias.add_(hidden.sum(0))
    middle = torch.mm(hidden, w.fc1_weight)
    between = _normalise_backward(middle, saved.middle, saved.middle_rstd).add_(out)

    branch = between if saved.attended_factors is None else between * saved.attended_factors
    mixed = torch.mm(w.out_weight.t(), branch.t())  # [d, n]
    grads.out_weight.addmm_(branch.t(), saved.mixed.view(dim, -1).t())
    grads.out_bias.add_(branch.sum(0))
    heads = attention.backward(
        Heads(saved.query, saved.key_value),
        CpuAttended(saved.mixed, saved.inverse, saved.top, saved.keep_masks),
        mixed.view(saved.mixed.shape),
    )
    query, key_value = heads.query.view(dim, -1), heads.key_value.view(2 * dim, -1)  # [d, n] and [2d, n]
    attended_to = saved.normed if source is None else source.reshape(-1, dim)
    grads.query_weight.addmm_(query, saved.normed)
    grads.query_bias.add_(query.sum(1))
    grads.key_value_weight.addmm_(key_value, attended_to)
    grads.key_value_bias.add_(key_value.sum(1))
    normed = torch.mm(query.t(), w.query_weight)
    if into.source is None:
        normed.addmm_(key_value.t(), w.key_value_weight)
    else:
        torch.mm(key_value.t(), w.key_value_weight, out=into.source.view(-1, dim))
    torch.add(_normalise_backward(normed, saved.normed, saved.normed_rstd), between, out=into.x.view(-1, dim))


def _factors(masks: SampleMasks | None, chunk: Chunk, like: Tensor) -> Tensor | None:
    """What dropout multiplies an activation of a chunk by, like that activation [n, width]; None: no dropout."""
    if masks is None:
        return None
    return masks.draw(range(chunk.encoder, chunk.encoder + 1), chunk.samples, like.dtype).view(like.shape)


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
