"""What is on disk of a model, whatever it is: a run, an export, several of them, or an exported ensemble.

DIR/ensemble.json     its members' directories, and its calibration
DIR/README.md         the same for people
DIR/member-01/ ...    an export each (`dmd.inference.export`)
"""

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from data_shards.durable import read_regular
from dmd.checkpoint.saver import CHECKPOINTS
from dmd.checkpoint.select import Step
from dmd.documents import DOCUMENT, EXPORTED_ENSEMBLE, parse_object
from dmd.inference.ensemble import (
    FEWEST,
    MOST,
    Calibration,
    DifferentWeights,
    Ensemble,
    check_distinct,
    check_encoder,
    check_members,
    encoder_for,
)
from dmd.inference.export import CARD, DamagedExport, is_export, read_card, read_model
from dmd.kernels.backend import default_device
from dmd.system.models import heads_of, spaces_of
from dmd.system.trained_model import ModelCard, TrainedModel, config_of

ENSEMBLE = EXPORTED_ENSEMBLE
MEMBER = re.compile(r"member-[0-9]{2}")
"""What the directories of members are called."""
_MEASURED = {"ensemble", "members_mean"}
"""Keys of `EnsembleDocument.metrics`."""
FORMAT = 1
"""Version of the layout of an exported ensemble, part of ensemble.json."""
Model = TrainedModel | Ensemble


@dataclass(frozen=True, kw_only=True)
class EnsembleDocument:
    """What ensemble.json says."""

    members: tuple[str, ...]
    """Their directories below that of the file."""
    calibration: Calibration | None
    metrics: dict[str, dict[str, float | None]]
    """{"ensemble", "members_mean": {metric: value}} of the fused head on the validation split; empty: not measured."""
    source: dict[str, Any]
    """What the hub adds (`dmd.inference.hub`)."""
    format: int = FORMAT


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """A model as it is read: one member, or those of an ensemble."""

    members: tuple[tuple[ModelCard, dict[str, Tensor]], ...]
    places: tuple[Path, ...] = ()
    """Of each member the directory that it was read from; empty: it came from another process."""
    calibration: Calibration | None = None

    @property
    def is_ensemble(self) -> bool:
        """Whether there are several."""
        return len(self.members) > 1

    @property
    def cards(self) -> list[ModelCard]:
        """Those of the members."""
        return [card for card, _ in self.members]

    @property
    def card(self) -> ModelCard:
        """That of the first member, whose data facts are those of all."""
        return self.members[0][0]

    @property
    def heads(self) -> list[str]:
        """The heads that all members have, `fused` first."""
        return _common([list(heads_of(config_of(card).model.name)) for card in self.cards])

    @property
    def spaces(self) -> list[str]:
        """The GD-Units that all members have."""
        return _common([list(spaces_of(config_of(card).model.name)) for card in self.cards])

    @property
    def sources(self) -> list[dict[str, Any]]:
        """`ModelCard.source` of each member."""
        return [card.source for card in self.cards]

    @property
    def step(self) -> list[int] | int | None:
        """Of the checkpoint; None for an export that does not say; a list: of an ensemble's members, where they are
        known. Of a mean the last one."""
        found = [source.get("step") for source in self.sources]
        return sorted(step for step in found if step is not None) if self.is_ensemble else found[0]

    def build(self, device: torch.device, *, text_encoder: str | None = None) -> Model:
        """The model on a device.

        Raises:
            ValueError: as `TrainedModel`, and as `Ensemble`.
        """
        if self.is_ensemble:
            check_encoder(self.cards, text_encoder)
        members = [
            TrainedModel(card, weights, device, text_encoder=self.encoder_of(card, text_encoder))
            for card, weights in self.members
        ]
        return Ensemble(members, calibration=self.calibration) if self.is_ensemble else members[0]

    def encoder_of(self, card: ModelCard, text_encoder: str | None) -> str | None:
        """Of a text encoder's weights that are named, those of a member: `encoder_for`; of one model as they are."""
        return encoder_for(card, text_encoder) if self.is_ensemble else text_encoder


def read_files(paths: Sequence[str | Path], step: Step | None = None, *, text_encoder: str | None = None) -> ModelFiles:
    """What is to be read of a model: of one directory, or of those of an ensemble's members.

    An ensemble that is alone has its calibration; one among others gives its members.

    Args:
        paths: runs, exports and exported ensembles.
        step: which checkpoint, or the mean of which, of each run; None: the best.
        text_encoder: see `dmd.evaluation.trained_run.read_run`.

    Raises:
        ValueError: no directory; as `read_model`; members that do not agree, or one that is named twice, or copied.
    """
    if not paths:
        raise ValueError("no model is named; give a run, or what `dmd export` wrote")
    given = [Path(path) for path in paths]
    places = [place for path in given for place in (_member_places(path) if is_ensemble(path) else [path])]
    check_distinct(places)
    different, members = DifferentWeights(), list[tuple[ModelCard, dict[str, Tensor]]]()
    for place in places:
        members.append(read_model(place, step, text_encoder=text_encoder))
        if len(places) > 1:
            different.add(*members[-1])
    if len(members) > 1:
        check_members([card for card, _ in members])
    alone = len(given) == 1 and is_ensemble(given[0])
    return ModelFiles(
        members=tuple(members),
        places=tuple(places),
        calibration=read_document(given[0]).calibration if alone else None,
    )


