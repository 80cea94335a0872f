"""Whether the uncertainty of a config's ensemble can be believed: curves before and after one fitted number.

The number (`dmd.metrics.calibration`: a scale of the spread of sentiments, a temperature of probabilities) is fitted on
the valid split. Where the report is of the valid split itself, it is fitted on one half of its videos and tried on the
other, and the other way round: no sample is judged by a number that was fitted on it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from dmd.inference.ensemble import fit_value, probabilities_at
from dmd.metrics.calibration import (
    coverage_curve,
    coverage_error,
    expected_calibration_error,
    reliability_curve,
)
from dmd.model.config import Kind
from dmd.report.ensembles import ensemble_of
from dmd.report.groups import Group
from dmd.report.inference import SplitResult
from dmd.report.sample_errors import videos_of
from dmd.report.style import COLOURS, INK, SOFT, grid_of, in_lines, new_figure
from dmd.report.tables import Table

HALVES = 2
_ALL = slice(None)
_NAME = 34
"""Characters of a line of a config's name above a panel."""


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """A config's ensemble on the split of a report."""

    name: str
    members: int
    values: tuple[float, ...]
    """The fitted scale or temperature; of two halves both."""
    where: str
    """On what it was fitted."""
    before: tuple[NDArray[np.float64], NDArray[np.float64]]
    """Nominal and observed coverage, or confidence and share of right answers, [K] each."""
    after: tuple[NDArray[np.float64], NDArray[np.float64]]
    error_before: float
    """Mean distance from the diagonal: over the levels of coverage, or expected calibration error."""
    error_after: float


def can_be_calibrated(kind: Kind, seeds: int) -> bool:
    """Whether so many runs of one config say how uncertain they are: one model's sentiments have no spread."""
    return seeds > 1 or kind != "regression"


def has_finite_answers(group: Group) -> bool:
    """Whether all that is needed to calibrate a config is a finite number."""
    results = [result for member in group.members for result in (member.result, member.valid) if result is not None]
    return all(bool(np.isfinite(result.predictions["fused"]).all()) for result in results)


def calibrate(group: Group) -> Calibrated | None:
    """The calibration of a config's ensemble; None for sentiments of one seed, which has no spread, for fewer samples
    than halves, and for answers that are not finite."""
    result = group.ensemble
    has_spread = can_be_calibrated(result.scoring.kind, len(group.members))
    if not has_spread or len(result.ids) < HALVES or not has_finite_answers(group):
        return None
    valid = [member.valid for member in group.members if member.valid is not None]
    values: tuple[float, ...]
    if len(valid) == len(group.members):
        values, where = (_fitted(ensemble_of(valid)),), "the valid split"
        number = torch.full((len(result.ids),), values[0], dtype=torch.float64)
    else:
        half = halves(result.ids)
        first, second = (torch.from_numpy(half == number) for number in range(HALVES))
        values = (_fitted(result, second), _fitted(result, first))
        number = torch.where(first, values[0], values[1]).double()
        where = f"the other half of the {result.split} split" + (", by videos" if videos_of(result.ids) else "")
    before, after = (_judged(result, value) for value in (torch.ones_like(number), number))
    return Calibrated(
        name=group.name,
        members=len(group.members),
        values=values,
        where=where,
        before=before[0],
        after=after[0],
        error_before=before[1],
        error_after=after[1],
    )


def halves(ids: Sequence[str]) -> NDArray[np.int64]:
    """The half, 0 or 1, of each sample: whole videos where ids name one, every other sample where they do not."""
    videos = videos_of(ids)
    if not videos:
        return np.arange(len(ids)) % HALVES
    number = {video: place % HALVES for place, video in enumerate(sorted(set(videos)))}
    return np.array([number[video] for video in videos])


def _fitted(result: SplitResult, chosen: Tensor | slice = _ALL) -> float:
    """The scale or temperature that some samples of a split ask for."""
    whole = result.prediction
    part = replace(
        whole,
        heads={"fused": whole.heads["fused"][chosen]},
        edges={},
        spread=None if whole.spread is None else whole.spread[chosen],
    )
    return fit_value(part, torch.from_numpy(result.labels)[chosen])


def _judged(result: SplitResult, number: Tensor) -> tuple[tuple[NDArray[np.float64], NDArray[np.float64]], float]:
    """The curve, and its mean distance from the diagonal, with a scale or temperature per sample [N]."""
    prediction, labels = result.prediction, torch.from_numpy(result.labels)
    if result.scoring.kind == "regression":
        assert prediction.spread is not None, "of an ensemble"
        error, sigma = prediction.heads["fused"].double() - labels, prediction.spread.double() * number
        nominal, observed = coverage_curve(error, sigma)
        return (nominal.numpy(), observed.numpy()), coverage_error(error, sigma)
    probabilities = probabilities_at(prediction, number[:, None])
    confidence, right, _ = reliability_curve(probabilities, labels)
    return (confidence.numpy(), right.numpy()), expected_calibration_error(probabilities, labels)


def calibration_figure(found: Sequence[Calibrated], *, regression: bool) -> Figure:
    """A panel per config: dashed as it is, solid with the fitted number; on the diagonal it is calibrated."""
    columns = min(3, max(2, len(found)))
    figure = new_figure(9.6, 3.1 * -(-len(found) // columns) + 0.2)
    panels = grid_of(figure, len(found), columns, sharey=True, sharex=True)
    for axes, one in zip(panels, found, strict=True):
        axes.plot([0, 1], [0, 1], color=SOFT, linewidth=1)
        for curve, colour, line, name in (
            (one.before, COLOURS[1], "--", "as it is"),
            (one.after, INK, "-", "with the fitted number"),
        ):
            axes.plot(*curve, color=colour, linestyle=line, marker="o", markersize=3, label=name)
        axes.set(title=in_lines(one.name, _NAME), xlim=(0, 1), ylim=(-0.02, 1.02))
        axes.set_xlabel("nominal share of errors inside" if regression else "probability of the answer")
    panels[0].set_ylabel("observed share" if regression else "share of right answers")
    panels[0].legend()
    return figure


def calibration_table(found: Sequence[Calibrated], split: str, *, regression: bool) -> Table:
    """The fitted number and the distance from the diagonal, before and after."""
    number = "scale of the spread" if regression else "temperature"
    error = "coverage error" if regression else "ECE"
    return Table(
        name="calibration",
        title=f"Calibration on the {split} split",
        split=split,
        note=(
            "Coverage error: mean distance of the observed from the nominal share of errors inside Gaussian intervals, "
            "over the levels 5 % to 95 %."
            if regression
            else "ECE: expected calibration error, ten bins of equal width."
        ),
        header=["config", "seeds", number, "fitted on", f"{error} before", f"{error} after"],
        rows=[
            [
                one.name,
                str(one.members),
                " / ".join(f"{value:.3g}" for value in one.values),
                one.where,
                f"{one.error_before:.3f}",
                f"{one.error_after:.3f}",
            ]
            for one in found
        ],
    )
