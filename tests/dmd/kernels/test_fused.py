"""Fused kernels against plain torch in float64, forward and backward: on CUDA where there is one, else interpreted.

The interpreter runs in a process of its own, since Triton decides about it when the kernels are defined.
"""

import pytest
import torch

from tests.dmd.kernels.forms import TOLERANCE, error, interpreted, on_cuda

SMALL = [
    ((1, 9), (3, 9), 2, 5, 4),
    ((7, 20), (33, 20), 2, 5, 4),
    ((18, 40), (40, 7), 4, 5, 2),
    ((18,), (18,), 1, 10, 2),
    ((70,), (70,), 1, 16, 2),
    ((9,), (7,), 3, 13, 2),
    ((17, 16, 15), (17, 16, 15), 3, 8, 2),
    ((5, 66), (66, 5), 2, 10, 2),
]
"""Attentions: lengths of queries and of keys, heads, channels of a head, samples."""
LARGE = [
    ((46,) * 6, (46,) * 6, 10, 5, 32),
    ((46, 50, 48), (46, 50, 48), 6, 10, 16),
    ((46, 371, 496), (496, 46, 371), 10, 5, 16),
    ((496, 500), (496, 500), 10, 10, 8),
    ((50,), (50,), 1, 64, 64),
]
MARGINS = [
    (2, 5, 6, "mixed"),
    (3, 16, 50, "mixed"),
    (1, 4, 6, "equal"),
    (2, 1, 5, "mixed"),
    (1, 6, 8, "different"),
    (1, 6, 8, "zero"),
]
"""Ghost batches, their samples, channels, and what their labels are."""


def check_attention(device: str, case: tuple, last_step: bool, dropping: bool, dtype_name: str = "float32") -> None:
    """Output and gradients; the same elements are dropped by both backends."""
    from dmd.kernels.attention.plan import AttentionPlan
    from dmd.kernels.cpu import CPU
    from dmd.kernels.dropout.keys import number_samples
    from dmd.kernels.dropout.rng import DropoutRNG
    from dmd.kernels.triton_backend import TRITON

    dtype, results = getattr(torch, dtype_name), []
    queries, keys, heads, width, batch = case
    for backend, kind in ((TRITON, dtype), (CPU, torch.float64)):
        rates = tuple(0.3 * (e % 2 == 0) for e in range(len(queries)))
        plan = AttentionPlan(heads=heads, queries=queries, keys=keys, rates=rates, last_step=last_step)
        torch.manual_seed(0)
        steps = (1 if last_step else max(queries), max(keys), max(keys))
        place = torch.device(device if backend is TRITON else "cpu")
        parts = [
            torch.randn(len(queries), batch, t, heads * width).to(dtype).to(kind).to(place).requires_grad_()
            for t in steps
        ]
        rng = DropoutRNG(seed=1, step=2, samples=number_samples([3, 8], range(batch // 2)), device=place)
        out = backend.attention(*parts, plan, rng if dropping else None)
        unpadded = torch.cat([out[e, :, : 1 if last_step else t].flatten() for e, t in enumerate(queries)])
        weight = torch.linspace(-1, 1, len(unpadded), dtype=torch.float64).to(unpadded)
        (unpadded * weight).sum().backward()
        results.append([unpadded, *(part.grad for part in parts)])
    for got, want in zip(*results, strict=True):
        assert error(got, want) <= TOLERANCE[dtype_name]


def check_margin(device: str, ghosts: int, size: int, dim: int, kind: str) -> None:
    """Ghost batches with masked samples, equal labels only, no pair at all, zero rows."""
    from dmd.kernels.triton_backend import TRITON
    from dmd.losses.margin import margin_loss

    torch.manual_seed(0)
    features = torch.randn(ghosts, 3, size, dim) * (kind != "zero")
    labels = torch.randint(-2, 3, (ghosts, size)) / 2.0
    if kind in ("equal", "different"):
        labels = (torch.arange(size) / 5.0 * (kind == "different")).expand(ghosts, size)
    mask = torch.ones(ghosts, size)
    mask[-1, size // 2 + 1 :] = 0
    upstream = torch.arange(1.0, ghosts + 1)
    got = features.to(device, copy=True).requires_grad_()
    want = features.double().requires_grad_()
    fused = margin_loss(got, labels.to(device), mask.to(device), kernels=TRITON.losses)
    plain = margin_loss(want, labels.double(), mask.double())
    (fused * upstream.to(device)).sum().backward()
    (plain * upstream.double()).sum().backward()
    assert error(fused, plain) <= 2e-6
    assert error(got.grad, want.grad) <= 2e-6


def check_parity(device: str, setting: str) -> None:
    """The golden batch through the fused forms: every loss term and every gradient as in plain torch."""
    from dmd.kernels.triton_backend import TRITON
    from dmd.losses import Objective, ObjectiveConfig
    from dmd.model import DMD
    from tests.support.golden import Golden

    golden = Golden(setting)
    plain, plain_losses = golden.build()
    fused = DMD(golden.model_config(), golden.settings["feature_dims"], golden.settings["seq_lens"], backend=TRITON)
    fused.load_state_dict(plain.state_dict())
    losses = Objective(ObjectiveConfig(), golden.model_config(), backend=TRITON)
    losses.load_state_dict(plain_losses.state_dict())
    found = []
    for model, objective, place in ((plain, plain_losses, "cpu"), (fused.to(device), losses.to(device), device)):
        text, audio, vision, labels = (part.to(place) for part in golden.batch("in/"))
        labels = labels.reshape(1, -1)
        terms = objective(model(text, audio, vision), labels, torch.ones_like(labels))
        terms["total"].sum().backward()
        gradient = torch.cat([p.grad.flatten().cpu() for p in (*model.parameters(), *objective.parameters())])
        found.append((terms, gradient))
    for name, term in found[0][0].items():
        assert error(found[1][0][name], term.double()) <= 1e-5, name
    for name in ("total", "margin"):
        published = golden[f"loss/{name}"].double()
        assert error(found[1][0][name][0], published) <= 1e-5, name
    assert error(found[1][1], found[0][1].double()) <= 1e-5


DROPPING = pytest.mark.parametrize("dropping", [False, True], ids=["whole", "dropout"])
LAST_STEP = pytest.mark.parametrize("last_step", [False, True], ids=["all steps", "last step"])


@pytest.mark.slow
@DROPPING
@LAST_STEP
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_attention_interpreted(case, last_step, dropping):
    interpreted(__name__, "check_attention", case, last_step, dropping)


@pytest.mark.parametrize("ghosts, size, dim, kind", MARGINS)
def test_margin_interpreted(ghosts, size, dim, kind):
    interpreted(__name__, "check_margin", ghosts, size, dim, kind)


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["aligned", "unaligned"])
def test_golden_parity_interpreted(setting):
    interpreted(__name__, "check_parity", setting)


@pytest.mark.gpu
@on_cuda
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@DROPPING
@LAST_STEP
@pytest.mark.parametrize("case", [*SMALL, *LARGE], ids=str)
def test_attention_on_cuda(case, last_step, dropping, dtype):
    check_attention("cuda", case, last_step, dropping, dtype)


@pytest.mark.gpu
@on_cuda
@pytest.mark.parametrize("ghosts, size, dim, kind", MARGINS)
def test_margin_on_cuda(ghosts, size, dim, kind):
    check_margin("cuda", ghosts, size, dim, kind)


@pytest.mark.gpu
@on_cuda
@pytest.mark.parametrize("setting", ["aligned", "unaligned"])
def test_golden_parity_on_cuda(setting):
    check_parity("cuda", setting)
