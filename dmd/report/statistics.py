"""Means over seeds with their 95 % interval, and the paired bootstrap between two configs."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import stdtrit

from dmd.metrics import METRICS, Scoring
from dmd.metrics.measure import SENTIMENTS

RESAMPLES = 10_000
LEVEL = 0.95


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A metric over the seeds of one config; std and interval are NaN for one seed, or where the mean is not finite."""

    count: int
    mean: float
    std: float
    """With n - 1 in the denominator."""
    half_width: float
    """Of the 95 % interval of the mean, by Student's t."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A metric of the second config minus that of the first."""

    metric: str
    mean: float
    low: float
    """Lower end of the 95 % interval."""
    high: float
    p: float
    """Twice the smaller share of resamples on either side of zero."""


def summarise(values: Sequence[float]) -> Summary:
    """Mean, standard deviation and interval of at least one value."""
    count, mean = len(values), statistics.fmean(values)
    if count == 1 or not math.isfinite(mean):
        return Summary(count=count, mean=mean, std=math.nan, half_width=math.nan)
    std = statistics.stdev(values)
    half_width = float(stdtrit(count - 1, (1 + LEVEL) / 2)) * std / math.sqrt(count)
    return Summary(count=count, mean=mean, std=std, half_width=half_width)


def sample_scores(metric: str, answers: NDArray[Any], labels: NDArray[Any], scoring: Scoring) -> NDArray[np.float64]:
    """What each sample adds to a metric that is a mean over samples; NaN where the protocol leaves it out.

    Answers [..., N] (class numbers of classifiers) or [..., N, L] (emotions) against labels [N] or [N, L] -> [..., N].
    """
    row = METRICS[metric]
    assert row.of_samples is not None, metric
    given, truth = torch.from_numpy(answers), torch.from_numpy(labels)
    if row.reads == "stored":
        given, truth = scoring.stored(given), scoring.stored(truth)
    return row.of_samples(given, truth).double().numpy()


def paired_bootstrap(
    first: NDArray[Any],
    second: NDArray[Any],
    labels: NDArray[Any],
    *,
    metrics: Sequence[str],
    scoring: Scoring = SENTIMENTS,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Difference]:
    """Compare two configs on the same samples.

    Each resample draws samples with replacement, the same ones for both, and seeds of each config; the interval is
    the percentile one.

    Args:
        first: answers [seeds, N] of the reference, sentiments or class numbers, or [seeds, N, L], emotions.
        second: answers [other seeds, N, ...].
        labels: [N], or [N, L].
        metrics: those to compare, each a mean over samples.
        scoring: what the answers mean.
        resamples: how often samples are drawn.
        seed: of the draws.
    """
    generator = np.random.default_rng(seed)
    found = []
    for metric in metrics:
        scores = [sample_scores(metric, answers, labels, scoring) for answers in (first, second)]
        kept = ~np.isnan(scores[0][0])
        if not kept.any():
            continue
        one, two = (score[:, kept] for score in scores)
        draws = np.empty(resamples)
        for number in range(resamples):
            rows = generator.integers(one.shape[1], size=one.shape[1])
            a = one[generator.integers(len(one), size=len(one))][:, rows].mean()
            b = two[generator.integers(len(two), size=len(two))][:, rows].mean()
            draws[number] = b - a
        low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        p = min(1.0, 2 * min(float((draws <= 0).mean()), float((draws >= 0).mean())))
        found.append(
            Difference(metric=metric, mean=float(two.mean() - one.mean()), low=float(low), high=float(high), p=p)
        )
    return found
