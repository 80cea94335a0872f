"""Triton kernels of both GD-Units with their losses, backward (see `dmd.kernels.losses.graph_forward_kernels`).

`backward` leaves each ghost batch's share of the gradients of a unit's folded weights, [G, 2, n + 2]: for each role the
n numbers of u, then alpha, then beta. `backward_weights` adds the shares up and unfolds them.
"""

import triton
import triton.language as tl

from dmd.kernels.losses.graph_forward_kernels import (
    AUDIO,
    COSINE_EPSILON,
    EDGE_TEMPERATURE,
    HETERO_HEADS,
    HETERO_ROWS,
    HOMO_HEADS,
    HOMO_ROWS,
    LOGIT,
    PADDED_PAIRS,
    PAIRS,
    REGULARISER,
    REGULARISER_WEIGHT,
    REPRESENTATION,
    REPRESENTATION_WEIGHT,
    ROLES,
    STUDENT,
    TEACHER,
    TEXT,
    VISION,
    all_edges,
    edge_parts,
    fold,
    load_reprs,
    pairs,
)
from dmd.kernels.losses.sample_weights import sample_weights


@triton.jit
def _sign(
    x,  # any shape
):
    """-1, 0 or 1."""
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, 0.0))


@triton.jit
def _add_pulls(
    grad,  # [S, WIDTH], so far
    mine,  # [S, WIDTH], the student's representations
    first,  # [S, WIDTH], those of its first teacher
    second,  # [S, WIDTH], those of its second teacher
    first_dot,  # [S], mine . first
    second_dot,  # [S], mine . second
    own_square,  # [S], |mine| squared
    first_square,  # [S]
    second_square,  # [S]
    first_pull,  # [S], gradient of the cosine with the first teacher
    second_pull,  # [S], of that with the second
):
    """grad plus what the cosines with two teachers add to the gradient of a student's representations."""
    a = first_pull / tl.sqrt(own_square * first_square)
    b = second_pull / tl.sqrt(own_square * second_square)
    along = (a * first_dot + b * second_dot) / own_square
    return grad + a[:, None] * first + b[:, None] * second - along[:, None] * mine


@triton.jit
def _add_cosines(
    grad0,  # [S, WIDTH], gradients of the representations of text, so far
    grad1,  # [S, WIDTH], of audio
    grad2,  # [S, WIDTH], of vision
    r0,  # [S, WIDTH], representations of text
    r1,  # [S, WIDTH], of audio
    r2,  # [S, WIDTH], of vision
    pull,  # [S, 8], gradient of each pair's cosine
):
    """Gradients of the three representations, with what the cosines of all pairs add to those of the students."""
    q0 = tl.sum(r0 * r0, 1) + COSINE_EPSILON
    q1 = tl.sum(r1 * r1, 1) + COSINE_EPSILON
    q2 = tl.sum(r2 * r2, 1) + COSINE_EPSILON
    d01 = tl.sum(r0 * r1, 1)
    d02 = tl.sum(r0 * r2, 1)
    d12 = tl.sum(r1 * r2, 1)
    grad0 = _add_pulls(
        grad0,
        mine=r0,
        first=r2,
        second=r1,
        first_dot=d02,
        second_dot=d01,
        own_square=q0,
        first_square=q2,
        second_square=q1,
        first_pull=_of_pair(pull, NUMBER=0),
        second_pull=_of_pair(pull, NUMBER=1),
    )
    grad2 = _add_pulls(
        grad2,
        mine=r2,
        first=r0,
        second=r1,
        first_dot=d02,
        second_dot=d12,
        own_square=q2,
        first_square=q0,
        second_square=q1,
        first_pull=_of_pair(pull, NUMBER=2),
        second_pull=_of_pair(pull, NUMBER=3),
    )
    grad1 = _add_pulls(
        grad1,
        mine=r1,
        first=r0,
        second=r2,
        first_dot=d01,
        second_dot=d12,
        own_square=q1,
        first_square=q0,
        second_square=q2,
        first_pull=_of_pair(pull, NUMBER=4),
        second_pull=_of_pair(pull, NUMBER=5),
    )
    return grad0, grad1, grad2


@triton.jit
def _of_pair(
    x,  # [S, 8]
    NUMBER: tl.constexpr,  # of a pair
):
    """Column of x, [S]."""
    return tl.sum(tl.where((tl.arange(0, PADDED_PAIRS) == NUMBER)[None, :], x, 0.0), 1)


