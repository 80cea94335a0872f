"""Triton kernels of both GD-Units with their losses, and of the task losses: a program per ghost batch and graph.

Graph 0 is homogeneous and takes the task losses of predictions 0 .. 4 along, graph 1 heterogeneous with 5 .. 7. Pairs
(student, teacher) are numbered as in `dmd.model.graph.PAIRS`, modalities: text 0, audio 1, vision 2. A score is linear
in a modality's logit and representation, so a program first folds the unit's weights into one vector per role:
score = alpha logit + u representation + beta. `dmd.kernels.losses.graph` launches them.
"""

import triton
import triton.language as tl


@triton.jit
def pairs():
    """Student, teacher and couple (0: text and vision, 1: text and audio, 2: audio and vision) of each pair [8]."""
    pair = tl.arange(0, 8)
    student = tl.where(pair < 2, 0, tl.where(pair < 4, 2, 1))
    teacher = tl.where((pair == 0) | (pair == 5), 2, tl.where((pair == 1) | (pair == 3), 1, 0))
    couple = tl.where((pair == 0) | (pair == 2), 0, tl.where((pair == 1) | (pair == 4), 1, 2))
    return student, teacher, couple, pair < 6


@triton.jit
def _pick(a, b, c, which):
    """[S, 8]: the one of three vectors [S] that each pair asks for."""
    return tl.where((which == 0)[None, :], a[:, None], tl.where((which == 1)[None, :], b[:, None], c[:, None]))


@triton.jit
def fold(
    wl,
    bl,
    wr,
    br,
    edge,
    ROLE: tl.constexpr,
    N: tl.constexpr,
    WIDTH: tl.constexpr,
    SIZE: tl.constexpr,
    PAD: tl.constexpr,
):
    """(alpha, beta, u) of a role, 0: student, 1: teacher."""
    j = tl.arange(0, PAD)
    real = j < SIZE
    channel = tl.arange(0, WIDTH)
    of_logit = tl.load(edge + 2 * SIZE * ROLE + j, real, 0.0)
    of_repr = tl.load(edge + 2 * SIZE * ROLE + SIZE + j, real, 0.0)
    weight = tl.load(wr + j[:, None] * N + channel[None, :], real[:, None] & (channel < N)[None, :], 0.0)
    alpha = tl.sum(of_logit * tl.load(wl + j, real, 0.0), 0)
    beta = tl.sum(of_logit * tl.load(bl + j, real, 0.0), 0) + tl.sum(of_repr * tl.load(br + j, real, 0.0), 0)
    return alpha, beta, tl.sum(of_repr[:, None] * weight, 0)


@triton.jit
def repr_rows(ptr, ghost, samples, N: tl.constexpr, WIDTH: tl.constexpr, S: tl.constexpr):
    """A ghost batch's representations [S, WIDTH] and where they lie."""
    s = tl.arange(0, S)
    channel = tl.arange(0, WIDTH)
    at = (ghost * samples + s)[:, None] * N + channel[None, :]
    inside = (s < samples)[:, None] & (channel < N)[None, :]
    return tl.load(ptr + at, inside, 0.0).to(tl.float32), at, inside


@triton.jit
def all_edges(
    l0,
    l1,
    l2,
    r0,
    r1,
    r2,
    wl,
    bl,
    wr,
    br,
    edge,
    bias,
    weight,
    prior_ptr,
    N: tl.constexpr,
    WIDTH: tl.constexpr,
    SIZE: tl.constexpr,
    PAD: tl.constexpr,
    REPR: tl.constexpr,
):
    """Edges [S, 8], their weighted means [8], the prior, gaps of logits, and cosines of representations."""
    student, teacher, couple, real = pairs()
    alpha_s, beta_s, u_s = fold(wl, bl, wr, br, edge, 0, N, WIDTH, SIZE, PAD)
    alpha_t, beta_t, u_t = fold(wl, bl, wr, br, edge, 1, N, WIDTH, SIZE, PAD)
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
    score = (as_student + as_teacher + beta_s + beta_t + tl.load(bias)) / 8.0
    score = tl.where(real[None, :], score, -1e30)
    edges = tl.exp(score - tl.max(score, 1)[:, None])
    edges = edges / tl.sum(edges, 1)[:, None]
    mean = tl.sum(edges * weight[:, None], 0)
    prior = tl.load(prior_ptr + tl.arange(0, 8), real, 0.0)
    gap = _pick(l0, l1, l2, student) - _pick(l0, l1, l2, teacher)
    cosine = gap * 0.0
    if REPR:
        q0 = tl.sum(r0 * r0, 1) + 1e-12
        q1 = tl.sum(r1 * r1, 1) + 1e-12
        q2 = tl.sum(r2 * r2, 1) + 1e-12
        cosine = _pick(
            tl.sum(r0 * r2, 1) / tl.sqrt(q0 * q2),
            tl.sum(r0 * r1, 1) / tl.sqrt(q0 * q1),
            tl.sum(r1 * r2, 1) / tl.sqrt(q1 * q2),
            couple,
        )
    return edges, mean, prior, gap, cosine


