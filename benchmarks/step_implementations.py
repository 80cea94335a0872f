"""The implementations of a training step that `step_cuda` compares, each with weights and samples of its own."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import torch
from torch import Tensor

from benchmarks.batched import TorchRNG, batched
from benchmarks.reference import reference
from benchmarks.step_sides import SIZE, random_samples, shapes
from dmd.config.loading import load_config
from dmd.data.loader import Batch
from dmd.model.text import build_text_encoder
from dmd.system.system import TrainingSystem
from dmd.training.passes import ghost_batches_at_once
from dmd.training.step import make_rng

OURS = ("fused", "graph", "plain")
"""Triton kernels; the same as a CUDA graph; our PyTorch implementation."""
COMPILED = {"compiled": "default", "reduce-overhead": "reduce-overhead"}
"""`batched` through `torch.compile`, by its mode; on a CPU traced alone, since its code generator fails there."""
IMPLEMENTATIONS = (*OURS, "batched", "reference", *COMPILED)
TINY = ("model.dim=20", "model.heads=4", "model.levels=1")
BERT = {"model_type": "bert"}
TINY_BERT = {**BERT, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}


class Side:
    """One implementation of a preset's training system, with samples for a step.

    Args:
        implementation: one of `IMPLEMENTATIONS`.
        bert: train a text encoder of BERT-base's shape, with random weights.
        tiny: a small model, to try the program.
    """

    def __init__(
        self,
        preset: str,
        *,
        implementation: str,
        bert: bool,
        precision: str,
        ghosts: int,
        device: torch.device,
        tiny: bool = False,
    ) -> None:
        torch.manual_seed(0)
        self.implementation = implementation
        self.device = device
        config = load_config(preset, ["model.task=regression", *(TINY if tiny else ())])
        dims, lengths = shapes(preset)
        train = replace(
            config.train,
            kernels="fused" if implementation in ("fused", "graph") and device.type == "cuda" else "plain",
            cuda_graph="auto" if implementation == "graph" else "off",
            precision=precision,
            ghost_batches_per_step=ghosts,
        )
        self.at_once = ghosts
        if implementation == "reference":
            self.at_once = 1
        elif implementation == "plain":
            self.at_once = min(ghosts, ghost_batches_at_once(train, lengths, device.type))
        self.config = replace(config, train=replace(train, ghost_batches_per_forward=self.at_once))
        encoder = build_text_encoder(TINY_BERT if tiny else BERT, frozen=False) if bert else None
        system = TrainingSystem(self.config, SimpleNamespace(dims=dims, lengths=lengths), encoder, device)
        if implementation == "reference":
            reference(system.network)
        elif implementation not in OURS:
            batched(system.network)
        self.system = system.to(device).train()
        self.loss: Callable[..., Tensor] = self._loss
        if implementation in COMPILED:
            compiler = {"mode": COMPILED[implementation]} if device.type == "cuda" else {"backend": "aot_eager"}
            self.loss = torch.compile(self._loss, dynamic=False, **compiler)
        self.batches = self._batches(*random_samples(preset, ghosts, bert=bert, device=device))
        self.number = 0

    def _batches(self, parts: list[Tensor], labels: Tensor) -> list[Batch]:
        """One batch for each pass."""
        numbers = torch.arange(len(labels)).split(self.at_once)
        passes = zip(*(x.split(self.at_once * SIZE) for x in parts), labels.split(self.at_once), numbers, strict=True)
        return [
            Batch(
                text=text,
                audio=audio,
                vision=vision,
                labels=own,
                mask=torch.ones_like(own),
                rows=torch.zeros(own.shape, dtype=torch.int64),
                ghosts=tuple(number.tolist()),
            )
            for text, audio, vision, own, number in passes
        ]

    def _loss(self, text: Tensor, audio: Tensor, vision: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        """The loss of a pass, with dropout by torch."""
        with self.system.execution.casting(self.device.type):
            output = self.system.network(text, audio, vision, TorchRNG(self.device))
        return self.system.objective(output, labels, mask)["total"].sum()

    def step(self) -> None:
        """Forward, objective and backward of all ghost batches."""
        for forward, batch in enumerate(self.batches):
            if self.implementation in OURS:
                rng = make_rng(
                    batch, self.config, step=self.number, forward=forward, device=self.device, keys=self.system.keys
                )
                loss = self.system(batch, rng).total.sum()
            else:
                if self.implementation in COMPILED:
                    torch.compiler.cudagraph_mark_step_begin()
                loss = self.loss(batch.text, batch.audio, batch.vision, batch.labels, batch.mask)
            loss.backward()
        self._end()

    def text_encoder(self) -> None:
        """Forward and backward of the text encoder alone, in the same precision."""
        encoder = self.system.network.text_encoder
        assert encoder is not None
        for batch in self.batches:
            with self.system.execution.casting(self.device.type):
                encoded = encoder(batch.text)
            encoded.float().sum().backward()
        self._end()

    def _end(self) -> None:
        self.system.zero_grad()
        self.number += 1
        synchronise(self.device)


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()
