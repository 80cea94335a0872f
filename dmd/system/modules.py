"""What is trained together, as one module: the network of a model and its objective, which may have weights too.

Here is, once, how they are built, under which names a checkpoint holds their weights, by which kernels and in which
precision a device runs them, and what they say of samples. `dmd.system.system` trains them, `dmd.system.trained_model`
predicts with them.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, cast

import torch
from torch import Tensor, nn

from dmd.config import Config
from dmd.data.loader import Batch
from dmd.data.targets import scoring_of, targets
from dmd.kernels.backend import choose_execution, why_not_fused
from dmd.kernels.dropout.rng import DropoutRNG
from dmd.losses.model_objective import ModelObjective
from dmd.model.network import Network, NetworkOutput
from dmd.model.text import TextEncoder
from dmd.system.models import MODELS

BATCH_SIZE = 64
"""Samples of a pass that predicts. Fixed, so that a prediction has the same digits in every command and at any number
of ranks."""


class Modules(nn.Module):
    """A network with its objective, under the names that checkpoints give them: that of the model (`model.name`) and
    `objective`.

    Args:
        data: facts of the data, under the names of `DatasetInfo`: `dims` and `lengths` of each modality, and what its
            labels are (`dmd.data.targets.scoring_of`).
        text_encoder: reads token ids; None where the text comes as features.
        device: where they will run, which settles how (`execution`); their weights are moved there by `to`.
        binding: whether kernels and precision that the config asks for are an error where the device has none; a
            trained model on another machine takes what is there.

    Raises:
        ValueError: what the config asks for and the device does not have; `objective.consistency` without any dropout.
    """

    def __init__(
        self,
        config: Config,
        *,
        data: Mapping[str, Any],
        text_encoder: TextEncoder | None,
        device: torch.device,
        binding: bool,
    ) -> None:
        super().__init__()
        _check_consistency(config, text_encoder)
        self.config = config
        self.device = device
        train = config.train
        self.execution = choose_execution(device, kernels=train.kernels, precision=train.precision, binding=binding)
        backend = self.execution.backend
        self.scoring = scoring_of(config, data)
        self.model = MODELS[config.model.name]
        network = self.model.network_class()
        objective = self.model.objective_class()
        settings = getattr(config, self.model.section) if self.model.section else None
        self.add_module(
            self.model.name,
            network(config.model, data["dims"], data["lengths"], text_encoder, backend=backend, settings=settings),
        )
        self.objective: ModelObjective = objective.make(settings, config.model)
        self.objective.use(backend)

    @property
    def network(self) -> Network:
        """The network."""
        return cast(Network, self._modules[self.model.name])

    def use_pytorch(self, reason: str) -> None:
        """Go on with PyTorch alone, for a reason that `execution` states."""
        self.execution = self.execution.plain(self.device, reason)
        self.network.use(self.execution.backend)
        self.objective.use(self.execution.backend)

    def try_kernels(self, attempt: Callable[[], object], *, asked_for: bool) -> str:
        """Run a pass; where a Triton kernel cannot run, go on with PyTorch from then on: why, empty where all ran.

        Raises:
            ValueError: a kernel that was asked for cannot run.
        """
        reason = why_not_fused(attempt, asked_for=asked_for)
        if reason:
            self.use_pytorch(reason)
        return reason

    def output(self, text: Tensor, audio: Tensor, vision: Tensor, rng: DropoutRNG | None = None) -> NetworkOutput:
        """The network's output for B samples, in the precision of its device.

        Args:
            text: [B, T, D], or [B, 3, T] token ids.
            audio: [B, T, D]
            vision: [B, T, D]
            rng: dropout RNG of a training.
        """
        with self.execution.casting(audio.device.type):
            output: NetworkOutput = self.network(text, audio, vision, rng)
            return output

    def predict(self, batch: Batch, rng: DropoutRNG | None = None) -> NetworkOutput:
        """The network's output for the G * S samples of a batch."""
        return self.output(batch.text, batch.audio, batch.vision, rng)

    def targets(self, batch: Batch) -> Tensor:
        """What the heads are to predict: [G, S], sentiments or class numbers; [G, S, L], emotions."""
        return targets(batch.labels, self.scoring)

    def all_heads(self, output: NetworkOutput) -> Tensor:
        """Predictions [B, heads], or logits [B, heads, outputs], in the order of the network's heads; float32."""
        return torch.stack([output.predictions[head].float() for head in self.network.heads], dim=1)


def _check_consistency(config: Config, text_encoder: TextEncoder | None) -> None:
    """Raise ValueError where both passes of `objective.consistency` would be the same. A text encoder that is trained
    has a dropout of its own."""
    weight, model = config.objective.consistency, MODELS[config.model.name]
    if not weight or (text_encoder is not None and not config.text.frozen):
        return
    sections = ["model", *([model.section] if model.section else [])]
    rates = {
        f"{section}.{key.name}": getattr(getattr(config, section), key.name)
        for section in sections
        for key in fields(getattr(config, section))
        if "dropout" in key.name
    }
    if not any(rate for key, rate in rates.items() if model.reads_key(key)):
        raise ValueError(
            f"objective.consistency is {weight:g}, but every dropout is 0, so that both passes are the same; set "
            "objective.consistency=0, or model.text_dropout=0.1"
        )