@triton.jit
def _task(
    predictions, label, weight, out, ghost, ghosts, samples, FIRST: tl.constexpr, END: tl.constexpr, S: tl.constexpr
):
    """Mean absolute errors of predictions FIRST .. END."""
    s = tl.arange(0, S)
    for head in range(FIRST, END):
        at = predictions + (head * ghosts + ghost) * samples + s
        gap = tl.abs(tl.load(at, s < samples, 0.0) - label)
        tl.store(out + head * ghosts + ghost, tl.sum(gap * weight, 0))


@triton.jit
def sample_weights(mask_ptr, ghost, samples, S: tl.constexpr):
    """Each sample's share in the mean over a ghost batch [S]."""
    s = tl.arange(0, S)
    mask = tl.load(mask_ptr + ghost * samples + s, s < samples, 0.0)
    return mask / tl.maximum(tl.sum(mask, 0), 1.0)


@triton.jit
def _unit(
    predictions,
    weight,
    r0_ptr,
    r1_ptr,
    r2_ptr,
    wl,
    bl,
    wr,
    br,
    edge,
    bias,
    prior_ptr,
    out,
    edges_out,
    ghost,
    ghosts,
    samples,
    FIRST: tl.constexpr,
    ROW: tl.constexpr,
    REPR: tl.constexpr,
    REGULAR: tl.constexpr,
    N: tl.constexpr,
    WIDTH: tl.constexpr,
    SIZE: tl.constexpr,
    PAD: tl.constexpr,
    S: tl.constexpr,
):
    """Losses of one graph into rows ROW on of `out`, and its mean edges."""
    s = tl.arange(0, S)
    at = predictions + (FIRST * ghosts + ghost) * samples + s
    l0 = tl.load(at, s < samples, 0.0)
    l1 = tl.load(at + ghosts * samples, s < samples, 0.0)
    l2 = tl.load(at + 2 * ghosts * samples, s < samples, 0.0)
    r0, _, _ = repr_rows(r0_ptr, ghost, samples, N, WIDTH, S)
    r1, _, _ = repr_rows(r1_ptr, ghost, samples, N, WIDTH, S)
    r2, _, _ = repr_rows(r2_ptr, ghost, samples, N, WIDTH, S)
    edges, mean, prior, gap, cosine = all_edges(
        l0, l1, l2, r0, r1, r2, wl, bl, wr, br, edge, bias, weight, prior_ptr, N, WIDTH, SIZE, PAD, REPR
    )
    pair = tl.arange(0, 8)
    tl.store(edges_out + ghost * 6 + pair, mean, pair < 6)
    amount = tl.where((pair < 6)[None, :], (edges + prior[None, :]) * weight[:, None], 0.0)
    tl.store(out + ROW * ghosts + ghost, tl.sum(tl.sum(amount * tl.abs(gap), 1), 0))
    off = tl.where(pair < 6, mean - prior, 0.0)
    tl.store(out + (ROW + 1) * ghosts + ghost, tl.sum(off * off, 0) * 10.0 * REGULAR)
    if REPR:
        similarity = tl.sum(tl.maximum(cosine, 0.0) * weight[:, None], 0)
        tl.store(out + (ROW + 2) * ghosts + ghost, 10.0 * tl.sum(tl.sum(amount, 0) * similarity, 0))


@triton.jit
def forward(
    predictions,
    labels,
    mask,
    h0,
    h1,
    h2,
    x0,
    x1,
    x2,
    h_wl,
    h_bl,
    h_wr,
    h_br,
    h_edge,
    h_bias,
    x_wl,
    x_bl,
    x_wr,
    x_br,
    x_edge,
    x_bias,
    priors,
    out,
    edges_out,
    ghosts,
    samples,
    REGULAR: tl.constexpr,
    HN: tl.constexpr,
    HWIDTH: tl.constexpr,
    HSIZE: tl.constexpr,
    HPAD: tl.constexpr,
    XN: tl.constexpr,
    XWIDTH: tl.constexpr,
    XSIZE: tl.constexpr,
    XPAD: tl.constexpr,
    S: tl.constexpr,
):
    """`out` [13, G]: the eight task losses, homo logit and regulariser, hetero logit, regulariser, representation."""
    ghost = tl.program_id(0)
    weight = sample_weights(mask, ghost, samples, S)
    s = tl.arange(0, S)
    label = tl.load(labels + ghost * samples + s, s < samples, 0.0)
    if tl.program_id(1) == 0:
        _task(predictions, label, weight, out, ghost, ghosts, samples, 0, 5, S)
        _unit(
            predictions,
            weight,
            h0,
            h1,
            h2,
            h_wl,
            h_bl,
            h_wr,
            h_br,
            h_edge,
            h_bias,
            priors,
            out,
            edges_out,
            ghost,
            ghosts,
            samples,
            2,
            8,
            False,
            REGULAR,
            HN,
            HWIDTH,
            HSIZE,
            HPAD,
            S,
        )
    else:
        _task(predictions, label, weight, out, ghost, ghosts, samples, 5, 8, S)
        _unit(
            predictions,
            weight,
            x0,
            x1,
            x2,
            x_wl,
            x_bl,
            x_wr,
            x_br,
            x_edge,
            x_bias,
            priors + 6,
            out,
            edges_out + 6 * ghosts,
            ghost,
            ghosts,
            samples,
            5,
            10,
            True,
            REGULAR,
            XN,
            XWIDTH,
            XSIZE,
            XPAD,
            S,
        )
