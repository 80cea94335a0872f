"""Means over seeds with their 95 % interval, and the paired bootstrap between two configs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

COMPARED = ("mae", "acc7", "acc2_has0", "acc2_non0")
CLASS_COMPARED = ("acc",)
"""Metrics that are means over samples, which the bootstrap compares; the second of a classifier."""
RESAMPLES = 10_000
LEVEL = 0.95


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A metric over the seeds of one config; std and interval are NaN for one seed."""

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
    array = np.asarray(values, dtype=np.float64)
    count = len(array)
    std = float(array.std(ddof=1)) if count > 1 else float("nan")
    width = float(student.ppf((1 + LEVEL) / 2, count - 1)) * std / count**0.5 if count > 1 else float("nan")
    return Summary(count=count, mean=float(array.mean()), std=std, half_width=width)


def sample_scores(metric: str, predictions: NDArray[np.floating], labels: NDArray[np.floating]) -> NDArray[np.float64]:
    """What each sample adds to a metric of `COMPARED`; NaN where the protocol leaves it out.

    Predictions [..., N] (for `acc` class numbers) against labels [N] -> [..., N]; the mean over samples is the metric.
    """
    if metric == "acc":
        return np.equal(predictions, labels).astype(np.float64)
    if metric == "mae":
        return np.abs(predictions - labels).astype(np.float64)
    if metric == "acc7":
        return np.equal(np.round(np.clip(predictions, -3, 3)), np.round(np.clip(labels, -3, 3))).astype(np.float64)
    if metric == "acc2_has0":
        return np.equal(predictions >= 0, labels >= 0).astype(np.float64)
    assert metric == "acc2_non0", metric
    return np.where(labels != 0, np.equal(predictions > 0, labels > 0).astype(np.float64), np.nan)


def paired_bootstrap(
    first: NDArray[np.floating], second: NDArray[np.floating], labels: NDArray[np.floating], *,
    metrics: Sequence[str] = COMPARED, resamples: int = RESAMPLES, seed: int = 0,
) -> list[Difference]:
    """Compare two configs on the same samples.

    Each resample draws samples with replacement, the same ones for both, and seeds of each config; the interval is
    the percentile one.

    Args:
        first: predictions [seeds, N] of the reference, sentiments or class numbers.
        second: predictions [other seeds, N].
        labels: [N].
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
        found.append(Difference(
            metric=metric, mean=float(two.mean() - one.mean()), low=float(low), high=float(high), p=p
        ))
    return found
