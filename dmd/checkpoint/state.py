"""What a checkpoint of a training holds, and whether a training may continue from it."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from data_shards.format.schema import DatasetInfo
from dmd.checkpoint.format import Snapshot
from dmd.config import Config
from dmd.config.loading import config_to_dict, written_config
from dmd.documents import check_course
from dmd.encoder_tokenizer import check_same_text
from dmd.losses.model_objective import ModelObjective
from dmd.metrics.table import DEFAULTS
from dmd.model.text_base import TextBase, check_base
from dmd.system.system import TrainingSystem

VERSION = 1
OBJECTIVE = "objective/"
"""How the names of an objective's own tensors begin among the optimizer's of a checkpoint."""
FREE_KEYS = frozenset(
    {
        "data.reader",
        "data.workers",
        "data.check",
        "text.encoder",
        "train.epochs",
        "train.max_steps",
        "train.early_stop",
        "train.ghost_batches_per_forward",
        "train.zero_stage",
        "train.offload",
        "train.reduce_precision",
        "train.reduce_bucket_mb",
        "train.kernels",
        "train.precision",
        "train.save_every",
        "train.save_minutes",
        "train.keep_checkpoints",
        "train.log_every",
        "train.on_nonfinite",
        "train.nonfinite_limit",
        "train.on_storage_error",
        "train.collective_timeout",
        "train.trackers",
        "train.cuda_graph",
        "text.compile",
        "text.gradient_checkpointing",
        "train.adam",
        "train.deterministic",
    }
)
"""Config keys that may change between two starts of one run; every other change asks for a new run directory."""


@dataclass(frozen=True, kw_only=True)
class Cursor:
    """Where in the data a training stands, the same on every rank."""

    epoch: int = 0
    step: int = 0
    """Steps of this epoch that are done."""


def make_state(
    *,
    config: Config,
    info: DatasetInfo,
    cursor: Cursor,
    schedule: dict[str, Any],
    nonfinite_in_a_row: int,
    text_encoder: dict[str, Any] | None,
    library_versions: dict[str, str],
    averaged_steps: int | None,
    text_base: TextBase | None = None,
) -> dict[str, Any]:
    """The JSON part of a checkpoint."""
    return {
        "version": VERSION,
        "cursor": asdict(cursor),
        "config": config_to_dict(config),
        "schedule": schedule,
        "best_step": schedule["best_step"] if schedule["best_step"] >= 0 else None,
        "data": {
            "name": info.name,
            "generation": info.generation,
            "text_kind": info.text_kind,
            "dims": info.dims,
            "lengths": info.lengths,
            "label_scale": info.label_scale,
            "label_offset": info.label_offset,
            "class_names": list(info.class_names),
            "emotions": list(info.emotions),
            "protocol": info.protocol,
            "tokenizer": info.tokenizer,
            "extraction": info.extraction,
        },
        "text_encoder": text_encoder,
        "text_base": None if text_base is None else asdict(text_base),
        "nonfinite_in_a_row": nonfinite_in_a_row,
        "averaged_steps": averaged_steps,
        "versions": library_versions,
    }


def with_objective(optimizer: dict[str, Tensor], objective: ModelObjective) -> dict[str, Tensor]:
    """The optimizer's tensors of a checkpoint, and beside them what a training keeps of its objective."""
    return optimizer | {f"{OBJECTIVE}{name}": tensor for name, tensor in objective.training_state().items()}


def without_objective(snapshot: Snapshot) -> tuple[Snapshot, dict[str, Tensor]]:
    """A snapshot without what `with_objective` added, and that."""
    own = {k.removeprefix(OBJECTIVE): tensor for k, tensor in snapshot.optimizer.items() if k.startswith(OBJECTIVE)}
    rest = {k: tensor for k, tensor in snapshot.optimizer.items() if not k.startswith(OBJECTIVE)}
    return replace(snapshot, optimizer=rest), own


def model_state(system: TrainingSystem) -> dict[str, Tensor]:
    """Copies of all weights on the CPU."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in system.state_dict().items()}


def saved_config(state: dict[str, Any]) -> Config:
    """The config that a checkpoint was written with."""
    return written_config(state["config"])


def check_continues(state: dict[str, Any], config: Config, info: DatasetInfo, run: Path) -> None:
    """Raise ValueError unless a training with this config on this data may continue from the state."""
    check_course(state, str(run))
    if state["version"] != VERSION:
        raise ValueError(f"{run}: its checkpoints have version {state['version']}, this program reads {VERSION}")
    there, here = state["data"]["generation"], info.generation
    if there != here:
        raise ValueError(
            f"{run} was trained on data generation {there} ({state['data']['name']}), these shards are {here} "
            f"({info.name}); give the same shards, or another --run"
        )
    began = config_to_dict(saved_config(state))
    for section, values in config_to_dict(config).items():
        for name, value in values.items():
            before = began[section][name]
            if before != value and f"{section}.{name}" not in FREE_KEYS:
                raise ValueError(
                    f"{run} was trained with {section}.{name}={before}, not {value}; give that value, or another --run"
                )
    _check_same_labels(state["data"], config, info, run)


def _check_same_labels(data: dict[str, Any], config: Config, info: DatasetInfo, run: Path) -> None:
    """Raise ValueError where labels have other units, classes or names than those in a state."""
    task = config.model.task
    facts: list[tuple[str, object, object]]
    if task == "multilabel" or config.data.classes == "stored":
        names, default = (
            ("emotions", DEFAULTS["multilabel"]) if task == "multilabel" else ("class_names", DEFAULTS["classes"])
        )
        facts = [(names, list(data.get(names, getattr(info, names))), list(getattr(info, names)))]
        if "protocol" in data:
            facts.append(("protocol", data["protocol"] or default, info.protocol or default))
    else:
        facts = [
            ("label_scale", data.get("label_scale", 1.0), info.label_scale),
            ("label_offset", data.get("label_offset", 0.0), info.label_offset),
        ]
        if isinstance(task, int):
            default = DEFAULTS["regression"]
            facts.append(("protocol", data.get("protocol") or default, info.protocol or default))
    for name, there, here in facts:
        if there != here:
            raise ValueError(
                f"{run} was trained on labels with {name} {there}, these shards ({info.name}) have {here}; write them "
                "with the options of before (--label-range, --label-scale, --class-names, --emotions, --protocol), or "
                "give another --run"
            )


def check_same_base(state: dict[str, Any], base: TextBase | None, run: Path) -> None:
    """Raise ValueError unless a state's text encoder stands on these weights."""
    saved = state.get("text_base")
    if saved is not None and base is not None:
        check_base(TextBase(**saved), base, str(run))


def check_fits(data: dict[str, Any], info: DatasetInfo) -> None:
    """Raise ValueError unless a model that was trained on `data` can read these shards."""
    check_same_text(data, info)
    for what, here in (("text_kind", info.text_kind), ("dims", info.dims), ("lengths", info.lengths)):
        if data[what] != here:
            raise ValueError(
                f"the model was trained on data with {what} {data[what]}, these shards have {here}; give shards that "
                "were made from the same features"
            )
