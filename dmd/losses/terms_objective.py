"""The objective of a model that gives named terms of each ghost batch, and their weights.

    NetworkOutput, labels, mask -> ObjectiveInputs -> terms -> {name: [G]} and "total"

Where ranks share a ghost batch, what `ObjectiveInputs` holds is gathered, so that each of them computes all terms.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dmd.losses.model_objective import LossTerm, ModelObjective, fused_error, task_term, weighted_mean
from dmd.losses.task import task_loss
from dmd.model.config import Kind
from dmd.model.network import FUSED, NetworkOutput


@dataclass(frozen=True, kw_only=True)
class ObjectiveInputs:
    """What terms read of G ghost batches of S samples, in float32 at least."""

    predictions: dict[str, Tensor]
    """{head: [G, S], or logits [G, S, outputs]}"""
    compared: dict[str, Tensor]
    """{name: [G, S, ...]}, as `NetworkOutput.compared`."""
    kind: Kind
    """What the heads predict."""
    labels: Tensor
    """[G, S], sentiments or class numbers; [G, S, L], emotions as 0 and 1."""
    mask: Tensor
    """[G, S], 1 for a sample, 0 for padding."""
    rows: Tensor | None
    """[G, S] int64 on the CPU, row of each sample in the train split, -1 for padding; None where there is none."""
    label_weights: Tensor | None = None
    """[G, S], of the task losses of samples; None: 1."""

    def task(self, head: str = FUSED) -> Tensor:
        """The task loss of a head, weighted mean over the samples, [G]."""
        return self.task_mean(task_loss(self.predictions[head], self.labels, self.kind))

    def task_mean(self, losses: Tensor) -> Tensor:
        """Mean over the samples of their task losses [G, S], times `label_weights`: [G]."""
        return weighted_mean(losses, self.mask, self.label_weights)


class TermsObjective(ModelObjective):
    """The task loss of the fused head. A model with other terms derives from it and gives `terms`, their `weights` and
    `described`."""

    @classmethod
    def described(cls) -> list[LossTerm]:
        """See `ModelObjective.described`."""
        return [task_term(FUSED)]

    def forward(
        self, output: NetworkOutput, labels: Tensor, mask: Tensor, rows: Tensor | None = None
    ) -> dict[str, Tensor]:
        """See `ModelObjective.forward`. A collective where ranks share ghost batches."""
        mask = mask.to(labels.dtype)
        predictions, compared = self._gathered(output, mask)
        inputs = ObjectiveInputs(
            predictions=predictions,
            compared=compared,
            kind=self.kind,
            labels=labels,
            mask=mask,
            rows=rows,
            label_weights=self.weights_of(labels),
        )
        terms = self.terms(inputs)
        weights = self.weights
        total = torch.stack([term * weights.get(name, 1.0) for name, term in terms.items()]).sum(0)
        if self.trains_another_error:
            terms |= fused_error(inputs.predictions[FUSED], labels, mask, self.kind)
        return {**terms, "total": total}

    def terms(self, inputs: ObjectiveInputs) -> dict[str, Tensor]:
        """Every term of `described`, {name: [G]}. None of them may depend on other ghost batches."""
        return {f"task_{FUSED}": inputs.task()}

    @property
    def weights(self) -> Mapping[str, float]:
        """The weight of each term that has another one than 1."""
        return {}

    def _gathered(self, output: NetworkOutput, mask: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Predictions and `compared` of all samples of the ghost batches, [G, S, ...], in float32 at least."""
        own_shape = (mask if self.sharing is None else self.sharing.own(mask)).shape

        def view(tensor: Tensor) -> Tensor:
            return tensor.to(torch.promote_types(tensor.dtype, torch.float32)).unflatten(0, own_shape)

        predictions, compared = _map(output.predictions, view), _map(output.compared, view)
        if self.sharing is not None:
            whole = iter(self.sharing.gather([*predictions.values(), *compared.values()], mask.shape[1]))
            predictions, compared = (_map(part, lambda _: next(whole)) for part in (predictions, compared))
        return predictions, compared


def _map(tensors: Mapping[str, Tensor], function: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    return {name: function(tensor) for name, tensor in tensors.items()}
