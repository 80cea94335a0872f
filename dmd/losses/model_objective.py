"""What every model's objective is: named terms of each ghost batch, and their weighted sum.

A model whose objective is the task loss of its fused head needs none of its own. Another one derives from
`ModelObjective` and gives `terms`, their `weights` and what the documentation says of them:

    NetworkOutput, labels, mask -> ObjectiveInputs -> terms -> {name: [G]} and "total"

Where ranks share a ghost batch, what `ObjectiveInputs` holds is gathered, so that each of them computes all terms. An
objective that remembers samples keeps what it remembers the same on every rank (`after_step`) and in checkpoints
(`training_state`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dmd.kernels.cpu import CPU
from dmd.kernels.interface import Backend
from dmd.losses.ghost import sample_mean
from dmd.losses.label_weights import LabelWeights
from dmd.losses.sharing import Sharing
from dmd.losses.task import task_loss
from dmd.model.config import Kind, ModelConfig
from dmd.model.network import FUSED, NetworkOutput


@dataclass(frozen=True, kw_only=True)
class LossTerm:
    """What people are told of a term."""

    name: str
    """In the log: `train/NAME`."""
    title: str
    """In figures."""
    about: str
    """What it is, for the documentation."""
    weight: str = "1"
    """In the weighted sum, for the documentation: a number, or config keys."""


def task_term(head: str) -> LossTerm:
    """The task loss of a head."""
    return LossTerm(
        name=f"task_{head}", title=f"task {head.replace('_', ' ')}", about=f"error of the prediction `{head}`"
    )


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


def weighted_mean(losses: Tensor, mask: Tensor, weights: Tensor | None) -> Tensor:
    """Mean over the samples of losses [G, S] times their weights [G, S] (None: 1), [G]."""
    return sample_mean(losses if weights is None else losses * weights, mask)


class ModelObjective(nn.Module):
    """The task loss of the fused head, and what another objective derives from.

    Args:
        settings: the config section of the model's own; None where it has none.
        model: the network's hyperparameters.
        backend: what computes; whose kernels of losses an objective may use.
    """

    spaces: tuple[str, ...] = ()
    """The names of its GD-Units, which `edges` are of; DMD alone has some."""

    def __init__(self, settings: object, model: ModelConfig, *, backend: Backend = CPU) -> None:
        super().__init__()
        self.settings = settings
        self.kind = model.kind
        self.sharing: Sharing | None = None
        """The ranks that share each ghost batch with this one; None where it has whole ones."""
        self.label_weights: LabelWeights | None = None
        """Of `objective.label_density_smoothing`; a training gives them (`dmd.data.label_density`)."""

    @classmethod
    def described(cls) -> list[LossTerm]:
        """Every term that `terms` gives, in the order of the log."""
        return [task_term(FUSED)]

    def use(self, backend: Backend) -> None:
        """Let a backend's kernels compute the losses from here on."""

    def forward(
        self, output: NetworkOutput, labels: Tensor, mask: Tensor, rows: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Every term of every ghost batch.

        Args:
            output: of G * S samples, ghost batch after ghost batch; where ranks share ghost batches, of G * P, those of
                this rank.
            labels: [G, S], sentiments or class numbers; [G, S, L], emotions as 0 and 1.
            mask: [G, S], 1 for a sample, 0 for padding.
            rows: [G, S] int64 on the CPU, row of each sample in the train split, -1 for padding; None: nobody knows.

        Returns:
            {name: [G]}: each term before weighting, and `total`. A collective where ranks share ghost batches.
        """
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
        return {**terms, "total": total}

    def terms(self, inputs: ObjectiveInputs) -> dict[str, Tensor]:
        """Every term of `described`, {name: [G]}. None of them may depend on other ghost batches."""
        return {"task_fused": inputs.task()}

    def weights_of(self, labels: Tensor) -> Tensor | None:
        """The weights of samples by their labels [G, S], of their task losses; None: 1."""
        return None if self.label_weights is None else self.label_weights(labels)

    @property
    def weights(self) -> Mapping[str, float]:
        """The weight of each term that has another one than 1."""
        return {}

    def edges(self, output: NetworkOutput) -> dict[str, Tensor]:
        """Edges per sample of each of `spaces`, {space: [B, 6]}."""
        return {}

    def start_training(self, num_samples: int, device: torch.device) -> None:
        """A training of so many samples begins, before a checkpoint is read. Passes before it were trials, of which
        nothing is remembered."""

    def after_step(self, *, epoch: int, applied: bool) -> None:
        """A step has been made: called on every rank, so that it may hold a collective.

        Args:
            epoch: from 0.
            applied: whether the weights were updated; a step that was not leaves nothing behind.
        """

    def training_state(self) -> dict[str, Tensor]:
        """What a training needs to go on and a trained model does not: copies on the CPU, the same on every rank."""
        return {}

    def training_bytes(self) -> int:
        """Bytes of `training_state`, once a training has begun."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.training_state().values())

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `training_state` gave."""

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
