"""Every loss term as Triton kernels against plain torch in float64, forward and backward."""

from dataclasses import replace

import pytest
import torch

from dmd.kernels.cpu import CPU
from dmd.losses import Objective, ObjectiveConfig
from dmd.losses.objective import MOST_SAMPLES
from dmd.losses.sharing import Part, Sharing
from dmd.model.config import MODALITIES, ModelConfig
from dmd.model.decouple import Decoupled
from dmd.model.dmd import HEADS, DMDOutput
from tests.dmd.kernels.forms import error, interpreted, on_cuda

KINDS = ("mixed", "equal labels", "no pair", "zero", "one valid", "masked")
TOLERANCE = {"float32": 5e-6, "bfloat16": 2e-2}


def make(kind: str, ghosts: int, samples: int, dim: int, dtype: str) -> tuple[list[torch.Tensor], torch.Tensor, ...]:
    """Leaves of a `DMDOutput` in the order of `output`, labels and mask."""
    torch.manual_seed(0)
    batch, steps = ghosts * samples, {"text": 3, "audio": 7, "vision": 4}
    leaves = [torch.randn(batch) for _ in HEADS]
    leaves += [torch.randn(batch, steps[m], dim) for _ in Decoupled._fields for m in MODALITIES]
    leaves += [torch.randn(batch, width) for width in (dim, dim, 2 * dim) for _ in MODALITIES]
    if kind == "zero":
        leaves = [x if x.dim() == 1 else x * (torch.arange(batch) % 2).view(-1, *[1] * (x.dim() - 1)) for x in leaves]
    labels = torch.randint(-2, 3, (ghosts, samples)) / 2.0
    if kind == "equal labels":
        labels = torch.zeros(ghosts, samples)
    if kind == "no pair":
        labels = torch.arange(1.0, samples + 1).expand(ghosts, samples) / 5
    mask = torch.ones(ghosts, samples)
    if kind == "masked":
        mask[-1, samples // 2 :] = 0
    if kind == "one valid":
        mask[:, 1:] = 0
        mask[0] = 0  # nothing at all
    return [x.to(getattr(torch, dtype)) for x in leaves], labels, mask


def output(leaves: list[torch.Tensor]) -> DMDOutput:
    rest = iter(leaves)
    predictions = {head: next(rest) for head in HEADS}
    parts = [{m: next(rest) for m in MODALITIES} for _ in range(len(Decoupled._fields) + 3)]
    return DMDOutput(
        predictions=predictions,
        decoupled=Decoupled(*parts[:-3]),
        margin_features=parts[-3],
        homo_repr=parts[-2],
        hetero_repr=parts[-1],
        representation=torch.empty(0),  # which no term reads
    )


def check_objective(device: str, dtype: str, kind: str, sizes: tuple, option: dict) -> None:
    """Every term, and the gradients of everything that the terms read, by a random weight on each term.

    A gradient may be as far from float64 as that of plain torch in float32: where one sample alone is valid, the
    cosines of single numbers have gradients that are nothing but what cancellation leaves.
    """
    from dmd.kernels.triton_backend import TRITON

    ghosts, samples, dim = sizes
    model = replace(ModelConfig(task="regression"), dim=dim, heads=1, gd_size_homo=5 if dim < 20 else 64)
    leaves, labels, mask = make(kind, ghosts, samples, dim, dtype)
    found = []
    for backend, form in ((TRITON, None), (CPU, torch.float64), (CPU, torch.float32)):
        place = torch.device(device if backend is TRITON else "cpu")
        torch.manual_seed(1)
        objective = Objective(ObjectiveConfig(**option), model, backend=backend).to(place, form)
        own = [x.detach().to(place, form).requires_grad_() for x in leaves]
        truth = labels.to(place, form)
        terms = objective(output(own), truth, mask.to(truth))
        weights = torch.Generator().manual_seed(2)
        names = sorted(name for name in terms if not name.startswith("edges"))
        upstream = {name: torch.rand(ghosts, generator=weights).to(truth) for name in names}
        sum((terms[name] * upstream[name]).sum() for name in names).backward()
        grads = {f"input {number}": x.grad for number, x in enumerate(own)}
        grads.update({name: p.grad for name, p in objective.named_parameters()})
        found.append((terms, grads))
    (terms, grads), (terms64, grads64), (_, grads32) = found
    assert terms.keys() == terms64.keys()
    for name in terms:
        allowed = TOLERANCE["float32"] * max(1, float(terms64[name].abs().max()))
        assert float((terms[name].cpu() - terms64[name]).abs().max()) <= allowed, name
    largest = max(float(grad.norm()) for grad in grads64.values())
    for name, want in grads64.items():
        gap, plain_gap = (error(x[name], want) * float(want.norm()) for x in (grads, grads32))
        allowed = TOLERANCE[dtype] * max(float(want.norm()), 1e-3 * largest)
        assert gap <= max(allowed, plain_gap), (name, gap, plain_gap)


def check_shared_objective(device: str) -> None:
    """Where ranks share ghost batches, kernels get gathered features: here those of two equal parts, of one rank."""
    from dmd.kernels.triton_backend import TRITON

    ghosts, samples = 2, 3
    model = replace(ModelConfig(task="regression"), dim=6, heads=1, gd_size_homo=5)
    leaves, labels, mask = make("masked", ghosts, samples, 6, "float32")
    found = []
    for backend in (TRITON, CPU):
        place = torch.device(device if backend is TRITON else "cpu")
        torch.manual_seed(1)
        objective = Objective(ObjectiveConfig(), model, backend=backend).to(place)
        own = [x.detach().to(place).requires_grad_() for x in leaves]
        given = own
        if backend is TRITON:
            objective.sharing = Sharing(Part(0, 2), group=None)
        else:
            given = [x.unflatten(0, labels.shape).repeat(1, 2, *[1] * (x.dim() - 1)).flatten(0, 1) for x in own]
        terms = objective(output(given), labels.repeat(1, 2).to(place), mask.repeat(1, 2).to(place))
        terms["total"].sum().backward()
        grads = {f"input {number}": x.grad for number, x in enumerate(own)}
        grads.update({name: p.grad for name, p in objective.named_parameters()})
        found.append({**terms, **grads})
    assert found[0].keys() == found[1].keys()
    for name, want in found[1].items():
        torch.testing.assert_close(found[0][name].cpu(), want, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.slow
def test_shared_objective_interpreted():
    interpreted(__name__, "check_shared_objective")


@on_cuda
@pytest.mark.gpu
def test_shared_objective_on_cuda():
    check_shared_objective("cuda")


def test_large_ghost_batches_take_plain_torch():
    """Not even the interpreter is there."""
    from dmd.kernels.triton_backend import TRITON

    leaves, labels, mask = make("mixed", 1, MOST_SAMPLES + 1, 6, "float32")
    model = replace(ModelConfig(task="regression"), dim=6, heads=1, gd_size_homo=5)
    found = []
    for backend in (TRITON, CPU):
        torch.manual_seed(1)
        found.append(Objective(ObjectiveConfig(), model, backend=backend)(output(leaves), labels, mask))
    assert all(torch.equal(found[0][name], term) for name, term in found[1].items())


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_objective_interpreted(kind):
    interpreted(__name__, "check_objective", "float32", kind, (2, 5, 6), {})


@pytest.mark.parametrize("option", [{}, {"prior": "none"}], ids=str)
@pytest.mark.parametrize("kind", ["mixed", "masked"])
def test_objective_in_bfloat16_and_other_configs_interpreted(kind, option):
    interpreted(__name__, "check_objective", "bfloat16", kind, (2, 4, 8), option)


@pytest.mark.gpu
@on_cuda
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("sizes", [(2, 5, 6), (10, 16, 50), (1, 1, 10), (3, 48, 64)])
@pytest.mark.parametrize("option", [{}, {"prior": "none"}, {"homo_distillation": False}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_objective_on_cuda(kind, option, sizes, dtype):
    check_objective("cuda", dtype, kind, sizes, option)
