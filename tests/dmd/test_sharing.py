"""Ranks that share ghost batches have the losses and gradients of one rank: real processes and collectives."""

import os
import signal
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from dmd.config import Config, TrainConfig
from dmd.data.loader import Batch
from dmd.data.plan import EpochPlan
from dmd.distributed.sharing import join_sharing
from dmd.losses import ObjectiveConfig
from dmd.losses.sharing import Part, Sharing
from dmd.model.config import kind_of
from dmd.system.models import MODELS
from dmd.system.system import TrainingSystem
from dmd.training.step import _suspects, ghost_weights, make_rng
from launch.supervision.lost import lost_peers
from tests.support.ranks import PATIENCE, forks
from tests.support.small_system import LENGTHS, SIZES, small_model

SIZE = 5
"""Samples of a ghost batch: no number of ranks divides it."""
MINUTE = timedelta(minutes=1)
TASKS: dict[str, dict[str, Any]] = {
    "sentiments": {},
    "classes": {"task": 3},
    "emotions": {"task": "multilabel", "emotions": 3},
}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[int, ...]]] = {
    "as published": ({}, {}, (5, 5)),
    "short": ({}, {}, (5, 2)),
    "nothing in the last": ({}, {}, (4, 0)),
    "cosine over channels": ({"orthogonality": "feature", "prior": "none"}, {}, (5, 3)),
    "constant margin": ({"margin": "constant", "prior": "uniform", "homo_distillation": False}, {}, (5, 5)),
    "smoothed margin": ({"margin_smoothing": 0.7, "hetero_distillation": False}, {}, (5, 5)),
    "classes": ({}, {"task": 3}, (5, 4)),
    "emotions": ({}, {"task": "multilabel", "emotions": 3}, (5, 4)),
    "emotions, smoothed margin": ({"margin_smoothing": 3}, {"task": "multilabel", "emotions": 3}, (3, 5)),
    "two passes": ({"consistency": 2.0}, {}, (5, 3)),
    "two passes, classes": ({"consistency": 0.5}, {"task": 3}, (5, 4)),
    "not decoupled": ({}, {"decoupling": False}, (5, 5)),
    **{
        f"{name}, {what}": ({}, {"name": name, **task}, (5, 4))
        for name in MODELS
        if name != "dmd"
        for what, task in TASKS.items()
        if kind_of(task.get("task", "regression")) in MODELS[name].kinds
    },
    **{f"{name}, two passes": ({"consistency": 2.0}, {"name": name}, (5, 4)) for name in ("misa", "self_mm")},
}
"""Objective, model, and the valid samples of two ghost batches; with one ghost batch it is the last."""
WORLDS = ((2, 1), (2, 2), (3, 2), (4, 1), (4, 2))
"""Ranks, ghost batches of a step."""


def build(case: str, ghosts: int, dtype: torch.dtype) -> tuple[TrainingSystem, Config]:
    objective, model, _ = CASES[case]
    train = TrainConfig(ghost_batch_size=SIZE, ghost_batches_per_step=ghosts, kernels="plain", precision="fp32")
    own = small_model(model.get("name", "dmd"), **{key: value for key, value in model.items() if key != "name"})
    config = replace(Config(), objective=ObjectiveConfig(**objective), model=own, train=train)
    torch.manual_seed(0)
    info: Any = SimpleNamespace(dims=SIZES, lengths=LENGTHS)
    return TrainingSystem(config, info, None, torch.device("cpu")).to(dtype), config


def own_batch(case: str, ghosts: tuple[int, ...], of: int, part: Part, dtype: torch.dtype) -> Batch:
    """A rank's part of the ghost batches of a step of `of`."""
    generator = torch.Generator().manual_seed(3)
    every = {m: torch.randn(2, SIZE, LENGTHS[m], SIZES[m], generator=generator).to(dtype) for m in SIZES}
    labels = torch.randint(-2, 3, (2, SIZE), generator=generator).to(dtype) / 2
    if emotions := CASES[case][1].get("emotions", 0):
        labels = torch.randint(2, (2, SIZE, emotions), generator=generator).to(dtype)
    valid = torch.tensor(CASES[case][2][-of:])
    mask = (torch.arange(SIZE) < valid[:, None]).float()
    chosen = list(ghosts)
    places = part.places(SIZE)
    slots = [min(place, SIZE - 1) for place in range(places.start, places.start + part.slots(SIZE))]
    return Batch(
        **{m: features[chosen][:, slots].flatten(0, 1) for m, features in every.items()},
        labels=labels[chosen],
        mask=mask[chosen],
        rows=torch.arange(len(chosen) * SIZE).view(-1, SIZE),
        ghosts=ghosts,
        part=part,
    )


