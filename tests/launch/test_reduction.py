"""Gradients over the ranks: buckets that start while backward runs, what travels in bfloat16, lost peers in between."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.utils import safe_get_full_optimizer_state
from torch import Tensor, nn

from dmd.config import Config, TrainConfig
from dmd.config.loading import load_config
from dmd.data.loader import training_steps
from dmd.data.plan import EpochPlan
from dmd.system.joined_weights import JoinedWeights
from dmd.training.step import train_step
from launch.trainer.build import build_system
from launch.trainer.deepspeed_config import deepspeed_config
from launch.trainer.engine import DeepSpeedEngine
from launch.trainer.preflight import open_shards, plan_training
from launch.trainer.reduction import GradientReduction, divided
from launch.trainer.zero_state import gather_moment
from tests.support.ranks import TINY, assert_bitwise, assert_close, finish, last, losses, on_ranks, train

KILLED, LOST = 137, 69
WIDTH, LAYERS = 8, 4
MANY = "train.reduce_bucket_mb=0.002"
"""Some twenty buckets of TINY's 10,000 parameters."""
ONE = "train.reduce_bucket_mb=1000"


class Stack(nn.Module):
    """Layers without bias, and one weight that no loss reads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS))
        self.unread = nn.ParameterList([torch.ones(3)])

    def loss(self, seed: int, at_first_layer: Callable[[Tensor], None] | None = None) -> Tensor:
        """Of random samples; `at_first_layer` is called in backward when only the first layer's gradient is missing."""
        hidden = self.layers[0](torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(seed)))
        if at_first_layer is not None:
            hidden.register_hook(at_first_layer)
        for layer in self.layers[1:]:
            hidden = layer(hidden).tanh()
        return hidden.square().sum()

    forward = loss


def gradients(stack: Stack) -> list[Tensor]:
    return [torch.zeros(0) if p.grad is None else p.grad.clone() for p in stack.parameters()]


def joined(stack: Stack, capacity: int) -> list[JoinedWeights]:
    """Its weights, the last ones first, in runs of so many elements."""
    names = {parameter: name for name, parameter in stack.named_parameters()}
    runs = divided(list(stack.parameters())[::-1], capacity)
    return [JoinedWeights({names[parameter]: parameter for parameter in run}) for run in runs]


def reduced(stack: Stack, weights: list[JoinedWeights]) -> list[Tensor]:
    """The gradient of each parameter out of the joined ones."""
    found = {}
    for each in weights:
        found |= zip(each.parameters, each.parts(each.whole.grad), strict=True)
    return [found[name].clone() for name, _ in stack.named_parameters()]


def _two_passes(rank: int, _: Path) -> dict[str, Any]:
    """The sum of two passes reduced in float32 and in bfloat16, and the buckets under way at each point."""
    result: dict[str, Any] = {}
    for precision in (torch.float32, torch.bfloat16):
        stack = Stack()
        weights = joined(stack, 2 * WIDTH * WIDTH)
        reduction = GradientReduction(weights, precision=precision)

        def under_way(reduction: GradientReduction = reduction) -> int:
            return sum(bucket.work is not None for bucket in reduction.buckets)

        seen: list[int] = []
        stack.loss(10 * rank, lambda _, seen=seen: seen.append(under_way())).backward()
        own = gradients(stack)
        seen.append(under_way())
        with reduction:
            stack.loss(10 * rank + 1, lambda _, seen=seen: seen.append(under_way())).backward()
            seen.append(under_way())
        seen.append(under_way())
        result[str(precision)] = reduced(stack, weights)
        assert all(parameter.grad is None for parameter in weights[0].parameters.values()), "kept twice"
        result["seen"] = seen
        result["buckets"] = len(reduction.buckets)
        again = Stack()
        for seed in (10 * rank, 10 * rank + 1):
            again.loss(seed).backward()
        result["first pass"], result["own"] = own, gradients(again)
    result["as a graph gives them"] = _joined_by_autograd(rank)
    return result


def _joined_by_autograd(rank: int) -> list[Tensor]:
    """The reduced gradient of one pass of which autograd gives each bucket's as one tensor."""
    stack = Stack()
    weights = joined(stack, 2 * WIDTH * WIDTH)
    parts: dict[str, Tensor] = {}
    for each in weights:
        parts |= zip(each.parameters, each.differentiable_parts(each.whole), strict=True)
    with GradientReduction(weights, precision=torch.float32):
        torch.func.functional_call(stack, parts, (rank,)).backward()
    return reduced(stack, weights)


