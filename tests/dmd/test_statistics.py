"""Comparisons of configs: metrics of resamples, permutations, corrections, and how many seeds a difference takes."""

import gc
import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy import stats
from statsmodels.stats.power import TTestIndPower, TTestPower

from dmd.metrics import METRICS, Scoring, head_metrics, in_view
from dmd.metrics.measure import answers_as_read
from dmd.metrics.table import metrics_of
from dmd.report.power import POWER, Variances, power, samples_needed, seeds_needed
from dmd.report.resampling import is_exact
from dmd.report.statistics import PERMUTATIONS_PER_ROW, VISIBLE, Difference, Pair, compare, visible

SCORINGS = [
    Scoring(),
    Scoring(scale=1.5, offset=3.0),
    Scoring(protocol="sims", scale=3.0),
    Scoring(kind="classes", protocol="classes", outputs=4),
    Scoring(kind="classes", protocol="iemocap", outputs=4),
    Scoring(kind="multilabel", protocol="emotions", outputs=3, names=("a", "b", "c")),
    Scoring(kind="multilabel", protocol="iemocap", outputs=3, names=("a", "b", "c")),
]


@pytest.fixture(autouse=True, scope="module")
def few_objects() -> Iterator[None]:
    """`multipletests` collects garbage in each call, which takes long beside all that is imported."""
    gc.freeze()
    yield
    gc.unfreeze()


def answers_of(scoring: Scoring, predictions: torch.Tensor) -> torch.Tensor:
    if scoring.kind == "regression":
        return predictions
    return predictions.argmax(-1) if scoring.kind == "classes" else predictions > 0


