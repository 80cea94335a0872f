"""Triton kernels of both GD-Units with their losses, and of the task losses: a program per ghost batch and graph.

Of G ghost batches of at most S samples (samples are padded to a power of two in registers). Graph 0 is homogeneous and
also computes the task losses of both joint heads, graph 1 is heterogeneous; each has the task losses of its own three
heads. Modalities lie in the order text, audio, vision: 0, 1, 2. Pairs (student, teacher) are numbered as in
`dmd.model.graph.PAIRS`. `dmd.kernels.losses.graph` launches the kernels.

A pair's score is linear in the logits and the representations of its two modalities, so a program first folds a unit's
weights into one number alpha, one vector u and one number beta for each role, student or teacher:
score = (alpha logit + u representation + beta of the student, plus that of the teacher, plus bias) / EDGE_TEMPERATURE.
"""

import triton
import triton.language as tl

from dmd.kernels.losses import constants
from dmd.kernels.losses.sample_weights import sample_weights

PAIRS = tl.constexpr(6)
"""Pairs of a graph."""
PADDED_PAIRS = tl.constexpr(8)
"""The same in registers."""
TEXT = tl.constexpr(0)
AUDIO = tl.constexpr(1)
VISION = tl.constexpr(2)
TEXT_VISION = tl.constexpr(0)
TEXT_AUDIO = tl.constexpr(1)
AUDIO_VISION = tl.constexpr(2)
STUDENT = tl.constexpr(0)
TEACHER = tl.constexpr(1)
ROLES = tl.constexpr(2)

HOMO_HEADS = tl.constexpr(2)
"""The first prediction of the homogeneous graph, of three (see `dmd.model.dmd.HEADS`); both joint ones come before."""
HETERO_HEADS = tl.constexpr(5)
"""The first prediction of the heterogeneous graph, of three."""
HEADS = tl.constexpr(8)
"""Predictions, and rows of their task losses."""
HOMO_ROWS = tl.constexpr(8)
"""The first row of the homogeneous graph's losses: logit, regulariser."""
HETERO_ROWS = tl.constexpr(10)
"""The first row of the heterogeneous graph's losses: logit, regulariser, representation."""
LOSS_ROWS = tl.constexpr(13)
"""Rows of all losses."""
LOGIT = tl.constexpr(0)
"""Row of the logit distillation among a graph's losses."""
REGULARISER = tl.constexpr(1)
"""Row of the edges' regulariser."""
REPRESENTATION = tl.constexpr(2)
"""Row of the representation distillation."""

EDGE_TEMPERATURE = tl.constexpr(constants.EDGE_TEMPERATURE)
REGULARISER_WEIGHT = tl.constexpr(constants.REGULARISER_WEIGHT)
REPRESENTATION_WEIGHT = tl.constexpr(constants.REPRESENTATION_WEIGHT)
COSINE_EPSILON = tl.constexpr(constants.COSINE_EPSILON)
HIDDEN = tl.constexpr(-1e30)
"""Score of a pair that is padding."""


@triton.jit
def pairs():
    """Student, teacher and couple of each pair, and which pairs are no padding, [8] each."""
    pair = tl.arange(0, PADDED_PAIRS)
    student = tl.where(pair < 2, TEXT, tl.where(pair < 4, VISION, AUDIO))
    teacher = tl.where((pair == 0) | (pair == 5), VISION, tl.where((pair == 1) | (pair == 3), AUDIO, TEXT))
    couple = tl.where(
        (pair == 0) | (pair == 2), TEXT_VISION, tl.where((pair == 1) | (pair == 4), TEXT_AUDIO, AUDIO_VISION)
    )
    return student, teacher, couple, pair < PAIRS


@triton.jit
def _pick(
    a,  # [S]
    b,  # [S]
    c,  # [S]
    which,  # [8], 0, 1 or 2
):
    """[S, 8]: the one of three vectors that each pair asks for."""
    return tl.where((which == 0)[None, :], a[:, None], tl.where((which == 1)[None, :], b[:, None], c[:, None]))


@triton.jit
def edge_parts(
    edge_weight,  # [1, 4k], k each: student's logit and representation, teacher's logit and representation
    ROLE: tl.constexpr,  # STUDENT or TEACHER
    SIZE: tl.constexpr,  # k
    PADDED_SIZE: tl.constexpr,  # k, padded to a power of two
):
    """Where a role's parts of the edge weight lie: of its logit and of its representation, [PADDED_SIZE] pointers."""
    of_logit = edge_weight + ROLES * SIZE * ROLE + tl.arange(0, PADDED_SIZE)
    return of_logit, of_logit + SIZE