def load(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    device: str | torch.device | None = None,
    *,
    step: Step | None = None,
    text_encoder: str | None = None,
) -> Model:
    """A trained model that predicts, without DeepSpeed and Ray: of an export, of a checkpoint of a run, or of several.

    Args:
        path: directory that `dmd export` or a training wrote; several make an ensemble of them.
        device: where it runs; None: the GPU where there is one.
        step: which checkpoint of a run: its step, "best" or "last"; or the mean of several: "average:5", of the newest
            five that it keeps, or "soup". None: the best, or what an export holds.
        text_encoder: where the text encoder's own weights are, of a model that names them; None: where it says.

    Returns:
        A `dmd.system.trained_model.TrainedModel`, or of several directories, or that of an exported ensemble, a
        `dmd.inference.ensemble.Ensemble`, which predicts by the same calls.

    Raises:
        ValueError: neither of the two, damaged, a step that is not there (the message has those that are), a text
            encoder that is not here or has other weights, or members of an ensemble that do not agree.
    """
    paths = [path] if isinstance(path, str | os.PathLike) else list(path)
    place = default_device() if device is None else torch.device(device)
    files = read_files([Path(one) for one in paths], step, text_encoder=text_encoder)
    return files.build(place, text_encoder=text_encoder)


def _common(names: Sequence[Sequence[str]]) -> list[str]:
    """Those that are in all, in the order of the first."""
    return [name for name in names[0] if all(name in others for others in names)]


def sources_of(path: Path) -> list[dict[str, Any]]:
    """`ModelFiles.sources` of an export, without its weights."""
    return [read_card(place).source for place in (_member_places(path) if is_ensemble(path) else [path])]


def _member_places(path: Path) -> list[Path]:
    """The directories of an exported ensemble's members.

    Raises:
        ValueError: as `read_document`; `DamagedExport`, one that is no export, or lies elsewhere.
    """
    places = [path / name for name in read_document(path).members]
    for place in places:
        if not is_export(place) or place.resolve().parent != path.resolve():
            raise DamagedExport(f"{place} is no export in the directory of its ensemble; copy or export {path} again")
    return places


def is_ensemble(path: Path) -> bool:
    """Whether a directory is an ensemble that `dmd export` wrote."""
    return (path / ENSEMBLE).is_file()


def is_model(path: Path) -> bool:
    """Whether a directory looks like that of a run, an export or an ensemble."""
    return any((path / name).exists() for name in (CARD, ENSEMBLE, DOCUMENT, CHECKPOINTS))


def read_document(path: Path) -> EnsembleDocument:
    """What the ensemble.json of a directory says, which may come from anybody.

    Raises:
        ValueError: a damaged one, one of another format, or members outside of the directory.
    """
    with read_regular(path / ENSEMBLE) as file:
        content: Mapping[str, Any] = parse_object(file.read()) or {}
    if content.get("format", FORMAT) != FORMAT:
        raise ValueError(
            f"{path} has ensemble format {content['format']!r:.20}, this program reads {FORMAT}; export the runs again"
        )
    try:
        document: EnsembleDocument = TypeAdapter(EnsembleDocument).validate_python(content)
    except ValidationError as error:
        raise DamagedExport(f"{path}/{ENSEMBLE} is damaged; copy or export the ensemble again") from error
    names = document.members
    are_distinct = FEWEST <= len(names) <= MOST and len(set(names)) == len(names)
    if not are_distinct or set(document.metrics) not in (set(), _MEASURED) or not is_usable(document.calibration):
        raise DamagedExport(f"{path}/{ENSEMBLE} is damaged; copy or export the ensemble again")
    for name in names:
        if not MEMBER.fullmatch(name):
            raise DamagedExport(
                f"{path}/{ENSEMBLE} names the member {name!r:.80}; members are directories beside it, such as member-01"
            )
    return document


def is_usable(calibration: Calibration | None) -> bool:
    """Whether a calibration that was read, from a file that may come from anybody, can be applied; None: none."""
    return calibration is None or (math.isfinite(calibration.value) and calibration.value > 0)
