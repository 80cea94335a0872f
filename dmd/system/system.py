"""What is trained: the modules, the keys of their dropout, and their pass as a CUDA graph where there is one."""

from typing import TypedDict

import torch
from torch import Tensor, nn

from data_shards.format.schema import DatasetInfo
from dmd.config import Config
from dmd.data.loader import Batch
from dmd.kernels.dropout.keys import DropoutKeys
from dmd.kernels.dropout.rng import DropoutRNG
from dmd.model.normalisation import Normalisation
from dmd.model.text import TextEncoder
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
        super().__init__(
            config, dims=info.dims, lengths=info.lengths, text_encoder=text_encoder, device=device, binding=True
        )
        self.keys = self.fresh_keys()
        obstacle = obstacle_to_capture(config, device, self.execution.backend)
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
        """Terms {name: [G]} of a batch (see `Objective.forward`), kernel by kernel."""
        return self.objective(self.predict(batch, rng), self.targets(batch), batch.mask)

    def take_statistics(self, info: DatasetInfo) -> None:
        """Take over the statistics of the data to train on, where the config asks for them.

        Raises:
            ValueError: the index holds none.
        """
        for modality, normalise in self.dmd.normalisation.items():
            if modality not in info.statistics:
                raise ValueError(
                    f"model.normalise is 'train', but the index of {info.name} holds no statistics of {modality}; "
                    "write it anew with `dmd shard` (`dmd index` for other programs' tars), or set model.normalise=none"
                )
            assert isinstance(normalise, Normalisation)
            normalise.set(**info.statistics[modality])


class ParameterGroup(TypedDict):
    """Weights with a learning rate of their own."""

    params: list[nn.Parameter]
    lr: float


def parameter_groups(system: TrainingSystem, config: Config) -> list[ParameterGroup]:
    """Optimizer groups: the text encoder's weights (if they are trained) and the rest."""
    encoder = system.dmd.text_encoder
    text = [] if encoder is None else [p for p in encoder.parameters() if p.requires_grad]
    of_text = {id(p) for p in text}
    rest = [p for p in system.parameters() if p.requires_grad and id(p) not in of_text]
    rate = config.train.learning_rate
    groups: list[ParameterGroup] = [{"params": rest, "lr": rate}]
    if text:
        groups.append({"params": text, "lr": config.text.learning_rate or rate})
    return groups
