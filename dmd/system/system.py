"""What is trained: the modules, the keys of their dropout, and their pass as a CUDA graph where there is one."""

from typing import TypedDict

import torch
from torch import Tensor, nn

from data_shards.format.schema import DatasetInfo
from data_shards.reading.index import ShardIndex
from dmd.config import Config
from dmd.data.label_density import label_weights
from dmd.data.loader import Batch
from dmd.kernels.dropout.keys import DropoutKeys
from dmd.kernels.dropout.rng import DropoutRNG
from dmd.losses.consistency import joined_terms
from dmd.model.network import FUSED, NetworkOutput
from dmd.model.normalisation import Normalisation
from dmd.model.text import TextEncoder
from dmd.model.text_base import TextBase
from dmd.model.text_depth import depths
from dmd.system.cuda_graph import CapturedPass, obstacle_to_capture
from dmd.system.joined_weights import JoinedWeights, each_alone
from dmd.system.modules import Modules
from dmd.system.pass_terms import PassTerms, pass_terms

ADAM_MOMENTS = 2
"""Tensors of the optimizer's state for each trained one."""


class TrainingSystem(Modules):
    """The modules in training; `forward` gives every loss term of every ghost batch.

    Args:
        device: where it will run, which settles how (`execution`); its weights are moved there by `to`.

    Raises:
        ValueError: what the config asks for and the device does not have.
    """

    def __init__(
        self, config: Config, info: DatasetInfo, text_encoder: TextEncoder | None, device: torch.device
    ) -> None:
        super().__init__(config, data=vars(info), text_encoder=text_encoder, device=device, binding=True)
        self.keys = self.fresh_keys()
        obstacle = obstacle_to_capture(config, device, self.execution.backend, encodes_text=text_encoder is not None)
        self.captured = f"no: {obstacle}" if obstacle else "yes"
        self._joined: list[JoinedWeights] | None = None
        self._graph = None if obstacle else CapturedPass(self.terms, self, lambda: self.weights)

    @property
    def weights(self) -> list[JoinedWeights]:
        """What is trained: joined, where an engine has done so."""
        return each_alone(self.named_parameters()) if self._joined is None else self._joined

    @weights.setter
    def weights(self, joined: list[JoinedWeights]) -> None:
        self._joined = joined

    @property
    def text_base(self) -> TextBase | None:
        """The weights that checkpoints name instead of holding; None where there are none."""
        encoder = self.network.text_encoder
        return None if encoder is None else encoder.base

    def fresh_keys(self) -> DropoutKeys | None:
        """A table of dropout keys on the device; None where the backend takes them from the host."""
        return DropoutKeys() if self.execution.backend.keys_on_device else None

    def use_pytorch(self, reason: str) -> None:
        """Go on with PyTorch alone, for a reason that run.json states."""
        super().use_pytorch(reason)
        self.keys = self.fresh_keys()
        self.run_eagerly(reason)

    def run_eagerly(self, reason: str) -> None:
        """Capture no pass, for a reason that run.json states."""
        if self._graph is not None:
            self._graph = None
            self.captured = f"no: {reason}"

    def forward(self, batch: Batch, rng: DropoutRNG | None) -> PassTerms:
        """The terms of a batch of G ghost batches; those of an earlier pass may be overwritten."""
        if self._graph is not None and rng is not None and self.training:
            return self._graph(batch, rng)
        return pass_terms(self.terms(batch, rng))

    def terms(self, batch: Batch, rng: DropoutRNG | None) -> dict[str, Tensor]:
        """Terms {name: [G]} of a batch (see `ModelObjective.forward`), kernel by kernel.

        Args:
            rng: of `dmd.training.step.make_rng`, which knows of the second pass of `objective.consistency`.
        """
        weight = self.config.objective.consistency
        if rng is None or not weight:
            return self._terms(batch, rng)[1]
        output, terms = self._terms(batch.twice(), rng)
        return joined_terms(
            terms,
            output.predictions[FUSED],
            batch.mask,
            kind=self.config.model.kind,
            weight=weight,
            sharing=self.objective.sharing,
        )

    def _terms(self, batch: Batch, rng: DropoutRNG | None) -> tuple[NetworkOutput, dict[str, Tensor]]:
        """What a pass gives, and the terms of its objective."""
        is_weighted = self.objective.label_weights is not None
        assert is_weighted == (self.config.objective.label_density_smoothing > 0), "take_label_density comes first"
        output = self.predict(batch, rng)
        return output, self.objective(output, self.targets(batch), batch.mask, rows=batch.rows)

    def take_statistics(self, info: DatasetInfo) -> None:
        """Take over the statistics of the data to train on, where the config asks for them.

        Raises:
            ValueError: the index holds none.
        """
        for modality, normalise in self.network.normalisation.items():
            if modality not in info.statistics:
                raise ValueError(
                    f"model.normalise is 'train', but the index of {info.name} holds no statistics of {modality}; "
                    "write it anew with `dmd shard` (`dmd index` for other programs' tars), or set model.normalise=none"
                )
            assert isinstance(normalise, Normalisation)
            normalise.set(**info.statistics[modality])

    def take_label_density(self, index: ShardIndex) -> None:
        """Weigh samples by the labels of the train split, where the config asks for that.

        Raises:
            ValueError: a kernel that is far too narrow for these labels.
        """
        weights = label_weights(self.config, index)
        self.objective.label_weights = None if weights is None else weights.to(self.device)


class ParameterGroup(TypedDict):
    """Weights with a learning rate of their own."""

    params: list[nn.Parameter]
    lr: float


def parameter_groups(system: TrainingSystem, config: Config) -> list[ParameterGroup]:
    """Optimizer groups: first what is no text encoder's, then the encoder's trained weights; where rates decay by layer
    a group for each depth, the last layer first."""
    encoder = system.network.text_encoder
    text = {} if encoder is None else {name: p for name, p in encoder.network.named_parameters() if p.requires_grad}
    of_text = {id(p) for p in text.values()}
    rest = [p for p in system.parameters() if p.requires_grad and id(p) not in of_text]
    rate, decay = config.train.learning_rate, config.text.layer_decay
    groups: list[ParameterGroup] = [{"params": rest, "lr": rate}]
    if encoder is None or not text:
        return groups
    top = config.text.learning_rate or rate
    if decay == 1:
        return [*groups, {"params": list(text.values()), "lr": top}]
    depth = depths(encoder.network)
    last = max(depth.values())
    for level in sorted({depth[name] for name in text}, reverse=True):
        own = [parameter for name, parameter in text.items() if depth[name] == level]
        groups.append({"params": own, "lr": top * decay ** (last - level)})
    return groups
