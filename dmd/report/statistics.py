"""Means over seeds with their 95 % interval, and comparisons of configs on the same samples.

`compare` says of every pair of configs and every metric how large the difference is, in which interval it lies, whether
chance explains it, and how many seeds or samples would show a difference of a given size. What is drawn and swapped is
a unit: a whole video where it is known which samples are of one, since these are alike, else a sample. All comparisons
of one call share their resamples, and are corrected together.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri, stdtrit
from torch import Tensor

from dmd.metrics import METRICS, Scoring
from dmd.metrics.measure import SENTIMENTS, answers_as_read
from dmd.metrics.moments import Moments
from dmd.report.power import Variances, samples_needed, seeds_needed
from dmd.report.resampling import bootstrap_counts, is_exact, seed_weights, swaps

RESAMPLES = 10_000
LEVEL = 0.95
PERMUTATIONS_PER_ROW = 100
"""The least p value is a hundredth of what Holm's correction multiplies it with."""
VISIBLE = 0.01
"""The difference of a metric whose price in seeds and samples is told: .01 of the MAE, a point of per cent of Acc."""
_ROUNDING = 1e-12
"""Below which a statistic counts as equal to another."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A metric over the seeds of one config; std and interval are NaN for one seed, or where the mean is not finite."""

    count: int
    mean: float
    std: float
    """With n - 1 in the denominator."""
    half_width: float
    """Of the 95 % interval of the mean, by Student's t."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Pair:
    """Two configs on the same N samples."""

    name: str
    """Of the second."""
    first: NDArray[Any]
    """Answers [seeds, N] of the reference, sentiments or class numbers, or [seeds, N, L], emotions; a seed with an
    answer that is not finite has no metrics. The same array in several pairs is resampled once."""
    second: NDArray[Any]
    """[other seeds, N, ...]"""
    members: tuple[int, int] | None = None
    """Of two ensembles, whose answers are [1, N, ...], how many members each has."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A metric of the second config of a pair minus that of the first; NaN where the metric is not defined."""

    name: str
    seeds: tuple[int, int]
    """Of the first and of the second."""
    members: tuple[int, int] | None
    """See `Pair`."""
    metric: str
    mean: float
    low: float
    """Lower end of the 95 % interval: percentiles of the paired bootstrap over units and seeds."""
    high: float
    low_of_all: float = math.nan
    """Lower end of the simultaneous 95 % interval, which holds for all differences of a call together."""
    high_of_all: float = math.nan
    p: float
    """Of the paired permutation test over units, two-sided; NaN of a metric that is no mean over samples where the
    configs have different numbers of seeds."""
    p_of_all: float = math.nan
    """The same after Holm's correction over all differences of a call."""
    seeds_needed: float
    """Seeds of each config with which a difference of `visible` would be seen on these samples with a probability of
    80 %; infinity where no number of seeds is enough; NaN with one seed, of ensembles, and where nothing varied."""
    samples_needed: float
    """The same of samples, in videos like these, with the seeds that are there."""

    @property
    def is_shown(self) -> bool:
        """Whether the simultaneous interval excludes zero."""
        return self.low_of_all > 0 or self.high_of_all < 0


def summarise(values: Sequence[float]) -> Summary:
    """Mean, standard deviation and interval of at least one value."""
    count, mean = len(values), statistics.fmean(values)
    if count == 1 or not math.isfinite(mean):
        return Summary(count=count, mean=mean, std=math.nan, half_width=math.nan)
    std = statistics.stdev(values)
    half_width = float(stdtrit(count - 1, (1 + LEVEL) / 2)) * std / math.sqrt(count)
    return Summary(count=count, mean=mean, std=std, half_width=half_width)


def visible(metric: str, scoring: Scoring) -> float:
    """`VISIBLE` of a metric: of errors in the units of the labels as large a part of their range as of [-3, 3]."""
    row = METRICS[metric]
    is_error_of_labels = not row.unit and not row.higher_is_better
    return VISIBLE / scoring.scale if is_error_of_labels else VISIBLE


