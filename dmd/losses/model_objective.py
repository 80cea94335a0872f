"""What every model's objective is: named terms of each ghost batch, their weighted sum, and what a training asks of it.

A model whose objective is made of terms, each a function of predictions and labels, derives from
`dmd.losses.terms_objective.TermsObjective`; DMD's has kernels and steps of its own. An objective that remembers samples
keeps what it remembers the same on every rank (`after_step`) and in checkpoints (`training_state`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dmd.kernels.interface import Backend
from dmd.losses.ghost import sample_mean
from dmd.losses.label_weights import LabelWeights
from dmd.losses.sharing import Sharing
from dmd.losses.task import task_loss
from dmd.model.config import Kind, ModelConfig
from dmd.model.network import NetworkOutput


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


FUSED_ERROR = LossTerm(
    name="fused_error",
    title="fused error",
    weight="0",
    about="validation's loss of the prediction `fused`, unweighted; only where `task_fused` is another: squared, or "
    "weighted by label density",
)
"""As logs, figures and the documentation call it; any model may have it."""


def fused_error(prediction: Tensor, labels: Tensor, mask: Tensor, kind: Kind) -> dict[str, Tensor]:
    """`FUSED_ERROR` by name, [G], without a gradient; of what `task_loss` takes, [G, S, ...], and a mask [G, S]."""
    return {FUSED_ERROR.name: sample_mean(task_loss(prediction.detach(), labels, kind), mask)}


def weighted_mean(losses: Tensor, mask: Tensor, weights: Tensor | None) -> Tensor:
    """Mean over the samples of losses [G, S] times their weights [G, S] (None: 1), [G]."""
    return sample_mean(losses if weights is None else losses * weights, mask)


class ModelObjective(nn.Module):
    """What a training asks of an objective.

    Args:
        model: the network's hyperparameters.
    """

    spaces: tuple[str, ...] = ()
    """The names of its GD-Units, which `edges` are of; DMD alone has some."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.kind: Kind = model.kind
        self.sharing: Sharing | None = None
        """The ranks that share each ghost batch with this one; None where it has whole ones."""
        self.label_weights: LabelWeights | None = None
        """Of `objective.label_density_smoothing`; a training gives them (`dmd.data.label_density`)."""

    @classmethod
    def make(cls, settings: object, model: ModelConfig) -> "ModelObjective":
        """An objective of this class.

        Args:
            settings: the config section of the model's own, of a class that reads it; None where it has none.
            model: the network's hyperparameters.
        """
        return cls(model)

    @classmethod
    def described(cls) -> list[LossTerm]:
        """Every term that `forward` gives, in the order of the log."""
        raise NotImplementedError

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
            {name: [G]}: each term before weighting, `total`, and `FUSED_ERROR` if `trains_another_error`.
        """
        raise NotImplementedError

    @property
    def trains_another_error(self) -> bool:
        """Whether the fused head learns by another loss than validation has, so that `FUSED_ERROR` is logged."""
        return self.label_weights is not None

    def weights_of(self, labels: Tensor) -> Tensor | None:
        """The weights of samples by their labels [G, S], of their task losses; None: 1."""
        return None if self.label_weights is None else self.label_weights(labels)

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