@triton.jit
def _of_modality(
    x,  # [S, 8]
    modalities,  # [8], the modality that has a role in each pair
    MODALITY: tl.constexpr,  # TEXT, AUDIO or VISION
):
    """Sum of x over the pairs in which a modality has that role, [S]."""
    return tl.sum(tl.where((modalities == MODALITY)[None, :], x, 0.0), 1)


@triton.jit
def _pair_gradients(
    edges,  # [S, 8]
    mean,  # [8], of the edges
    prior,  # [8]
    gap,  # [S, 8], the student's logit minus the teacher's
    cosine,  # [S, 8], of representations
    weight,  # [S], each sample's share in a mean
    upstream,  # [13, G], gradients of the losses
    ghost,  # number of the ghost batch
    ghosts,  # G
    FIRST_ROW: tl.constexpr,  # the graph's first row of losses
    HAS_REPR: tl.constexpr,  # whether the graph distils representations
    REGULARISED: tl.constexpr,  # 1.0: edges are drawn towards the priors; 0.0: they are not
):
    """Gradients of the pairs' scores, of their logits' gaps and of their cosines, [S, 8] each."""
    real = tl.arange(0, PADDED_PAIRS) < PAIRS
    of_logit = tl.load(upstream + (FIRST_ROW + LOGIT) * ghosts + ghost)
    of_regulariser = tl.load(upstream + (FIRST_ROW + REGULARISER) * ghosts + ghost) * REGULARISED
    amount = tl.where(real[None, :], (edges + prior[None, :]) * weight[:, None], 0.0)
    grad = of_logit * tl.abs(gap) + (of_regulariser * (2.0 * REGULARISER_WEIGHT) * (mean - prior))[None, :]
    pull = tl.zeros_like(amount)
    if HAS_REPR:
        of_repr = tl.load(upstream + (FIRST_ROW + REPRESENTATION) * ghosts + ghost) * REPRESENTATION_WEIGHT
        similarity = tl.sum(tl.maximum(cosine, 0.0) * weight[:, None], 0)
        grad += (of_repr * similarity)[None, :]
        pull = tl.where(cosine >= 0, (of_repr * tl.sum(amount, 0))[None, :] * weight[:, None], 0.0)
        pull = tl.where(real[None, :], pull, 0.0)
    grad = tl.where(real[None, :], grad * weight[:, None], 0.0)
    score = edges * (grad - tl.sum(edges * grad, 1)[:, None]) / EDGE_TEMPERATURE
    return score, of_logit * amount * _sign(gap), pull


@triton.jit
def _write_logit(
    grad_predictions,  # [8, G, samples], written
    at,  # [S], places in it
    inside,  # [S], which samples are no padding of registers
    logit,  # [S]
    label,  # [S]
    weight,  # [S], each sample's share in a mean
    upstream,  # [13, G], gradients of the losses
    ghost,  # number of the ghost batch
    ghosts,  # G
    own,  # [S], the graph's gradient
    HEAD: tl.constexpr,  # number of the prediction
):
    """Gradient of a head's logits: that of its task loss and that of the graph."""
    task = tl.load(upstream + HEAD * ghosts + ghost) * weight * _sign(logit - label)
    tl.store(grad_predictions + at, task + own, inside)


@triton.jit
def _role_share(
    shares,  # [G, 2, n + 2]
    ghost,  # number of the ghost batch
    ROLE: tl.constexpr,  # STUDENT or TEACHER
    CHANNELS: tl.constexpr,  # n
):
    """Where a ghost batch's share of a role's folded weights lies: u, alpha and beta."""
    u = shares + (ghost * ROLES + ROLE) * (CHANNELS + 2)
    return u, u + CHANNELS, u + CHANNELS + 1