def compare(
    pairs: Sequence[Pair],
    labels: NDArray[Any],
    *,
    metrics: Sequence[str],
    scoring: Scoring = SENTIMENTS,
    videos: Sequence[str] = (),
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Difference]:
    """Compare configs on the same samples.

    - *Interval*: each resample draws units with replacement, the same ones for all configs, and seeds of each config;
      the metric of each seed is computed anew, and the interval is the percentile one, expanded for few units
      (Hesterberg 2015, section 5.3). A unit is a video with all its samples (cluster bootstrap; Davison and Hinkley
      1997, section 3.8), or a sample.
    - *Simultaneous interval*: the difference and, to both sides, its bootstrap standard error times one factor, the
      95 % quantile over resamples of the largest standardised deviation of any difference (max-t; Romano and Wolf
      2005), expanded as much.
    - *p*: each permutation swaps a random half of the units between the two configs. The statistic is the difference of
      the means over seeds of the metric; of a metric that is no mean over samples it takes as many seeds of both, whose
      answers are swapped in their order. All 2^U permutations of U units where these are no more than `resamples` and
      `PERMUTATIONS_PER_ROW` times the differences of the call, else (1 + as extreme) / (1 + permutations) of random
      ones (Phipson and Smyth 2010).

    Args:
        pairs: at least one.
        labels: [N], or [N, L].
        metrics: those to compare, rows with `resampled`.
        scoring: what the answers mean.
        videos: of each sample; empty: samples count as independent.
        resamples: how often units are drawn, and the least number of permutations where not all are tried.
        seed: of the draws.

    Returns:
        Every metric of the first pair, then of the next.
    """
    arrays = list({id(array): array for pair in pairs for array in (pair.first, pair.second)}.values())
    table = _Table(arrays, labels, metrics, scoring, videos)
    pairs_by_place = [(table.place(pair.first), table.place(pair.second)) for pair in pairs]
    draws = table.bootstrap(resamples, seed)
    permutations = max(resamples, PERMUTATIONS_PER_ROW * len(pairs) * len(metrics))
    p_values = table.permutations(pairs_by_place, permutations, seed)
    found, deviations = list[Difference](), list[NDArray[np.float64]]()
    for number, (pair, (one, two)) in enumerate(zip(pairs, pairs_by_place, strict=True)):
        for place, metric in enumerate(metrics):
            drawn = draws.of_config[two, place] - draws.of_config[one, place]
            mean = float(table.values[place][two].mean() - table.values[place][one].mean())
            low, high = _quantiles(drawn, mean, table.units)
            of_seeds, of_units = _variances(pair, draws, table, place, (one, two))
            size, fewest = visible(metric, scoring), min(len(pair.first), len(pair.second))
            found.append(
                Difference(
                    name=pair.name,
                    seeds=(len(pair.first), len(pair.second)),
                    members=pair.members,
                    metric=metric,
                    mean=mean,
                    low=low,
                    high=high,
                    p=p_values[number][place],
                    seeds_needed=math.nan if pair.members else seeds_needed(size, of_seeds, samples=table.units),
                    samples_needed=_in_samples(samples_needed(size, of_units, seeds=fewest), table),
                )
            )
            deviations.append(drawn - mean)
    return _corrected(found, deviations, table.units)


def _expansion(units: int) -> float:
    """How many times wider than a normal interval of the standard deviation over resamples that of U units is: by
    Student's t, and since resamples vary too little by the factor √((U - 1) / U)."""
    freedom = max(units - 1, 1)
    tail = (1 + LEVEL) / 2
    return float(math.sqrt((freedom + 1) / freedom) * stdtrit(freedom, tail) / ndtri(tail))


def _quantiles(drawn: NDArray[np.float64], mean: float, units: int) -> tuple[float, float]:
    """The percentile interval; resamples for which the metric is not defined are left out."""
    if math.isnan(mean):
        return math.nan, math.nan
    above = float(ndtr(_expansion(units) * ndtri((1 + LEVEL) / 2)))
    low, high = np.nanquantile(drawn, [1 - above, above])
    return float(low), float(high)


@dataclass(frozen=True, kw_only=True)
class _Draws:
    """Of every resample."""

    of_config: dict[tuple[int, int], NDArray[np.float64]]
    """(array, metric) -> the mean over the drawn seeds, [resamples]"""
    of_seeds: dict[tuple[int, int], NDArray[np.float64]]
    """(array, metric) -> each seed, [resamples, seeds]"""


