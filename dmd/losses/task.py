"""The loss of a prediction: absolute error of a sentiment (published), cross entropy of a class, or the mean over
emotions of their binary cross entropy."""

import torch.nn.functional as F
from torch import Tensor

from dmd.model.config import Kind


def task_loss(prediction: Tensor, label: Tensor, kind: Kind) -> Tensor:
    """Loss of each sample, [...].

    Args:
        prediction: sentiments [...], or logits [..., outputs].
        label: sentiments [...], class numbers [...] (of any type), or emotions [..., L], 1 for those that a sample has.
        kind: what they are.
    """
    if kind == "regression":
        return (prediction - label).abs()
    if kind == "multilabel":
        return F.binary_cross_entropy_with_logits(prediction, label.to(prediction.dtype), reduction="none").mean(-1)
    losses = F.cross_entropy(prediction.flatten(0, -2), label.flatten().long(), reduction="none")
    return losses.view(label.shape)
