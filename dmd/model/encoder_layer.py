"""One pre-norm layer of E equal transformer encoders (FIELD.md A4), whose weights lie in tensors `[E, ...]`."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmd.kernels.attention import AttentionPlan, attention
from dmd.kernels.layer_chunk import Masks, Weights
from dmd.kernels.layer_plain import plain_layer
from dmd.kernels.noise import Noise, dropout


def grouped_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """One linear layer per encoder: x [E, B, T, n], weight [E, m, n], bias [E, m] -> [E, B, T, m]."""
    flat = x.flatten(1, 2)  # [E, B*T, n]
    return torch.baddbmm(bias[:, None], flat, weight.transpose(1, 2)).unflatten(1, x.shape[1:3])


def normalise(x: Tensor) -> Tensor:
    """Layer norm over the last axis without its gain and shift, which `after_norm` puts into the next layer."""
    return F.layer_norm(x, x.shape[-1:])


def after_norm(weight: Tensor, bias: Tensor, gain: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Weight [E, m, n] and bias [E, m] of a linear layer that takes over a layer norm's gain and shift [E, n]."""
    return weight * gain[:, None], bias + (weight @ shift[..., None]).squeeze(-1)


def pick_steps(x: Tensor, steps: Tensor) -> Tensor:
    """One step of each encoder ([E]) or of each of its samples ([E, B]): x [E, B, T, d] -> [E, B, 1, d]."""
    if steps.dim() == 1:
        return x[torch.arange(len(steps), device=x.device), :, steps].unsqueeze(2)
    return x.gather(2, steps[..., None, None].expand(-1, -1, 1, x.shape[-1]))


class EncoderLayer(nn.Module):
    """One pre-norm layer of E encoders: attention and a ReLU MLP of width 4d, each with its residual."""

    def __init__(self, num_encoders: int, dim: int, *, relu_dropout: float, res_dropout: float) -> None:
        super().__init__()
        self.relu_dropout = relu_dropout
        self.res_dropout = res_dropout
        self.in_proj_weight = nn.Parameter(torch.empty(num_encoders, 3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(num_encoders, 3 * dim))
        self.out_proj_weight = nn.Parameter(torch.empty(num_encoders, dim, dim))
        self.out_proj_bias = nn.Parameter(torch.zeros(num_encoders, dim))
        self.fc1_weight = nn.Parameter(torch.empty(num_encoders, 4 * dim, dim))
        self.fc1_bias = nn.Parameter(torch.zeros(num_encoders, 4 * dim))
        self.fc2_weight = nn.Parameter(torch.empty(num_encoders, dim, 4 * dim))
        self.fc2_bias = nn.Parameter(torch.zeros(num_encoders, dim))
        self.norm_weight = nn.Parameter(torch.ones(2, num_encoders, dim))
        self.norm_bias = nn.Parameter(torch.zeros(2, num_encoders, dim))
        for weight in (self.in_proj_weight, self.out_proj_weight, self.fc1_weight, self.fc2_weight):
            for encoder in weight.data:
                nn.init.xavier_uniform_(encoder)

    def forward(
        self,
        x: Tensor,
        source: Tensor | None,
        members: Tensor,
        plan: AttentionPlan,
        last: Tensor | None,
        noise: Noise | None,
        valid: Tensor | None = None,
    ) -> Tensor:
        """Map x [E, B, Tq, d] to the same shape, or to [E, B, 1, d] where `last` picks a step of each encoder, [E], or
        of each of its samples, [E, B].

        Args:
            source: normalised key and value input [E, B, Tk, d], or None for self-attention.
            members: which of the layer's encoders these are, [E].
            plan: lengths, heads and dropout of the attention.
            valid: real key frames of each sample, [E, B, 2] (see `dmd.kernels.attention`); None: all.
        """
        if x.device.type == "cpu" and not (plan.fused or plan.whole or torch.compiler.is_exporting()):
            return self._plain(x, source, members, plan, last, noise, valid)
        dim = x.shape[-1]
        gain, shift = self.norm_weight[:, members], self.norm_bias[:, members]
        weight, bias = after_norm(self.in_proj_weight[members], self.in_proj_bias[members], gain[0], shift[0])
        key = normalise(x) if source is None else source
        if last is not None:
            x = pick_steps(x, last)  # [E, B, 1, d]
        if source is None and last is None:
            q, k, v = grouped_linear(key, weight, bias).chunk(3, dim=-1)
        else:
            q = grouped_linear(normalise(x), weight[:, :dim], bias[:, :dim])
            k, v = grouped_linear(key, weight[:, dim:], bias[:, dim:]).chunk(2, dim=-1)
        mixed = attention(q, k, v, plan, noise, valid)
        attended = grouped_linear(mixed, self.out_proj_weight[members], self.out_proj_bias[members])
        x = x + dropout(attended, self.res_dropout, noise, batch_dim=1)
        weight, bias = after_norm(self.fc1_weight[members], self.fc1_bias[members], gain[1], shift[1])
        hidden = grouped_linear(normalise(x), weight, bias).relu_()
        hidden = dropout(hidden, self.relu_dropout, noise, batch_dim=1)
        hidden = grouped_linear(hidden, self.fc2_weight[members], self.fc2_bias[members])
        return x + dropout(hidden, self.res_dropout, noise, batch_dim=1)

    def _plain(
        self,
        x: Tensor,
        source: Tensor | None,
        members: Tensor,
        plan: AttentionPlan,
        last: Tensor | None,
        noise: Noise | None,
        valid: Tensor | None,
    ) -> Tensor:
        """The same, encoder by encoder in the cache of a CPU; draws its dropout in the same order."""
        every = len(members) == len(self.in_proj_weight)
        norm_weight, norm_bias, *rest = (
            part if every else part.index_select(part.dim() - 2 if norm else 0, members)
            for norm, part in (
                (True, self.norm_weight),
                (True, self.norm_bias),
                (False, self.in_proj_weight),
                (False, self.in_proj_bias),
                (False, self.out_proj_weight),
                (False, self.out_proj_bias),
                (False, self.fc1_weight),
                (False, self.fc1_bias),
                (False, self.fc2_weight),
                (False, self.fc2_bias),
            )
        )
        in_proj = after_norm(rest[0], rest[1], norm_weight[0], norm_bias[0])
        fc1 = after_norm(rest[4], rest[5], norm_weight[1], norm_bias[1])
        site = None if noise is None or not any(plan.rates) else noise.next_site()
        shape = (*x.shape[:2], x.shape[2] if last is None else 1)
        masks = [
            None if noise is None or rate == 0 else noise.keep((*shape, width), rate, batch_dim=1, dtype=x.dtype)
            for rate, width in (
                (self.res_dropout, x.shape[-1]),
                (self.relu_dropout, 4 * x.shape[-1]),
                (self.res_dropout, x.shape[-1]),
            )
        ]
        if last is not None and last.dim() == 1:
            last = last[:, None].expand(-1, x.shape[1])
        weights = Weights(*in_proj, rest[2], rest[3], *fc1, rest[6], rest[7])
        return plain_layer(x, source, last, weights, plan, noise, site, valid, Masks(*masks))