class _Table:
    """The moments of all units by all configs and seeds.

    Args:
        arrays: answers [seeds, N, ...] of each config.
        videos: [N], or none.
    """

    def __init__(
        self,
        arrays: Sequence[NDArray[Any]],
        labels: NDArray[Any],
        metrics: Sequence[str],
        scoring: Scoring,
        videos: Sequence[str],
    ) -> None:
        self.samples = len(labels)
        self._ids = [id(array) for array in arrays]
        ends = np.cumsum([len(array) for array in arrays])
        self._rows = [slice(int(end) - len(array), int(end)) for end, array in zip(ends, arrays, strict=True)]
        answers, truth = torch.from_numpy(np.concatenate(arrays)), torch.from_numpy(labels)
        finite = answers.isfinite().flatten(1).all(1)
        answers[~finite] = 0
        self._rules = [_moments_of(metric) for metric in metrics]
        self._is_mean = [METRICS[metric].of_samples is not None for metric in metrics]
        unit_of = torch.from_numpy(np.unique(videos, return_inverse=True)[1]) if len(videos) else None
        self._moments = [
            _of_units(rule.of_samples(*answers_as_read(METRICS[metric].reads, answers, truth, scoring)), unit_of)
            for metric, rule in zip(metrics, self._rules, strict=True)
        ]
        """By metric, [seeds of all arrays, U, K]."""
        self.units = self._moments[0].shape[1]
        of_seeds = [
            rule.value(moments.sum(1)).masked_fill(~finite, math.nan)
            for rule, moments in zip(self._rules, self._moments, strict=True)
        ]
        self.values = [[values[rows].numpy() for rows in self._rows] for values in of_seeds]
        """By metric and array, of each seed, [seeds]."""

    def place(self, array: NDArray[Any]) -> int:
        """Which of the arrays it is."""
        return self._ids.index(id(array))

    def bootstrap(self, resamples: int, seed: int) -> _Draws:
        """The metrics of resamples."""
        generator = np.random.default_rng([seed, 1])
        joined = _joined(self._moments)
        blocks = list[list[Tensor]]()
        for counts in bootstrap_counts(self.units, resamples, columns=joined.shape[1], seed=seed):
            sums = _split(torch.from_numpy(counts) @ joined, self._moments)
            blocks.append([rule.value(part) for rule, part in zip(self._rules, sums, strict=True)])
        per_seed = [torch.cat(parts).numpy() for parts in zip(*blocks, strict=True)]  # [resamples, all seeds]
        of_config, of_seeds = {}, {}
        for number, rows in enumerate(self._rows):
            weights = seed_weights(rows.stop - rows.start, resamples, generator)
            for place, values in enumerate(per_seed):
                of_seeds[number, place] = values[:, rows]
                of_config[number, place] = (weights * values[:, rows]).sum(1)
        return _Draws(of_config=of_config, of_seeds=of_seeds)

    def permutations(self, pairs: Sequence[tuple[int, int]], permutations: int, seed: int) -> list[list[float]]:
        """The p value of each pair and metric."""
        single = [slice(number, number + 1) for number in range(len(self._rows))]
        rows_of = [single if is_mean else self._rows for is_mean in self._is_mean]
        moments = [
            torch.stack([of[rows].mean(0) for rows in self._rows]) if is_mean else of
            for of, is_mean in zip(self._moments, self._is_mean, strict=True)
        ]  # the metric of the mean over seeds is the mean of the metric, if that is a mean over samples
        joined = _joined(moments)
        counts, tried = np.zeros((len(pairs), len(moments))), 0
        tested = [
            [
                not math.isnan(self.values[place][one].mean() + self.values[place][two].mean())
                and rows[one].stop - rows[one].start == rows[two].stop - rows[two].start
                for place, rows in enumerate(rows_of)
            ]
            for one, two in pairs
        ]
        for block in swaps(self.units, permutations, columns=joined.shape[1], seed=seed):
            tried += len(block)
            taken = _split(torch.from_numpy(block) @ joined, moments)
            for place, (rule, of, part, rows) in enumerate(zip(self._rules, moments, taken, rows_of, strict=True)):
                sums = of.sum(1)
                for number, (one, two) in enumerate(pairs):
                    if not tested[number][place]:
                        continue
                    first, second = rows[one], rows[two]
                    moved = part[:, second] - part[:, first]
                    found = (rule.value(sums[second] - moved) - rule.value(sums[first] + moved)).mean(1).abs()
                    observed = (rule.value(sums[second]) - rule.value(sums[first])).mean().abs()
                    counts[number, place] += int((~(found < observed - _ROUNDING)).sum())
        if not is_exact(self.units, permutations):
            counts, tried = counts + 1, tried + 1
        return np.where(tested, counts / tried, math.nan).tolist()


