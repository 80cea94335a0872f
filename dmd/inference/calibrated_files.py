"""Finds the shards that calibrate an ensemble, and fits its calibration on their validation split."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from data_shards.places import PlaceLike
from dmd.errors import first_line
from dmd.evaluation.ensemble import Validated, shards_of_all, validate
from dmd.inference.model_files import ModelFiles, is_ensemble

_log = logging.getLogger(__name__)


def with_calibration(
    files: ModelFiles, paths: Sequence[Path], *, data: PlaceLike | None, text_encoder: str | None = None
) -> ModelFiles:
    """The same files, of an ensemble with its calibration; one that cannot be had is a warning.

    Args:
        paths: where the files were read.
        data: shards whose validation split is taken; None: what an exported ensemble has, or those of the trainings.
        text_encoder: see `TrainedModel`.

    Raises:
        ValueError: `data` of a single model, or without a validation split that the members can read.
    """
    if not files.is_ensemble:
        if data is not None:
            raise ValueError(f"--calibration {data} is of an ensemble, and {paths[0]} is one model; leave it out")
        return files
    if files.calibration is not None and data is None:
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
    if data is not None:
        return validate(files.members, data, text_encoder=text_encoder)
    try:
        if any(is_ensemble(path) for path in paths):
            raise ValueError("an exported ensemble does not say where its shards are")
        return validate(files.members, shards_of_all(paths, None), text_encoder=text_encoder)
    except ValueError as error:
        _log.warning(
            "warning: the ensemble is not calibrated, so that there is no uncertainty: %s; name shards with a "
            "validation split: --calibration SHARDS",
            first_line(error),
        )
        return None
