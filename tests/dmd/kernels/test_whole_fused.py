"""The whole model with Triton kernels: convergence, masked padding, dropout keys, CUDA graphs, no waiting."""

from dataclasses import replace

import pytest
import torch

from dmd.config import Config, TrainConfig
from dmd.kernels.dropout.keys import DropoutKeys, number_samples
from dmd.kernels.dropout.rng import DropoutRNG
from dmd.kernels.portable import PORTABLE
from dmd.losses import ObjectiveConfig
from dmd.system.cuda_graph import obstacle_to_capture
from dmd.training.step import make_rng
from tests.dmd.kernels.forms import TOLERANCE, error, interpreted, on_cuda
from tests.support.small_system import MODEL, make_batch, make_system

ROUNDING = 6e-8
TWO_PASSES = ObjectiveConfig(consistency=3.0)


def losses(kernels: str, device: str, steps: int, nudge: int | None = None, **train: object) -> list[float]:
    """The loss of each step of a training with dropout; `nudge`: a seed for weights that are one rounding off."""
    system, config = make_system(kernels, device, **train)
    if nudge is not None:
        generator = torch.Generator().manual_seed(nudge)
        for weight in system.parameters():
            weight.data *= 1 + ROUNDING * torch.randn(weight.shape, generator=generator).sign()
    optimizer = torch.optim.Adam(system.parameters(), lr=1e-3)
    found = []
    for step in range(steps):
        batch = make_batch(step, device)
        rng = make_rng(batch, config, step=step, forward=0, device=torch.device(device), keys=system.keys)
        loss = system(batch, rng).total.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.detach())
    return torch.stack(found).tolist()


def check_convergence(device: str, steps: int) -> None:
    """Fused and plain forms train alike: as near as the plain form stays to itself when its weights are rounded once.

    Rounding grows from step to step: of six nudged trainings the furthest was 9e-2 away within 200 steps.
    """
    fused, plain = losses("fused", device, steps), losses("plain", "cpu", steps)
    nudged = [losses("plain", "cpu", steps, nudge) for nudge in range(4)]
    allowed = 0.0
    for step, (a, b, *others) in enumerate(zip(fused, plain, *nudged, strict=True)):
        allowed = max(allowed, *(abs(other - b) for other in others))
        assert abs(a - b) <= max(allowed, 1e-5 * max(1, abs(b))), (step, a, b, allowed)


def check_masked_padding(device: str) -> None:
    """Loss and gradients, with dropout, of samples that are padded in front, at the end, and that lack a modality."""
    found = []
    for kernels, place, masked in (("fused", device, True), ("plain", "cpu", True), ("plain", "cpu", False)):
        system, config = make_system(kernels, place, replace(MODEL, masked_padding=masked))
        batch = make_batch(0, place)
        batch.audio[0, :2], batch.vision[1, 1:], batch.text[2] = 0, 0, 0
        rng = make_rng(batch, config, step=0, forward=0, device=torch.device(place), keys=system.keys)
        total = system(batch, rng).total
        total.sum().backward()
        found.append((total.double().cpu(), torch.cat([p.grad.double().flatten().cpu() for p in system.parameters()])))
    fused, plain, unmasked = found
    for part in range(2):
        assert error(fused[part], plain[part]) <= 3 * TOLERANCE["float32"]
        assert error(unmasked[part], plain[part]) > 1e-3


def check_two_passes(device: str) -> None:
    """Loss terms and gradients where each sample goes through the network twice."""
    found = []
    for kernels, place in (("fused", device), ("plain", "cpu")):
        system, config = make_system(kernels, place, objective=TWO_PASSES)
        batch = make_batch(0, place)
        rng = make_rng(batch, config, step=0, forward=0, device=torch.device(place), keys=system.keys)
        terms = system(batch, rng)
        terms.total.sum().backward()
        gradients = torch.cat([p.grad.double().flatten().cpu() for p in system.parameters()])
        rows = dict(zip(terms.names, terms.rows.double().cpu(), strict=True))
        assert float(rows["consistency"].min()) > 0
        found.append((torch.stack([rows[name] for name in sorted(rows)]), gradients))
    for fused, plain in zip(*found, strict=True):
        assert error(fused, plain) <= 3 * TOLERANCE["float32"]


