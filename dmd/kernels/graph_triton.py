"""Triton kernels of both GD-Units with their losses, and of the task losses: a program per ghost batch and graph.

Graph 0 is homogeneous and takes the task losses of predictions 0 .. 4 along, graph 1 heterogeneous with 5 .. 7. Pairs
(student, teacher) are numbered as in `dmd.model.graph.PAIRS`, modalities: text 0, audio 1, vision 2. A score is linear
in a modality's logit and representation, so a program first folds the unit's weights into one vector per role:
score = alpha logit + u representation + beta. `dmd.kernels.graph_fused` launches them.
"""

import triton
import triton.language as tl


@triton.jit
def _pairs():
    """Student, teacher and couple (0: text and vision, 1: text and audio, 2: audio and vision) of each pair [8]."""
    pair = tl.arange(0, 8)
    student = tl.where(pair < 2, 0, tl.where(pair < 4, 2, 1))
    teacher = tl.where((pair == 0) | (pair == 5), 2, tl.where((pair == 1) | (pair == 3), 1, 0))
    couple = tl.where((pair == 0) | (pair == 2), 0, tl.where((pair == 1) | (pair == 4), 1, 2))
    return student, teacher, couple, pair < 6


@triton.jit
def _pick(a, b, c, which):
    """[S, 8]: the one of three vectors [S] that each pair asks for."""
    return tl.where(
        (which == 0)[None, :], a[:, None], tl.where((which == 1)[None, :], b[:, None], c[:, None])
    )


@triton.jit
def _column(x, number: tl.constexpr):
    """Column of x [S, 8]."""
    return tl.sum(tl.where((tl.arange(0, 8) == number)[None, :], x, 0.0), 1)


@triton.jit
def _fold(wl, bl, wr, br, edge, ROLE: tl.constexpr, N: tl.constexpr, WIDTH: tl.constexpr, SIZE: tl.constexpr,
          PAD: tl.constexpr):  # fmt: skip
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
def _rows(ptr, ghost, samples, N: tl.constexpr, WIDTH: tl.constexpr, S: tl.constexpr):
    """A ghost batch's representations [S, WIDTH] and where they lie."""
    s = tl.arange(0, S)
    channel = tl.arange(0, WIDTH)
    at = (ghost * samples + s)[:, None] * N + channel[None, :]
    inside = (s < samples)[:, None] & (channel < N)[None, :]
    return tl.load(ptr + at, inside, 0.0).to(tl.float32), at, inside


@triton.jit
def _edges(
    l0, l1, l2, r0, r1, r2, wl, bl, wr, br, edge, bias, weight, prior_ptr, N: tl.constexpr, WIDTH: tl.constexpr,
    SIZE: tl.constexpr, PAD: tl.constexpr, REPR: tl.constexpr,
):  # fmt: skip
    """Edges [S, 8], their weighted means [8], the prior, gaps of logits, and cosines of representations."""
    student, teacher, couple, real = _pairs()
    alpha_s, beta_s, u_s = _fold(wl, bl, wr, br, edge, 0, N, WIDTH, SIZE, PAD)
    alpha_t, beta_t, u_t = _fold(wl, bl, wr, br, edge, 1, N, WIDTH, SIZE, PAD)
    as_student = _pick(
        l0 * alpha_s + tl.sum(r0 * u_s[None, :], 1), l1 * alpha_s + tl.sum(r1 * u_s[None, :], 1),
        l2 * alpha_s + tl.sum(r2 * u_s[None, :], 1), student,
    )  # fmt: skip
    as_teacher = _pick(
        l0 * alpha_t + tl.sum(r0 * u_t[None, :], 1), l1 * alpha_t + tl.sum(r1 * u_t[None, :], 1),
        l2 * alpha_t + tl.sum(r2 * u_t[None, :], 1), teacher,
    )  # fmt: skip
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
            tl.sum(r0 * r2, 1) / tl.sqrt(q0 * q2), tl.sum(r0 * r1, 1) / tl.sqrt(q0 * q1),
            tl.sum(r1 * r2, 1) / tl.sqrt(q1 * q2), couple,
        )  # fmt: skip
    return edges, mean, prior, gap, cosine