@triton.jit
def _write_share(
    shares,  # [G, 2, n + 2], written
    ghost,  # number of the ghost batch
    s0,  # [S], gradients of the scores of text in this role
    s1,  # [S], of audio
    s2,  # [S], of vision
    r0,  # [S, WIDTH], representations of text
    r1,  # [S, WIDTH], of audio
    r2,  # [S, WIDTH], of vision
    l0,  # [S], logits of text
    l1,  # [S], of audio
    l2,  # [S], of vision
    ROLE: tl.constexpr,  # STUDENT or TEACHER
    CHANNELS: tl.constexpr,  # n
    WIDTH: tl.constexpr,  # n, padded to a power of two
):
    """A ghost batch's share of the gradients of a role's folded weights."""
    channel = tl.arange(0, WIDTH)
    u_at, alpha_at, beta_at = _role_share(shares, ghost, ROLE=ROLE, CHANNELS=CHANNELS)
    u = tl.sum(s0[:, None] * r0 + s1[:, None] * r1 + s2[:, None] * r2, 0)
    tl.store(u_at + channel, u, channel < CHANNELS)
    tl.store(alpha_at, tl.sum(s0 * l0 + s1 * l1 + s2 * l2, 0))
    tl.store(beta_at, tl.sum(s0 + s1 + s2, 0))


@triton.jit
def _unit_backward(
    predictions,  # [8, G, samples]
    label,  # [S]
    weight,  # [S], each sample's share in a mean
    upstream,  # [13, G], gradients of the losses
    text,  # [G * samples, n], representations
    audio,  # [G * samples, n]
    vision,  # [G * samples, n]
    logit_weight,  # [k, 1]
    logit_bias,  # [k]
    repr_weight,  # [k, n]
    repr_bias,  # [k]
    edge_weight,  # [1, 4k]
    edge_bias,  # [1]
    prior_ptr,  # [6], of this graph
    grad_predictions,  # [8, G, samples], written
    grad_text,  # [G * samples, n], written
    grad_audio,  # [G * samples, n], written
    grad_vision,  # [G * samples, n], written
    shares,  # [G, 2, n + 2], written
    ghost,  # number of the ghost batch
    ghosts,  # G
    samples,  # of a ghost batch
    FIRST_HEAD: tl.constexpr,  # the graph's first prediction
    FIRST_ROW: tl.constexpr,  # the graph's first row of losses
    HAS_REPR: tl.constexpr,  # whether the graph distils representations
    REGULARISED: tl.constexpr,  # 1.0: edges are drawn towards the priors; 0.0: they are not
    CHANNELS: tl.constexpr,  # n
    WIDTH: tl.constexpr,  # n, padded to a power of two
    SIZE: tl.constexpr,  # k
    PADDED_SIZE: tl.constexpr,  # k, padded to a power of two
    S: tl.constexpr,  # samples, padded to a power of two
):
    """Gradients of one graph's logits (task losses included) and representations; a share of its folded weights'."""
    s = tl.arange(0, S)
    inside = s < samples
    at = (FIRST_HEAD * ghosts + ghost) * samples + s
    step = ghosts * samples
    l0 = tl.load(predictions + at, inside, 0.0)
    l1 = tl.load(predictions + at + step, inside, 0.0)
    l2 = tl.load(predictions + at + 2 * step, inside, 0.0)
    r0, at_repr, there = load_reprs(text, ghost, samples, CHANNELS=CHANNELS, WIDTH=WIDTH, S=S)
    r1, _, _ = load_reprs(audio, ghost, samples, CHANNELS=CHANNELS, WIDTH=WIDTH, S=S)
    r2, _, _ = load_reprs(vision, ghost, samples, CHANNELS=CHANNELS, WIDTH=WIDTH, S=S)
    edges, mean, prior, gap, cosine = all_edges(
        l0,
        l1,
        l2,
        r0,
        r1,
        r2,
        logit_weight,
        logit_bias,
        repr_weight,
        repr_bias,
        edge_weight,
        edge_bias,
        weight,
        prior_ptr,
        HAS_REPR=HAS_REPR,
        CHANNELS=CHANNELS,
        WIDTH=WIDTH,
        SIZE=SIZE,
        PADDED_SIZE=PADDED_SIZE,
    )
    score, toward, pull = _pair_gradients(
        edges,
        mean,
        prior,
        gap,
        cosine,
        weight,
        upstream,
        ghost,
        ghosts,
        FIRST_ROW=FIRST_ROW,
        HAS_REPR=HAS_REPR,
        REGULARISED=REGULARISED,
    )
    student, teacher, _, _ = pairs()
    alpha_s, _, u_s = fold(
        logit_weight,
        logit_bias,
        repr_weight,
        repr_bias,
        edge_weight,
        ROLE=STUDENT,
        CHANNELS=CHANNELS,
        WIDTH=WIDTH,
        SIZE=SIZE,
        PADDED_SIZE=PADDED_SIZE,
    )
    alpha_t, _, u_t = fold(
        logit_weight,
        logit_bias,
        repr_weight,
        repr_bias,
        edge_weight,
        ROLE=TEACHER,
        CHANNELS=CHANNELS,
        WIDTH=WIDTH,
        SIZE=SIZE,
        PADDED_SIZE=PADDED_SIZE,
    )
    s0 = _of_modality(score, student, MODALITY=TEXT)
    s1 = _of_modality(score, student, MODALITY=AUDIO)
    s2 = _of_modality(score, student, MODALITY=VISION)
    t0 = _of_modality(score, teacher, MODALITY=TEXT)
    t1 = _of_modality(score, teacher, MODALITY=AUDIO)
    t2 = _of_modality(score, teacher, MODALITY=VISION)
    own0 = alpha_s * s0 + alpha_t * t0 + _of_modality(toward, student, MODALITY=TEXT)
    own1 = alpha_s * s1 + alpha_t * t1 + _of_modality(toward, student, MODALITY=AUDIO)
    own2 = alpha_s * s2 + alpha_t * t2 + _of_modality(toward, student, MODALITY=VISION)
    _write_logit(
        grad_predictions,
        at,
        inside,
        l0,
        label,
        weight,
        upstream,
        ghost,
        ghosts,
        own0,
        HEAD=FIRST_HEAD + TEXT,
    )
    _write_logit(
        grad_predictions,
        at + step,
        inside,
        l1,
        label,
        weight,
        upstream,
        ghost,
        ghosts,
        own1,
        HEAD=FIRST_HEAD + AUDIO,
    )
    _write_logit(
        grad_predictions,
        at + 2 * step,
        inside,
        l2,
        label,
        weight,
        upstream,
        ghost,
        ghosts,
        own2,
        HEAD=FIRST_HEAD + VISION,
    )
    out0 = s0[:, None] * u_s[None, :] + t0[:, None] * u_t[None, :]
    out1 = s1[:, None] * u_s[None, :] + t1[:, None] * u_t[None, :]
    out2 = s2[:, None] * u_s[None, :] + t2[:, None] * u_t[None, :]
    if HAS_REPR:
        out0, out1, out2 = _add_cosines(out0, out1, out2, r0, r1, r2, pull)
    tl.store(grad_text + at_repr, out0.to(grad_text.dtype.element_ty), there)
    tl.store(grad_audio + at_repr, out1.to(grad_audio.dtype.element_ty), there)
    tl.store(grad_vision + at_repr, out2.to(grad_vision.dtype.element_ty), there)
    _write_share(
        shares,
        ghost,
        s0,
        s1,
        s2,
        r0,
        r1,
        r2,
        l0,
        l1,
        l2,
        ROLE=STUDENT,
        CHANNELS=CHANNELS,
        WIDTH=WIDTH,
    )
    _write_share(
        shares,
        ghost,
        t0,
        t1,
        t2,
        r0,
        r1,
        r2,
        l0,
        l1,
        l2,
        ROLE=TEACHER,
        CHANNELS=CHANNELS,
        WIDTH=WIDTH,
    )


