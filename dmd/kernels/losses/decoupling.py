"""The reductions of the decoupling losses of one modality as one Triton launch each way.

A program reads the five features of a ghost batch at some time steps and channels once, and gives its shares of the
reconstruction, cycle and orthogonality losses (`dmd.losses.decoupling`, cosine over the samples).
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmd.kernels.common.block_sizes import num_blocks
from dmd.kernels.common.launching import launch
from dmd.kernels.losses.constants import COSINE_EPSILON
from dmd.kernels.losses.sample_weights import sample_weights

BLOCK = 64
"""Time steps and channels, flattened, of a program."""
RECONSTRUCTION = tl.constexpr(0)
"""Row of the reconstruction among the losses."""
CYCLE = tl.constexpr(1)
ORTHOGONALITY = tl.constexpr(2)
LOSSES = tl.constexpr(3)


@triton.jit
def _forward(
    origin,  # [G * samples, T, d], float32 or bfloat16
    private,  # [G * samples, T, d]
    shared,  # [G * samples, T, d]
    reconstructed,  # [G * samples, T, d]
    private_again,  # [G * samples, T, d]
    mask,  # [G, samples], 1 for a sample, 0 for padding
    parts,  # [blocks, 3, G], each program's share of the losses, written
    ghosts,  # G
    samples,  # of a ghost batch
    inner,  # T * d, elements of a sample
    epsilon,  # added to squared norms
    S: tl.constexpr,  # samples, padded to a power of two
    BLOCK: tl.constexpr,  # elements of a sample of a program
):
    """Shares of the losses; a program per ghost batch and block of elements, the ghost batch fastest."""
    ghost = tl.program_id(0) % ghosts
    block = tl.program_id(0) // ghosts
    s = tl.arange(0, S)
    place = block * BLOCK + tl.arange(0, BLOCK)
    inside = (s < samples)[:, None] & (place < inner)[None, :]
    at = (ghost * samples + s)[:, None].to(tl.int64) * inner + place[None, :]
    weight, real = sample_weights(mask, ghost, samples, S=S)
    p = tl.load(private + at, inside, 0.0).to(tl.float32)
    gap = tl.load(origin + at, inside, 0.0).to(tl.float32) - tl.load(reconstructed + at, inside, 0.0).to(tl.float32)
    reconstruction = tl.sum(tl.sum(gap * gap, 1) * weight, 0) / inner
    gap = p - tl.load(private_again + at, inside, 0.0).to(tl.float32)
    cycle = tl.sum(tl.sum(gap * gap, 1) * weight, 0) / inner
    p *= real[:, None]
    c = tl.load(shared + at, inside, 0.0).to(tl.float32) * real[:, None]
    norms = (tl.sum(p * p, 0) + epsilon) * (tl.sum(c * c, 0) + epsilon)
    orthogonality = tl.sum(tl.maximum(tl.sum(p * c, 0) / tl.sqrt(norms), 0.0), 0) / inner
    part = parts + (block * LOSSES) * ghosts + ghost
    tl.store(part + RECONSTRUCTION * ghosts, reconstruction)
    tl.store(part + CYCLE * ghosts, cycle)
    tl.store(part + ORTHOGONALITY * ghosts, orthogonality)


@triton.jit
def _backward(
    origin,  # [G * samples, T, d], float32 or bfloat16
    private,  # [G * samples, T, d]
    shared,  # [G * samples, T, d]
    reconstructed,  # [G * samples, T, d]
    private_again,  # [G * samples, T, d]
    mask,  # [G, samples], 1 for a sample, 0 for padding
    upstream,  # [3, G], gradients of the losses
    grad_origin,  # [G * samples, T, d], written
    grad_private,  # [G * samples, T, d], written
    grad_shared,  # [G * samples, T, d], written
    grad_reconstructed,  # [G * samples, T, d], written
    grad_private_again,  # [G * samples, T, d], written
    ghosts,  # G
    samples,  # of a ghost batch
    inner,  # T * d, elements of a sample
    epsilon,  # added to squared norms
    S: tl.constexpr,  # samples, padded to a power of two
    BLOCK: tl.constexpr,  # elements of a sample of a program
):
    """Gradients of the features; a program per ghost batch and block of elements, the ghost batch fastest."""
    ghost = tl.program_id(0) % ghosts
    s = tl.arange(0, S)
    place = tl.program_id(0) // ghosts * BLOCK + tl.arange(0, BLOCK)
    inside = (s < samples)[:, None] & (place < inner)[None, :]
    at = (ghost * samples + s)[:, None].to(tl.int64) * inner + place[None, :]
    weight, real = sample_weights(mask, ghost, samples, S=S)
    of_reconstruction = tl.load(upstream + RECONSTRUCTION * ghosts + ghost) * 2.0 / inner
    of_cycle = tl.load(upstream + CYCLE * ghosts + ghost) * 2.0 / inner
    of_orthogonality = tl.load(upstream + ORTHOGONALITY * ghosts + ghost) / inner
    p = tl.load(private + at, inside, 0.0).to(tl.float32)
    gap = tl.load(origin + at, inside, 0.0).to(tl.float32) - tl.load(reconstructed + at, inside, 0.0).to(tl.float32)
    gap *= of_reconstruction * weight[:, None]
    tl.store(grad_origin + at, gap.to(grad_origin.dtype.element_ty), inside)
    tl.store(grad_reconstructed + at, (-gap).to(grad_reconstructed.dtype.element_ty), inside)
    gap = p - tl.load(private_again + at, inside, 0.0).to(tl.float32)
    gap *= of_cycle * weight[:, None]
    tl.store(grad_private_again + at, (-gap).to(grad_private_again.dtype.element_ty), inside)
    p *= real[:, None]
    c = tl.load(shared + at, inside, 0.0).to(tl.float32) * real[:, None]
    pp = tl.sum(p * p, 0) + epsilon
    cc = tl.sum(c * c, 0) + epsilon
    root = tl.sqrt(pp * cc)
    cosine = tl.sum(p * c, 0) / root
    active = tl.where(cosine >= 0, of_orthogonality, 0.0)
    grad_p = (active / root)[None, :] * c - (active * cosine / pp)[None, :] * p
    grad_c = (active / root)[None, :] * p - (active * cosine / cc)[None, :] * c
    tl.store(grad_private + at, (gap + grad_p * real[:, None]).to(grad_private.dtype.element_ty), inside)
    tl.store(grad_shared + at, (grad_c * real[:, None]).to(grad_shared.dtype.element_ty), inside)


class Features(NamedTuple):
    """Features of one modality of G ghost batches of S samples, [G * S, T, d] each."""

    origin: Tensor
    private: Tensor
    shared: Tensor
    reconstructed: Tensor
    private_again: Tensor


class FusedDecoupling(torch.autograd.Function):
    """[3, G]: reconstruction, cycle and orthogonality, from the mask [G, S] and the tensors of `Features`."""

    @staticmethod
    def forward(ctx: Any, mask: Tensor, *tensors: Tensor) -> Tensor:
        features = Features(*(x.contiguous() for x in tensors))
        ghosts, samples = mask.shape
        inner = features.origin[0].numel()
        blocks = num_blocks(inner, BLOCK)
        parts = torch.empty(blocks, LOSSES.value, ghosts, device=mask.device)
        launch(
            _forward,
            (ghosts * blocks,),
            **features._asdict(),
            mask=mask,
            parts=parts,
            ghosts=ghosts,
            samples=samples,
            inner=inner,
            epsilon=COSINE_EPSILON,
            S=triton.next_power_of_2(samples),
            BLOCK=BLOCK,
        )
        ctx.save_for_backward(mask, *features)
        return parts.sum(0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        mask, *tensors = ctx.saved_tensors
        features = Features(*tensors)
        ghosts, samples = mask.shape
        inner = features.origin[0].numel()
        grads = Features(*(torch.empty_like(x) for x in features))
        launch(
            _backward,
            (ghosts * num_blocks(inner, BLOCK),),
            **features._asdict(),
            mask=mask,
            upstream=gradients[0].contiguous(),
            grad_origin=grads.origin,
            grad_private=grads.private,
            grad_shared=grads.shared,
            grad_reconstructed=grads.reconstructed,
            grad_private_again=grads.private_again,
            ghosts=ghosts,
            samples=samples,
            inner=inner,
            epsilon=COSINE_EPSILON,
            S=triton.next_power_of_2(samples),
            BLOCK=BLOCK,
        )
        return None, *grads
