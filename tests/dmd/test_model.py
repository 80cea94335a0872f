"""The network: grouping by length, dropout keyed by ghost batch, masked tails, text encoders."""

import copy
import dataclasses
import itertools

import pytest
import torch
from transformers import BertConfig, RobertaConfig

from benchmarks.reference import reference
from dmd.data.plan import EpochPlan
from dmd.kernels.cpu import CPU as ON_CPU
from dmd.kernels.dropout.keys import number_samples
from dmd.kernels.dropout.rng import DropoutRNG
from dmd.kernels.encoder.plan import StackPlan, group_by_length
from dmd.losses import Objective, ObjectiveConfig
from dmd.model import DMD, ModelConfig
from dmd.model.text import TextEncoder, build_text_encoder, check_tokens, load_text_encoder, whole_mask
from dmd.model.transformer import TransformerStack

DIMS = {"text": 9, "audio": 5, "vision": 7}
SMALL = ModelConfig(task="regression", dim=8, heads=2, levels=2, kernel_text=3, kernel_audio=1, kernel_vision=2)
CPU = torch.device("cpu")


def inputs(batch: int, lengths: dict[str, int], seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, lengths[m], DIMS[m], generator=generator) for m in DIMS]


@pytest.mark.parametrize(
    "queries, groups",
    [([46] * 6, 1), ([46, 50, 48], 1), ([46, 46, 371, 371, 496, 496], 3), ([5], 1), ([46, 496, 46], 2)],
)
def test_encoders_of_near_lengths_share_a_group(queries, groups):
    found = group_by_length(queries, queries)
    assert len(found) == groups
    assert sorted(itertools.chain.from_iterable(g.members for g in found)) == list(range(len(queries)))


@pytest.mark.parametrize("last_step", [False, True])
@pytest.mark.parametrize("cross", [False, True])
def test_a_batched_stack_equals_its_encoders_one_by_one(last_step, cross):
    """Padding inside a group changes nothing: lengths 7, 6 and 7 run together, and alone."""
    torch.manual_seed(0)
    queries, keys = (7, 6, 7), (7, 7, 6) if cross else (7, 6, 7)
    rates = {"relu_rate": 0.0, "res_rate": 0.0, "embed_rate": 0.0, "last_step": last_step}
    plan = StackPlan(dim=8, heads=2, levels=3, queries=queries, keys=keys, attn_rates=(0.0,) * 3, **rates)
    stack = TransformerStack(plan).double()
    assert len(plan.groups) == 1
    x = [torch.randn(4, t, 8, dtype=torch.float64) for t in queries]
    x[0][:, :2] = 0  # frames without content get no position
    source = [torch.randn(4, t, 8, dtype=torch.float64) for t in keys] if cross else None
    together = stack(x, source)
    for number in range(3):
        own = {"queries": queries[number : number + 1], "keys": keys[number : number + 1], "attn_rates": (0.0,)}
        alone = TransformerStack(dataclasses.replace(plan, **own)).double()
        state = {}
        for name, tensor in stack.state_dict().items():
            inside = ".norm_" in name
            state[name] = tensor[:, number : number + 1] if inside else tensor[number : number + 1]
        alone.load_state_dict(state)
        single = alone(x[number : number + 1], None if source is None else source[number : number + 1])
        torch.testing.assert_close(together[number], single[0], rtol=1e-12, atol=1e-12)


def test_noise_depends_on_seed_step_and_ghost_alone():
    def masks(ghosts: list[int], **key: int) -> torch.Tensor:
        rng = DropoutRNG(**{"seed": 1, "step": 2, **key}, samples=number_samples(ghosts, range(4)), device=CPU)
        return rng.scaled_keep_mask((len(ghosts) * 4, 33), 0.3, batch_dim=0, dtype=torch.float32)

    together = masks([0, 1, 2])
    assert together.equal(torch.cat([masks([0]), masks([1]), masks([2])]))
    assert not masks([0]).equal(masks([1]))
    assert not masks([0]).equal(masks([0], step=3))
    assert not masks([0]).equal(masks([0], seed=2))


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.9])
def test_dropout_keeps_the_expectation(rate):
    rng = DropoutRNG(seed=0, step=0, samples=number_samples(range(8), range(16)), device=CPU)
    out = ON_CPU.dropout(torch.ones(128, 4000), rate, rng)
    kept = out != 0
    count = out.numel()
    assert abs(float(kept.float().mean()) - (1 - rate)) < 5 * (rate * (1 - rate) / count) ** 0.5
    assert out[kept].unique().numel() == 1
    assert abs(float(out.mean()) - 1) < 5 * (rate / (1 - rate) / count) ** 0.5