def split_of(scoring: Scoring, samples: int, generator: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions as a head gives them, and labels."""
    if scoring.kind == "regression":
        stored = np.round(generator.uniform(-3, 3, samples) * 5) / 5
        stored[: samples // 10] = 0
        noisy = stored + generator.normal(size=samples)
        return tuple(torch.from_numpy(values / scoring.scale + scoring.offset) for values in (noisy, stored))
    logits = torch.from_numpy(generator.normal(size=(samples, scoring.outputs)))
    if scoring.kind == "classes":
        return logits, torch.from_numpy(generator.integers(scoring.outputs, size=samples).astype(np.float64))
    return logits, torch.from_numpy(generator.integers(2, size=(samples, scoring.outputs)).astype(np.float64))


@pytest.mark.parametrize("scoring", SCORINGS, ids=lambda one: f"{one.protocol}-{one.kind}-{one.scale}")
def test_a_metric_of_means_is_the_metric(scoring):
    """Of all samples, and of a resample, by its means alone."""
    generator = np.random.default_rng(0)
    predictions, labels = split_of(scoring, 150, generator)
    rows = [row for row in metrics_of(scoring.protocol, scoring.kind, scoring.titles) if row.name in METRICS]
    drawn = torch.from_numpy(generator.integers(150, size=150))
    all_metrics, of_drawn = (head_metrics(predictions[k], labels[k], scoring) for k in (torch.arange(150), drawn))
    counts = drawn.bincount(minlength=150).double()
    compared = [row for row in rows if row.resampled is not None]
    assert set(in_view("bootstrap", all_metrics)) <= {row.name for row in compared}
    for row in compared:
        given, truth = answers_as_read(row.reads, answers_of(scoring, predictions), labels, scoring)
        moments = row.resampled.of_samples(given, truth)
        assert float(row.resampled.value(moments.mean(0))) == pytest.approx(all_metrics[row.name], abs=1e-9), row.name
        weighted = row.resampled.value(counts @ moments / 150)
        assert float(weighted) == pytest.approx(of_drawn[row.name], abs=1e-9), row.name


def test_a_metric_of_means_is_undefined_where_the_metric_is():
    scoring = SCORINGS[5]
    for name, answers, labels, of in (
        ("corr", torch.full((5,), 0.3), torch.arange(5.0), Scoring()),
        ("acc2_non0", torch.ones(5), torch.zeros(5), Scoring()),
        ("f1_non0", torch.ones(5), torch.zeros(5), Scoring()),
        ("wacc_mean", torch.ones(5, 3).bool(), torch.ones(5, 3), scoring),
    ):
        moments = METRICS[name].resampled
        found = moments.value(moments.of_samples(*answers_as_read(METRICS[name].reads, answers, labels, of)).mean(0))
        assert math.isnan(found), name


def one(found: list[Difference], metric: str) -> Difference:
    return next(difference for difference in found if difference.metric == metric)


def test_few_samples_are_permuted_in_all_ways():
    """Against an enumeration of the metrics of all swaps of answers, and SciPy's permutation test."""
    generator = np.random.default_rng(3)
    labels = generator.uniform(-3, 3, 9)
    first, second = labels + generator.normal(size=(1, 9)), labels + 0.6 + generator.normal(size=(1, 9))
    found = compare([Pair(name="b", first=first, second=second)], labels, metrics=["mae", "corr"])
    assert is_exact(9, 10_000)

    def difference(metric: str, swapped: np.ndarray) -> float:
        a, b = (np.where(swapped, x, y)[0] for x, y in ((second, first), (first, second)))
        of = [head_metrics(torch.from_numpy(answers), torch.from_numpy(labels))[metric] for answers in (a, b)]
        return of[1] - of[0]

    for metric in ("mae", "corr"):
        every = [abs(difference(metric, np.array(swap))) for swap in itertools.product([False, True], repeat=9)]
        observed = abs(difference(metric, np.zeros(9, dtype=bool)))
        expected = np.mean([value >= observed - 1e-9 for value in every])
        assert one(found, metric).p == pytest.approx(expected, abs=1e-12)
    errors = [np.abs(answers[0] - labels) for answers in (first, second)]
    scipy = stats.permutation_test(
        errors, lambda x, y, axis: (y - x).mean(axis), permutation_type="samples", vectorized=True, n_resamples=np.inf
    )
    assert one(found, "mae").p == pytest.approx(scipy.pvalue)


def test_a_video_counts_once_however_often_its_sample_is_repeated():
    """Three equal samples a video are what one sample is; and the samples that a difference takes are three times as
    many."""
    generator = np.random.default_rng(11)
    labels = generator.uniform(-3, 3, 30)
    first, second = labels + generator.normal(size=(2, 30)), labels + 0.2 + generator.normal(size=(2, 30))
    metrics = ["mae", "corr", "acc2_non0", "f1_non0"]
    single = compare([Pair(name="b", first=first, second=second)], labels, metrics=metrics, resamples=300)
    thrice = Pair(name="b", first=first.repeat(3, 1), second=second.repeat(3, 1))
    videos = [f"{number:02}" for number in range(30) for _ in range(3)]
    together = compare([thrice], labels.repeat(3), metrics=metrics, videos=videos, resamples=300)
    apart = compare([thrice], labels.repeat(3), metrics=metrics, resamples=300)
    for one_each, by_video, by_sample in zip(single, together, apart, strict=True):
        for field in ("mean", "low", "high", "low_of_all", "high_of_all", "p", "p_of_all", "seeds_needed"):
            assert getattr(by_video, field) == pytest.approx(getattr(one_each, field), abs=1e-9), field
        assert by_video.samples_needed == 3 * one_each.samples_needed
        assert by_sample.high - by_sample.low < 0.8 * (by_video.high - by_video.low)


def test_videos_are_swapped_in_all_ways_and_the_metric_is_the_mean_over_seeds():
    """Against an enumeration of the metrics of all swaps of five videos of other lengths."""
    generator = np.random.default_rng(12)
    video = np.repeat([3, 0, 4, 1, 2], [2, 5, 3, 1, 4])
    labels = generator.uniform(-3, 3, len(video))
    first = labels + generator.normal(size=(2, len(video)))
    second = labels + 0.5 + 1.2 * generator.normal(size=(2, len(video)))
    pair = Pair(name="b", first=first, second=second)
    found = compare([pair], labels, metrics=["mae", "corr", "f1_has0"], videos=[str(number) for number in video])

    def metrics_of_sides(swap: tuple[bool, ...]) -> list[dict[str, float]]:
        """Of the seeds of the first config, then of the second, with videos swapped."""
        swapped = np.array(swap)[video]
        answers = [*np.where(swapped, second, first), *np.where(swapped, first, second)]
        return [head_metrics(torch.from_numpy(seed), torch.from_numpy(labels)) for seed in answers]

    every = [metrics_of_sides(swap) for swap in itertools.product([False, True], repeat=5)]
    for metric in ("mae", "corr", "f1_has0"):
        differences = [(c[metric] + d[metric] - a[metric] - b[metric]) / 2 for a, b, c, d in every]
        observed = differences[0]
        assert one(found, metric).mean == pytest.approx(observed)
        expected = np.mean([abs(value) >= abs(observed) - 1e-9 for value in differences])
        assert one(found, metric).p == pytest.approx(expected)


def test_seeds_that_have_no_partner_are_not_swapped():
    """Only a mean over samples is the same of the mean over seeds."""
    generator = np.random.default_rng(13)
    labels = generator.uniform(-3, 3, 40)
    pair = Pair(name="b", first=labels + generator.normal(size=(3, 40)), second=labels + generator.normal(size=(2, 40)))
    mae, corr = compare([pair], labels, metrics=["mae", "corr"], resamples=200)
    assert mae.p == mae.p_of_all > 0, "the correction is over one p value"
    assert math.isnan(corr.p)
    assert math.isnan(corr.p_of_all)
    assert corr.low < corr.mean < corr.high, "its interval is there"


def test_permutations_are_enough_for_the_correction():
    """The least p value of many rows is below 5 % after it."""
    generator = np.random.default_rng(14)
    labels = generator.uniform(-3, 3, 100)
    first, second = labels[None] + 0.1, labels[None] + generator.normal(size=(1, 100)) + 2
    pairs = [Pair(name=str(number), first=first, second=second) for number in range(3)]
    found = compare(pairs, labels, metrics=["mae"], resamples=50)
    least = 1 / (1 + 3 * PERMUTATIONS_PER_ROW)
    assert [difference.p for difference in found] == pytest.approx(3 * [least])
    assert [difference.p_of_all for difference in found] == pytest.approx(3 * [3 * least])


def test_an_answer_that_is_not_finite_is_not_left_out():
    """The metrics of its config are not defined; others are what they are without it."""
    generator = np.random.default_rng(15)
    labels = generator.uniform(-3, 3, 60)
    first, second = (labels + generator.normal(size=(2, 60)) for _ in range(2))
    broken = second.copy()
    broken[1, 7] = math.nan
    pairs = [Pair(name="b", first=first, second=second), Pair(name="c", first=first, second=broken)]
    metrics = ["mae", "corr", "acc7", "f1_has0"]
    found = compare(pairs, labels, metrics=metrics, resamples=200)
    for difference in found[4:]:
        for field in ("mean", "low", "high_of_all", "p", "p_of_all", "seeds_needed", "samples_needed"):
            assert math.isnan(getattr(difference, field)), field
    for difference, alone in zip(found, compare(pairs[:1], labels, metrics=metrics, resamples=200), strict=False):
        assert (difference.low, difference.high) == (alone.low, alone.high)


def test_a_difference_that_is_seen_has_the_units_of_the_metric():
    doubled = Scoring(scale=0.5)
    assert visible("mae", Scoring()) == visible("corr", doubled) == visible("acc7", doubled) == VISIBLE
    assert visible("mae", doubled) == 2 * VISIBLE, "of labels in [-6, 6]"
    assert visible("mae_sims", Scoring(protocol="sims", scale=3.0)) == VISIBLE / 3


def test_many_samples_are_permuted_at_random():
    generator = np.random.default_rng(4)
    labels = generator.uniform(-3, 3, 200)
    first = labels + generator.normal(size=(3, 200))
    second = labels + 1.06 * generator.normal(size=(2, 200))
    found = one(compare([Pair(name="b", first=first, second=second)], labels, metrics=["mae"]), "mae")
    errors = [np.abs(answers - labels).mean(0) for answers in (first, second)]
    scipy = stats.permutation_test(
        errors,
        lambda x, y, axis: (y - x).mean(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=10_000,
        rng=1,
    )
    assert 0.02 < found.p < 0.98
    assert found.p == pytest.approx(scipy.pvalue, abs=0.03), "both draw at random"
    assert found == one(compare([Pair(name="b", first=first, second=second)], labels, metrics=["mae"]), "mae")


def test_holms_correction_by_hand():
    """Four differences: the smallest p times 4, the next times 3, and none below the one before."""
    generator = np.random.default_rng(5)
    labels = generator.uniform(-3, 3, 150)
    reference = labels + generator.normal(size=(1, 150))
    others = [labels + scale * generator.normal(size=(1, 150)) for scale in (1.0, 1.1, 1.25, 1.5)]
    pairs = [Pair(name=str(n), first=reference, second=other) for n, other in enumerate(others)]
    found = compare(pairs, labels, metrics=["mae"], resamples=2_000)
    ordered = sorted(found, key=lambda difference: difference.p)
    largest = 0.0
    for number, difference in enumerate(ordered):
        largest = max(largest, min(1.0, (len(ordered) - number) * difference.p))
        assert difference.p_of_all == pytest.approx(largest)
    assert ordered[0].p < ordered[0].p_of_all
    for difference in found:
        assert difference.low_of_all < difference.low < difference.mean < difference.high < difference.high_of_all
    alone = compare(pairs[:1], labels, metrics=["mae"], resamples=2_000)[0]
    assert alone.p_of_all == alone.p == found[0].p
    assert alone.high_of_all - alone.low_of_all < found[0].high_of_all - found[0].low_of_all


def test_simultaneous_intervals_hold_together():
    """Of 30 reports on ten configs that are all alike, few show any difference; many have a 95 % interval that does."""
    shown, alone = 0, 0
    for trial in range(30):
        generator = np.random.default_rng([7, trial])
        labels = generator.uniform(-3, 3, 60)
        reference, *others = (labels + generator.normal(size=(1, 60)) for _ in range(10))
        pairs = [Pair(name=str(n), first=reference, second=other) for n, other in enumerate(others)]
        found = compare(pairs, labels, metrics=["mae"], resamples=200)
        shown += any(difference.is_shown for difference in found)
        alone += any(difference.low > 0 or difference.high < 0 for difference in found)
    assert stats.binomtest(shown, 30, 0.05, alternative="greater").pvalue > 0.01
    assert alone > 3, "without a correction"


def test_a_metric_that_is_not_defined_is_no_part_of_the_correction():
    generator = np.random.default_rng(8)
    labels = generator.uniform(-3, 3, 80)
    first, constant = labels[None] + generator.normal(size=(2, 80)), np.full((2, 80), 0.1)
    mae, corr = compare([Pair(name="b", first=first, second=constant)], labels, metrics=["mae", "corr"], resamples=500)
    assert mae.is_shown
    assert mae.p_of_all == mae.p
    assert not corr.is_shown
    for value in (corr.mean, corr.low, corr.high_of_all, corr.p, corr.p_of_all):
        assert math.isnan(value)


def test_needed_numbers_are_those_of_the_t_test():
    for size, spread in ((0.5, 1.0), (1.5, 1.0), (0.01, 0.03)):
        independent = TTestIndPower().solve_power(effect_size=size / spread, power=POWER, alpha=0.05)
        fixed = Variances(seeds=2 * spread**2, samples=0.0)
        assert seeds_needed(size, fixed, samples=100) == max(2, math.ceil(independent))
        paired = TTestPower().solve_power(effect_size=size / spread, power=POWER, alpha=0.05)
        assert samples_needed(size, Variances(seeds=0.0, samples=spread**2), seeds=1) == max(2, math.ceil(paired))
    assert seeds_needed(0.1, Variances(seeds=1.0, samples=10.0), samples=20) == math.inf, "too few samples"
    assert samples_needed(0.01, Variances(seeds=1.0, samples=1.0), seeds=3) == math.inf, "too few seeds"
    assert math.isnan(seeds_needed(0.1, Variances(seeds=math.nan, samples=1.0), samples=20))
    assert math.isnan(seeds_needed(0.1, Variances(seeds=1.0, samples=0.0), samples=1)), "one sample"


def test_power_far_out_is_one():
    """Where SciPy's noncentral t has no number."""
    for freedom in (1, 2, 29, 10_000, 100_000_000):
        for size in (38, 50, 1e3, 1e6):
            variances = Variances(seeds=0.0, samples=float(freedom + 1))
            found = power(size, variances, seeds=1, samples=freedom + 1)
            assert found == pytest.approx(1, abs=0.05), (freedom, size)


def test_needed_seeds_show_a_difference_in_four_of_five_experiments():
    """Experiments in which configs, seeds and samples have spreads of their own, and seeds answer to samples."""
    generator = np.random.default_rng(9)
    samples, of_config, of_seed, of_both = 100, 0.015, 0.007, 0.03

    def experiment(seeds: int, shift: float) -> Difference:
        common = 3 + 0.1 * generator.normal(size=samples)
        first, second = (
            common
            + step
            + of_config * generator.normal(size=samples)
            + of_seed * generator.normal(size=(seeds, 1))
            + of_both * generator.normal(size=(seeds, samples))
            for step in (0, shift)
        )
        pair = Pair(name="b", first=first, second=second)
        return compare([pair], np.zeros(samples), metrics=["mae"], resamples=400)[0]

    truth = Variances(seeds=2 * (of_seed**2 + of_both**2 / samples), samples=2 * of_config**2)
    needed = int(seeds_needed(VISIBLE, truth, samples=samples))
    assert power(VISIBLE, truth, seeds=needed - 1, samples=samples) < POWER
    assert 10 < needed < 40
    found = [experiment(needed, VISIBLE) for _ in range(40)]
    seen = sum(one.low > 0 for one in found)
    assert stats.binomtest(seen, len(found), POWER).pvalue > 0.01, seen
    estimated = np.median([one.seeds_needed for one in found])
    assert estimated == pytest.approx(needed, rel=0.3)
    apart = Variances(seeds=2 * of_seed**2, samples=2 * (of_config**2 + of_both**2 / needed))
    estimated = np.median([one.samples_needed for one in found])
    assert estimated == pytest.approx(samples_needed(VISIBLE, apart, seeds=needed), rel=0.3)


def test_seeds_are_asked_of_seeds_and_samples_of_all():
    generator = np.random.default_rng(10)
    labels = generator.uniform(-3, 3, 100)
    first, second = (labels + generator.normal(size=(3, 100)) for _ in range(2))
    ensembles = [answers.mean(0, keepdims=True) for answers in (first, second)]
    single, ensemble, alone = compare(
        [
            Pair(name="b", first=first, second=second),
            Pair(name="b", first=ensembles[0], second=ensembles[1], members=(3, 3)),
            Pair(name="b", first=first[:1], second=second[:1]),
        ],
        labels,
        metrics=["mae"],
        resamples=500,
    )
    assert single.seeds == (3, 3)
    assert single.seeds_needed >= 2
    assert math.isnan(ensemble.seeds_needed)
    assert ensemble.samples_needed > 100
    assert math.isnan(alone.seeds_needed)
    assert math.isnan(alone.samples_needed), "one seed says nothing of the spread between seeds"