@triton.jit
def fold(
    logit_weight,  # [k, 1]
    logit_bias,  # [k]
    repr_weight,  # [k, n]
    repr_bias,  # [k]
    edge_weight,  # [1, 4k]
    ROLE: tl.constexpr,  # STUDENT or TEACHER
    CHANNELS: tl.constexpr,  # n
    WIDTH: tl.constexpr,  # n, padded to a power of two
    SIZE: tl.constexpr,  # k
    PADDED_SIZE: tl.constexpr,  # k, padded to a power of two
):
    """A unit's weights in a role: alpha, beta (numbers) and u [WIDTH]."""
    j = tl.arange(0, PADDED_SIZE)
    real = j < SIZE
    channel = tl.arange(0, WIDTH)
    logit_at, repr_at = edge_parts(edge_weight, ROLE=ROLE, SIZE=SIZE, PADDED_SIZE=PADDED_SIZE)
    of_logit = tl.load(logit_at, real, 0.0)
    of_repr = tl.load(repr_at, real, 0.0)
    inside = real[:, None] & (channel < CHANNELS)[None, :]
    weight = tl.load(repr_weight + j[:, None] * CHANNELS + channel[None, :], inside, 0.0)
    alpha = tl.sum(of_logit * tl.load(logit_weight + j, real, 0.0), 0)
    beta = tl.sum(of_logit * tl.load(logit_bias + j, real, 0.0), 0)
    beta += tl.sum(of_repr * tl.load(repr_bias + j, real, 0.0), 0)
    return alpha, beta, tl.sum(of_repr[:, None] * weight, 0)


@triton.jit
def load_reprs(
    ptr,  # [G * samples, n], float32 or bfloat16
    ghost,  # number of the ghost batch
    samples,  # of a ghost batch
    CHANNELS: tl.constexpr,  # n
    WIDTH: tl.constexpr,  # n, padded to a power of two
    S: tl.constexpr,  # samples, padded to a power of two
):
    """A ghost batch's representations [S, WIDTH] float32, their places, and which are no padding."""
    s = tl.arange(0, S)
    channel = tl.arange(0, WIDTH)
    at = (ghost * samples + s)[:, None] * CHANNELS + channel[None, :]
    inside = (s < samples)[:, None] & (channel < CHANNELS)[None, :]
    return tl.load(ptr + at, inside, 0.0).to(tl.float32), at, inside


