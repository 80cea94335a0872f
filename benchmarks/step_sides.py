"""The sides of the step benchmark: ours and the reference, compiled or not, on the same weights and random samples."""

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.reference import compiled_reference, reference
from dmd.config.loading import load_config
from dmd.kernels.dropout.keys import number_samples
from dmd.kernels.dropout.rng import DropoutRNG
from dmd.losses import Objective, ObjectiveConfig
from dmd.model import DMD
from dmd.model.text import TextEncoder
from dmd.training.passes import ghost_batches_at_once

DIMS = {"mosi": {"text": 768, "audio": 5, "vision": 20}, "mosei": {"text": 768, "audio": 74, "vision": 35}}
LENGTHS = {
    "mosi-aligned": (50, 50, 50),
    "mosi-unaligned": (50, 375, 500),
    "mosei-aligned": (50, 50, 50),
    "mosei-unaligned": (50, 500, 500),
}
SIZE = 16
"""Samples of a ghost batch."""
STEP = 10
"""Ghost batches of an optimizer step."""


def shapes(preset: str) -> tuple[dict[str, int], dict[str, int]]:
    """Feature dimensions and sequence lengths of a preset's data, by modality."""
    dims = DIMS[preset.split("-")[0]]
    return dims, dict(zip(dims, LENGTHS[preset], strict=True))


def random_samples(
    preset: str, ghosts: int, *, bert: bool, device: torch.device | str = "cpu"
) -> tuple[list[Tensor], Tensor]:
    """[G * S, T, D] of each modality, or token ids [G * S, 3, T] as text, and labels [G, S]."""
    dims, lengths = shapes(preset)
    parts = [torch.randn(ghosts * SIZE, lengths[m], dims[m], device=device) for m in lengths]
    if bert:
        ids = torch.randint(1000, 30000, (ghosts * SIZE, 1, lengths["text"]), device=device)
        parts[0] = torch.cat([ids, torch.ones_like(ids), torch.zeros_like(ids)], 1)
    return parts, torch.randint(-15, 16, (ghosts, SIZE), device=device) / 5


class Sides:
    """A preset's model in all implementations.

    Args:
        ghosts: ghost batches that there are samples for.
        bert: train a text encoder of BERT-base's shape, with random weights, on random token ids.
    """

    def __init__(self, preset: str, *, ghosts: int, bert: bool = False) -> None:
        torch.manual_seed(0)
        config = load_config(preset, ["model.task=regression"])
        dims, lengths = shapes(preset)
        encoder = None
        if bert:
            from transformers import BertConfig, BertModel

            encoder = TextEncoder(BertModel(BertConfig(), add_pooling_layer=False), frozen=False)
        self.models = {"ours": DMD(config.model, dims, lengths, encoder)}
        self.models["reference"] = reference(copy.deepcopy(self.models["ours"]))
        self.models["compiled"] = compiled_reference(copy.deepcopy(self.models["ours"]))
        self.losses = Objective(ObjectiveConfig(), config.model)
        self.at_once = min(ghost_batches_at_once(config.train, lengths, "cpu"), ghosts)
        self.parts, self.labels = random_samples(preset, ghosts, bert=bert)

    def step(self, side: str, at_once: int | None = None) -> None:
        """Forward, objective and backward of every ghost batch; a reference takes one at a time."""
        model = self.models[side]
        at_once = (at_once or self.at_once) if side == "ours" else 1
        for first in range(0, len(self.labels), at_once):
            ghosts = range(first, min(first + at_once, len(self.labels)))
            rng = DropoutRNG(seed=1, step=0, samples=number_samples(ghosts, range(SIZE)), device=torch.device("cpu"))
            rows = slice(ghosts.start * SIZE, ghosts.stop * SIZE)
            labels = self.labels[ghosts.start : ghosts.stop]
            terms = self.losses(model(*self._rows(rows), rng), labels, torch.ones_like(labels))
            terms["total"].sum().backward()
        model.zero_grad()
        self.losses.zero_grad()

    def of(self, side: str, at_once: int | None = None) -> Callable[[], None]:
        """The step as a function."""
        return lambda: self.step(side, at_once)

    def text_encoder(self) -> None:
        """The forward and backward pass of the text encoder alone."""
        encoder = self.models["ours"].text_encoder
        assert encoder is not None
        encoder(self.parts[0]).sum().backward()
        encoder.zero_grad()

    def _rows(self, rows: slice) -> list[Tensor]:
        return [part[rows] for part in self.parts]


def resident(field: str) -> float:
    """GiB of this process's memory: VmRSS now, or VmHWM, its peak since `forget_peak`."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split(f"{field}:")[1].split()[0]) / 2**20


def forget_peak() -> None:
    """Start VmHWM anew from what is resident now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
