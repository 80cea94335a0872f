"""Whether a model's uncertainty can be believed, and one number that mends it.

Of sentiments an uncertainty is a standard deviation, and intervals around a prediction are those of a normal
distribution: `coverage_curve` says how many errors lie inside, `fit_scale` finds the factor of the standard deviations
(Kuleshov et al., ICML 2018; Levi et al., Sensors 2022). Of classes and emotions it is a probability:
`reliability_curve` and `expected_calibration_error` compare it with how often it is right, `fit_temperature` finds what
logits are divided by (Guo et al., ICML 2017). Both numbers are fitted on a validation split and change no prediction.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

LEVELS = 20
"""The coverage curve has the levels 1/20 to 19/20."""
BINS = 10
"""Of the reliability curve, of equal width in [0, 1]."""
LARGEST = 1e4
"""Scale and temperature lie between its inverse and it."""
_HALVINGS = 60
"""Of an interval of logarithms: more than the digits of a float64."""


def coverage_curve(error: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """How many errors lie inside the central intervals of a normal distribution (Kuleshov et al. 2018, section 3.5).

    Args:
        error: prediction minus label [N].
        sigma: standard deviation of each [N], at least 0; of 0 the interval holds an error of 0 alone.

    Returns:
        Nominal shares [K], float64, and observed shares [K]. Equal: calibrated; observed below nominal: overconfident.

    Raises:
        ValueError: no sample, other shapes, or values that are not finite or negative.
    """
    import torch

    error, sigma = _checked(error, sigma)
    nominal = torch.arange(1, LEVELS, dtype=torch.float64) / LEVELS
    half_widths = math.sqrt(2) * torch.special.erfinv(nominal)  # [K], in standard deviations
    inside = error.abs() <= half_widths[:, None] * sigma  # [K, N]
    return nominal, inside.double().mean(1)


def coverage_error(error: Tensor, sigma: Tensor) -> float:
    """Mean distance of the coverage curve from the diagonal, 0 to 1/2; arguments and errors of `coverage_curve`."""
    nominal, observed = coverage_curve(error, sigma)
    return float((observed - nominal).abs().mean())


def fit_scale(error: Tensor, spread: Tensor) -> float:
    """The factor of the spreads for which intervals hold, on average over all nominal shares, as many errors as they
    say: the root of mean(erf(|error| / (sqrt(2) * scale * spread))) = 1/2.

    One factor is what Levi et al. 2022 (`std scaling`) fit by likelihood, which is sqrt(mean((error / spread)^2)). Of a
    few members some spreads are nearly 0 by chance, and decide that mean alone; here no sample counts for more than 1.

    Args:
        error: prediction minus label [N].
        spread: of the members [N]. Samples whose spread is 0, which no factor changes, are left out.

    Returns:
        Between `1 / LARGEST` and `LARGEST`; 1 where every spread is 0.

    Raises:
        ValueError: as `coverage_curve`.
    """
    import torch

    error, spread = _checked(error, spread)
    there = spread > 0
    if not there.any():
        return 1.0
    ratio = error[there].abs() / spread[there] / math.sqrt(2)
    return _root(lambda scale: float(torch.erf(ratio / scale).mean()) - 0.5)


def reliability_curve(probabilities: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How often the answer is right, by how probable it is said to be (Guo et al. 2017, section 2).

    Args:
        probabilities: of classes [N, C], which add up to one; or of emotions [N, L].
        labels: class numbers [N]; or emotions [N, L] as 0 and 1, each of which is an answer of its own.

    Returns:
        Of the `BINS` bins that hold an answer: mean probability of the answers [K], float64, share that is right [K],
        and their number [K], int64. Equal: calibrated; more right than probable: underconfident.

    Raises:
        ValueError: no sample, or other shapes.
    """
    import torch

    confidence, is_right = _answers(probabilities, labels)
    number = (confidence * BINS).long().clamp(0, BINS - 1)
    count = number.bincount(minlength=BINS)
    sums = torch.zeros(2, BINS, dtype=torch.float64).index_add_(1, number, torch.stack([confidence, is_right]))
    there = count > 0
    mean_confidence, accuracy = sums[:, there] / count[there]
    return mean_confidence, accuracy, count[there]


