"""R-Drop: the distance of two predictions, and a pass that holds each sample twice."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from dmd.data.plan import EMPTY
from dmd.kernels.dropout.keys import SECOND_PASS, number_samples
from dmd.kernels.dropout.rng import DropoutRNG
from dmd.losses import ObjectiveConfig
from dmd.losses.consistency import distance
from dmd.metrics import Scoring
from dmd.report.names import page
from dmd.system.models import MODELS
from dmd.training.logging.tensorboard_layout import layout
from dmd.training.step import make_rng
from tests.support.small_system import SAMPLES, make_batch, make_system

CPU = torch.device("cpu")
WEIGHT = 3.0
TWO_PASSES = ObjectiveConfig(consistency=WEIGHT)


def test_distances_are_those_of_their_formulas():
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 4, 5, 3, generator=generator, dtype=torch.float64)
    assert distance(first, second, "regression").equal((first - second) ** 2)
    p, q = first.log_softmax(-1), second.log_softmax(-1)
    both = F.kl_div(p, q, reduction="none", log_target=True) + F.kl_div(q, p, reduction="none", log_target=True)
    torch.testing.assert_close(distance(first, second, "classes"), both.sum(-1) / 2)
    of_one = [torch.stack([x.sigmoid(), 1 - x.sigmoid()]) for x in (first, second)]  # [2, ...]
    both = sum((a * (a.log() - b.log())).sum(0) for a, b in (of_one, of_one[::-1]))
    torch.testing.assert_close(distance(first, second, "multilabel"), both.mean(-1) / 2)
    for kind in ("regression", "classes", "multilabel"):
        assert not distance(first, first, kind).any()


def test_two_passes_are_the_mean_of_each_and_their_distance():
    """The first one draws what a training without consistency draws."""
    system, config = make_system("plain", "cpu", objective=TWO_PASSES)
    batch = make_batch(0, "cpu")
    joined = system.terms(batch, make_rng(batch, config, step=5, forward=0, device=CPU))
    single = replace(config, objective=ObjectiveConfig())
    system.config = single
    rngs = [
        make_rng(batch, single, step=5, forward=0, device=CPU),
        DropoutRNG(
            seed=config.train.seed,
            step=5,
            samples=number_samples([SECOND_PASS + ghost for ghost in batch.ghosts], range(SAMPLES)),
            device=CPU,
        ),
    ]
    passes = [system.terms(batch, rng) for rng in rngs]
    fused = []
    for rng in rngs:
        rng.restart()
        fused.append(system.predict(batch, rng).predictions["fused"].view(batch.mask.shape))
    for name, term in passes[0].items():
        if name != "total":
            torch.testing.assert_close(joined[name], (term + passes[1][name]) / 2, msg=name)
    torch.testing.assert_close(joined["consistency"], (fused[0] - fused[1]).square().mean(1))
    assert joined["consistency"].min() > 0
    wanted = (passes[0]["total"] + passes[1]["total"]) / 2 + WEIGHT * joined["consistency"]
    torch.testing.assert_close(joined["total"], wanted)


def test_what_a_ghost_batch_gets_does_not_depend_on_those_that_run_with_it():
    system, config = make_system("plain", "cpu", objective=TWO_PASSES)
    batch = make_batch(0, "cpu")
    rng = make_rng(batch, config, step=2, forward=0, device=CPU)
    whole = system.terms(batch, rng)
    rows = slice(SAMPLES, 2 * SAMPLES)
    alone = replace(
        batch,
        **{name: getattr(batch, name)[rows] for name in ("text", "audio", "vision")},
        **{name: getattr(batch, name)[1:] for name in ("labels", "mask", "rows")},
        ghosts=batch.ghosts[1:],
    )
    terms = system.terms(alone, make_rng(alone, config, step=2, forward=1, device=CPU))
    for name, term in terms.items():
        torch.testing.assert_close(term, whole[name][1:], msg=name)


def test_slots_without_a_ghost_batch_draw_masks_of_their_own():
    _, config = make_system("plain", "cpu", objective=TWO_PASSES)
    batch = replace(make_batch(0, "cpu"), ghosts=(0, EMPTY))
    states = make_rng(batch, config, step=0, forward=3, device=CPU).states
    assert len(states.unique()) == len(states) == 4 * SAMPLES


def test_a_negative_weight_is_rejected():
    with pytest.raises(ValueError, match=r"objective\.consistency is -1; it must be at least 0"):
        ObjectiveConfig(consistency=-1)


def test_tensorboard_and_the_list_of_names_have_the_term():
    for name, row in MODELS.items():
        charts = layout(Scoring(), row.objective_class(), consistency=1.0)["objective"]
        assert charts["consistency"] == ["Multiline", ["train/consistency$"]]
        assert "consistency" not in layout(Scoring(), row.objective_class())["objective"]
        assert f"| `{name}` | `consistency` | `objective.consistency` | distance of the fused predictions" in page()
