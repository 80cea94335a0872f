"""Passes of a step: how many ghost batches run at once, by which kernels, and how their terms are added up."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from benchmarks.counting import Counter
from dmd.config import Config, TrainConfig
from dmd.config.loading import load_config
from dmd.data.loader import PINNING
from dmd.data.synthetic import random_batch
from dmd.kernels.backend import why_not_fused
from dmd.kernels.common.cards import KernelError
from dmd.kernels.common.rows import PassTooLarge
from dmd.losses.sharing import Part
from dmd.model.graph import PAIRS
from dmd.system.cuda_graph import CapturedPass, TensorPass
from dmd.system.joined_weights import JoinedWeights, each_alone
from dmd.system.pass_terms import mean_edges, pass_terms
from dmd.system.system import TrainingSystem
from dmd.training.passes import ghost_batches_at_once, optimizer_bytes, settle_passes
from dmd.training.step import make_plan, make_rng
from tests.dmd.kernels.forms import interpreted
from tests.support.small_system import LENGTHS, MODEL, SAMPLES, SIZES, make_batch, make_system

CPU, META = torch.device("cpu"), torch.device("meta")
INFO = SimpleNamespace(dims=SIZES, lengths=LENGTHS, text_kind="features", classes=0)
SHORT, LONG = {"text": 50, "audio": 50, "vision": 50}, {"text": 50, "audio": 375, "vision": 500}


class SmallMemory(TrainingSystem):
    """Holds three ghost batches at once."""

    error: type[Exception] = torch.OutOfMemoryError

    def terms(self, batch, rng):
        if len(batch.ghosts) > 3:
            raise self.error(f"{len(batch.ghosts)} ghost batches")
        return super().terms(batch, rng)


class FewElements(SmallMemory):
    """Counts the elements of three."""

    error = PassTooLarge


def build(kind: type[TrainingSystem] = TrainingSystem, **train: object) -> tuple[TrainingSystem, Config]:
    config = replace(Config(), model=MODEL, train=TrainConfig(ghost_batch_size=SAMPLES, **train))
    return kind(config, INFO, None, META).to(META), config


@pytest.mark.parametrize(
    "lengths, device, wanted, at_once",
    [(SHORT, "cpu", "auto", 10), (LONG, "cpu", "auto", 2), (LONG, "cuda", "auto", 10), (LONG, "cuda", 4, 4)],
)
def test_ghost_batches_at_once_by_device_and_length(lengths, device, wanted, at_once):
    assert ghost_batches_at_once(TrainConfig(ghost_batches_per_forward=wanted), lengths, device) == at_once


@pytest.mark.parametrize(
    "train, ranks, wanted",
    [
        ({"zero_stage": 0}, 4, 800),
        ({"zero_stage": 1}, 4, 300),
        ({"zero_stage": 2}, 4, 400),
        ({"zero_stage": 3}, 1, 1600),
        ({"zero_stage": 3}, 4, 400),
        ({"zero_stage": 3, "offload": "cpu"}, 1, 0),
    ],
)
def test_room_for_the_optimizer_is_what_a_rank_keeps_of_it(train, ranks, wanted):
    """The bytes for a trained weight of docs/text-encoders.md, for 100 weights."""
    assert optimizer_bytes(TrainConfig(**train), 400, ranks) == wanted


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_trial_keeps_no_gradient_that_ranks_divide(stage):
    kept = []

    class Noting(TrainingSystem):
        def zero_grad(self, set_to_none=True):
            kept.append(any(parameter.grad is not None for parameter in self.parameters()))
            super().zero_grad(set_to_none)

    system, config = build(Noting, zero_stage=stage)
    settle_passes(system, config, INFO, 1)
    assert kept == [stage < 2]
    torch.stack([p.sum() for p in system.parameters() if p.requires_grad]).sum().backward()
    assert all(p.grad is not None for p in system.parameters() if p.requires_grad), "the trial is over"


def test_a_gpu_runs_the_whole_share_of_its_rank():
    system, config = build()
    assert settle_passes(system, config, INFO, 1) == 10
    assert settle_passes(system, config, INFO, 4) == 3
    assert all(parameter.grad is None for parameter in system.parameters())


def test_a_part_of_a_ghost_batch_is_tried_without_the_ranks_that_share_it():
    """In the shapes of the training: features of the part, losses of the whole ghost batch."""
    seen = []

    class Noting(TrainingSystem):
        def terms(self, batch, rng):
            assert self.objective.sharing is not None
            seen.append((len(batch.audio), batch.labels.shape, self.objective.sharing.group))
            return super().terms(batch, rng)

    system, config = build(Noting, ghost_batches_per_step=2)
    assert settle_passes(system, config, INFO, 4, part=Part(1, 2)) == 1
    assert seen == [(1, (1, SAMPLES), None)]
    assert system.objective.sharing is None
    assert all(parameter.grad is None for parameter in system.parameters())


def test_collectives_of_ranks_that_share_a_ghost_batch_are_not_captured():
    system, config = build(ghost_batches_per_step=2)
    for ranks, told in ((2, "yes"), (3, "no: ranks share ghost batches")):
        system._graph, system.captured = object(), "yes"
        settle_passes(system, config, INFO, ranks, part=make_plan(config, 99, ranks).part(1))
        assert system.captured.startswith(told)


@pytest.mark.parametrize("kind", [SmallMemory, FewElements])
def test_what_is_too_large_halves_the_pass(kind):
    system, config = build(kind)
    assert settle_passes(system, config, INFO, 1) == 3


@pytest.mark.parametrize("kind", [SmallMemory, FewElements])
def test_what_is_too_large_is_an_error_where_the_number_was_asked_for(kind):
    system, config = build(kind, ghost_batches_per_forward=5)
    with pytest.raises(kind.error, match="5 ghost batches"):
        settle_passes(system, config, INFO, 1)


def test_a_plan_knows_no_number_until_it_is_settled():
    assert make_plan(Config(), 320, 2).ghost_batches_at_once == 5


def test_a_kernel_that_cannot_run_is_the_users_to_decide_where_it_was_asked_for():
    def fail() -> None:
        raise KernelError("residual_mlp", "NVIDIA A10 (compute capability 8.6)", "it needs 120000 bytes of 101376")

    assert why_not_fused(lambda: None, asked_for=True) == ""
    assert "residual_mlp" in why_not_fused(fail, asked_for=False)
    with pytest.raises(ValueError, match=r"'fused', but .*residual_mlp .*A10.*120000 bytes of 101376; set train\.ker"):
        why_not_fused(fail, asked_for=True)


def test_synthetic_samples_are_what_the_data_holds():
    tokens = SimpleNamespace(dims={**SIZES, "text": 0}, lengths=LENGTHS, text_kind="tokens", classes=3, vocab_size=7)
    stored = load_config(None, ["model.task=3", "data.classes=stored"])
    batch = random_batch(tokens, 2, 5, config=stored)
    assert batch.text.shape == (10, 3, LENGTHS["text"])
    assert int(batch.text[:, 0].max()) < 7
    assert set(batch.labels.flatten().tolist()) == {0.0, 1.0, 2.0}
    emotions = load_config(None, ["model.task=multilabel", "model.emotions=6", "data.classes=emotions"])
    batch = random_batch(tokens, 2, 5, config=emotions)
    assert batch.labels.shape == (2, 5, 6)
    assert set(batch.labels.flatten().tolist()) == {0.0, 1.0}


def check_captured_pass(device: str) -> None:
    """The pass as it is captured, over aliases of the weights: bitwise the terms and gradients of the system."""
    kernels = "plain" if device == "plain" else "fused"
    system, config = make_system(kernels, "cpu")
    batch = make_batch(0, "cpu")
    inputs = (batch.text, batch.audio, batch.vision, batch.labels, batch.mask)
    noises = [make_rng(batch, config, step=0, forward=0, device=CPU, keys=system.fresh_keys()) for _ in range(2)]

    eager = system.terms(batch, noises[0])
    eager["total"].sum().backward()
    gradients = {name: p.grad.clone() for name, p in system.named_parameters()}
    system.zero_grad()

    named = list(system.named_parameters())
    weights = [JoinedWeights(dict(named[:20])), *each_alone(named[20:25]), JoinedWeights(dict(named[25:]))]
    tensor_pass = TensorPass(system.terms, system)
    tensor_pass.rng, tensor_pass.like = noises[1], batch
    aliases = [torch.nn.Parameter(each.whole.detach()) for each in weights]
    total, rows = tensor_pass.of_weights(weights)(*inputs, *aliases)
    total.sum().backward()

    assert not rows.requires_grad
    assert total.equal(eager["total"])
    assert rows.equal(pass_terms(eager).rows)
    assert tensor_pass.names == pass_terms(eager).names
    assert all(p.grad is None for p in system.parameters()), "a weight itself was read"
    for each, alias in zip(weights, aliases, strict=True):
        assert each.whole.data_ptr() == alias.data_ptr()
        for name, part in zip(each.parameters, each.parts(alias.grad), strict=True):
            assert part.equal(gradients[name]), name


def test_the_pass_that_is_captured_is_the_pass():
    check_captured_pass("plain")


@pytest.mark.slow
def test_the_pass_that_is_captured_is_the_pass_interpreted():
    interpreted(__name__, "check_captured_pass")


def test_no_thread_pins_a_batch_while_a_pass_is_captured(monkeypatch):
    system, config = make_system("plain", "cpu")
    batch, held = make_batch(0, "cpu"), []

    def note(given, *_, **__):
        held.append(PINNING.locked())
        return given

    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: None)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: None)
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", note)
    monkeypatch.setattr(torch.Tensor, "pin_memory", note)
    rng = make_rng(batch, config, step=0, forward=0, device=torch.device("cpu"))
    CapturedPass(system.terms, system, lambda: system.weights)._capture(
        batch, rng, (batch.text, batch.audio, batch.vision, batch.labels, batch.mask)
    )
    batch.pin_memory()
    assert held == [True] * 6
    assert not PINNING.locked()


def test_rows_are_the_terms_in_few_operations():
    terms = {"task": torch.rand(3), "edges_homo": torch.rand(3, 6), "margin": torch.rand(3, requires_grad=True)}
    terms |= {"total": torch.rand(3, requires_grad=True), "edges_hetero": torch.rand(3, 6)}
    terms |= {f"term {number}": torch.rand(3) for number in range(20)}
    with Counter() as counter:
        names, total, rows = pass_terms(terms)
    assert counter.names.total() <= 2
    assert total is terms["total"]
    assert names[0] == "total", "by which a step decides"
    assert not rows.requires_grad
    found = dict(zip(names, rows, strict=True))
    for name, term in terms.items():
        if name.startswith("edges_"):
            for number, (to, source) in enumerate(PAIRS):
                assert found[f"{name}/{to}_from_{source}"].equal(term[:, number])
        else:
            assert found[name].equal(term)
    means = mean_edges({name: float(row.mean()) for name, row in found.items()})
    for space in ("homo", "hetero"):
        torch.testing.assert_close(means[space], terms[f"edges_{space}"].mean(0))