@pytest.mark.multiproc
@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3])
def test_buckets_start_in_the_last_pass_and_bring_the_average(tmp_path, ranks):
    found = on_ranks(_two_passes, tmp_path, ranks)
    for one in found:
        assert one["buckets"] == 3, "the unread weight and the last layer, two layers, the first layer"
        first_pass, after_it, at_first_layer, at_the_end, left = one["seen"]
        assert (first_pass, after_it, left) == (0, 0, 0)
        assert at_first_layer == 2, "every bucket but that of the first layer"
        assert at_the_end == 3
        assert one["first pass"][0].numel(), "gradients stay with the weights until the last pass"
    for place in range(LAYERS):
        each = [one["own"][place] for one in found]
        sums, sizes = torch.stack(each).sum(0) / ranks, torch.stack(each).abs().sum(0) / ranks
        exact, rounded = (found[0][str(precision)][place] for precision in (torch.float32, torch.bfloat16))
        assert exact.dtype == rounded.dtype == torch.float32
        torch.testing.assert_close(exact, sums, rtol=1e-6, atol=1e-7)
        bound = ranks * 2.0**-8 * sizes * 1.01  # every gradient is rounded once, and every sum of two
        assert ((rounded - exact).abs() <= bound).all()
        assert ((rounded - exact).abs() > 2.0**-14 * sizes).any(), "nothing was rounded"
        for other in found[1:]:
            for precision in (torch.float32, torch.bfloat16):
                assert torch.equal(other[str(precision)][place], found[0][str(precision)][place])
    assert all(torch.equal(one[str(torch.float32)][-1], torch.zeros(3)) for one in found)
    passes = []
    for rank in range(ranks):
        stack = Stack()
        stack.loss(rank).backward()
        passes.append(gradients(stack)[:LAYERS])
    for one in found:
        for got, *of_ranks in zip(one["as a graph gives them"], *passes, strict=False):
            torch.testing.assert_close(got, torch.stack(of_ranks).mean(0), rtol=1e-6, atol=1e-7)


def _alone(_: int, __: Path) -> dict[str, Any]:
    stack = Stack()
    weights = joined(stack, 2 * WIDTH * WIDTH)
    reduction = GradientReduction(weights, precision=torch.bfloat16)
    with reduction:
        stack.loss(0).backward()
    again = Stack()
    again.loss(0).backward()
    return {"buckets": len(reduction.buckets), "reduced": reduced(stack, weights), "own": gradients(again)}


@pytest.mark.multiproc
@pytest.mark.slow
def test_one_rank_rounds_nothing(tmp_path):
    (found,) = on_ranks(_alone, tmp_path, 1)
    assert found["buckets"] == 0
    *read, unread = found["reduced"]
    assert all(torch.equal(mine, own) for mine, own in zip(read, found["own"][:-1], strict=True))
    assert torch.equal(unread, torch.zeros(3))


def test_how_parameters_are_divided():
    sizes = [5, 3, 9, 1, 1, 40, 2]
    groups = divided([nn.Parameter(torch.zeros(size)) for size in sizes], 10)
    assert [[parameter.numel() for parameter in group] for group in groups] == [[5, 3], [9, 1], [1], [40], [2]]


def test_what_deepspeed_is_told():
    plan = EpochPlan(
        num_samples=99, ghost_batch_size=16, ghost_batches_per_step=10, ghost_batches_per_forward=5, num_ranks=2
    )
    config = Config(train=TrainConfig(zero_stage=1, reduce_precision="bf16", reduce_bucket_mb=3))
    told = deepspeed_config(config, plan)
    assert told["communication_data_type"] == "bf16"
    assert told["zero_optimization"] == {"stage": 1, "overlap_comm": True, "reduce_bucket_size": 1_500_000}
    plain = deepspeed_config(replace(config, train=TrainConfig()), plan)
    assert plain["communication_data_type"] == "fp32"
    assert plain["zero_optimization"]["reduce_bucket_size"] == 6_250_000


def test_the_config_rejects_other_values():
    with pytest.raises(ValueError, match=r"train\.reduce_bucket_mb is 0\.0; it must be above 0"):
        load_config(None, ["train.reduce_bucket_mb=0"])
    with pytest.raises(ValueError, match=r"train\.reduce_precision"):
        load_config(None, ["train.reduce_precision=fp16"])


def _collectives(rank: int, folder: Path) -> dict[str, Any]:
    """All-reduces of a step of two passes, as torch's profiler counts them."""
    config = load_config(None, ["model.task=regression", *TINY, "train.ghost_batches_per_forward=2", ONE])
    reader = open_shards(folder / "shards", config)
    plan = plan_training(config, reader, folder / "run", 2)
    system, _ = build_system(config, reader.index.info, torch.device("cpu"))
    engine = DeepSpeedEngine(system, config, plan, torch.device("cpu"))
    passes = next(iter(training_steps(reader, plan, config.data, seed=0, rank=rank, epoch=0)))
    assert len(passes) == 2
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        result = train_step(
            engine, passes, config, plan, step=0, step_in_epoch=0, flags=lambda: (False, rank == 1, True)
        )
    counts = {event.key: event.count for event in profile.key_averages() if event.key.startswith("c10d::")}
    return {"counts": counts, "raised": result.raised}


