"""The loss of a prediction: absolute error of a sentiment (published), or cross entropy of a class."""

import torch.nn.functional as F
from torch import Tensor


def task_loss(prediction: Tensor, label: Tensor) -> Tensor:
    """Loss of each sample, like `label` [...].

    Args:
        prediction: sentiments [...], or logits [..., classes].
        label: sentiments, or class numbers (of any type).
    """
    if prediction.dim() == label.dim():
        return (prediction - label).abs()
    losses = F.cross_entropy(prediction.flatten(0, -2), label.flatten().long(), reduction="none")
    return losses.view(label.shape)
