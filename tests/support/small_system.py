"""A training system of a few thousand weights, and batches for it: enough to run whole passes, also interpreted."""

from dataclasses import replace
from types import SimpleNamespace

import torch

from dmd.config import Config, TrainConfig
from dmd.data.loader import Batch
from dmd.losses import ObjectiveConfig
from dmd.model.config import ModelConfig
from dmd.system.models import MODELS
from dmd.system.system import TrainingSystem

SIZES = {"text": 5, "audio": 3, "vision": 4}
LENGTHS = {"text": 4, "audio": 5, "vision": 3}
GHOSTS, SAMPLES = 2, 2
MODEL = ModelConfig(
    task="regression",
    dim=4,
    heads=1,
    levels=1,
    kernel_text=2,
    kernel_audio=1,
    kernel_vision=1,
    gd_size_homo=4,
    gd_size_hetero=4,
    res_dropout=0.1,
    relu_dropout=0.1,
    modality_dropout=0.1,
)


def small_model(name: str, **settings: object) -> ModelConfig:
    """`MODEL` with these settings, or as much of it as another model reads."""
    read = {key: value for key, value in vars(MODEL).items() if MODELS[name].reads_key(f"model.{key}")}
    return ModelConfig(**{**read, "name": name, **settings})  # type: ignore[arg-type]


def make_system(
    kernels: str,
    device: str,
    model: ModelConfig = MODEL,
    *,
    objective: ObjectiveConfig | None = None,
    **train: object,
) -> tuple[TrainingSystem, Config]:
    settings = {"ghost_batch_size": SAMPLES, "ghost_batches_per_step": GHOSTS, "precision": "fp32"} | train
    own = TrainConfig(kernels=kernels, **settings)
    config = replace(Config(), model=model, objective=objective or ObjectiveConfig(), train=own)
    torch.manual_seed(0)
    info = SimpleNamespace(dims=SIZES, lengths=LENGTHS)
    return TrainingSystem(config, info, None, torch.device(device)).to(device), config


def make_batch(step: int, device: str) -> Batch:
    generator = torch.Generator().manual_seed(step)
    batch = GHOSTS * SAMPLES
    parts = {m: torch.randn(batch, LENGTHS[m], SIZES[m], generator=generator) for m in SIZES}
    labels = torch.stack([parts["text"].mean((1, 2)).view(GHOSTS, SAMPLES)]).squeeze(0)
    return Batch(
        **parts,
        labels=labels,
        mask=torch.ones(GHOSTS, SAMPLES),
        rows=torch.zeros(GHOSTS, SAMPLES, dtype=torch.int64),
        ghosts=tuple(range(GHOSTS)),
    ).to(torch.device(device))
