"""A trained model as one directory that anyone can load: `dmd export RUN DIR`, `dmd.load(DIR)`.

    DIR/model.safetensors   weights of DMD, its text encoder (of LoRA: the adapters) and both GD-Units
    DIR/model.json          config, data shapes, text encoder, origin (`ModelCard`)
    DIR/program.pt2         the same as a `torch.export` program, where PyTorch can make one

The program takes (text, audio, vision) with any number of samples and gives predictions [B, 8], on the scale [-3, 3] of
the shards (`label_scale` and `label_offset` of model.json lead back), or logits [B, 8, outputs], and the edges of both
GD-Units [B, 6]; `torch.export.load("DIR/program.pt2").module()` runs it without this package.
"""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from data_shards.durable import write_file
from data_shards.sole_writer import LEASE_FILE, sole_writer
from dmd.checkpoint.writer import tensor_bytes
from dmd.config.schema import TextConfig
from dmd.errors import first_line
from dmd.evaluation.trained_run import read_run
from dmd.kernels.backend import default_device
from dmd.model.lora import merge_lora
from dmd.system.trained_model import InferenceModules, ModelCard, TrainedModel

WEIGHTS, CARD, PROGRAM = "model.safetensors", "model.json", "program.pt2"
FORMAT = 1
"""Version of this layout, part of model.json."""
PROGRAM_TOLERANCE = 1e-4
"""Largest difference of a prediction between the program and the model that is accepted."""
OF_ENCODER = "dmd.text_encoder.network."
"""How the names of a text encoder's weights begin."""
CPU = torch.device("cpu")


def load(
    path: str | Path, device: str | torch.device | None = None, *, text_encoder: str | None = None
) -> TrainedModel:
    """A trained model from an export, or from the best checkpoint of a run directory.

    Args:
        path: directory that `dmd export` or a training wrote.
        device: where it runs; None: the GPU where there is one.
        text_encoder: see `TrainedModel`.

    Raises:
        ValueError: neither of the two, damaged, or a base that is not here or has other weights.
    """
    card, weights = read_model(path)
    place = default_device() if device is None else torch.device(device)
    return TrainedModel(card, weights, place, text_encoder=text_encoder)


def read_model(path: str | Path) -> tuple[ModelCard, dict[str, Tensor]]:
    """Card and weights of an export, or of the best checkpoint of a run directory.

    Raises:
        ValueError: neither of the two, or damaged.
    """
    path = Path(path)
    if (path / CARD).is_file():
        return _read_export(path)
    if path.is_dir():
        return read_run(path)
    raise ValueError(f"there is no directory {path}; give a run, or what `dmd export` wrote")


def export(run: Path, out: Path, *, program: bool, text_encoder: str | None = None, merge: bool = False) -> str | None:
    """Write a run's best checkpoint as an export; returns why there is no program, None if there is one.

    Args:
        text_encoder: see `TrainedModel`; what is found there is named in the export.
        merge: add LoRA's adapters to the weights of the text encoder, so that the export needs no base.

    Raises:
        ValueError: no checkpoint, nothing to merge, `out` holds files that are no export, or another process writes
            there.
    """
    ours = (WEIGHTS, CARD, PROGRAM, LEASE_FILE)
    if out.exists() and (not out.is_dir() or any(p.name not in ours for p in out.iterdir())):
        raise ValueError(f"{out} holds other files than an export; give a new directory")
    card, weights = read_run(run)
    model = TrainedModel(card, weights, CPU, text_encoder=text_encoder)
    card = model.card
    if merge:
        card, weights = merged(model)
    with sole_writer(out):
        for name in (CARD, PROGRAM, WEIGHTS):  # the card first: without it this is no export, should a kill come here
            (out / name).unlink(missing_ok=True)
        write_file(out / WEIGHTS, tensor_bytes(weights))  # the library's own `save_file` lets nobody else read it
        content = {"format": FORMAT, **asdict(card)}
        (out / CARD).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        return save_program(model, out / PROGRAM) if program else "not asked for"


def merged(model: TrainedModel) -> tuple[ModelCard, dict[str, Tensor]]:
    """Card and weights of a model whose adapters become part of its text encoder; the model's own are merged too.

    Raises:
        ValueError: a model without adapters.
    """
    card, encoder = model.card, model.modules.dmd.text_encoder
    if encoder is None or model.config.text.lora is None:
        raise ValueError("--merge, but the model has no adapters (text.lora_rank); export it without")
    if model.config.text.quantize != "none":
        raise ValueError("--merge, but adapters cannot be added to quantised weights (text.quantize); export without")
    merge_lora(encoder.network)
    own = {name: tensor for name, tensor in model.modules.state_dict().items() if not name.startswith(OF_ENCODER)}
    whole = {f"{OF_ENCODER}{name}": tensor for name, tensor in encoder.network.state_dict().items()}
    without = {name: value for name, value in asdict(TextConfig()).items() if name.startswith("lora_")}
    config = {**card.config, "text": card.config["text"] | without}
    return replace(card, config=config, text_base=None), own | whole


def save_program(model: TrainedModel, path: Path) -> str | None:
    """Write a model as a `torch.export` program; returns the reason where PyTorch cannot, None on success."""
    samples = example(model.card, 3)
    batch = torch.export.Dim("samples", min=1)
    try:
        with torch.no_grad():
            program = torch.export.export(
                model.modules, tuple(samples.values()), strict=False, dynamic_shapes=({0: batch},) * 3
            )
            other = example(model.card, 5)
            difference = _difference(program.module(), model.modules, other)
    except RuntimeError as error:
        return first_line(error, 200)
    if not difference <= PROGRAM_TOLERANCE:
        return f"its predictions differ from the model's by {difference:.1e}"
    torch.export.save(program, path)
    return None


def example(card: ModelCard, count: int) -> dict[str, Tensor]:
    """Synthetic samples of the shapes that a model reads, {modality: [count, ...]}."""
    generator = torch.Generator().manual_seed(count)
    samples = {m: torch.randn(count, *card.shape(m), generator=generator) for m in ("text", "audio", "vision")}
    if card.data["text_kind"] == "tokens":
        samples["text"] = torch.ones(count, *card.shape("text"), dtype=torch.int64)
        samples["text"][:, 2] = 0
    return samples


def _difference(program: torch.nn.Module, modules: InferenceModules, samples: dict[str, Tensor]) -> float:
    got, want = program(*samples.values()), modules(*samples.values())
    return max(float((g - w).abs().max()) for g, w in zip(got, want, strict=True))


def _read_export(path: Path) -> tuple[ModelCard, dict[str, Tensor]]:
    try:
        content: dict[str, Any] = json.loads((path / CARD).read_bytes())
        version = content.pop("format")
        if version != FORMAT:
            raise ValueError(f"{path} has export format {version}, this program reads {FORMAT}; export the run again")
        card, weights = ModelCard(**content), safetensors.torch.load_file(path / WEIGHTS)
    except (
        json.JSONDecodeError,
        UnicodeDecodeError,
        RecursionError,
        KeyError,
        TypeError,
        AttributeError,
        OSError,
        SafetensorError,
    ) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is no whole export ({reason}); export the run again") from error
    return card, weights
