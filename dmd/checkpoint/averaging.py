"""The mean of the weights of several checkpoints of one run, and which of them a greedy soup takes.

A mean is computed in float64 and rounded to the dtype of the weights once. It is of what checkpoints hold: averaged
weights where `train.ema_decay` keeps those; of LoRA the matrices A and B, each by itself. Statistics of normalisation
are the same in all checkpoints of a run, and so are they in the mean.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]


class WeightMean:
    """A mean to which weights are added one by one; holds a float64 copy."""

    def __init__(self) -> None:
        self._count = 0
        self._sums: dict[str, Tensor] = {}
        self._first: dict[str, Tensor] = {}

    def add(self, weights: Weights) -> None:
        """Take weights into the mean.

        Raises:
            ValueError: they are not those of the same model, or differ in what has no mean.
        """
        self._sums, self._first = self._sums_with(weights), self._first or dict(weights)
        self._count += 1

    def with_also(self, weights: Weights) -> dict[str, Tensor]:
        """The mean of what was added and of these. Raises as `add`."""
        return self._rounded(self._sums_with(weights), self._first or weights, self._count + 1)

    def mean(self) -> dict[str, Tensor]:
        """The mean of what was added, which is something."""
        return self._rounded(self._sums, self._first, self._count)

    def _sums_with(self, weights: Weights) -> dict[str, Tensor]:
        floats = {name: tensor for name, tensor in weights.items() if tensor.is_floating_point()}
        if not self._count:
            return {name: tensor.double() for name, tensor in floats.items()}
        if shapes(self._first) != shapes(weights):
            raise ValueError("the checkpoints hold weights of different models, which have no mean; take --best")
        for name, tensor in weights.items():
            if name not in floats and not tensor.equal(self._first[name]):
                raise ValueError(
                    f"the checkpoints differ in {name}, whose {tensor.dtype} numbers have no mean; take --best"
                )
        return {name: self._sums[name] + tensor for name, tensor in floats.items()}

    @staticmethod
    def _rounded(sums: Weights, like: Weights, count: int) -> dict[str, Tensor]:
        return {name: (sums[name] / count).to(own.dtype) if name in sums else own for name, own in like.items()}


def shapes(weights: Weights) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Shape and dtype of each tensor."""
    return {name: (tensor.shape, tensor.dtype) for name, tensor in weights.items()}


def mean_weights(models: Iterable[Weights]) -> dict[str, Tensor]:
    """The mean of weights, of which there is one at least. Raises ValueError as `WeightMean.add`."""
    mean = WeightMean()
    for weights in models:
        mean.add(weights)
    return mean.mean()


def greedy_soup(steps: Sequence[int], read: Callable[[int], Weights], loss: Callable[[Weights], float]) -> list[int]:
    """The checkpoints that a greedy soup takes, ascending.

    Wortsman et al., Model soups, ICML 2022 (https://arxiv.org/abs/2203.05482), recipe 1: the best checkpoint first,
    then the others in the order of their losses, each kept where the mean with it is not worse than without. Calls
    `loss` 2 len(steps) - 1 times.

    Args:
        steps: the candidates, ascending.
        read: gives the weights of one.
        loss: of weights, on the validation split.
    """
    losses = {step: loss(read(step)) for step in steps}
    first, *others = sorted(steps, key=lambda step: (losses[step], -step))
    soup, mean, best = [first], WeightMean(), losses[first]
    mean.add(read(first))
    for step in others:
        weights = read(step)
        found = loss(mean.with_also(weights))
        if found <= best:
            best = found
            soup.append(step)
            mean.add(weights)
    return sorted(soup)
