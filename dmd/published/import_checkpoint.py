"""A published checkpoint (.pth of mdswyz/DMD) as a run directory that `dmd evaluate`, `predict` and `export` read.

    dmd import published.pth --preset mosi-aligned RUN

Feature dims and lengths are read off the shapes of the file. The published code saves the network without its GD-Units
(docs/published-code.md#checkpoints): their weights stay as they were drawn, which changes no prediction.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from data_shards.durable import replace_file
from data_shards.file_kinds import PICKLE, TORCH_KINDS, check_file_kind
from data_shards.places import Place
from dmd.checkpoint.format import Snapshot
from dmd.checkpoint.saver import CHECKPOINTS
from dmd.checkpoint.state import VERSION
from dmd.checkpoint.writer import write_checkpoint
from dmd.config import Config
from dmd.config.loading import config_to_dict
from dmd.errors import first_line
from dmd.model.config import MODALITIES
from dmd.model.text import build_text_encoder, encoder_config, stands_on_base
from dmd.published.parameter_names import LETTER, TEXT_ENCODER, UNUSED, Import, from_published, slots
from dmd.system.modules import Modules
from dmd.training.logging.provenance import provenance, versions

NAME = "published"
"""What the run says its data set and generation are."""


def read_published(path: Path) -> dict[str, Tensor]:
    """The state dict in a .pth file, without running anything in it.

    Raises:
        ValueError: no file, a pickle with code, damage, or something else than a state dict.
    """
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    check_file_kind(path, "a .pth file", allowed=(*TORCH_KINDS, PICKLE.name))
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, OSError, LookupError, TypeError, ValueError) as error:
        reason = first_line(error, 160)
        raise ValueError(f"{path} is not a file of tensors alone ({reason}); nothing in it was run") from error
    if not isinstance(content, Mapping) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise ValueError(f"{path} holds a {type(content).__name__} that is no state dict; give the .pth of a DMD")
    return dict(content)


def shapes(published: Mapping[str, Tensor], config: Config) -> tuple[dict[str, int], dict[str, int]]:
    """Feature dims and lengths that a state dict was trained on, as its shapes show.

    Raises:
        ValueError: a tensor that shows them is missing, or does not fit the config's width.
    """
    dims: dict[str, int] = {}
    lengths: dict[str, int] = {}
    dim = config.model.dim
    for modality in MODALITIES:
        name = f"proj1_{LETTER[modality]}_low.weight"
        if name not in published or published[name].shape[0] != dim or published[name].shape[1] % dim:
            found = list(published[name].shape) if name in published else "nothing"
            raise ValueError(
                f"{name} is {found} in this file, the configuration asks for [{dim}, steps * {dim}]; choose the preset "
                "that the file was trained with"
            )
        convolution = published.get(f"proj_{LETTER[modality]}.weight")
        dims[modality] = dim if convolution is None else int(convolution.shape[1])
        lost = 0 if convolution is None else int(convolution.shape[2]) - 1
        lengths[modality] = published[name].shape[1] // dim + lost
    return dims, lengths


def import_run(path: Path, run: Path, config: Config, *, data: Place | None) -> Import:
    """Write a run directory with the weights of a published file; returns what became of each of its tensors.

    What it says is missing are the GD-Units' weights, which no published file holds.

    Args:
        path: the .pth file.
        run: directory to make.
        config: the hyperparameters that it was trained with.
        data: shards that `dmd evaluate RUN` reads by default.

    Raises:
        ValueError: what `read_published` and `shapes` reject, another task or shape than the config's, a weight of the
            network that is missing, or a directory that is taken.
    """
    if run.exists():
        raise ValueError(f"{run} is there already; give a new directory")
    if stands_on_base(config.text.lora, config.text.quantize):
        raise ValueError("text.lora_rank or text.quantize is set, but published files hold all weights; leave them out")
    if config.model.name != "dmd":
        raise ValueError(f"model.name is {config.model.name!r}, but published files hold a DMD; leave it out")
    if config.model.task == "multilabel" or config.data.classes != "sentiment":
        raise ValueError(
            f"model.task is {config.model.task!r} and data.classes is {config.data.classes!r}, but published files "
            "predict a sentiment; give the preset of CMU-MOSI or CMU-MOSEI that the file was trained with"
        )
    if config.model.task == "auto":
        config = replace(config, model=replace(config.model, task="regression"))  # all that was published
    published = read_published(path)
    dims, lengths = shapes(published, config)
    settings, encoder = None, None
    if any(name.startswith(TEXT_ENCODER[0]) and not name.startswith(UNUSED) for name in published):
        settings = encoder_config(config.text.encoder)
        encoder = build_text_encoder(settings, frozen=config.text.frozen)
    torch.manual_seed(config.train.seed)
    shape = {"dims": dims, "lengths": lengths}
    modules = Modules(config, data=shape, text_encoder=encoder, device=torch.device("cpu"), binding=False)
    report = from_published(published, modules.network.state_dict(), slots(config.model.levels))
    if report.missing:
        raise ValueError(
            f"{path} lacks {len(report.missing)} weights of the network, such as {report.missing[0]!r}; give the .pth "
            "of a whole DMD and the preset that it was trained with"
        )
    modules.network.load_state_dict(report.state)
    about = {
        "name": NAME,
        "generation": NAME,
        "text_kind": "features" if settings is None else "tokens",
        "dims": dims if settings is None else {**dims, "text": 0},
        "lengths": lengths,
    }
    origin = {"published": str(path), **({"data": str(data.absolute())} if data else {})}
    _write(run, modules, config, about, settings, origin)
    drawn = [name for name in modules.state_dict() if not name.startswith("dmd.")]
    return report._replace(missing=drawn)


def _write(
    run: Path,
    modules: Modules,
    config: Config,
    about: dict[str, Any],
    text_encoder: dict[str, Any] | None,
    info: dict[str, Any],
) -> None:
    """One checkpoint at step 0 and run.json."""
    state = {
        "version": VERSION,
        "cursor": {"epoch": 0, "step": 0},
        "config": config_to_dict(config),
        "data": about,
        "schedule": {"best_step": -1},
        "best_step": None,
        "text_encoder": text_encoder,
        "versions": versions(),
    }
    weights = {name: tensor.detach().contiguous() for name, tensor in modules.state_dict().items()}
    snapshot = Snapshot(step=0, model=weights, optimizer={}, state=state)
    run.mkdir(parents=True)
    write_checkpoint(run / CHECKPOINTS, snapshot, keep=2)
    document = {"config": state["config"], "info": {**info, "data_name": NAME}, "sessions": [provenance()]}
    replace_file(run / "run.json", json.dumps(document, indent=1).encode())
