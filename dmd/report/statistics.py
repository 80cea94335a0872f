"""Means over seeds with their 95 % interval, and the paired bootstrap between two configs."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import stdtrit

from dmd.metrics import METRICS

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


def sample_scores(metric: str, predictions: NDArray[np.floating], labels: NDArray[np.floating]) -> NDArray[np.float64]:
    """What each sample adds to a metric that is a mean over samples; NaN where the protocol leaves it out.

    Predictions [..., N] (of classifiers class numbers) against labels [N] -> [..., N].
    """
    of_samples = METRICS[metric].of_samples
    assert of_samples is not None, metric
    return of_samples(torch.from_numpy(predictions), torch.from_numpy(labels)).double().numpy()


def paired_bootstrap(
    first: NDArray[np.floating],
    second: NDArray[np.floating],
    labels: NDArray[np.floating],
    *,
    metrics: Sequence[str],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Difference]:
    """Compare two configs on the same samples.

    Each resample draws samples with replacement, the same ones for both, and seeds of each config; the interval is
    the percentile one.

    Args:
        first: predictions [seeds, N] of the reference, sentiments or class numbers.
        second: predictions [other seeds, N].
        labels: [N].
        metrics: those to compare, each a mean over samples.
        resamples: how often samples are drawn.
        seed: of the draws.
    """
    generator = np.random.default_rng(seed)
    found = []
    for metric in metrics:
        scores = [sample_scores(metric, predictions, labels) for predictions in (first, second)]
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