@triton.jit
def _task(predictions, label, weight, out, ghost, ghosts, samples, FIRST: tl.constexpr, END: tl.constexpr,
          S: tl.constexpr):  # fmt: skip
    """Mean absolute errors of predictions FIRST .. END."""
    s = tl.arange(0, S)
    for head in range(FIRST, END):
        at = predictions + (head * ghosts + ghost) * samples + s
        gap = tl.abs(tl.load(at, s < samples, 0.0) - label)
        tl.store(out + head * ghosts + ghost, tl.sum(gap * weight, 0))


@triton.jit
def _weights(mask_ptr, ghost, samples, S: tl.constexpr):
    """Each sample's share in the mean over a ghost batch [S]."""
    s = tl.arange(0, S)
    mask = tl.load(mask_ptr + ghost * samples + s, s < samples, 0.0)
    return mask / tl.maximum(tl.sum(mask, 0), 1.0)


@triton.jit
def _unit(
    predictions, weight, r0_ptr, r1_ptr, r2_ptr, wl, bl, wr, br, edge, bias, prior_ptr, out, edges_out, ghost, ghosts,
    samples, FIRST: tl.constexpr, ROW: tl.constexpr, REPR: tl.constexpr, REGULAR: tl.constexpr, N: tl.constexpr,
    WIDTH: tl.constexpr, SIZE: tl.constexpr, PAD: tl.constexpr, S: tl.constexpr,
):  # fmt: skip
    """Losses of one graph into rows ROW on of `out`, and its mean edges."""
    s = tl.arange(0, S)
    at = predictions + (FIRST * ghosts + ghost) * samples + s
    l0 = tl.load(at, s < samples, 0.0)
    l1 = tl.load(at + ghosts * samples, s < samples, 0.0)
    l2 = tl.load(at + 2 * ghosts * samples, s < samples, 0.0)
    r0, _, _ = _rows(r0_ptr, ghost, samples, N, WIDTH, S)
    r1, _, _ = _rows(r1_ptr, ghost, samples, N, WIDTH, S)
    r2, _, _ = _rows(r2_ptr, ghost, samples, N, WIDTH, S)
    edges, mean, prior, gap, cosine = _edges(
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
    predictions, labels, mask, h0, h1, h2, x0, x1, x2, h_wl, h_bl, h_wr, h_br, h_edge, h_bias, x_wl, x_bl, x_wr, x_br,
    x_edge, x_bias, priors, out, edges_out, ghosts, samples, REGULAR: tl.constexpr, HN: tl.constexpr,
    HWIDTH: tl.constexpr, HSIZE: tl.constexpr, HPAD: tl.constexpr, XN: tl.constexpr, XWIDTH: tl.constexpr,
    XSIZE: tl.constexpr, XPAD: tl.constexpr, S: tl.constexpr,
):  # fmt: skip
    """`out` [13, G]: the eight task losses, homo logit and regulariser, hetero logit, regulariser, representation."""
    ghost = tl.program_id(0)
    weight = _weights(mask, ghost, samples, S)
    s = tl.arange(0, S)
    label = tl.load(labels + ghost * samples + s, s < samples, 0.0)
    if tl.program_id(1) == 0:
        _task(predictions, label, weight, out, ghost, ghosts, samples, 0, 5, S)
        _unit(
            predictions, weight, h0, h1, h2, h_wl, h_bl, h_wr, h_br, h_edge, h_bias, priors, out, edges_out, ghost,
            ghosts, samples, 2, 8, False, REGULAR, HN, HWIDTH, HSIZE, HPAD, S,
        )  # fmt: skip
    else:
        _task(predictions, label, weight, out, ghost, ghosts, samples, 5, 8, S)
        _unit(
            predictions, weight, x0, x1, x2, x_wl, x_bl, x_wr, x_br, x_edge, x_bias, priors + 6, out,
            edges_out + 6 * ghosts, ghost, ghosts, samples, 5, 10, True, REGULAR, XN, XWIDTH, XSIZE, XPAD, S,
        )  # fmt: skip