@triton.jit
def backward(
    predictions,  # [8, G, samples], float32
    labels,  # [G, samples], float32
    mask,  # [G, samples], 1 for a sample, 0 for padding
    upstream,  # [13, G], gradients of the losses
    homo_text,  # [G * samples, n], representations
    homo_audio,  # [G * samples, n], representations
    homo_vision,  # [G * samples, n], representations
    hetero_text,  # [G * samples, n], representations
    hetero_audio,  # [G * samples, n], representations
    hetero_vision,  # [G * samples, n], representations
    homo_logit_weight,  # [k, 1]
    homo_logit_bias,  # [k]
    homo_repr_weight,  # [k, n]
    homo_repr_bias,  # [k]
    homo_edge_weight,  # [1, 4k]
    homo_edge_bias,  # [1]
    hetero_logit_weight,  # [k, 1]
    hetero_logit_bias,  # [k]
    hetero_repr_weight,  # [k, n]
    hetero_repr_bias,  # [k]
    hetero_edge_weight,  # [1, 4k]
    hetero_edge_bias,  # [1]
    priors,  # [2, 6], of the homogeneous and of the heterogeneous graph
    grad_predictions,  # [8, G, samples], written
    grad_homo_text,  # [G * samples, n], written
    grad_homo_audio,  # [G * samples, n], written
    grad_homo_vision,  # [G * samples, n], written
    grad_hetero_text,  # [G * samples, n], written
    grad_hetero_audio,  # [G * samples, n], written
    grad_hetero_vision,  # [G * samples, n], written
    homo_shares,  # [G, 2, n + 2], written
    hetero_shares,  # [G, 2, n + 2], written
    ghosts,  # G
    samples,  # of a ghost batch
    REGULARISED: tl.constexpr,  # 1.0: edges are drawn towards the priors; 0.0: they are not
    HOMO_CHANNELS: tl.constexpr,  # n of the homogeneous space
    HOMO_WIDTH: tl.constexpr,  # the same, padded to a power of two
    HOMO_SIZE: tl.constexpr,  # k of its GD-Unit
    HOMO_PADDED_SIZE: tl.constexpr,  # the same, padded to a power of two
    HETERO_CHANNELS: tl.constexpr,  # n of the heterogeneous space
    HETERO_WIDTH: tl.constexpr,  # the same, padded to a power of two
    HETERO_SIZE: tl.constexpr,  # k of its GD-Unit
    HETERO_PADDED_SIZE: tl.constexpr,  # the same, padded to a power of two
    S: tl.constexpr,  # samples, padded to a power of two
):
    """Gradients of predictions and representations, and shares of those of the folded weights.

    A program per ghost batch and graph; the one of the homogeneous graph also computes those of both joint heads.
    """
    ghost = tl.program_id(0)
    weight, _ = sample_weights(mask, ghost, samples, S=S)
    s = tl.arange(0, S)
    label = tl.load(labels + ghost * samples + s, s < samples, 0.0)
    if tl.program_id(1) == 0:
        for head in range(0, HOMO_HEADS):
            at = (head * ghosts + ghost) * samples + s
            gap = tl.load(predictions + at, s < samples, 0.0) - label
            grad = tl.load(upstream + head * ghosts + ghost) * weight * _sign(gap)
            tl.store(grad_predictions + at, grad, s < samples)
        _unit_backward(
            predictions=predictions,
            label=label,
            weight=weight,
            upstream=upstream,
            text=homo_text,
            audio=homo_audio,
            vision=homo_vision,
            logit_weight=homo_logit_weight,
            logit_bias=homo_logit_bias,
            repr_weight=homo_repr_weight,
            repr_bias=homo_repr_bias,
            edge_weight=homo_edge_weight,
            edge_bias=homo_edge_bias,
            prior_ptr=priors,
            grad_predictions=grad_predictions,
            grad_text=grad_homo_text,
            grad_audio=grad_homo_audio,
            grad_vision=grad_homo_vision,
            shares=homo_shares,
            ghost=ghost,
            ghosts=ghosts,
            samples=samples,
            FIRST_HEAD=HOMO_HEADS,
            FIRST_ROW=HOMO_ROWS,
            HAS_REPR=False,
            REGULARISED=REGULARISED,
            CHANNELS=HOMO_CHANNELS,
            WIDTH=HOMO_WIDTH,
            SIZE=HOMO_SIZE,
            PADDED_SIZE=HOMO_PADDED_SIZE,
            S=S,
        )
    else:
        _unit_backward(
            predictions=predictions,
            label=label,
            weight=weight,
            upstream=upstream,
            text=hetero_text,
            audio=hetero_audio,
            vision=hetero_vision,
            logit_weight=hetero_logit_weight,
            logit_bias=hetero_logit_bias,
            repr_weight=hetero_repr_weight,
            repr_bias=hetero_repr_bias,
            edge_weight=hetero_edge_weight,
            edge_bias=hetero_edge_bias,
            prior_ptr=priors + PAIRS,
            grad_predictions=grad_predictions,
            grad_text=grad_hetero_text,
            grad_audio=grad_hetero_audio,
            grad_vision=grad_hetero_vision,
            shares=hetero_shares,
            ghost=ghost,
            ghosts=ghosts,
            samples=samples,
            FIRST_HEAD=HETERO_HEADS,
            FIRST_ROW=HETERO_ROWS,
            HAS_REPR=True,
            REGULARISED=REGULARISED,
            CHANNELS=HETERO_CHANNELS,
            WIDTH=HETERO_WIDTH,
            SIZE=HETERO_SIZE,
            PADDED_SIZE=HETERO_PADDED_SIZE,
            S=S,
        )


