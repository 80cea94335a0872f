"""The objective of Self-MM: the error of the sentiment, and of each modality's prediction against its own label.

    total = |fused - y| + sum over modalities s of tanh(|y_s - y|) |prediction_s - y_s|       mean over the samples

`dmd.losses.baselines.unimodal_labels` makes the labels y_s. What a step was trained on is taken into them behind it:
ghost batch after ghost batch in their order inside the step, whichever ranks ran them, so that what is remembered is
the same on every rank. A ghost batch stands for a batch of the published code, which changes the weights after several
batches too (`update_epochs`) and takes each batch's representations in before the next one is run: as the weights are
the same for all batches of a step, the labels come out the same. A step that is not applied leaves nothing behind.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from dmd.losses.baselines.unimodal_labels import SPACES, UnimodalLabels
from dmd.losses.ghost import sample_mean
from dmd.losses.model_objective import LossTerm, task_term
from dmd.losses.terms_objective import ObjectiveInputs, TermsObjective
from dmd.model.baselines.self_mm import alone
from dmd.model.baselines.self_mm_config import SelfMMConfig
from dmd.model.config import MODALITIES, ModelConfig
from dmd.model.network import FUSED


@dataclass(frozen=True, kw_only=True)
class _Pass:
    """What a pass of a step leaves to be taken into the labels."""

    rows: Tensor
    """[G, S] int64 on the CPU, -1 for padding."""
    values: Tensor
    """[G, S, 1 + n]: the sentiment and the representations of all spaces."""


class SelfMMObjective(TermsObjective):
    """See the module.

    Args:
        settings: hyperparameters of Self-MM.
        model: the network's hyperparameters.
    """

    def __init__(self, settings: SelfMMConfig, model: ModelConfig) -> None:
        super().__init__(model)
        self.own = settings
        self.labels: UnimodalLabels | None = None
        """None until a training begins."""
        self._passes: list[_Pass] = []

    @classmethod
    def make(cls, settings: object, model: ModelConfig) -> "SelfMMObjective":
        """See `ModelObjective.make`."""
        assert isinstance(settings, SelfMMConfig)
        return cls(settings, model)

    @classmethod
    def described(cls) -> list[LossTerm]:
        """See `ModelObjective.described`."""
        return [
            task_term(FUSED),
            *(
                LossTerm(
                    name=f"task_{alone(m)}",
                    title=f"task {m} alone",
                    about=f"error of the prediction `{alone(m)}` against the label made for it, times tanh of what "
                    "that label differs by from the sentiment",
                )
                for m in MODALITIES
            ),
        ]

    def terms(self, inputs: ObjectiveInputs) -> dict[str, Tensor]:
        """See `TermsObjective.terms`; a training pass is remembered until `after_step`."""
        sentiments, mask = inputs.labels, inputs.mask
        labels = dict.fromkeys(MODALITIES, sentiments)
        if self.labels is not None and inputs.rows is not None:
            labels = self.labels.of(inputs.rows.clamp(min=0).to(sentiments.device), sentiments)
            if self.training:
                self._passes.append(_Pass(rows=inputs.rows, values=_values(inputs)))
        terms = {f"task_{FUSED}": inputs.task()}
        heads = [alone(modality) for modality in labels]
        label = torch.stack(list(labels.values()), dim=-1)  # [G, S, 3]
        weight = (label - sentiments[..., None]).abs().tanh()
        error = (torch.stack([inputs.predictions[head] for head in heads], dim=-1) - label).abs()
        means = sample_mean(weight * error, mask)  # [G, 3]
        return terms | {f"task_{head}": mean for head, mean in zip(heads, means.unbind(-1), strict=True)}

    def start_training(self, num_samples: int, device: torch.device) -> None:
        """Remember nothing of so many samples."""
        self.labels = UnimodalLabels(num_samples, self.own, device)
        self._passes = []

    def after_step(self, *, epoch: int, applied: bool) -> None:
        """Take what the step was trained on into the labels: two collectives where there are several ranks."""
        passes, self._passes = self._passes, []
        if not applied:
            return
        assert self.labels is not None, "start_training comes first"
        own_values = torch.cat([one.values for one in passes])
        rows = _in_order(torch.cat([one.rows for one in passes]), own_values.device)  # [ghost batches, S]
        values = _in_order(own_values, own_values.device)
        taken: set[int] = set()
        for ghost, of_ghost in zip(rows, values, strict=True):
            places = (ghost >= 0).nonzero().squeeze(1)
            kept = ghost[places]  # [n]
            # Ranks that share a ghost batch have the same; of two passes (`objective.consistency`) the first stays.
            if len(kept) == 0 or int(kept[0]) in taken:
                continue
            taken.add(int(kept[0]))
            there = of_ghost.device
            sentiments, *features = of_ghost[places.to(there)].split([1, *self.own.widths.values()], dim=1)
            self.labels.take(
                kept.to(there), sentiments.squeeze(1), dict(zip(SPACES, features, strict=True)), epoch=epoch + 1
            )

    def training_state(self) -> dict[str, Tensor]:
        """Copies on the CPU of everything that is remembered."""
        assert self.labels is not None, "start_training comes first"
        return {name: tensor.to("cpu", copy=True) for name, tensor in self.labels.state().items()}

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `training_state` gave."""
        assert self.labels is not None, "start_training comes first"
        self.labels.load(state)


def _values(inputs: ObjectiveInputs) -> Tensor:
    """The sentiment and all representations of each sample side by side, [G, S, 1 + n]."""
    return torch.cat([inputs.labels[..., None], *(inputs.compared[name].detach() for name in SPACES)], dim=-1)


def _in_order(own: Tensor, device: torch.device) -> Tensor:
    """This rank's [slots, ...] of a step's passes -> those of all ranks, ghost batch after ghost batch: the slots of
    the ranks take turns (`EpochPlan.slots`). Ranks exchange them on a device; the result is where `own` is."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return own
    every = torch.empty(dist.get_world_size(), *own.shape, dtype=own.dtype, device=device)
    dist.all_gather(list(every.unbind(0)), own.to(device).contiguous())
    return every.transpose(0, 1).flatten(0, 1).to(own.device)
