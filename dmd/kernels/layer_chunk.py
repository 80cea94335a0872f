"""The work of a whole encoder layer on one chunk of samples of one encoder, forward and backward, in plain torch.

Written for CPUs: everything between the input and the output of a chunk stays in the cache, and its products are of two
matrices. `dmd.kernels.layer_plain` runs it over all chunks.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from dmd.kernels.attention import AttentionPlan
from dmd.kernels.pieces import LOG2_E, Chunk, Heads, PieceAttention, split_heads

EPSILON = 1e-5
"""Of the layer norms, as in torch."""


class Weights(NamedTuple):
    """Of E encoders; the gain and shift of the layer norms are inside the projections behind them."""

    in_weight: Tensor
    """[E, 3d, d]: query, key, value."""
    in_bias: Tensor
    out_weight: Tensor
    """[E, d, d]."""
    out_bias: Tensor
    fc1_weight: Tensor
    """[E, 4d, d]."""
    fc1_bias: Tensor
    fc2_weight: Tensor
    """[E, d, 4d]."""
    fc2_bias: Tensor


class Masks(NamedTuple):
    """Dropout factors of the residual branches [E, B, Tq, d] and of the ReLU [E, B, Tq, 4d]; None: no dropout."""

    attended: Tensor | None
    relu: Tensor | None
    mlp: Tensor | None


class Kept(NamedTuple):
    """What a chunk keeps for backward; n = samples * time steps."""

    query: Tensor
    key: Tensor
    value: Tensor
    mixed: Tensor
    """[b, H, h, Tq]."""
    normed: Tensor
    """Normalised input, [n, d]; of self-attention: of every step."""
    normed_rstd: Tensor
    middle: Tensor
    """Normalised sum of input and attention, [n, d]."""
    middle_rstd: Tensor
    hidden: Tensor
    """After the ReLU (and its dropout), [n, 4d]."""


class LayerWork:
    """One layer's work on single chunks."""

    def __init__(self, plan: AttentionPlan, attention: PieceAttention, weights: Weights, masks: Masks,
                 last: Tensor | None) -> None:  # fmt: skip
        self.plan, self.attention, self.weights, self.masks, self.last = plan, attention, weights, masks, last
        dim = weights.out_weight.shape[-1]
        self.factor = (dim // plan.heads) ** -0.5
        scale = weights.in_bias.new_ones(3 * dim)
        scale[:dim] = self.factor * LOG2_E
        self.in_weight = weights.in_weight.detach() * scale[:, None]
        self.in_bias = (weights.in_bias.detach() * scale).unsqueeze(-1)  # [E, 3d, 1]

    def forward(self, chunk: Chunk, x: Tensor, source: Tensor | None, out: Tensor) -> Kept:
        """Fill the chunk's part of `out`."""
        w, e, dim = self.weights, chunk.encoder, x.shape[-1]
        given = x[e, chunk.samples]
        ends = given if self.last is None else given[self._wanted(chunk)].unsqueeze(1)
        rows = ends.reshape(-1, dim)
        # Self-attention of the last step needs every step as a key.
        normed, normed_rstd = _normalise(rows if source is not None else given.reshape(-1, dim))
        query, key, value = self._project(chunk, normed, source, len(given))
        mixed = self.attention.forward(chunk, Heads(query, key, value))
        flat = _channels_first(mixed)  # [d, n]
        attended = torch.addmm(w.out_bias[e], flat.t(), w.out_weight[e].t())
        if self.masks.attended is not None:
            attended *= self.masks.attended[e, chunk.samples].reshape(-1, dim)
        between = attended.add_(rows)
        middle, middle_rstd = _normalise(between)
        hidden = torch.addmm(w.fc1_bias[e], middle, w.fc1_weight[e].t()).relu_()
        if self.masks.relu is not None:
            hidden *= self.masks.relu[e, chunk.samples].reshape(hidden.shape)
        if self.masks.mlp is None:
            result = between.add_(w.fc2_bias[e]).addmm_(hidden, w.fc2_weight[e].t())
        else:
            result = torch.addmm(w.fc2_bias[e], hidden, w.fc2_weight[e].t())
            result = result.mul_(self.masks.mlp[e, chunk.samples].reshape(-1, dim)).add_(between)
        out[e, chunk.samples] = result.view(ends.shape)
        return Kept(query, key, value, mixed, normed, normed_rstd, middle, middle_rstd, hidden)

    def _project(self, chunk: Chunk, normed: Tensor, source: Tensor | None, batch: int) -> list[Tensor]:
        """Query, key and value of a chunk as [b, H, h + 1, T]."""
        e, dim = chunk.encoder, normed.shape[-1]
        weight, bias = self.in_weight[e], self.in_bias[e]
        if source is None:
            groups = torch.addmm(bias, weight, normed.t()).chunk(3)
        else:
            keys = source[e, chunk.samples].reshape(-1, dim)
            query = torch.addmm(bias[:dim], weight[:dim], normed.t())
            groups = (query, *torch.addmm(bias[dim:], weight[dim:], keys.t()).chunk(2))
        result = []
        for rows, last in zip(groups, (0.0, 1.0, None), strict=True):
            heads = rows.view(self.plan.heads, -1, batch, rows.shape[1] // batch)  # [H, h, b, T]
            result.append(split_heads(heads.permute(2, 0, 1, 3), last))
        if source is None and self.last is not None:
            samples, steps = self._wanted(chunk)
            result[0] = result[0][samples, :, :, steps].unsqueeze(-1)
        return result

    def _wanted(self, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """(sample, step) of the only step that is wanted of each sample of a chunk, counted from the chunk's first."""
        assert self.last is not None
        steps = self.last[chunk.encoder, chunk.samples]
        return torch.arange(len(steps)), steps

    def backward(self, chunk: Chunk, x: Tensor, kept: Kept, source: Tensor | None, upstream: Tensor, grads: Weights,
                 grad_x: Tensor, grad_source: Tensor | None) -> None:  # fmt: skip
        """Add to the weights' gradients and fill the chunk's part of the inputs'."""
        e, samples, dim = chunk.encoder, chunk.samples, x.shape[-1]
        arriving = upstream[e, samples].reshape(-1, dim)
        between = self._backward_mlp(chunk, kept, arriving, grads)  # [n, d]
        branch = between
        if self.masks.attended is not None:
            branch = between * self.masks.attended[e, samples].reshape(-1, dim)
        grads.out_weight[e].addmm_(branch.t(), _channels_first(kept.mixed).t())
        grads.out_bias[e].add_(branch.sum(0))
        batch = len(kept.query)
        flat = torch.mm(self.weights.out_weight[e].t(), branch.t())  # [d, n]
        grad = flat.view(self.plan.heads, -1, batch, flat.shape[1] // batch).permute(2, 0, 1, 3).contiguous()
        heads = Heads(kept.query, kept.key, kept.value)
        grad_q, grad_k, grad_v = self.attention.backward(chunk, heads, kept.mixed, grad)
        grad_q = _channels_first(grad_q.mul_(self.factor))
        through = torch.cat([_channels_first(grad_k), _channels_first(grad_v)])
        weight, steps = self.weights.in_weight[e], x.shape[2]
        if source is None and self.last is None:
            through = torch.cat([grad_q, through])  # [3d, n]
            grads.in_weight[e].addmm_(through, kept.normed)
            grads.in_bias[e].add_(through.sum(1))
            normed = torch.mm(through.t(), weight)
            grad_x[e, samples] = _normalise_backward(normed, kept.normed, kept.normed_rstd).add_(between).view(
                -1, steps, dim
            )
            return
        keys = kept.normed if source is None else source[e, samples].reshape(-1, dim)
        queries = kept.normed
        if source is None:
            queries = kept.normed.view(batch, steps, dim)[self._wanted(chunk)]
        grads.in_weight[e, :dim].addmm_(grad_q, queries)
        grads.in_weight[e, dim:].addmm_(through, keys)
        grads.in_bias[e, :dim].add_(grad_q.sum(1))
        grads.in_bias[e, dim:].add_(through.sum(1))
        of_query, of_key = torch.mm(grad_q.t(), weight[:dim]), torch.mm(through.t(), weight[dim:])
        if source is not None:
            assert grad_source is not None
            grad_source[e, samples] = of_key.view(batch, -1, dim)
            of_query = _normalise_backward(of_query, kept.normed, kept.normed_rstd)
            if self.last is None:
                grad_x[e, samples] = of_query.add_(between).view(-1, steps, dim)
            else:
                grad_x[e, samples][self._wanted(chunk)] = of_query.add_(between)
            return
        of_key.view(batch, steps, dim)[self._wanted(chunk)] += of_query
        grad_x[e, samples] = _normalise_backward(of_key, kept.normed, kept.normed_rstd).view(batch, steps, dim)
        grad_x[e, samples][self._wanted(chunk)] += between

    def _backward_mlp(self, chunk: Chunk, kept: Kept, arriving: Tensor, grads: Weights) -> Tensor:
        """Gradient [n, d] of the sum of input and attention."""
        e, samples = chunk.encoder, chunk.samples
        branch = arriving
        if self.masks.mlp is not None:
            branch = arriving * self.masks.mlp[e, samples].reshape(arriving.shape)
        grads.fc2_weight[e].addmm_(branch.t(), kept.hidden)
        grads.fc2_bias[e].add_(branch.sum(0))
        hidden = torch.mm(branch, self.weights.fc2_weight[e])
        if self.masks.relu is not None:
            hidden *= self.masks.relu[e, samples].reshape(hidden.shape)
        hidden = torch.ops.aten.threshold_backward.grad_input(hidden, kept.hidden, 0, grad_input=hidden)
        grads.fc1_weight[e].addmm_(hidden.t(), kept.middle)
        grads.fc1_bias[e].add_(hidden.sum(0))
        through = torch.mm(hidden, self.weights.fc1_weight[e])
        return _normalise_backward(through, kept.middle, kept.middle_rstd).add_(arriving)


def _normalise(x: Tensor) -> tuple[Tensor, Tensor]:
    """Layer norm of x [n, d] without gain, and 1 / its standard deviation [n, 1]."""
    normed, _, rstd = torch.native_layer_norm(x, x.shape[-1:], None, None, EPSILON)
    return normed, rstd


def _normalise_backward(grad: Tensor, normed: Tensor, rstd: Tensor) -> Tensor:
    """Gradient [n, d] through a layer norm, from its result alone."""
    result, *_ = torch.ops.aten.native_layer_norm_backward(
        grad, normed, grad.shape[-1:], torch.zeros_like(rstd), torch.ones_like(rstd), None, None, [True, False, False]
    )
    assert isinstance(result, Tensor)
    return result.mul_(rstd)


def _channels_first(x: Tensor) -> Tensor:
    """[b, H, h, T] -> [H * h, b * T]."""
    return x.permute(1, 2, 0, 3).reshape(x.shape[1] * x.shape[2], -1)