@triton.jit
def _unfold(
    shares,  # [G, 2, n + 2]
    logit_weight,  # [k, 1]
    logit_bias,  # [k]
    repr_weight,  # [k, n]
    repr_bias,  # [k]
    edge_weight,  # [1, 4k]
    grad_logit_weight,  # [k, 1], written
    grad_logit_bias,  # [k], written
    grad_repr_weight,  # [k, n], written
    grad_repr_bias,  # [k], written
    grad_edge_weight,  # [1, 4k], written
    grad_edge_bias,  # [1], written
    ghosts,  # G
    CHANNELS: tl.constexpr,  # n
    WIDTH: tl.constexpr,  # n, padded to a power of two
    SIZE: tl.constexpr,  # k
    PADDED_SIZE: tl.constexpr,  # k, padded to a power of two
):
    """Gradients of a unit's weights from those of its folded ones, summed over the ghost batches."""
    channel = tl.arange(0, WIDTH)
    there = channel < CHANNELS
    u_s = tl.zeros([WIDTH], tl.float32)
    u_t = tl.zeros([WIDTH], tl.float32)
    alpha_s = 0.0
    alpha_t = 0.0
    beta_s = 0.0
    beta_t = 0.0
    for ghost in range(0, ghosts):
        u_at, alpha_at, beta_at = _role_share(shares, ghost, ROLE=STUDENT, CHANNELS=CHANNELS)
        u_s += tl.load(u_at + channel, there, 0.0)
        alpha_s += tl.load(alpha_at)
        beta_s += tl.load(beta_at)
        u_at, alpha_at, beta_at = _role_share(shares, ghost, ROLE=TEACHER, CHANNELS=CHANNELS)
        u_t += tl.load(u_at + channel, there, 0.0)
        alpha_t += tl.load(alpha_at)
        beta_t += tl.load(beta_at)
    j = tl.arange(0, PADDED_SIZE)
    real = j < SIZE
    mask = real[:, None] & there[None, :]
    logit_s_at, repr_s_at = edge_parts(edge_weight, ROLE=STUDENT, SIZE=SIZE, PADDED_SIZE=PADDED_SIZE)
    logit_t_at, repr_t_at = edge_parts(edge_weight, ROLE=TEACHER, SIZE=SIZE, PADDED_SIZE=PADDED_SIZE)
    edge_logit_s = tl.load(logit_s_at, real, 0.0)
    edge_repr_s = tl.load(repr_s_at, real, 0.0)
    edge_logit_t = tl.load(logit_t_at, real, 0.0)
    edge_repr_t = tl.load(repr_t_at, real, 0.0)
    of_logit = tl.load(logit_weight + j, real, 0.0)
    of_logit_bias = tl.load(logit_bias + j, real, 0.0)
    of_repr_bias = tl.load(repr_bias + j, real, 0.0)
    of_repr = tl.load(repr_weight + j[:, None] * CHANNELS + channel[None, :], mask, 0.0)
    tl.store(grad_logit_weight + j, alpha_s * edge_logit_s + alpha_t * edge_logit_t, real)
    tl.store(grad_logit_bias + j, beta_s * edge_logit_s + beta_t * edge_logit_t, real)
    tl.store(grad_repr_bias + j, beta_s * edge_repr_s + beta_t * edge_repr_t, real)
    grad = edge_repr_s[:, None] * u_s[None, :] + edge_repr_t[:, None] * u_t[None, :]
    tl.store(grad_repr_weight + j[:, None] * CHANNELS + channel[None, :], grad, mask)
    logit_s_at, repr_s_at = edge_parts(grad_edge_weight, ROLE=STUDENT, SIZE=SIZE, PADDED_SIZE=PADDED_SIZE)
    logit_t_at, repr_t_at = edge_parts(grad_edge_weight, ROLE=TEACHER, SIZE=SIZE, PADDED_SIZE=PADDED_SIZE)
    tl.store(logit_s_at, alpha_s * of_logit + beta_s * of_logit_bias, real)
    tl.store(repr_s_at, tl.sum(of_repr * u_s[None, :], 1) + beta_s * of_repr_bias, real)
    tl.store(logit_t_at, alpha_t * of_logit + beta_t * of_logit_bias, real)
    tl.store(repr_t_at, tl.sum(of_repr * u_t[None, :], 1) + beta_t * of_repr_bias, real)
    tl.store(grad_edge_bias, beta_s)