@triton.jit
def _sign(x):
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, 0.0))


@triton.jit
def _turn(grad, mine, first, second, first_dot, second_dot, own_square, first_square, second_square, first_pull,
          second_pull):  # fmt: skip
    """grad plus what cosines with two teachers pull a student's representation `mine` by."""
    a = first_pull / tl.sqrt(own_square * first_square)
    b = second_pull / tl.sqrt(own_square * second_square)
    along = (a * first_dot + b * second_dot) / own_square
    return grad + a[:, None] * first + b[:, None] * second - along[:, None] * mine


@triton.jit
def _unit_backward(
    predictions, label, weight, upstream, r0_ptr, r1_ptr, r2_ptr, wl, bl, wr, br, edge, bias, prior_ptr, grad_pred, g0,
    g1, g2, shares, ghost, ghosts, samples, FIRST: tl.constexpr, ROW: tl.constexpr, REPR: tl.constexpr,
    REGULAR: tl.constexpr, N: tl.constexpr, WIDTH: tl.constexpr, SIZE: tl.constexpr, PAD: tl.constexpr,
    S: tl.constexpr,
):  # fmt: skip
    """Gradients of one graph's logits (task losses included) and representations; a share of its folded weights'."""
    s = tl.arange(0, S)
    inside = s < samples
    at = (FIRST * ghosts + ghost) * samples + s
    step = ghosts * samples
    l0 = tl.load(predictions + at, inside, 0.0)
    l1 = tl.load(predictions + at + step, inside, 0.0)
    l2 = tl.load(predictions + at + 2 * step, inside, 0.0)
    r0, at_repr, there = _rows(r0_ptr, ghost, samples, N, WIDTH, S)
    r1, _, _ = _rows(r1_ptr, ghost, samples, N, WIDTH, S)
    r2, _, _ = _rows(r2_ptr, ghost, samples, N, WIDTH, S)
    edges, mean, prior, gap, cosine = _edges(
        l0, l1, l2, r0, r1, r2, wl, bl, wr, br, edge, bias, weight, prior_ptr, N, WIDTH, SIZE, PAD, REPR
    )
    student, teacher, _, real = _pairs()
    of_logit = tl.load(upstream + ROW * ghosts + ghost)
    of_regular = tl.load(upstream + (ROW + 1) * ghosts + ghost) * REGULAR
    amount = tl.where(real[None, :], (edges + prior[None, :]) * weight[:, None], 0.0)
    grad = of_logit * tl.abs(gap) + (of_regular * 20.0 * (mean - prior))[None, :]
    pull = amount * 0.0
    if REPR:
        of_repr = tl.load(upstream + (ROW + 2) * ghosts + ghost) * 10.0
        similarity = tl.sum(tl.maximum(cosine, 0.0) * weight[:, None], 0)
        grad += (of_repr * similarity)[None, :]
        pull = tl.where(cosine >= 0, (of_repr * tl.sum(amount, 0))[None, :] * weight[:, None], 0.0)
        pull = tl.where(real[None, :], pull, 0.0)
    grad = tl.where(real[None, :], grad * weight[:, None], 0.0)
    score = edges * (grad - tl.sum(edges * grad, 1)[:, None]) / 8.0
    toward = of_logit * amount * _sign(gap)
    alpha_s, _, u_s = _fold(wl, bl, wr, br, edge, 0, N, WIDTH, SIZE, PAD)
    alpha_t, _, u_t = _fold(wl, bl, wr, br, edge, 1, N, WIDTH, SIZE, PAD)
    s0 = tl.sum(tl.where((student == 0)[None, :], score, 0.0), 1)
    s1 = tl.sum(tl.where((student == 1)[None, :], score, 0.0), 1)
    s2 = tl.sum(tl.where((student == 2)[None, :], score, 0.0), 1)
    t0 = tl.sum(tl.where((teacher == 0)[None, :], score, 0.0), 1)
    t1 = tl.sum(tl.where((teacher == 1)[None, :], score, 0.0), 1)
    t2 = tl.sum(tl.where((teacher == 2)[None, :], score, 0.0), 1)
    task0 = tl.load(upstream + FIRST * ghosts + ghost) * weight * _sign(l0 - label)
    task1 = tl.load(upstream + (FIRST + 1) * ghosts + ghost) * weight * _sign(l1 - label)
    task2 = tl.load(upstream + (FIRST + 2) * ghosts + ghost) * weight * _sign(l2 - label)
    own0 = alpha_s * s0 + alpha_t * t0 + tl.sum(tl.where((student == 0)[None, :], toward, 0.0), 1)
    own1 = alpha_s * s1 + alpha_t * t1 + tl.sum(tl.where((student == 1)[None, :], toward, 0.0), 1)
    own2 = alpha_s * s2 + alpha_t * t2 + tl.sum(tl.where((student == 2)[None, :], toward, 0.0), 1)
    tl.store(grad_pred + at, task0 + own0, inside)
    tl.store(grad_pred + at + step, task1 + own1, inside)
    tl.store(grad_pred + at + 2 * step, task2 + own2, inside)
    out0 = s0[:, None] * u_s[None, :] + t0[:, None] * u_t[None, :]
    out1 = s1[:, None] * u_s[None, :] + t1[:, None] * u_t[None, :]
    out2 = s2[:, None] * u_s[None, :] + t2[:, None] * u_t[None, :]
    if REPR:
        q0 = tl.sum(r0 * r0, 1) + 1e-12
        q1 = tl.sum(r1 * r1, 1) + 1e-12
        q2 = tl.sum(r2 * r2, 1) + 1e-12
        d01 = tl.sum(r0 * r1, 1)
        d02 = tl.sum(r0 * r2, 1)
        d12 = tl.sum(r1 * r2, 1)
        out0 = _turn(out0, r0, r2, r1, d02, d01, q0, q2, q1, _column(pull, 0), _column(pull, 1))
        out2 = _turn(out2, r2, r0, r1, d02, d12, q2, q0, q1, _column(pull, 2), _column(pull, 3))
        out1 = _turn(out1, r1, r0, r2, d01, d12, q1, q0, q2, _column(pull, 4), _column(pull, 5))
    tl.store(g0 + at_repr, out0.to(g0.dtype.element_ty), there)
    tl.store(g1 + at_repr, out1.to(g1.dtype.element_ty), there)
    tl.store(g2 + at_repr, out2.to(g2.dtype.element_ty), there)
    channel = tl.arange(0, WIDTH)
    share = shares + ghost * (2 * N + 4)
    u_s = tl.sum(s0[:, None] * r0 + s1[:, None] * r1 + s2[:, None] * r2, 0)
    u_t = tl.sum(t0[:, None] * r0 + t1[:, None] * r1 + t2[:, None] * r2, 0)
    tl.store(share + channel, u_s, channel < N)
    tl.store(share + N + channel, u_t, channel < N)
    tl.store(share + 2 * N, tl.sum(s0 * l0 + s1 * l1 + s2 * l2, 0))
    tl.store(share + 2 * N + 1, tl.sum(t0 * l0 + t1 * l1 + t2 * l2, 0))
    tl.store(share + 2 * N + 2, tl.sum(s0 + s1 + s2, 0))
    tl.store(share + 2 * N + 3, tl.sum(t0 + t1 + t2, 0))


