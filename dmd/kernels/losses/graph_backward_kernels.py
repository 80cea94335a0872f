"""Triton kernels of both GD-Units with their losses, backward (see `dmd.kernels.losses.graph_forward_kernels`)."""

import triton
import triton.language as tl

from dmd.kernels.losses.graph_forward_kernels import all_edges, fold, pairs, repr_rows, sample_weights


@triton.jit
def _sign(x):
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, 0.0))


@triton.jit
def _turn(
    grad, mine, first, second, first_dot, second_dot, own_square, first_square, second_square, first_pull, second_pull
):
    """grad plus what cosines with two teachers pull a student's representation `mine` by."""
    a = first_pull / tl.sqrt(own_square * first_square)
    b = second_pull / tl.sqrt(own_square * second_square)
    along = (a * first_dot + b * second_dot) / own_square
    return grad + a[:, None] * first + b[:, None] * second - along[:, None] * mine


@triton.jit
def _turned(out0, out1, out2, r0, r1, r2, pull):
    """Gradients of the three representations, with what the cosines add."""
    q0 = tl.sum(r0 * r0, 1) + 1e-12
    q1 = tl.sum(r1 * r1, 1) + 1e-12
    q2 = tl.sum(r2 * r2, 1) + 1e-12
    d01 = tl.sum(r0 * r1, 1)
    d02 = tl.sum(r0 * r2, 1)
    d12 = tl.sum(r1 * r2, 1)
    out0 = _turn(out0, r0, r2, r1, d02, d01, q0, q2, q1, _column(pull, 0), _column(pull, 1))
    out2 = _turn(out2, r2, r0, r1, d02, d12, q2, q0, q1, _column(pull, 2), _column(pull, 3))
    out1 = _turn(out1, r1, r0, r2, d01, d12, q1, q0, q2, _column(pull, 4), _column(pull, 5))
    return out0, out1, out2


@triton.jit
def _column(x, number: tl.constexpr):
    """Column of x [S, 8]."""
    return tl.sum(tl.where((tl.arange(0, 8) == number)[None, :], x, 0.0), 1)


@triton.jit
def _of(x, which, number: tl.constexpr):
    """Sum of x [S, 8] over the pairs in which a modality has a role."""
    return tl.sum(tl.where((which == number)[None, :], x, 0.0), 1)


@triton.jit
def _pair_gradients(
    edges,
    mean,
    prior,
    gap,
    cosine,
    weight,
    upstream,
    ghost,
    ghosts,
    ROW: tl.constexpr,
    REPR: tl.constexpr,
    REGULAR: tl.constexpr,
):
    """Gradients of the pairs' scores, of their logits' gaps, and pulls on their cosines, [S, 8] each."""
    real = tl.arange(0, 8) < 6
    of_logit = tl.load(upstream + ROW * ghosts + ghost)
    of_regular = tl.load(upstream + (ROW + 1) * ghosts + ghost) * REGULAR
    amount = tl.where(real[None, :], (edges + prior[None, :]) * weight[:, None], 0.0)
    grad = of_logit * tl.abs(gap) + (of_regular * 20.0 * (mean - prior))[None, :]
    pull = tl.zeros_like(amount)
    if REPR:
        of_repr = tl.load(upstream + (ROW + 2) * ghosts + ghost) * 10.0
        similarity = tl.sum(tl.maximum(cosine, 0.0) * weight[:, None], 0)
        grad += (of_repr * similarity)[None, :]
        pull = tl.where(cosine >= 0, (of_repr * tl.sum(amount, 0))[None, :] * weight[:, None], 0.0)
        pull = tl.where(real[None, :], pull, 0.0)
    grad = tl.where(real[None, :], grad * weight[:, None], 0.0)
    score = edges * (grad - tl.sum(edges * grad, 1)[:, None]) / 8.0
    return score, of_logit * amount * _sign(gap), pull


@triton.jit
def _write_logit(grad_pred, at, inside, logit, label, weight, upstream, ghost, ghosts, own, HEAD: tl.constexpr):
    """Gradient of a logit: of its task loss, and its own."""
    task = tl.load(upstream + HEAD * ghosts + ghost) * weight * _sign(logit - label)
    tl.store(grad_pred + at, task + own, inside)


@triton.jit
def _write_share(share, s0, s1, s2, r0, r1, r2, l0, l1, l2, ROLE: tl.constexpr, N: tl.constexpr, WIDTH: tl.constexpr):
    """A ghost batch's share of the gradients of a role's folded weights."""
    channel = tl.arange(0, WIDTH)
    u = tl.sum(s0[:, None] * r0 + s1[:, None] * r1 + s2[:, None] * r2, 0)
    tl.store(share + ROLE * N + channel, u, channel < N)
    tl.store(share + 2 * N + ROLE, tl.sum(s0 * l0 + s1 * l1 + s2 * l2, 0))
    tl.store(share + 2 * N + 2 + ROLE, tl.sum(s0 + s1 + s2, 0))