@triton.jit
def backward_weights(
    homo_shares,  # [G, 2, n + 2]
    hetero_shares,  # [G, 2, n + 2]
    homo_logit_weight,  # [k, 1]
    homo_logit_bias,  # [k]
    homo_repr_weight,  # [k, n]
    homo_repr_bias,  # [k]
    homo_edge_weight,  # [1, 4k]
    hetero_logit_weight,  # [k, 1]
    hetero_logit_bias,  # [k]
    hetero_repr_weight,  # [k, n]
    hetero_repr_bias,  # [k]
    hetero_edge_weight,  # [1, 4k]
    grad_homo_logit_weight,  # [k, 1], written
    grad_homo_logit_bias,  # [k], written
    grad_homo_repr_weight,  # [k, n], written
    grad_homo_repr_bias,  # [k], written
    grad_homo_edge_weight,  # [1, 4k], written
    grad_homo_edge_bias,  # [1], written
    grad_hetero_logit_weight,  # [k, 1], written
    grad_hetero_logit_bias,  # [k], written
    grad_hetero_repr_weight,  # [k, n], written
    grad_hetero_repr_bias,  # [k], written
    grad_hetero_edge_weight,  # [1, 4k], written
    grad_hetero_edge_bias,  # [1], written
    ghosts,  # G
    HOMO_CHANNELS: tl.constexpr,  # n of the homogeneous space
    HOMO_WIDTH: tl.constexpr,  # the same, padded to a power of two
    HOMO_SIZE: tl.constexpr,  # k of its GD-Unit
    HOMO_PADDED_SIZE: tl.constexpr,  # the same, padded to a power of two
    HETERO_CHANNELS: tl.constexpr,  # n of the heterogeneous space
    HETERO_WIDTH: tl.constexpr,  # the same, padded to a power of two
    HETERO_SIZE: tl.constexpr,  # k of its GD-Unit
    HETERO_PADDED_SIZE: tl.constexpr,  # the same, padded to a power of two
):
    """Gradients of both units' weights; a program per unit."""
    if tl.program_id(0) == 0:
        _unfold(
            shares=homo_shares,
            logit_weight=homo_logit_weight,
            logit_bias=homo_logit_bias,
            repr_weight=homo_repr_weight,
            repr_bias=homo_repr_bias,
            edge_weight=homo_edge_weight,
            grad_logit_weight=grad_homo_logit_weight,
            grad_logit_bias=grad_homo_logit_bias,
            grad_repr_weight=grad_homo_repr_weight,
            grad_repr_bias=grad_homo_repr_bias,
            grad_edge_weight=grad_homo_edge_weight,
            grad_edge_bias=grad_homo_edge_bias,
            ghosts=ghosts,
            CHANNELS=HOMO_CHANNELS,
            WIDTH=HOMO_WIDTH,
            SIZE=HOMO_SIZE,
            PADDED_SIZE=HOMO_PADDED_SIZE,
        )
    else:
        _unfold(
            shares=hetero_shares,
            logit_weight=hetero_logit_weight,
            logit_bias=hetero_logit_bias,
            repr_weight=hetero_repr_weight,
            repr_bias=hetero_repr_bias,
            edge_weight=hetero_edge_weight,
            grad_logit_weight=grad_hetero_logit_weight,
            grad_logit_bias=grad_hetero_logit_bias,
            grad_repr_weight=grad_hetero_repr_weight,
            grad_repr_bias=grad_hetero_repr_bias,
            grad_edge_weight=grad_hetero_edge_weight,
            grad_edge_bias=grad_hetero_edge_bias,
            ghosts=ghosts,
            CHANNELS=HETERO_CHANNELS,
            WIDTH=HETERO_WIDTH,
            SIZE=HETERO_SIZE,
            PADDED_SIZE=HETERO_PADDED_SIZE,
        )