@triton.jit
def backward(
    predictions, labels, mask, upstream, h0, h1, h2, x0, x1, x2, h_wl, h_bl, h_wr, h_br, h_edge, h_bias, x_wl, x_bl,
    x_wr, x_br, x_edge, x_bias, priors, grad_pred, gh0, gh1, gh2, gx0, gx1, gx2, h_shares, x_shares, ghosts, samples,
    REGULAR: tl.constexpr, HN: tl.constexpr, HWIDTH: tl.constexpr, HSIZE: tl.constexpr, HPAD: tl.constexpr,
    XN: tl.constexpr, XWIDTH: tl.constexpr, XSIZE: tl.constexpr, XPAD: tl.constexpr, S: tl.constexpr,
):  # fmt: skip
    """Gradients of predictions [8, G, S] and representations; shares [G, 2 n + 4] of those of the folded weights."""
    ghost = tl.program_id(0)
    weight = _weights(mask, ghost, samples, S)
    s = tl.arange(0, S)
    label = tl.load(labels + ghost * samples + s, s < samples, 0.0)
    if tl.program_id(1) == 0:
        for head in range(0, 2):
            at = (head * ghosts + ghost) * samples + s
            gap = tl.load(predictions + at, s < samples, 0.0) - label
            tl.store(grad_pred + at, tl.load(upstream + head * ghosts + ghost) * weight * _sign(gap), s < samples)
        _unit_backward(
            predictions, label, weight, upstream, h0, h1, h2, h_wl, h_bl, h_wr, h_br, h_edge, h_bias, priors, grad_pred,
            gh0, gh1, gh2, h_shares, ghost, ghosts, samples, 2, 8, False, REGULAR, HN, HWIDTH, HSIZE, HPAD, S,
        )  # fmt: skip
    else:
        _unit_backward(
            predictions, label, weight, upstream, x0, x1, x2, x_wl, x_bl, x_wr, x_br, x_edge, x_bias, priors + 6,
            grad_pred, gx0, gx1, gx2, x_shares, ghost, ghosts, samples, 5, 10, True, REGULAR, XN, XWIDTH, XSIZE, XPAD,
            S,
        )  # fmt: skip


