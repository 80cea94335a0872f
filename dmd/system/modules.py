"""The three modules that are trained together, as one: DMD and the two GD-Units of its objective.

Here is, once, how they are built, under which names a checkpoint holds their weights, by which kernels and in which
precision a device runs them, and what they say of samples. `dmd.system.system` trains them, `dmd.system.trained_model`
predicts with them.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dmd.config import Config
from dmd.data.loader import Batch
from dmd.data.targets import scoring_of, targets
from dmd.kernels.backend import choose_execution, why_not_fused
from dmd.kernels.dropout.rng import DropoutRNG
from dmd.losses import Objective
from dmd.model import DMD
from dmd.model.config import MODALITIES
from dmd.model.dmd import HEADS, DMDOutput
from dmd.model.text import TextEncoder

BATCH_SIZE = 64
"""Samples of a pass that predicts. Fixed, so that a prediction has the same digits in every command and at any number
of ranks."""
SPACES = ("homo", "hetero")


class Modules(nn.Module):
    """DMD with its objective, under the names that checkpoints give them.

    Args:
        data: facts of the data, under the names of `DatasetInfo`: `dims` and `lengths` of each modality, and what its
            labels are (`dmd.data.targets.scoring_of`).
        text_encoder: reads token ids; None where the text comes as features.
        device: where they will run, which settles how (`execution`); their weights are moved there by `to`.
        binding: whether kernels and precision that the config asks for are an error where the device has none; a
            trained model on another machine takes what is there.

    Raises:
        ValueError: what the config asks for and the device does not have.
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
        self.config = config
        self.device = device
        train = config.train
        self.execution = choose_execution(device, kernels=train.kernels, precision=train.precision, binding=binding)
        backend = self.execution.backend
        self.scoring = scoring_of(config, data)
        self.dmd = DMD(config.model, data["dims"], data["lengths"], text_encoder, backend=backend)
        self.objective = Objective(config.objective, config.model, backend=backend)

    def use_pytorch(self, reason: str) -> None:
        """Go on with PyTorch alone, for a reason that `execution` states."""
        self.execution = self.execution.plain(self.device, reason)
        self.dmd.use(self.execution.backend)
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

    def output(self, text: Tensor, audio: Tensor, vision: Tensor, rng: DropoutRNG | None = None) -> DMDOutput:
        """The network's output for B samples, in the precision of its device.

        Args:
            text: [B, T, D], or [B, 3, T] token ids.
            audio: [B, T, D]
            vision: [B, T, D]
            rng: dropout RNG of a training.
        """
        with self.execution.casting(audio.device.type):
            return self.dmd(text, audio, vision, rng)

    def predict(self, batch: Batch, rng: DropoutRNG | None = None) -> DMDOutput:
        """The network's output for the G * S samples of a batch."""
        return self.output(batch.text, batch.audio, batch.vision, rng)

    def targets(self, batch: Batch) -> Tensor:
        """What the heads are to predict: [G, S], sentiments or class numbers; [G, S, L], emotions."""
        return targets(batch.labels, self.scoring)

    def answers(self, output: DMDOutput) -> tuple[Tensor, Tensor, Tensor]:
        """All heads of an output (`all_heads`), and the edges of each GD-Unit, [B, 6]."""
        return all_heads(output), *(self._edges(space, output) for space in SPACES)  # type: ignore[return-value]

    def _edges(self, space: str, output: DMDOutput) -> Tensor:
        """Edges of a space's GD-Unit per sample, [B, 6]."""
        logits = {m: output.predictions[f"{m}_{space}"].float() for m in MODALITIES}
        reprs = output.homo_repr if space == "homo" else output.hetero_repr
        return self.objective.get_submodule(space)(logits, {m: reprs[m].float() for m in MODALITIES})


def all_heads(output: DMDOutput) -> Tensor:
    """Predictions [B, 8], or logits [B, 8, outputs], in the order of `HEADS`; float32."""
    return torch.stack([output.predictions[head].float() for head in HEADS], dim=1)