def _of_units(moments: Tensor, unit_of: Tensor | None) -> Tensor:
    """Moments of samples [S, N, K] -> their sums over the samples of each unit, [S, U, K].

    Args:
        unit_of: the unit of each sample [N]; None: itself.
    """
    if unit_of is None:
        return moments
    units = int(unit_of.max()) + 1
    return moments.new_zeros(len(moments), units, moments.shape[2]).index_add_(1, unit_of, moments)


def _joined(moments: Sequence[Tensor]) -> Tensor:
    """Moments [S, U, K] of each metric -> [U, S * K of all metrics]."""
    return torch.cat([of.transpose(0, 1).flatten(1) for of in moments], 1)


def _split(sums: Tensor, moments: Sequence[Tensor]) -> list[Tensor]:
    """Sums [R, S * K of all metrics], of moments [S, U, K] -> of each metric [R, S, K]."""
    parts = sums.split([part.shape[0] * part.shape[2] for part in moments], 1)
    return [part.unflatten(1, (len(of), -1)) for part, of in zip(parts, moments, strict=True)]


def _moments_of(metric: str) -> Moments:
    moments = METRICS[metric].resampled
    assert moments is not None, metric
    return moments


def _variances(
    pair: Pair, draws: _Draws, table: _Table, place: int, places: tuple[int, int]
) -> tuple[Variances, Variances]:
    """What the difference of a metric varies by, with the number of seeds and with that of units, by the method of
    moments; NaN where nothing varied.

    A metric of one seed varies over resamples of the units by what the config as such and what the seed answers to
    them; that of the mean over n seeds, by the former and an n-th of the latter. So does the spread between seeds on
    these units: more units lessen the part of it that is their answers to them.
    """
    unknown = Variances(seeds=math.nan, samples=math.nan)
    if table.units < 2 or any(np.isnan(table.values[place][number]).any() for number in places):
        return unknown, unknown
    one, two = (draws.of_seeds[number, place] for number in places)
    of_both = float(np.nanvar(two.mean(1) - one.mean(1)))
    of_seeds = of_answers = of_means = 0.0
    if pair.members is None:
        for number, drawn in zip(places, (one, two), strict=True):
            count = drawn.shape[1]
            if count == 1:
                of_seeds = math.nan
                continue
            of_seeds += float(np.var(table.values[place][number], ddof=1))
            single, mean = float(np.nanvar(drawn, axis=0).mean()), float(np.nanvar(drawn.mean(1)))
            of_answers += (single - mean) * count / (count - 1)
            of_means += (single - mean) / (count - 1)
    varied_fully = table.units / (table.units - 1)  # resamples of U units vary too little by (U - 1) / U
    of_config = of_both - of_means
    if of_seeds <= _ROUNDING**2 and of_config <= _ROUNDING**2:
        return unknown, unknown
    of_units = varied_fully * table.units
    rest = of_seeds - varied_fully * of_answers
    return (
        Variances(seeds=of_seeds, samples=max(of_config, 0.0) * of_units),
        Variances(seeds=rest if math.isnan(rest) else max(rest, 0.0), samples=of_both * of_units),
    )


def _in_samples(units: float, table: _Table) -> float:
    """So many units, each with the mean number of samples, in samples."""
    return math.ceil(units * table.samples / table.units) if math.isfinite(units) else units


def _corrected(found: list[Difference], deviations: list[NDArray[np.float64]], units: int) -> list[Difference]:
    """With what holds for all of them together."""
    from statsmodels.stats.multitest import multipletests

    known = [number for number, one in enumerate(found) if not math.isnan(one.mean)]
    if not known:
        return found
    errors = np.array([np.nanstd(deviations[number]) for number in known])
    largest = np.zeros_like(deviations[0])
    for number, error in zip(known, errors, strict=True):
        if error > _ROUNDING:
            largest = np.fmax(largest, np.abs(deviations[number]) / error)
    factor = _expansion(units) * float(np.quantile(largest, LEVEL))
    complete = list(found)
    for number, error in zip(known, errors, strict=True):
        mean, half = found[number].mean, factor * float(error)
        complete[number] = replace(found[number], low_of_all=mean - half, high_of_all=mean + half)
    tested = [number for number in known if not math.isnan(found[number].p)]
    if tested:
        corrected = multipletests([found[number].p for number in tested], method="holm")[1]
        for number, p in zip(tested, corrected, strict=True):
            complete[number] = replace(complete[number], p_of_all=float(p))
    return complete