@triton.jit
def _unit_backward(
    predictions,
    label,
    weight,
    upstream,
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
    grad_pred,
    g0,
    g1,
    g2,
    shares,
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
    """Gradients of one graph's logits (task losses included) and representations; a share of its folded weights'."""
    s = tl.arange(0, S)
    inside = s < samples
    at = (FIRST * ghosts + ghost) * samples + s
    step = ghosts * samples
    l0 = tl.load(predictions + at, inside, 0.0)
    l1 = tl.load(predictions + at + step, inside, 0.0)
    l2 = tl.load(predictions + at + 2 * step, inside, 0.0)
    r0, at_repr, there = repr_rows(r0_ptr, ghost, samples, N, WIDTH, S)
    r1, _, _ = repr_rows(r1_ptr, ghost, samples, N, WIDTH, S)
    r2, _, _ = repr_rows(r2_ptr, ghost, samples, N, WIDTH, S)
    edges, mean, prior, gap, cosine = all_edges(
        l0, l1, l2, r0, r1, r2, wl, bl, wr, br, edge, bias, weight, prior_ptr, N, WIDTH, SIZE, PAD, REPR
    )
    score, toward, pull = _pair_gradients(
        edges, mean, prior, gap, cosine, weight, upstream, ghost, ghosts, ROW, REPR, REGULAR
    )
    student, teacher, _, _ = pairs()
    alpha_s, _, u_s = fold(wl, bl, wr, br, edge, 0, N, WIDTH, SIZE, PAD)
    alpha_t, _, u_t = fold(wl, bl, wr, br, edge, 1, N, WIDTH, SIZE, PAD)
    s0 = _of(score, student, 0)
    s1 = _of(score, student, 1)
    s2 = _of(score, student, 2)
    t0 = _of(score, teacher, 0)
    t1 = _of(score, teacher, 1)
    t2 = _of(score, teacher, 2)
    own0 = alpha_s * s0 + alpha_t * t0 + _of(toward, student, 0)
    own1 = alpha_s * s1 + alpha_t * t1 + _of(toward, student, 1)
    own2 = alpha_s * s2 + alpha_t * t2 + _of(toward, student, 2)
    _write_logit(grad_pred, at, inside, l0, label, weight, upstream, ghost, ghosts, own0, FIRST)
    _write_logit(grad_pred, at + step, inside, l1, label, weight, upstream, ghost, ghosts, own1, FIRST + 1)
    _write_logit(grad_pred, at + 2 * step, inside, l2, label, weight, upstream, ghost, ghosts, own2, FIRST + 2)
    out0 = s0[:, None] * u_s[None, :] + t0[:, None] * u_t[None, :]
    out1 = s1[:, None] * u_s[None, :] + t1[:, None] * u_t[None, :]
    out2 = s2[:, None] * u_s[None, :] + t2[:, None] * u_t[None, :]
    if REPR:
        out0, out1, out2 = _turned(out0, out1, out2, r0, r1, r2, pull)
    tl.store(g0 + at_repr, out0.to(g0.dtype.element_ty), there)
    tl.store(g1 + at_repr, out1.to(g1.dtype.element_ty), there)
    tl.store(g2 + at_repr, out2.to(g2.dtype.element_ty), there)
    share = shares + ghost * (2 * N + 4)
    _write_share(share, s0, s1, s2, r0, r1, r2, l0, l1, l2, 0, N, WIDTH)
    _write_share(share, t0, t1, t2, r0, r1, r2, l0, l1, l2, 1, N, WIDTH)


@triton.jit
def backward(
    predictions,
    labels,
    mask,
    upstream,
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
    grad_pred,
    gh0,
    gh1,
    gh2,
    gx0,
    gx1,
    gx2,
    h_shares,
    x_shares,
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
    """Gradients of predictions [8, G, S] and representations; shares [G, 2 n + 4] of those of the folded weights."""
    ghost = tl.program_id(0)
    weight = sample_weights(mask, ghost, samples, S)
    s = tl.arange(0, S)
    label = tl.load(labels + ghost * samples + s, s < samples, 0.0)
    if tl.program_id(1) == 0:
        for head in range(0, 2):
            at = (head * ghosts + ghost) * samples + s
            gap = tl.load(predictions + at, s < samples, 0.0) - label
            tl.store(grad_pred + at, tl.load(upstream + head * ghosts + ghost) * weight * _sign(gap), s < samples)
        _unit_backward(
            predictions,
            label,
            weight,
            upstream,
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
            grad_pred,
            gh0,
            gh1,
            gh2,
            h_shares,
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
        _unit_backward(
            predictions,
            label,
            weight,
            upstream,
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
            grad_pred,
            gx0,
            gx1,
            gx2,
            x_shares,
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


@triton.jit
def _unfold(
    shares,
    wl,
    bl,
    wr,
    br,
    edge,
    g_wl,
    g_bl,
    g_wr,
    g_br,
    g_edge,
    g_bias,
    ghosts,
    N: tl.constexpr,
    WIDTH: tl.constexpr,
    SIZE: tl.constexpr,
    PAD: tl.constexpr,
):
    """Gradients of a unit's weights from those of its folded ones, summed over the ghost batches."""
    channel = tl.arange(0, WIDTH)
    there = channel < N
    u_s = tl.zeros([WIDTH], tl.float32)
    u_t = tl.zeros([WIDTH], tl.float32)
    alpha_s = 0.0
    alpha_t = 0.0
    beta_s = 0.0
    beta_t = 0.0
    for ghost in range(0, ghosts):
        share = shares + ghost * (2 * N + 4)
        u_s += tl.load(share + channel, there, 0.0)
        u_t += tl.load(share + N + channel, there, 0.0)
        alpha_s += tl.load(share + 2 * N)
        alpha_t += tl.load(share + 2 * N + 1)
        beta_s += tl.load(share + 2 * N + 2)
        beta_t += tl.load(share + 2 * N + 3)
    j = tl.arange(0, PAD)
    real = j < SIZE
    mask = real[:, None] & there[None, :]
    e_ls = tl.load(edge + j, real, 0.0)
    e_rs = tl.load(edge + SIZE + j, real, 0.0)
    e_lt = tl.load(edge + 2 * SIZE + j, real, 0.0)
    e_rt = tl.load(edge + 3 * SIZE + j, real, 0.0)
    logit = tl.load(wl + j, real, 0.0)
    logit_bias = tl.load(bl + j, real, 0.0)
    repr_bias = tl.load(br + j, real, 0.0)
    weight = tl.load(wr + j[:, None] * N + channel[None, :], mask, 0.0)
    tl.store(g_wl + j, alpha_s * e_ls + alpha_t * e_lt, real)
    tl.store(g_bl + j, beta_s * e_ls + beta_t * e_lt, real)
    tl.store(g_br + j, beta_s * e_rs + beta_t * e_rt, real)
    grad = e_rs[:, None] * u_s[None, :] + e_rt[:, None] * u_t[None, :]
    tl.store(g_wr + j[:, None] * N + channel[None, :], grad, mask)
    tl.store(g_edge + j, alpha_s * logit + beta_s * logit_bias, real)
    tl.store(g_edge + SIZE + j, tl.sum(weight * u_s[None, :], 1) + beta_s * repr_bias, real)
    tl.store(g_edge + 2 * SIZE + j, alpha_t * logit + beta_t * logit_bias, real)
    tl.store(g_edge + 3 * SIZE + j, tl.sum(weight * u_t[None, :], 1) + beta_t * repr_bias, real)
    tl.store(g_bias, beta_s)


@triton.jit
def backward_weights(
    h_shares,
    x_shares,
    h_wl,
    h_bl,
    h_wr,
    h_br,
    h_edge,
    x_wl,
    x_bl,
    x_wr,
    x_br,
    x_edge,
    gh_wl,
    gh_bl,
    gh_wr,
    gh_br,
    gh_edge,
    gh_bias,
    gx_wl,
    gx_bl,
    gx_wr,
    gx_br,
    gx_edge,
    gx_bias,
    ghosts,
    HN: tl.constexpr,
    HWIDTH: tl.constexpr,
    HSIZE: tl.constexpr,
    HPAD: tl.constexpr,
    XN: tl.constexpr,
    XWIDTH: tl.constexpr,
    XSIZE: tl.constexpr,
    XPAD: tl.constexpr,
):
    """Gradients of both units' weights; a program per unit."""
    if tl.program_id(0) == 0:
        _unfold(
            h_shares,
            h_wl,
            h_bl,
            h_wr,
            h_br,
            h_edge,
            gh_wl,
            gh_bl,
            gh_wr,
            gh_br,
            gh_edge,
            gh_bias,
            ghosts,
            HN,
            HWIDTH,
            HSIZE,
            HPAD,
        )
    else:
        _unfold(
            x_shares,
            x_wl,
            x_bl,
            x_wr,
            x_br,
            x_edge,
            gx_wl,
            gx_bl,
            gx_wr,
            gx_br,
            gx_edge,
            gx_bias,
            ghosts,
            XN,
            XWIDTH,
            XSIZE,
            XPAD,
        )
