"""Finds the shards that calibrate an ensemble, and fits its calibration on their validation split."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from data_shards.places import PlaceLike, to_place
from data_shards.reading.index import ShardIndex
from dmd.errors import first_line
from dmd.evaluation.ensemble import CALIBRATION_SPLIT, Validated, shards_of_all, validate
from dmd.inference.ensemble import check_encoder
from dmd.inference.model_files import ModelFiles, is_ensemble

_log = logging.getLogger(__name__)
NONE = "none"
"""As shards: no calibration."""
Source = dict[str, str | int | float]
"""What a calibration comes from, in plain values."""


def is_none(data: PlaceLike | None) -> bool:
    """Whether it was asked for that an ensemble stays without a calibration."""
    return data is not None and to_place(data).address == NONE


def check_calibration(
    files: ModelFiles, paths: Sequence[Path], *, data: PlaceLike | None, text_encoder: str | None = None
) -> None:
    """Raise ValueError for `data` of a single model, or a text encoder's weights that no member of several needs."""
    if not files.is_ensemble and data is not None:
        raise ValueError(f"--calibration {data} is of an ensemble, and {paths[0]} is one model; leave it out")
    if files.is_ensemble:
        check_encoder(files.cards, text_encoder)


def source_of(files: ModelFiles, data: PlaceLike | None) -> Source | None:
    """What the calibration of an ensemble comes from, None for none: that of an exported one itself, else the shards
    that are named, or those of the trainings. Nothing is fitted.

    Raises:
        ValueError: `data` that are no shards.
    """
    if not files.is_ensemble or is_none(data):
        return None
    if data is not None:
        info = ShardIndex.load(to_place(data)).info
        return {"data": info.name, "generation": info.generation}
    return {"data": "of the trainings"} if files.calibration is None else dict(asdict(files.calibration))


def with_calibration(
    files: ModelFiles, paths: Sequence[Path], *, data: PlaceLike | None, text_encoder: str | None = None
) -> ModelFiles:
    """The same files, of an ensemble with its calibration; one that cannot be had is a warning.

    Args:
        paths: where the files were read.
        data: shards whose validation split is taken; None: what an exported ensemble has, or those of the trainings;
            `none`: no calibration.
        text_encoder: see `TrainedModel`.

    Raises:
        ValueError: as `check_calibration`; `data` without a validation split that the members can read.
    """
    check_calibration(files, paths, data=data, text_encoder=text_encoder)
    if is_none(data):
        return replace(files, calibration=None)
    if not files.is_ensemble or (files.calibration is not None and data is None):
        return files
    found = validated(files, paths, data=data, text_encoder=text_encoder)
    return files if found is None else replace(files, calibration=found.calibration)


def validated(
    files: ModelFiles, paths: Sequence[Path], *, data: PlaceLike | None, text_encoder: str | None = None
) -> Validated | None:
    """What the validation split says of an ensemble; None, with a warning, where nobody names shards and those of the
    trainings cannot be had.

    Raises:
        ValueError: as `with_calibration`.
    """
    try:
        place = _shards_of_trainings(paths) if data is None else data
    except ValueError as error:
        _log.warning(
            "warning: the ensemble is not calibrated, so that there is no uncertainty: %s; name shards with a "
            "validation split: --calibration SHARDS",
            first_line(error),
        )
        return None
    return validate(files.members, place, text_encoder=text_encoder)


def _shards_of_trainings(paths: Sequence[Path]) -> PlaceLike:
    """Those of all runs. Raises ValueError where they cannot be had, or have no validation split."""
    if any(is_ensemble(path) for path in paths):
        raise ValueError("an exported ensemble does not say where its shards are")
    place = to_place(shards_of_all(paths, None))
    if not ShardIndex.load(place).num_samples(CALIBRATION_SPLIT):
        raise ValueError(f"{place} has no {CALIBRATION_SPLIT} split")
    return place
