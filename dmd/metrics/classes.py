"""Classes of sentiments in [-3, 3], and metrics of a classifier: logits [N, classes] against class numbers [N].

The classes are those of Acc7 and Acc5, and of Has0 for two; three are the sign of the label, as in MMSA's
`classification_labels`, where Acc3 rounds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

SENTIMENT_CLASSES = (2, 3, 5, 7)
"""Into how many classes a sentiment can be divided."""
WORDED_CLASSES = (2, 3)
"""Those divisions whose classes are called by words; the others' are called by their numbers."""


def to_classes(label: Tensor, classes: int) -> Tensor:
    """Class number of each sentiment, int64 in [0, classes), of 2 (negative or not), 3 (by sign), 5 or 7 classes."""
    if classes == 2:
        return (label >= 0).long()
    if classes == 3:
        return label.sign().long() + 1
    bound = classes // 2
    return label.clamp(-bound, bound).round().long() + bound


def class_names(classes: int) -> list[str]:
    """What each class number means."""
    if classes == 2:
        return ["negative", "not negative"]
    if classes == 3:
        return ["negative", "neutral", "positive"]
    return [f"{number:+d}" if number else "0" for number in range(-(classes // 2), classes // 2 + 1)]


def confusion(logits: Tensor, label: Tensor) -> Tensor:
    """Counts [classes, classes], float64: true class down, predicted class across.

    Raises:
        ValueError: no sample, other shapes, or labels that are no class numbers.
    """
    if logits.ndim != 2 or logits.shape[:1] != label.shape or not len(label):
        shapes = f"{list(logits.shape)} and {list(label.shape)}"
        raise ValueError(f"logits and labels have shapes {shapes}; give [N, classes] and [N], of at least one sample")
    classes = logits.shape[1]
    numbers = label.detach().cpu().long()
    if not (numbers == label.cpu()).all() or numbers.min() < 0 or numbers.max() >= classes:
        raise ValueError(f"labels are no class numbers from 0 to {classes - 1}; give those of the task")
    flat = numbers * classes + logits.detach().cpu().argmax(1)
    return flat.bincount(minlength=classes**2).view(classes, classes).double()


def accuracy(logits: Tensor, label: Tensor) -> float:
    """Share of samples whose class is the predicted one."""
    counts = confusion(logits, label)
    return float(counts.diagonal().sum() / counts.sum())


def right_answer(answer: Tensor, label: Tensor) -> Tensor:
    """1 for each sample whose predicted class number is the true one, [..., N]."""
    return (answer == label).double()


def f1_weighted(logits: Tensor, label: Tensor) -> float:
    """scikit-learn's `f1_score(label, prediction, average="weighted")`."""
    f1, actual = _f1_of_classes(logits, label)
    return float((f1 * actual).sum() / len(label))


def f1_macro(logits: Tensor, label: Tensor) -> float:
    """scikit-learn's `f1_score(label, prediction, average="macro")`."""
    return float(_f1_of_classes(logits, label)[0].mean())


def cross_entropy(logits: Tensor, label: Tensor) -> float:
    """Mean over samples of the negative logarithm of the true class's probability."""
    import torch

    return float(torch.nn.functional.cross_entropy(logits, label))


def _f1_of_classes(logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """F1 of each class that occurs among the labels or the predictions, and how many labels are of it."""
    counts = confusion(logits, label)
    hits, actual, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
    occurs = actual + predicted > 0
    return 2 * hits[occurs] / (actual + predicted)[occurs], actual[occurs]
