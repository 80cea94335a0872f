"""An export of whatever is given: one model, or an ensemble (`dmd.save`, `dmd export`)."""

from collections.abc import Sequence
from pathlib import Path

from data_shards.places import PlaceLike
from dmd.checkpoint.select import Step
from dmd.inference.ensemble import Ensemble
from dmd.inference.ensemble_export import export_ensemble
from dmd.inference.export import export
from dmd.inference.model_files import is_ensemble
from dmd.system.trained_model import TrainedModel

Exportable = TrainedModel | Ensemble | str | Path | Sequence[str | Path]
"""A model in memory, the directory of a run or an export, or several of them."""


def is_of_ensemble(model: Exportable) -> bool:
    """Whether an export of it is that of an ensemble."""
    if isinstance(model, str | Path):
        return is_ensemble(Path(model))
    return isinstance(model, Ensemble) or (not isinstance(model, TrainedModel) and len(model) != 1)


def export_any(
    model: Exportable,
    out: Path,
    *,
    step: Step | None = None,
    program: bool = True,
    text_encoder: str | None = None,
    merge: bool = False,
    license: str | None = None,
    name: str | None = None,
    calibration: PlaceLike | None = None,
) -> str | None:
    """Write a model as an export, or an ensemble as one; returns why there is no program, None if there is one.

    Arguments and errors are those of `dmd.inference.export.export` and `dmd.inference.ensemble_export.export_ensemble`.
    """
    if not isinstance(model, str | Path | TrainedModel | Ensemble) and len(model) == 1:
        (model,) = model
    if is_of_ensemble(model):
        assert not isinstance(model, TrainedModel)
        return export_ensemble(
            [model] if isinstance(model, str | Path) else model,
            out,
            step=step,
            program=program,
            text_encoder=text_encoder,
            merge=merge,
            license=license,
            name=name,
            calibration=calibration,
        )
    assert isinstance(model, TrainedModel | str | Path)
    if calibration is not None:
        raise ValueError(f"calibration is {calibration}, but one model is no ensemble; leave it out")
    return export(
        model, out, step=step, program=program, text_encoder=text_encoder, merge=merge, license=license, name=name
    )