@triton.jit
def _unfold(
    shares, wl, bl, wr, br, edge, g_wl, g_bl, g_wr, g_br, g_edge, g_bias, ghosts, N: tl.constexpr, WIDTH: tl.constexpr,
    SIZE: tl.constexpr, PAD: tl.constexpr,
):  # fmt: skip
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
    h_shares, x_shares, h_wl, h_bl, h_wr, h_br, h_edge, x_wl, x_bl, x_wr, x_br, x_edge, gh_wl, gh_bl, gh_wr, gh_br,
    gh_edge, gh_bias, gx_wl, gx_bl, gx_wr, gx_br, gx_edge, gx_bias, ghosts, HN: tl.constexpr, HWIDTH: tl.constexpr,
    HSIZE: tl.constexpr, HPAD: tl.constexpr, XN: tl.constexpr, XWIDTH: tl.constexpr, XSIZE: tl.constexpr,
    XPAD: tl.constexpr,
):  # fmt: skip
    """Gradients of both units' weights; a program per unit."""
    if tl.program_id(0) == 0:
        _unfold(
            h_shares, h_wl, h_bl, h_wr, h_br, h_edge, gh_wl, gh_bl, gh_wr, gh_br, gh_edge, gh_bias, ghosts, HN, HWIDTH,
            HSIZE, HPAD,
        )  # fmt: skip
    else:
        _unfold(
            x_shares, x_wl, x_bl, x_wr, x_br, x_edge, gx_wl, gx_bl, gx_wr, gx_br, gx_edge, gx_bias, ghosts, XN, XWIDTH,
            XSIZE, XPAD,
        )  # fmt: skip
