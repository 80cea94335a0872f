"""The work of a whole encoder layer on one chunk of samples of one encoder, forward and backward, in plain torch.

Written for CPUs: everything between the input and the output of a chunk stays in the cache, and its products are of two
matrices. `dmd.kernels.encoder.cpu_layer` runs it over all chunks.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dmd.kernels.attention.cpu_blocks import Attended, Chunk, Heads, PieceAttention, gradient_scales, query_scale
from dmd.kernels.attention.plan import AttentionPlan

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
    """[h, H * b, Tq]."""
    inverse: Tensor
    top: Tensor | None
    """See `Attended`."""
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

    def __init__(
        self, plan: AttentionPlan, attention: PieceAttention, weights: Weights, masks: Masks, last: Tensor | None
    ) -> None:
        self.attention, self.weights, self.masks, self.last = attention, weights, masks, last
        self.heads, self.width = plan.heads, weights.out_weight.shape[-1] // plan.heads
        scale = self._rows([query_scale(self.width), 1.0, 1.0])
        in_weight = self._by_channel(weights.in_weight.detach(), 1)
        self.in_weight = in_weight * scale
        self.in_bias = self._by_channel(weights.in_bias.detach(), 1).unsqueeze(-1) * scale  # [E, 3d, 1]
        self.in_weight_back = in_weight * self._rows(gradient_scales(self.width))
        self.out_weight = self._by_channel(weights.out_weight.detach(), 2)

    def _rows(self, scales: Sequence[float]) -> Tensor:
        """A number for each row of the projections of query, key and value, [3d, 1]."""
        return self.weights.in_bias.new_tensor(scales).repeat_interleave(self.heads * self.width).unsqueeze(-1)

    def _by_channel(self, x: Tensor, axis: int) -> Tensor:
        """Sort each d of an axis of 3d or d, which are by head and then by channel, by channel and then by head."""
        return x.unflatten(axis, (-1, self.heads, self.width)).transpose(axis + 1, axis + 2).flatten(axis, axis + 2)

    def _by_head(self, x: Tensor, axis: int) -> Tensor:
        """What `_by_channel` sorted, as it was."""
        return x.unflatten(axis, (-1, self.width, self.heads)).transpose(axis + 1, axis + 2).flatten(axis, axis + 2)

    def finish(self, grads: Weights) -> Weights:
        """The weights' gradients of all chunks, which `backward` sums up in its own order and scale."""
        scale = self._rows(gradient_scales(self.width))
        return grads._replace(
            in_weight=self._by_head(grads.in_weight * scale, 1),
            in_bias=self._by_head(grads.in_bias * scale.squeeze(-1), 1),
            out_weight=self._by_head(grads.out_weight, 2),
        )

    def forward(self, chunk: Chunk, x: Tensor, source: Tensor | None, out: Tensor) -> Kept:
        """Fill the chunk's part of `out`."""
        w, e, dim = self.weights, chunk.encoder, x.shape[-1]
        given = x[e, chunk.samples]
        ends = given if self.last is None else given[self._wanted(chunk)].unsqueeze(1)
        rows = ends.reshape(-1, dim)
        # Self-attention of the last step needs every step as a key.
        normed, normed_rstd = _normalise(rows if source is not None else given.reshape(-1, dim))
        heads = self._project(chunk, normed, source, len(given))
        found = self.attention.forward(chunk, heads)
        attended = torch.addmm(w.out_bias[e], found.mixed.view(dim, -1).t(), self.out_weight[e].t())
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
        return Kept(*heads, *found, normed, normed_rstd, middle, middle_rstd, hidden)

    def _project(self, chunk: Chunk, normed: Tensor, source: Tensor | None, batch: int) -> Heads:
        """Query, key and value of a chunk."""
        e, dim = chunk.encoder, normed.shape[-1]
        weight, bias = self.in_weight[e], self.in_bias[e]
        if source is None and self.last is None:
            groups = torch.addmm(bias, weight, normed.t()).chunk(3)
        else:
            queries, keys = self._inputs(chunk, normed, source, batch)
            query = torch.addmm(bias[:dim], weight[:dim], queries.t())
            groups = (query, *torch.addmm(bias[dim:], weight[dim:], keys.t()).chunk(2))
        return Heads(*(rows.view(self.width, self.heads * batch, -1) for rows in groups))

    def _inputs(self, chunk: Chunk, normed: Tensor, source: Tensor | None, batch: int) -> tuple[Tensor, Tensor]:
        """What a chunk's queries, and its keys and values, are projected from, [n, d] each, where these differ."""
        dim = normed.shape[-1]
        if source is None:
            return normed.view(batch, -1, dim)[self._wanted(chunk)], normed
        return normed, source[chunk.encoder, chunk.samples].reshape(-1, dim)

    def _wanted(self, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """(sample, step) of the only step that is wanted of each sample of a chunk, counted from the chunk's first."""
        assert self.last is not None
        steps = self.last[chunk.encoder, chunk.samples]
        return torch.arange(len(steps)), steps

    def backward(
        self,
        chunk: Chunk,
        x: Tensor,
        kept: Kept,
        source: Tensor | None,
        upstream: Tensor,
        grads: Weights,
        grad_x: Tensor,
        grad_source: Tensor | None,
    ) -> None:
        """Add to the weights' gradients and fill the chunk's part of the inputs'."""
        e, samples, dim = chunk.encoder, chunk.samples, x.shape[-1]
        arriving = upstream[e, samples].reshape(-1, dim)
        between = self._backward_mlp(chunk, kept, arriving, grads)  # [n, d]
        branch = between
        if self.masks.attended is not None:
            branch = between * self.masks.attended[e, samples].reshape(-1, dim)
        grads.out_weight[e].addmm_(branch.t(), kept.mixed.view(dim, -1).t())
        grads.out_bias[e].add_(branch.sum(0))
        grad = torch.mm(self.out_weight[e].t(), branch.t()).view(kept.mixed.shape)
        heads, found = Heads(*kept[:3]), Attended(*kept[3:6])
        batch, steps = grad.shape[1] // self.heads, x.shape[2]
        if source is None and self.last is None:
            through = grad.new_empty(3, *kept.query.shape)
            self.attention.backward(chunk, heads, found, grad, Heads(*through))
            normed = self._backward_project(e, slice(3 * dim), through, kept.normed, grads)
            grad_x[e, samples] = (
                _normalise_backward(normed, kept.normed, kept.normed_rstd).add_(between).view(-1, steps, dim)
            )
            return
        grad_q, through = torch.empty_like(kept.query), grad.new_empty(2, *kept.key.shape)
        self.attention.backward(chunk, heads, found, grad, Heads(grad_q, *through))
        queries, keys = self._inputs(chunk, kept.normed, source, batch)
        of_query = self._backward_project(e, slice(dim), grad_q, queries, grads)
        of_key = self._backward_project(e, slice(dim, 3 * dim), through, keys, grads)
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

    def _backward_project(self, encoder: int, rows: slice, through: Tensor, inputs: Tensor, grads: Weights) -> Tensor:
        """Gradient of the inputs [n, d] of some rows of the projections, from that of their outputs."""
        flat = through.view(-1, len(inputs))
        grads.in_weight[encoder, rows].addmm_(flat, inputs)
        grads.in_bias[encoder, rows].add_(flat.sum(1))
        return torch.mm(flat.t(), self.in_weight_back[encoder, rows])

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