def check_dropout(device: str) -> None:
    """Any axis of samples: the plain form's elements, forward and backward."""
    from dmd.kernels.triton_backend import TRITON

    place = torch.device(device)
    for shape, batch_dim in (((4, 3, 5), 0), ((2, 4, 7), 1), ((6, 1), 0)):
        results = []
        for backend, keys in ((TRITON, DropoutKeys()), (PORTABLE, None)):
            rng = DropoutRNG(
                seed=1, step=2, samples=number_samples([3, 5], range(shape[batch_dim] // 2)), device=place, keys=keys
            )
            x = torch.linspace(1, 2, torch.Size(shape).numel(), device=place).view(shape).requires_grad_()
            out = backend.dropout(x, 0.4, rng, batch_dim=batch_dim)
            out.square().sum().backward()
            results.append((out.detach(), x.grad))
        for got, want in zip(*results, strict=True):
            torch.testing.assert_close(got, want)


def check_use_pytorch(device: str) -> None:
    """A system that falls back is the plain one."""
    terms = []
    for kernels in ("fused", "plain"):
        system, config = make_system(kernels, device)
        if kernels == "fused":
            system.use_pytorch("a kernel cannot run")
            assert system.execution.kernels == "plain (a kernel cannot run)"
        batch = make_batch(0, device)
        rng = make_rng(batch, config, step=0, forward=0, device=torch.device(device), keys=system.keys)
        terms.append(system(batch, rng))
    assert terms[0].names == terms[1].names
    assert torch.equal(terms[0].rows, terms[1].rows)


def test_fallback_interpreted():
    interpreted(__name__, "check_use_pytorch")


@pytest.mark.slow
def test_convergence_interpreted():
    interpreted(__name__, "check_convergence", 3)


@pytest.mark.slow
def test_masked_padding_interpreted():
    interpreted(__name__, "check_masked_padding")


@pytest.mark.slow
def test_two_passes_interpreted():
    interpreted(__name__, "check_two_passes")


def test_plain_form_trains_in_bfloat16():
    half, full = losses("plain", "cpu", 12, precision="bf16"), losses("plain", "cpu", 12)
    assert half != full
    assert torch.tensor(half).sub(torch.tensor(full)).abs().max() < 0.1


def test_dropout_interpreted():
    interpreted(__name__, "check_dropout")


def test_keys_of_later_passes_are_those_of_the_noise():
    keys = DropoutKeys()
    for step in range(3):
        rng = DropoutRNG(
            seed=1, step=step, samples=number_samples([3, 8], range(2)), device=torch.device("cpu"), keys=keys
        )
        plain = DropoutRNG(seed=1, step=step, samples=number_samples([3, 8], range(2)), device=torch.device("cpu"))
        assert keys.known == (step > 0)
        for call_sites in ([(1,)], [(2, 0), (2, 1)]):
            assert rng.table(call_sites).equal(plain.table(call_sites))
    rng.restart()
    with pytest.raises(AssertionError, match="passes differ"):
        rng.table([(7,)])


@pytest.mark.gpu
@on_cuda
def test_convergence_on_cuda():
    check_convergence("cuda", 200)


@pytest.mark.gpu
@on_cuda
def test_fallback_on_cuda():
    check_use_pytorch("cuda")


@pytest.mark.gpu
@on_cuda
def test_masked_padding_on_cuda():
    check_masked_padding("cuda")


@pytest.mark.gpu
@on_cuda
def test_two_passes_on_cuda():
    check_two_passes("cuda")


@pytest.mark.gpu
@on_cuda
def test_dropout_on_cuda():
    check_dropout("cuda")


@pytest.mark.gpu
@on_cuda
def test_captured_passes_are_the_passes():
    eager = losses("fused", "cuda", 12)
    captured = losses("fused", "cuda", 12, cuda_graph="auto")
    torch.testing.assert_close(torch.tensor(captured), torch.tensor(eager), rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
@on_cuda
@pytest.mark.parametrize("graph", ["off", "auto"])
def test_a_pass_does_not_wait_for_the_device(graph):
    system, config = make_system("fused", "cuda", cuda_graph=graph)
    for step in range(4):
        batch = make_batch(step, "cpu").pin_memory()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error" if step == 3 else "default")
        try:
            there = batch.to(torch.device("cuda"))
            rng = make_rng(there, config, step=step, forward=0, device=torch.device("cuda"), keys=system.keys)
            system(there, rng).total.sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert (system.captured == "yes") == (graph == "auto")


def test_what_cannot_be_captured_says_why():
    from dmd.kernels.triton_backend import TRITON

    assert make_system("plain", "cpu", cuda_graph="off")[0].captured == "no: train.cuda_graph is off"
    wide = replace(Config(), model=replace(MODEL, dim=130), train=TrainConfig(cuda_graph="auto"))
    assert "260 channels" in obstacle_to_capture(wide, torch.device("cuda"), TRITON, encodes_text=False)
    for key in ("consistency", "label_density_smoothing"):
        config = replace(Config(), objective=ObjectiveConfig(**{key: 1.0}), train=TrainConfig(cuda_graph="auto"))
        obstacle = obstacle_to_capture(config, torch.device("cuda"), TRITON, encodes_text=False)
        assert obstacle == f"objective.{key} is above 0, of which no capture has run on a GPU"
    assert make_system("plain", "cpu", cuda_graph="auto")[0].captured == "no: there are no CUDA graphs on cpu devices"