@triton.jit
def all_edges(
    l0,  # [S], logits of text
    l1,  # [S], of audio
    l2,  # [S], of vision
    r0,  # [S, WIDTH], representations of text
    r1,  # [S, WIDTH], of audio
    r2,  # [S, WIDTH], of vision
    logit_weight,  # [k, 1]
    logit_bias,  # [k]
    repr_weight,  # [k, n]
    repr_bias,  # [k]
    edge_weight,  # [1, 4k]
    edge_bias,  # [1]
    weight,  # [S], each sample's share in a mean
    prior_ptr,  # [6], of this graph
    HAS_REPR: tl.constexpr,  # whether the graph distils representations
    CHANNELS: tl.constexpr,  # n
    WIDTH: tl.constexpr,  # n, padded to a power of two
    SIZE: tl.constexpr,  # k
    PADDED_SIZE: tl.constexpr,  # k, padded to a power of two
):
    """Edges [S, 8], their means [8], priors [8], gaps of logits [S, 8] and cosines of representations [S, 8].

    Gaps are student minus teacher. Cosines are 0 where the graph distils no representations.
    """
    student, teacher, couple, real = pairs()
    alpha_s, beta_s, u_s = fold(
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
    alpha_t, beta_t, u_t = fold(
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
    as_student = _pick(
        l0 * alpha_s + tl.sum(r0 * u_s[None, :], 1),
        l1 * alpha_s + tl.sum(r1 * u_s[None, :], 1),
        l2 * alpha_s + tl.sum(r2 * u_s[None, :], 1),
        student,
    )
    as_teacher = _pick(
        l0 * alpha_t + tl.sum(r0 * u_t[None, :], 1),
        l1 * alpha_t + tl.sum(r1 * u_t[None, :], 1),
        l2 * alpha_t + tl.sum(r2 * u_t[None, :], 1),
        teacher,
    )
    score = (as_student + as_teacher + beta_s + beta_t + tl.load(edge_bias)) / EDGE_TEMPERATURE
    score = tl.where(real[None, :], score, HIDDEN)
    edges = tl.exp(score - tl.max(score, 1)[:, None])
    edges = edges / tl.sum(edges, 1)[:, None]
    mean = tl.sum(edges * weight[:, None], 0)
    prior = tl.load(prior_ptr + tl.arange(0, PADDED_PAIRS), real, 0.0)
    gap = _pick(l0, l1, l2, student) - _pick(l0, l1, l2, teacher)
    cosine = gap * 0.0
    if HAS_REPR:
        q0 = tl.sum(r0 * r0, 1) + COSINE_EPSILON
        q1 = tl.sum(r1 * r1, 1) + COSINE_EPSILON
        q2 = tl.sum(r2 * r2, 1) + COSINE_EPSILON
        cosine = _pick(
            tl.sum(r0 * r2, 1) / tl.sqrt(q0 * q2),
            tl.sum(r0 * r1, 1) / tl.sqrt(q0 * q1),
            tl.sum(r1 * r2, 1) / tl.sqrt(q1 * q2),
            couple,
        )
    return edges, mean, prior, gap, cosine


@triton.jit
def _task_losses(
    predictions,  # [8, G, samples]
    label,  # [S]
    weight,  # [S], each sample's share in a mean
    losses,  # [13, G], written
    ghost,  # number of the ghost batch
    ghosts,  # G
    samples,  # of a ghost batch
    FIRST: tl.constexpr,  # the first head
    END: tl.constexpr,  # the head after the last
    S: tl.constexpr,  # samples, padded to a power of two
):
    """Mean absolute errors of the predictions of some heads."""
    s = tl.arange(0, S)
    for head in range(FIRST, END):
        at = predictions + (head * ghosts + ghost) * samples + s
        gap = tl.abs(tl.load(at, s < samples, 0.0) - label)
        tl.store(losses + head * ghosts + ghost, tl.sum(gap * weight, 0))


@triton.jit
def _unit_losses(
    predictions,  # [8, G, samples]
    weight,  # [S], each sample's share in a mean
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
    losses,  # [13, G], written
    mean_edges,  # [G, 6] of this graph, written
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
    """Losses of one graph, and its mean edges."""
    s = tl.arange(0, S)
    at = predictions + (FIRST_HEAD * ghosts + ghost) * samples + s
    l0 = tl.load(at, s < samples, 0.0)
    l1 = tl.load(at + ghosts * samples, s < samples, 0.0)
    l2 = tl.load(at + 2 * ghosts * samples, s < samples, 0.0)
    r0, _, _ = load_reprs(text, ghost, samples, CHANNELS=CHANNELS, WIDTH=WIDTH, S=S)
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
    pair = tl.arange(0, PADDED_PAIRS)
    tl.store(mean_edges + ghost * PAIRS + pair, mean, pair < PAIRS)
    amount = tl.where((pair < PAIRS)[None, :], (edges + prior[None, :]) * weight[:, None], 0.0)
    logit = tl.sum(tl.sum(amount * tl.abs(gap), 1), 0)
    tl.store(losses + (FIRST_ROW + LOGIT) * ghosts + ghost, logit)
    off = tl.where(pair < PAIRS, mean - prior, 0.0)
    regulariser = tl.sum(off * off, 0) * REGULARISER_WEIGHT * REGULARISED
    tl.store(losses + (FIRST_ROW + REGULARISER) * ghosts + ghost, regulariser)
    if HAS_REPR:
        similarity = tl.sum(tl.maximum(cosine, 0.0) * weight[:, None], 0)
        representation = REPRESENTATION_WEIGHT * tl.sum(tl.sum(amount, 0) * similarity, 0)
        tl.store(losses + (FIRST_ROW + REPRESENTATION) * ghosts + ghost, representation)


@triton.jit
def forward(
    predictions,  # [8, G, samples], float32
    labels,  # [G, samples], float32
    mask,  # [G, samples], 1 for a sample, 0 for padding
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
    losses,  # [13, G], written
    mean_edges,  # [2, G, 6], written
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
    """Losses: eight of tasks; logit and regulariser of graph 0; logit, regulariser and representation of graph 1."""
    ghost = tl.program_id(0)
    weight, _ = sample_weights(mask, ghost, samples, S=S)
    s = tl.arange(0, S)
    label = tl.load(labels + ghost * samples + s, s < samples, 0.0)
    if tl.program_id(1) == 0:
        _task_losses(predictions, label, weight, losses, ghost, ghosts, samples, FIRST=0, END=HETERO_HEADS, S=S)
        _unit_losses(
            predictions=predictions,
            weight=weight,
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
            losses=losses,
            mean_edges=mean_edges,
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
        _task_losses(predictions, label, weight, losses, ghost, ghosts, samples, FIRST=HETERO_HEADS, END=HEADS, S=S)
        _unit_losses(
            predictions=predictions,
            weight=weight,
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
            losses=losses,
            mean_edges=mean_edges + PAIRS * ghosts,
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