@pytest.mark.multiproc
@pytest.mark.slow
def test_a_step_reduces_its_gradient_once_and_its_terms_with_the_decision(shards, tmp_path):
    (tmp_path / "shards").symlink_to(shards)
    for found in on_ranks(_collectives, tmp_path):
        assert found["counts"] == {"c10d::allreduce_": 2}
        assert found["raised"] == [False, True, True], "one rank's flag is everyone's"


def _gathered(rank: int, folder: Path) -> dict[str, Any]:
    """Moments after a step, gathered in small buffers, at once, and by DeepSpeed, and the collectives."""
    config = load_config(None, ["model.task=regression", *TINY, (folder / "stage").read_text()])
    reader = open_shards(folder / "shards", config)
    plan = plan_training(config, reader, folder / "run", 2)
    system, _ = build_system(config, reader.index.info, torch.device("cpu"))
    engine = DeepSpeedEngine(system, config, plan, torch.device("cpu"))
    passes = next(iter(training_steps(reader, plan, config.data, seed=0, rank=rank, epoch=0)))
    train_step(engine, passes, config, plan, step=0, step_in_epoch=0, flags=lambda: (False, False, False))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        state = engine.optimizer_state()
    parameters = [parameter for parameter in system.parameters() if parameter.requires_grad]
    return {
        "counts": {event.key: event.count for event in profile.key_averages() if event.key.startswith("c10d::")},
        "state": [moment for name, moment in state.items() if name.startswith("exp_avg/")],
        "small": gather_moment(parameters, "exp_avg", capacity=100),
        "by_deepspeed": [safe_get_full_optimizer_state(parameter, "exp_avg") for parameter in parameters],
    }


@pytest.mark.multiproc
@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_a_checkpoint_at_zero_gathers_each_moment_at_once(shards, tmp_path, stage):
    (tmp_path / "shards").symlink_to(shards)
    (tmp_path / "stage").write_text(f"train.zero_stage={stage}")
    for found in on_ranks(_gathered, tmp_path):
        assert found["counts"] == {"c10d::allreduce_": 2}
        assert any(moment.any() for moment in found["state"])
        for at_once, small, its in zip(found["state"], found["small"], found["by_deepspeed"], strict=True):
            assert torch.equal(at_once, its)
            assert torch.equal(small, its)


@pytest.mark.multiproc
@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_buckets_change_no_number(shards, reference, tmp_path, stage):
    """Two numbers add up to the same in either order, so two ranks give bitwise the same in one bucket and in many."""
    zero, passes = f"train.zero_stage={stage}", "train.ghost_batches_per_forward=2"
    finish(shards, tmp_path / "run", zero, passes, MANY, ranks=2)
    assert_bitwise(tmp_path / "run", reference(zero, passes, ONE, ranks=2))
    assert_close(tmp_path / "run", reference(ranks=1))


@pytest.mark.multiproc
@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_bf16_is_near_and_a_resumed_run_may_change_it_with_ranks_and_stage(shards, reference, tmp_path, stage):
    run, zero = tmp_path / "run", f"train.zero_stage={stage}"
    finish(shards, run, zero, MANY, "train.reduce_precision=bf16", "train.max_steps=3", ranks=2)
    exact, rounded = losses(reference(ranks=1))[:3], losses(run)
    assert rounded[0][1] == pytest.approx(exact[0][1], rel=1e-6), "before the first update"
    for (_, mine), (_, its) in zip(rounded, exact, strict=True):
        assert mine == pytest.approx(its, rel=1e-3)
    assert rounded[1:] != losses(reference(ranks=2))[1:3], "nothing was rounded"
    finish(shards, run, "train.max_steps=6", ranks=1)
    finish(shards, run, "train.zero_stage=1", "train.reduce_precision=bf16", ranks=3)
    assert last(run).step == 10
    assert last(run).optimizer["step"] == 10


@pytest.mark.multiproc
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_rank_that_dies_with_buckets_under_way_is_lost_and_costs_nothing(shards, reference, tmp_path, precision):
    run, settings = tmp_path / "run", (MANY, "train.save_every=2", f"train.reduce_precision={precision}")
    ended = train(shards, run, *settings, ranks=2, DMD_FAULT="kill:bucket@70@1")
    assert ended.codes == [LOST, KILLED], ended.output
    assert "lost the other ranks" in ended.output
    ended = train(shards, run, *settings, ranks=2, DMD_FAULT="bug:bucket@50@0")
    assert ended.codes == [1, 1], ended.output
    assert "rank 0 on" in ended.output
    finish(shards, run, *settings, ranks=2)
    assert_bitwise(run, reference(*settings, ranks=2))