def test_the_result_does_not_depend_on_ghost_batches_per_forward():
    """Dropout on: three ghost batches at once and one by one give the same terms and gradients."""
    lengths = {"text": 6, "audio": 9, "vision": 7}
    torch.manual_seed(0)
    model, losses = DMD(SMALL, DIMS, lengths).double(), Objective(ObjectiveConfig(), SMALL).double()
    parts = [part.double() for part in inputs(12, lengths)]
    labels = torch.linspace(-3, 3, 12, dtype=torch.float64).view(3, 4)

    def gradients(chunks: list[list[int]]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        model.zero_grad(), losses.zero_grad()
        totals = []
        for ghosts in chunks:
            rows = torch.tensor([4 * g + s for g in ghosts for s in range(4)])
            rng = DropoutRNG(seed=5, step=1, samples=number_samples(ghosts, range(4)), device=CPU)
            chunk = labels[torch.tensor(ghosts)]
            terms = losses(model(*(part[rows] for part in parts), rng), chunk, torch.ones_like(chunk))
            terms["total"].sum().backward()
            totals.append(terms["total"].detach())
        return totals, [p.grad.clone() for p in (*model.parameters(), *losses.parameters())]

    one, grad_one = gradients([[0, 1, 2]])
    three, grad_three = gradients([[0], [1], [2]])
    torch.testing.assert_close(torch.cat(one), torch.cat(three), rtol=1e-10, atol=1e-12)
    for a, b in zip(grad_one, grad_three, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("orthogonality", ["batch", "feature"])
def test_a_masked_tail_equals_the_smaller_ghost_batch(orthogonality):
    lengths = {"text": 6, "audio": 6, "vision": 6}
    torch.manual_seed(0)
    model = DMD(SMALL, DIMS, lengths).double()
    losses = Objective(ObjectiveConfig(orthogonality=orthogonality), SMALL).double()
    parts = [part.double() for part in inputs(5, lengths)]
    labels = torch.tensor([[1.0, -1.0, 0.2, 1.0, -3.0]], dtype=torch.float64)
    small = losses(model(*parts), labels, torch.ones_like(labels))
    padded = [torch.cat([part, part[:1].expand(3, -1, -1)]) for part in parts]
    more = torch.cat([labels, labels[:, :1].expand(1, 3)], dim=1)
    mask = torch.tensor([[1.0] * 5 + [0.0] * 3], dtype=torch.float64)
    large = losses(model(*padded), more, mask)
    assert small.keys() == large.keys()
    for name in small:
        torch.testing.assert_close(small[name], large[name], rtol=1e-10, atol=1e-12, msg=name)


def test_an_empty_ghost_batch_is_finite_and_has_no_gradient():
    lengths = {"text": 6, "audio": 6, "vision": 6}
    torch.manual_seed(0)
    model, losses = DMD(SMALL, DIMS, lengths), Objective(ObjectiveConfig(), SMALL)
    zero = torch.zeros(1, 4)
    terms = losses(model(*inputs(4, lengths)), zero, zero)
    (terms["total"] * zero.sum(1)).sum().backward()
    for parameter in (*model.parameters(), *losses.parameters()):
        assert float(parameter.grad.abs().max()) == 0


def test_a_modality_of_the_models_width_skips_its_convolution():
    model = DMD(SMALL, {**DIMS, "audio": 8}, {"text": 6, "audio": 6, "vision": 6})
    assert not list(model.convolution["audio"].parameters())
    out = model(torch.randn(2, 6, 9), torch.randn(2, 6, 8), torch.randn(2, 6, 7))
    assert out.decoupled.origin["audio"].shape == (2, 6, 8)


def test_the_benchmarks_baseline_is_the_same_model():
    torch.manual_seed(0)
    lengths = {"text": 9, "audio": 8, "vision": 10}
    model = DMD(ModelConfig(task="regression", dim=8, heads=2, levels=2), DIMS, lengths)
    baseline = reference(copy.deepcopy(model))
    parts = inputs(4, lengths)
    ours, its = model(*parts).predictions, baseline(*parts).predictions
    for head, prediction in ours.items():
        torch.testing.assert_close(its[head], prediction, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("emotions", [0, 1])
def test_emotions_that_nothing_has_counted_are_rejected(emotions):
    with pytest.raises(
        ValueError, match=f"model.task is 'multilabel' and model.emotions is {emotions}; the shards say"
    ):
        DMD(dataclasses.replace(SMALL, task="multilabel", emotions=emotions), DIMS, dict.fromkeys(DIMS, 9))


def test_a_sequence_shorter_than_its_kernel_is_rejected():
    with pytest.raises(ValueError, match=r"text sequences have 2 steps.*model\.kernel_text"):
        DMD(SMALL, DIMS, {"text": 2, "audio": 6, "vision": 6})


TINY = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
ENCODERS = {"bert": BertConfig(**TINY), "roberta": RobertaConfig(**TINY, pad_token_id=1)}


def tokens(batch: int, steps: int) -> torch.Tensor:
    ids = torch.randint(2, 40, (batch, steps), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[:, steps // 2 :] = 0
    return torch.stack([ids, mask, torch.zeros_like(ids)], dim=1)


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("frozen", [False, True])
def test_text_encoders_have_no_dead_parameter(kind, frozen, tmp_path):
    build_text_encoder(ENCODERS[kind].to_dict(), frozen=frozen).network.save_pretrained(tmp_path)
    encoder = load_text_encoder(str(tmp_path), frozen=frozen)
    torch.manual_seed(0)
    model = DMD(SMALL, {**DIMS, "text": 0}, {"text": 6, "audio": 6, "vision": 6}, encoder)
    losses = Objective(ObjectiveConfig(), SMALL)
    labels = torch.tensor([[1.0, -1.0, 1.0, 0.0]])
    _, audio, vision = inputs(4, {"text": 6, "audio": 6, "vision": 6})
    losses(model(tokens(4, 6), audio, vision), labels, torch.ones_like(labels))["total"].sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.requires_grad != (frozen and name.startswith("text_encoder")), name
    assert model.train().text_encoder.network.training != frozen


@pytest.mark.parametrize("kind", ENCODERS)
def test_text_encoders_attend_with_sdpa_and_take_whole_masks(kind):
    encoder = build_text_encoder(ENCODERS[kind].to_dict(), frozen=False).eval()
    assert encoder.network.config._attn_implementation == "sdpa"
    ids, mask, _ = tokens(3, 6).unbind(1)
    mask[0] = 1
    whole = encoder.network(input_ids=ids, attention_mask=whole_mask(mask, causal=False)).last_hidden_state
    torch.testing.assert_close(whole, encoder.network(input_ids=ids, attention_mask=mask).last_hidden_state)


def test_text_encoder_mistakes_are_named():
    with pytest.raises(ValueError, match=r"'/nowhere/bert' cannot be loaded.*text\.encoder=PATH"):
        load_text_encoder("/nowhere/bert", frozen=True)
    config = ENCODERS["bert"].to_dict()
    with pytest.raises(ValueError, match=r"token id 99.*knows 40 tokens"):
        check_tokens(config, vocab_size=100, length=6)
    with pytest.raises(ValueError, match="takes at most 512"):
        check_tokens(config, vocab_size=40, length=600)
    assert isinstance(build_text_encoder(config, frozen=False), TextEncoder)


@pytest.mark.parametrize("num_samples", [1, 15, 16, 17, 160, 161, 203])
@pytest.mark.parametrize(
    "ranks, at_once", [(1, 1), (1, 10), (2, 3), (3, 2), (7, 10), (10, 1), (20, 10), (33, 1), (160, 1)]
)
def test_a_plan_gives_every_place_once_and_every_rank_the_same_passes(num_samples, ranks, at_once):
    plan = EpochPlan(
        num_samples=num_samples,
        ghost_batch_size=16,
        ghost_batches_per_step=10,
        ghost_batches_per_forward=at_once,
        num_ranks=ranks,
    )
    places, per_step = [], []
    for step in range(plan.num_steps):
        taken = []
        for rank in range(ranks):
            own = plan.part(rank).places(16)
            for forward in range(plan.forwards_per_step):
                for ghost in plan.slots(step, forward, rank):
                    taken += plan.positions(step, ghost)[own.start : own.stop]
        per_step.append(len(taken))
        places += taken
    assert sorted(places) == list(range(num_samples))
    assert per_step == [plan.step_samples(step) for step in range(plan.num_steps)]
    assert plan.ghost_batches_at_once <= at_once


def test_a_plan_rejects_ranks_without_work():
    with pytest.raises(ValueError, match=r"161 ranks for 10 ghost batches of 16 samples per step.* at most 160 ranks"):
        EpochPlan(
            num_samples=99, ghost_batch_size=16, ghost_batches_per_step=10, ghost_batches_per_forward=1, num_ranks=161
        )
