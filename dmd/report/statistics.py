"""Means over seeds with their 95 % interval, and comparisons of configs on the same samples.

`compare` says of every pair of configs and every metric how large the difference is, in which interval it lies, whether
chance explains it, and how many seeds or samples would show a difference of a given size. All comparisons of one call
share their resamples, and are corrected together.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import stdtrit
from torch import Tensor

from dmd.metrics import METRICS, Scoring
from dmd.metrics.emotions import one_of
from dmd.metrics.measure import SENTIMENTS
from dmd.metrics.moments import Moments
from dmd.report.power import Variances, samples_needed, seeds_needed
from dmd.report.resampling import bootstrap_counts, is_exact, seed_weights, swaps

RESAMPLES = 10_000
LEVEL = 0.95
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
    """Answers [seeds, N] of the reference, sentiments or class numbers, or [seeds, N, L], emotions. The same array in
    several pairs is resampled once."""
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
    """Lower end of the 95 % interval: percentiles of the paired bootstrap over samples and seeds."""
    high: float
    low_of_all: float = math.nan
    """Lower end of the simultaneous 95 % interval, which holds for all differences of a call together."""
    high_of_all: float = math.nan
    p: float
    """Of the paired permutation test over samples, two-sided."""
    p_of_all: float = math.nan
    """The same after Holm's correction over all differences of a call."""
    seeds_needed: float
    """Seeds of each config with which a difference of `VISIBLE` would be seen on these samples with a probability of
    80 %; infinity where no number of seeds is enough; NaN with one seed, of ensembles, and where nothing varied."""
    samples_needed: float
    """The same of samples, with the seeds that are there."""

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


def compare(
    pairs: Sequence[Pair],
    labels: NDArray[Any],
    *,
    metrics: Sequence[str],
    scoring: Scoring = SENTIMENTS,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Difference]:
    """Compare configs on the same samples.

    - *Interval*: each resample draws samples with replacement, the same ones for all configs, and seeds of each config;
      the metric of each seed is computed anew, and the interval is the percentile one.
    - *Simultaneous interval*: the difference and, to both sides, its bootstrap standard error times one factor, the
      95 % quantile over resamples of the largest standardised deviation of any difference (max-t; Romano and Wolf
      2005).
    - *p*: each permutation swaps a random half of the samples between the two configs. The statistic of a mean over
      samples is the difference of the means over seeds; of another metric it is the difference of the metrics of all
      seeds' answers pooled. All 2^N permutations where these are no more than `resamples`, else
      (1 + as extreme) / (1 + resamples) of random ones (Phipson and Smyth 2010).

    Args:
        pairs: at least one.
        labels: [N], or [N, L].
        metrics: those to compare, rows with `resampled`.
        scoring: what the answers mean.
        resamples: how often samples are drawn, and how many permutations are.
        seed: of the draws.

    Returns:
        Every metric of the first pair, then of the next.
    """
    arrays = list({id(array): array for pair in pairs for array in (pair.first, pair.second)}.values())
    table = _Table(arrays, labels, metrics, scoring)
    pairs_by_place = [(table.place(pair.first), table.place(pair.second)) for pair in pairs]
    draws = table.bootstrap(resamples, seed)
    p_values = table.permutations(pairs_by_place, resamples, seed)
    found, deviations = list[Difference](), list[NDArray[np.float64]]()
    for number, (pair, (one, two)) in enumerate(zip(pairs, pairs_by_place, strict=True)):
        for place, metric in enumerate(metrics):
            drawn = draws.of_config[two, place] - draws.of_config[one, place]
            mean = float(table.values[place][two].mean() - table.values[place][one].mean())
            low, high = _quantiles(drawn, mean)
            variances = _variances(pair, draws, table, place, (one, two))
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
                    seeds_needed=math.nan if pair.members else seeds_needed(VISIBLE, variances, samples=table.samples),
                    samples_needed=samples_needed(VISIBLE, variances, seeds=min(len(pair.first), len(pair.second))),
                )
            )
            deviations.append(drawn - mean)
    return _corrected(found, deviations)


def _quantiles(drawn: NDArray[np.float64], mean: float) -> tuple[float, float]:
    """The percentile interval; resamples for which the metric is not defined are left out."""
    if math.isnan(mean):
        return math.nan, math.nan
    low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


@dataclass(frozen=True, kw_only=True)
class _Draws:
    """Of every resample."""

    of_config: dict[tuple[int, int], NDArray[np.float64]]
    """(array, metric) -> the mean over the drawn seeds, [resamples]"""
    of_seeds: dict[tuple[int, int], NDArray[np.float64]]
    """(array, metric) -> each seed, [resamples, seeds]"""


