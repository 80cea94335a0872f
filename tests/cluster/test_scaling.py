"""The model of step time over ranks, and that its document shows what it says."""

import random
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.cluster_scaling import StepModel, line, predictions, spread

MODEL = StepModel(fixed=1.0, per_ghost_batch=2.0, gradient_bytes=100, jitter=0.1, bandwidth=10.0, latency=0.5)


def test_the_document_shows_what_the_model_says():
    assert predictions() in (Path(__file__).parents[2] / "docs" / "scaling.md").read_text()


def test_one_rank_waits_for_nobody():
    assert MODEL.seconds(1, 5) == 11.0
    assert MODEL.seconds(1, 5, crowding=2.0) == 22.0


def test_the_terms_of_two_ranks():
    assert MODEL.reduce(2) == pytest.approx(2 * 0.5 * 100 / 10 + 2 * 2 * 0.5)
    assert MODEL.reduce(8) == pytest.approx(2 * 7 / 8 * 100 / 10 + 2 * 6 * 0.5)
    still = StepModel(fixed=1.0, per_ghost_batch=2.0, gradient_bytes=0, jitter=0.0, bandwidth=1.0, latency=0.0)
    assert still.seconds(2, 5) == 7.0, "the rank with three of five ghost batches decides"


def test_ranks_that_share_ghost_batches():
    still = StepModel(fixed=1.0, per_ghost_batch=16.0, gradient_bytes=0, jitter=0.0, bandwidth=1.0, latency=0.25)
    assert [still.compute(ranks, 2) for ranks in (2, 3, 4, 6, 32)] == [17.0, 17.0, 9.0, 7.0, 2.0]
    assert still.seconds(2, 2) == 17.0 + 2 * 2 * 0.25
    assert still.seconds(4, 2) == 9.0 + 2 * 4 * 0.25 + 2 * 2 * 0.25


@pytest.mark.parametrize(("hides", "shown"), [(0.0, 10.0), (4.0, 6.0), (8.0, 3.0), (100.0, 3.0)])
def test_backward_hides_all_but_the_last_bucket(hides, shown):
    overlapped = replace(MODEL, buckets=4, last_bucket_bytes=30, hides=hides)
    assert overlapped.reduce(2) == pytest.approx(shown + 5 * 2 * 0.5)


@pytest.mark.parametrize("ranks", [2, 8, 64])
def test_the_slowest_of_many_draws(ranks):
    generator = random.Random(0)
    slowest = statistics.fmean(max(generator.gauss(1, 0.1) for _ in range(ranks)) for _ in range(4000))
    compute = MODEL.compute(ranks, ranks) / 3.0
    assert compute == pytest.approx(slowest, abs=0.005)


def test_the_fit():
    assert line({2: 5.0, 8: 17.0}) == pytest.approx((1.0, 2.0))
    generator = random.Random(0)
    draws = [generator.gauss(10, 1) for _ in range(3000)]
    assert spread([*draws, 1000.0]) == pytest.approx(0.1, abs=0.01)