def share(case: str, of: int, rank: int, ranks: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """What a rank adds to the step's loss terms and gradients."""
    system, config = build(case, of, dtype)
    plan = EpochPlan(
        num_samples=of * SIZE,
        ghost_batch_size=SIZE,
        ghost_batches_per_step=of,
        ghost_batches_per_forward=of,
        num_ranks=ranks,
    )
    system.objective.sharing = join_sharing(plan, rank, MINUTE)
    batch = own_batch(case, tuple(plan.slots(0, 0, rank)), of, plan.part(rank), dtype)
    rng = make_rng(batch, config, step=7, forward=0, device=system.device, keys=system.fresh_keys())
    terms = system.terms(batch, rng)
    weights = ghost_weights(batch, sum(CASES[case][2][-of:]))
    (terms["total"] * weights).sum().backward()
    sums = {name: torch.tensordot(weights.to(dtype), term.detach(), dims=1) for name, term in terms.items()}
    return sums | {f"gradient of {name}": p.grad for name, p in system.named_parameters() if p.grad is not None}


def run_rank(job: str, rank: int, ranks: int, folder: Path, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=ranks, timeout=MINUTE)
    torch.save(globals()[job](rank, ranks, *arguments), folder / f"rank{rank}")
    with suppress(RuntimeError):  # a peer that a test has killed
        dist.barrier()
    dist.destroy_process_group()


def run_ranks(job: str, ranks: int, folder: Path, *arguments: Any, killed: tuple[int, ...] = ()) -> list[Any]:
    """The results of a function of this module on each rank, but for those that it kills."""
    folder.mkdir()
    processes = [forks.Process(target=run_rank, args=(job, rank, ranks, folder, arguments)) for rank in range(ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join()
    assert codes == [-signal.SIGKILL if rank in killed else 0 for rank in range(ranks)]
    return [torch.load(folder / f"rank{rank}") for rank in range(ranks) if rank not in killed]


def cases_of(ghosts: int) -> list[str]:
    """The cases whose last ghost batches are not all without samples."""
    return [case for case, (_, _, valid) in CASES.items() if sum(valid[-ghosts:])]


def sums_of_cases(rank: int, ranks: int, ghosts: int) -> dict[str, dict[str, Tensor]]:
    """Sums over the ranks, of every case, and of the first one as it is trained, in float32."""
    results = {case: share(case, ghosts, rank, ranks, torch.float64) for case in cases_of(ghosts)}
    results["float32"] = share("as published", ghosts, rank, ranks, torch.float32)
    for tensors in results.values():
        for tensor in tensors.values():
            dist.all_reduce(tensor)
    return results


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm().clamp(min=1e-3))


@pytest.mark.multiproc
@pytest.mark.parametrize(("ranks", "ghosts"), WORLDS)
def test_ranks_that_share_a_ghost_batch_have_the_losses_and_gradients_of_one(tmp_path, ranks, ghosts):
    """With dropout; every rank has the same sums."""
    results = run_ranks("sums_of_cases", ranks, tmp_path / "ranks", ghosts)
    for case in cases_of(ghosts):
        wanted = share(case, ghosts, 0, 1, torch.float64)
        for found in results:
            assert found[case].keys() == wanted.keys()
            errors = {name: error(found[case][name], want) for name, want in wanted.items()}
            assert max(errors.values()) < 1e-10, (case, errors)
    wanted = share("as published", ghosts, 0, 1, torch.float32)
    gradients = [name for name in wanted if name.startswith("gradient of ")]
    assert all(wanted[f"gradient of objective.{space}.repr.weight"].any() for space in ("homo", "hetero"))
    for found in results:
        assert error(found["float32"]["total"], wanted["total"]) < 1e-6
        one, other = (torch.cat([of[name].flatten() for name in gradients]) for of in (found["float32"], wanted))
        assert error(one, other) < 1e-6


def left_alone(rank: int, ranks: int) -> bool:
    """Whether rank 0 takes a peer of its group that is gone for lost."""
    sharing = Sharing(Part(rank, ranks), dist.new_group(list(range(ranks)), timeout=MINUTE))
    dist.barrier()  # both have connected
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        sharing.gather([torch.ones(1, 3)], SIZE)
    except RuntimeError as error:
        return lost_peers(error)
    return False


@pytest.mark.multiproc
def test_a_peer_that_is_gone_is_lost(tmp_path):
    assert run_ranks("left_alone", 2, tmp_path / "ranks", killed=(1,)) == [True]


def test_a_shared_ghost_batch_that_spoils_a_step_is_named_once():
    nothing = torch.tensor([torch.nan])
    batches = [own_batch("short", (0,), 1, Part(number, 2), torch.float32) for number in range(2)]
    assert [_suspects([batch], [nothing]) for batch in batches] == [[[0, 1, 2, 3, 4]], []]


@pytest.mark.parametrize(("ranks", "groups"), [(2, [range(2)]), (7, [range(3), range(3, 7)])])
def test_neighbours_share(ranks, groups):
    plan = EpochPlan(
        num_samples=99,
        ghost_batch_size=SIZE,
        ghost_batches_per_step=len(groups),
        ghost_batches_per_forward=1,
        num_ranks=ranks,
    )
    assert plan.sharers == groups
    for ghost, group in enumerate(groups):
        assert [plan.slots(0, 0, rank) for rank in group] == [[ghost]] * len(group)
        places = [place for rank in group for place in plan.part(rank).places(SIZE)]
        assert places == list(range(SIZE))
        assert all(plan.part(rank).places(SIZE) for rank in group), "no part is empty"
    assert plan.samples_at_once == {2: 3, 7: 2}[ranks]