class _Table:
    """The moments of all samples by all configs and seeds.

    Args:
        arrays: answers [seeds, N, ...] of each config.
    """

    def __init__(
        self, arrays: Sequence[NDArray[Any]], labels: NDArray[Any], metrics: Sequence[str], scoring: Scoring
    ) -> None:
        self.samples = len(labels)
        self._ids = [id(array) for array in arrays]
        ends = np.cumsum([len(array) for array in arrays])
        self._rows = [slice(int(end) - len(array), int(end)) for end, array in zip(ends, arrays, strict=True)]
        answers = torch.from_numpy(np.concatenate(arrays))
        self._rules = [_moments_of(metric) for metric in metrics]
        self._moments = [
            rule.of_samples(*_as_read(metric, answers, torch.from_numpy(labels), scoring))
            for metric, rule in zip(metrics, self._rules, strict=True)
        ]
        self.values = [
            [rule.value(moments[rows].mean(1)).numpy() for rows in self._rows]
            for rule, moments in zip(self._rules, self._moments, strict=True)
        ]
        """By metric and array, of each seed, [seeds]."""

    def place(self, array: NDArray[Any]) -> int:
        """Which of the arrays it is."""
        return self._ids.index(id(array))

    def bootstrap(self, resamples: int, seed: int) -> _Draws:
        """The metrics of resamples."""
        generator = np.random.default_rng([seed, 1])
        joined = torch.cat([moments.transpose(0, 1).flatten(1) for moments in self._moments], 1)
        blocks = list[list[Tensor]]()
        for counts in bootstrap_counts(self.samples, resamples, seed=seed):
            means = _split(torch.from_numpy(counts) @ joined / self.samples, self._moments)
            blocks.append([rule.value(part) for rule, part in zip(self._rules, means, strict=True)])
        per_seed = [torch.cat(parts).numpy() for parts in zip(*blocks, strict=True)]  # [resamples, all seeds]
        of_config, of_seeds = {}, {}
        for number, rows in enumerate(self._rows):
            weights = seed_weights(rows.stop - rows.start, resamples, generator)
            for place, values in enumerate(per_seed):
                of_seeds[number, place] = values[:, rows]
                of_config[number, place] = (weights * values[:, rows]).sum(1)
        return _Draws(of_config=of_config, of_seeds=of_seeds)

    def permutations(self, pairs: Sequence[tuple[int, int]], resamples: int, seed: int) -> list[list[float]]:
        """The p value of each pair and metric."""
        pooled = [
            torch.stack([moments[rows].mean(0) for rows in self._rows]) for moments in self._moments
        ]  # [arrays, N, K]
        joined = torch.cat([moments.transpose(0, 1).flatten(1) for moments in pooled], 1)
        counts, tried = np.zeros((len(pairs), len(pooled))), 0
        for block in swaps(self.samples, resamples, seed=seed):
            tried += len(block)
            taken = _split(torch.from_numpy(block) @ joined / self.samples, pooled)
            for place, (rule, moments, part) in enumerate(zip(self._rules, pooled, taken, strict=True)):
                means = moments.mean(1)
                for number, (one, two) in enumerate(pairs):
                    moved = part[:, two] - part[:, one]
                    found = (rule.value(means[two] - moved) - rule.value(means[one] + moved)).abs()
                    observed = (rule.value(means[two]) - rule.value(means[one])).abs()
                    counts[number, place] += int((~(found < observed - _ROUNDING)).sum())
        if not is_exact(self.samples, resamples):
            counts, tried = counts + 1, tried + 1
        defined = [
            [not math.isnan(values[one].mean() + values[two].mean()) for values in self.values] for one, two in pairs
        ]
        return np.where(defined, counts / tried, math.nan).tolist()


def _split(means: Tensor, moments: Sequence[Tensor]) -> list[Tensor]:
    """Means [R, arrays * K of all metrics], of moments [arrays, N, K] -> of each metric [R, arrays, K]."""
    parts = means.split([part.shape[0] * part.shape[2] for part in moments], 1)
    return [part.unflatten(1, (len(of), -1)) for part, of in zip(parts, moments, strict=True)]


def _moments_of(metric: str) -> Moments:
    moments = METRICS[metric].resampled
    assert moments is not None, metric
    return moments


def _as_read(metric: str, answers: Tensor, labels: Tensor, scoring: Scoring) -> tuple[Tensor, Tensor]:
    """Answers [..., N, ...] and labels as a metric reads them."""
    reads = METRICS[metric].reads
    if reads == "stored":
        return scoring.stored(answers), scoring.stored(labels)
    if reads == "emotions" and scoring.kind == "classes":
        return one_of(answers, scoring.outputs), one_of(labels, scoring.outputs)
    return answers, labels > 0 if scoring.kind == "multilabel" else labels


def _variances(pair: Pair, draws: _Draws, table: _Table, place: int, places: tuple[int, int]) -> Variances:
    """What the difference of a metric varies by, by the method of moments; NaN where nothing varied.

    A metric of one seed varies over resamples of the samples by what the config as such and what the seed answers to
    them; that of the mean over n seeds, by the former and an n-th of the latter.
    """
    if any(np.isnan(table.values[place][number]).any() for number in places):
        return Variances(seeds=math.nan, samples=math.nan)
    one, two = (draws.of_seeds[number, place] for number in places)
    of_samples = float(np.nanvar(two.mean(1) - one.mean(1)))
    of_seeds = 0.0
    if pair.members is None:
        for number, drawn in zip(places, (one, two), strict=True):
            count = drawn.shape[1]
            if count == 1:
                of_seeds = math.nan
                continue
            of_seeds += float(np.var(table.values[place][number], ddof=1))
            single, mean = float(np.nanvar(drawn, axis=0).mean()), float(np.nanvar(drawn.mean(1)))
            of_samples -= (single - mean) / (count - 1)
    if of_seeds <= _ROUNDING**2 and of_samples <= _ROUNDING**2:
        return Variances(seeds=math.nan, samples=math.nan)
    return Variances(seeds=of_seeds, samples=max(of_samples, 0.0) * table.samples)


def _corrected(found: list[Difference], deviations: list[NDArray[np.float64]]) -> list[Difference]:
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
    factor = float(np.quantile(largest, LEVEL))
    corrected = multipletests([found[number].p for number in known], method="holm")[1]
    complete = list(found)
    for number, error, p in zip(known, errors, corrected, strict=True):
        mean, half = found[number].mean, factor * float(error)
        complete[number] = replace(found[number], low_of_all=mean - half, high_of_all=mean + half, p_of_all=float(p))
    return complete