def expected_calibration_error(probabilities: Tensor, labels: Tensor) -> float:
    """Mean over answers of the distance between probability and share of right ones of their bin (Guo et al. 2017,
    equation 3); arguments and errors of `reliability_curve`."""
    confidence, accuracy, count = reliability_curve(probabilities, labels)
    return float(((confidence - accuracy).abs() * count).sum() / count.sum())


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """What logits are divided by so that the likelihood of the labels is the largest (Guo et al. 2017, section 4.2).

    The negative logarithm of the likelihood is convex in 1 / temperature, so its derivative has one root.

    Args:
        logits: of classes [N, C]; or of emotions [N, L].
        labels: class numbers [N]; or emotions [N, L] as 0 and 1.

    Returns:
        Between `1 / LARGEST` and `LARGEST`, which it reaches where all answers are right, or no better than chance; 1
        where logits say nothing, such as those of a single class.

    Raises:
        ValueError: no sample, or other shapes.
    """
    _check_answers(logits, labels)
    logits, truth = logits.detach().cpu().double(), labels.detach().cpu()
    if labels.ndim == 1:
        logits = logits - logits.mean(1, keepdim=True)
        of_truth = logits.gather(1, truth.long()[:, None]).sum()
    else:
        of_truth = (logits * truth.double()).sum()
    if not logits.any():
        return 1.0

    def slope(temperature: float) -> float:
        """Derivative of the logarithm of the likelihood by 1 / temperature, which rises with the temperature."""
        scaled = logits / temperature
        expected = (scaled.softmax(1) if labels.ndim == 1 else scaled.sigmoid()) * logits
        return float(of_truth - expected.sum())

    return _root(lambda temperature: -slope(temperature))


def _root(falling: Callable[[float], float]) -> float:
    """Where a function that falls with its positive argument crosses 0, between `1 / LARGEST` and `LARGEST`."""
    low, high = -math.log(LARGEST), math.log(LARGEST)
    if falling(math.exp(low)) <= 0:
        return math.exp(low)
    if falling(math.exp(high)) >= 0:
        return math.exp(high)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(math.exp(middle)) > 0 else (low, middle)
    return math.exp((low + high) / 2)


def _checked(error: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float64 on the CPU."""
    if error.ndim != 1 or error.shape != sigma.shape or not len(error):
        shapes = f"{list(error.shape)} and {list(sigma.shape)}"
        raise ValueError(f"errors and standard deviations have shapes {shapes}; give [N] and [N], at least one sample")
    error, sigma = (values.detach().cpu().double() for values in (error, sigma))
    if not (error.isfinite().all() and sigma.isfinite().all() and (sigma >= 0).all()):
        raise ValueError("errors or standard deviations are negative or not finite; leave those samples out")
    return error, sigma


def _check_answers(values: Tensor, labels: Tensor) -> None:
    fits = values.ndim == 2 and len(values) and (labels.shape == values.shape or labels.shape == values.shape[:1])
    if not fits:
        shapes = f"{list(values.shape)} and {list(labels.shape)}"
        raise ValueError(f"answers and labels have shapes {shapes}; give [N, C] and [N], or [N, L] twice, N at least 1")


def _answers(probabilities: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Probability of each answer and whether it is right, float64 [M]."""
    _check_answers(probabilities, labels)
    values, truth = probabilities.detach().cpu().double(), labels.detach().cpu()
    if labels.ndim == 1:
        confidence, answer = values.max(1)
        return confidence, (answer == truth).double()
    from dmd.metrics.emotions import EVEN

    said = values > EVEN
    return values.where(said, 1 - values).flatten(), (said == (truth > 0)).double().flatten()
