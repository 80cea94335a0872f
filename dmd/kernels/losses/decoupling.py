"""The reductions of the decoupling losses of one modality as one Triton launch each way.

A program reads the five features of a ghost batch at some time steps and channels once, and gives its shares of the
reconstruction, cycle and orthogonality losses (`dmd.losses.decoupling`, cosine over the samples).
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmd.kernels.common.launching import launch

BLOCK = 64
"""Time steps and channels, flattened, of a program."""
EPSILON = 1e-12


@triton.jit
def _weights(mask_ptr, ghost, samples, S: tl.constexpr):
    s = tl.arange(0, S)
    mask = tl.load(mask_ptr + ghost * samples + s, s < samples, 0.0)
    return mask / tl.maximum(tl.sum(mask, 0), 1.0), mask


@triton.jit
def _forward(
    origin,
    private,
    shared,
    again,
    private_again,
    mask_ptr,
    parts,
    ghosts,
    samples,
    inner,
    epsilon,
    S: tl.constexpr,
    BLOCK: tl.constexpr,
):
    ghost = tl.program_id(0) % ghosts
    block = tl.program_id(0) // ghosts
    s = tl.arange(0, S)
    place = block * BLOCK + tl.arange(0, BLOCK)
    inside = (s < samples)[:, None] & (place < inner)[None, :]
    at = (ghost * samples + s)[:, None].to(tl.int64) * inner + place[None, :]
    weight, valid = _weights(mask_ptr, ghost, samples, S)
    p = tl.load(private + at, inside, 0.0).to(tl.float32)
    gap = tl.load(origin + at, inside, 0.0).to(tl.float32) - tl.load(again + at, inside, 0.0).to(tl.float32)
    rec = tl.sum(tl.sum(gap * gap, 1) * weight, 0) / inner
    gap = p - tl.load(private_again + at, inside, 0.0).to(tl.float32)
    cyc = tl.sum(tl.sum(gap * gap, 1) * weight, 0) / inner
    p *= valid[:, None]
    c = tl.load(shared + at, inside, 0.0).to(tl.float32) * valid[:, None]
    norms = (tl.sum(p * p, 0) + epsilon) * (tl.sum(c * c, 0) + epsilon)
    ort = tl.sum(tl.maximum(tl.sum(p * c, 0) / tl.sqrt(norms), 0.0), 0) / inner
    part = parts + (block * 3) * ghosts + ghost
    tl.store(part, rec)
    tl.store(part + ghosts, cyc)
    tl.store(part + 2 * ghosts, ort)


@triton.jit
def _backward(
    origin,
    private,
    shared,
    again,
    private_again,
    mask_ptr,
    upstream,
    g_origin,
    g_private,
    g_shared,
    g_again,
    g_private_again,
    ghosts,
    samples,
    inner,
    epsilon,
    S: tl.constexpr,
    BLOCK: tl.constexpr,
):
    ghost = tl.program_id(0) % ghosts
    s = tl.arange(0, S)
    place = tl.program_id(0) // ghosts * BLOCK + tl.arange(0, BLOCK)
    inside = (s < samples)[:, None] & (place < inner)[None, :]
    at = (ghost * samples + s)[:, None].to(tl.int64) * inner + place[None, :]
    weight, valid = _weights(mask_ptr, ghost, samples, S)
    of_rec = tl.load(upstream + ghost) * 2.0 / inner
    of_cyc = tl.load(upstream + ghosts + ghost) * 2.0 / inner
    of_ort = tl.load(upstream + 2 * ghosts + ghost) / inner
    p = tl.load(private + at, inside, 0.0).to(tl.float32)
    gap = tl.load(origin + at, inside, 0.0).to(tl.float32) - tl.load(again + at, inside, 0.0).to(tl.float32)
    gap *= of_rec * weight[:, None]
    tl.store(g_origin + at, gap.to(g_origin.dtype.element_ty), inside)
    tl.store(g_again + at, (-gap).to(g_again.dtype.element_ty), inside)
    gap = p - tl.load(private_again + at, inside, 0.0).to(tl.float32)
    gap *= of_cyc * weight[:, None]
    tl.store(g_private_again + at, (-gap).to(g_private_again.dtype.element_ty), inside)
    p *= valid[:, None]
    c = tl.load(shared + at, inside, 0.0).to(tl.float32) * valid[:, None]
    pp = tl.sum(p * p, 0) + epsilon
    cc = tl.sum(c * c, 0) + epsilon
    root = tl.sqrt(pp * cc)
    cosine = tl.sum(p * c, 0) / root
    active = tl.where(cosine >= 0, of_ort, 0.0)
    g_p = (active / root)[None, :] * c - (active * cosine / pp)[None, :] * p
    g_c = (active / root)[None, :] * p - (active * cosine / cc)[None, :] * c
    tl.store(g_private + at, (gap + g_p * valid[:, None]).to(g_private.dtype.element_ty), inside)
    tl.store(g_shared + at, (g_c * valid[:, None]).to(g_shared.dtype.element_ty), inside)


class FusedDecoupling(torch.autograd.Function):
    """[3, G]: reconstruction, cycle and orthogonality of origin, private, shared, reconstructed and private_again.

    Features are [G * S, T, d] each, the mask [G, S].
    """

    @staticmethod
    def forward(ctx: Any, mask: Tensor, *features: Tensor) -> Tensor:
        features = tuple(x.contiguous() for x in features)
        ghosts, samples = mask.shape
        inner = features[0][0].numel()
        blocks = triton.cdiv(inner, BLOCK)
        parts = torch.empty(blocks, 3, ghosts, device=mask.device)
        launch(
            _forward,
            (ghosts * blocks,),
            *features,
            mask,
            parts,
            ghosts,
            samples,
            inner,
            EPSILON,
            S=triton.next_power_of_2(samples),
            BLOCK=BLOCK,
        )
        ctx.save_for_backward(mask, *features)
        return parts.sum(0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        mask, *features = ctx.saved_tensors
        ghosts, samples = mask.shape
        inner = features[0][0].numel()
        grads = tuple(torch.empty_like(x) for x in features)
        launch(
            _backward,
            (ghosts * triton.cdiv(inner, BLOCK),),
            *features,
            mask,
            gradients[0].contiguous(),
            *grads,
            ghosts,
            samples,
            inner,
            EPSILON,
            S=triton.next_power_of_2(samples),
            BLOCK=BLOCK,
        )
        return None, *grads
