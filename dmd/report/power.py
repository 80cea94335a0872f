"""How many seeds, or samples, a difference between two configs takes to be seen.

The difference of two means over n seeds and N samples has two variances: s / n, where s is what one seed of each
config adds, and t / N, where t is what one sample adds, on which both configs are measured. A t test sees it, whose
degrees of freedom are those of Satterthwaite (1946); its power is that of the noncentral t distribution. Where samples
come in videos, the N samples here are the videos.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from scipy.special import nctdtr, stdtrit

POWER = 0.8
LEVEL = 0.05
_MOST = 1 << 40
"""Seeds or samples beyond which a search ends."""


@dataclass(frozen=True, kw_only=True)
class Variances:
    """What the difference of a metric between two configs varies by."""

    seeds: float
    """The variance that one seed of each config adds, the sum over both; NaN where it is not known, 0 where seeds are
    no part of what is compared."""
    samples: float
    """The variance that one sample adds, of a mean over samples that of the paired difference."""


def power(difference: float, variances: Variances, *, seeds: int, samples: int) -> float:
    """How probable it is that a two-sided t test at 5 % sees a difference.

    Args:
        seeds: of each config, at least two unless they add nothing.
        samples: at least two, since one says nothing of what a sample adds.
    """
    assert samples > 1, samples
    assert seeds > 1 or not variances.seeds, seeds
    of_seeds, of_samples = variances.seeds / seeds, variances.samples / samples
    variance = of_seeds + of_samples
    if variance == 0:
        return 1.0
    freedom = of_samples**2 / (samples - 1)
    if of_seeds:
        freedom += of_seeds**2 / (2 * (seeds - 1))
    freedom = variance**2 / freedom
    noncentrality, limit = abs(difference) / math.sqrt(variance), stdtrit(freedom, 1 - LEVEL / 2)
    below, opposite = nctdtr(freedom, noncentrality, limit), nctdtr(freedom, noncentrality, -limit)
    if math.isnan(below):  # SciPy's answer far out, where the probability to stay below the limit is 0
        assert noncentrality > limit, (freedom, noncentrality, limit)
        return 1.0
    return float(1 - below + (0.0 if math.isnan(opposite) else opposite))


def seeds_needed(difference: float, variances: Variances, *, samples: int) -> float:
    """The fewest seeds of each config, at least 2, with which a difference is seen with a probability of 80 % on N
    samples.

    Returns:
        A whole number; infinity where no number of seeds is enough; NaN where the variances are not known, and with one
        sample, which says nothing of the others.
    """
    if samples < 2:
        return math.nan
    return _fewest(variances, lambda seeds: power(difference, variances, seeds=seeds, samples=samples))


def samples_needed(difference: float, variances: Variances, *, seeds: int) -> float:
    """The same of samples, with so many seeds of each config."""
    if variances.seeds and seeds < 2:
        return math.nan
    return _fewest(variances, lambda samples: power(difference, variances, seeds=seeds, samples=samples))


def _fewest(variances: Variances, power_of: Callable[[int], float]) -> float:
    """The smallest number, at least 2, whose power, which grows with it, is enough."""
    if math.isnan(variances.seeds) or math.isnan(variances.samples):
        return math.nan
    low, high = 1, 2
    while power_of(high) < POWER:
        low, high = high, 2 * high
        if high > _MOST:
            return math.inf
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power_of(middle) >= POWER else (middle, high)
    return high
