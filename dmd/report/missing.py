"""Missing modalities: metrics over a grid of drop rate x modality, whole samples or single frames set to zero.

What is dropped depends on (seed, modality, unit, place in the split) alone, and a higher rate drops what a lower one
does and more, so a curve over rates is not shaken by the draw. Text tokens are dropped after the text encoder, so that
every modality loses the same thing: its features.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from data_shards.places import Place, PlaceLike
from data_shards.sole_writer import sole_writer
from dmd.checkpoint.standing import is_unfinished
from dmd.config.loading import config_to_dict
from dmd.evaluation.trained_run import training_data
from dmd.inference.export import load
from dmd.inference.inputs import read_samples
from dmd.metrics import head_metrics, heading, headings_of, in_view, show, shown, unit_note
from dmd.model.config import MODALITIES
from dmd.report.identity import check_seeds, compared_values
from dmd.report.page import Picture, Section, write_page
from dmd.report.style import COLOURS, DASHES, INK, RC, new_figure
from dmd.report.tables import Table
from dmd.system.input_arrays import Arrays, Inputs
from dmd.system.trained_model import ModelCard, TrainedModel, config_of, join

Unit = Literal["sample", "frame"]
UNITS: tuple[Unit, ...] = ("sample", "frame")
TARGETS = (*MODALITIES, "all")
"""What is dropped: one modality, or each of the three by its own draw."""
RATES = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One place of the grid."""

    unit: Unit
    target: str
    rate: float
    metrics: dict[str, float]
    """Of the fused prediction, over the whole split."""


def dropped(modality: str, count: int, steps: int, *, unit: Unit, rate: float, seed: int) -> NDArray[np.bool_]:
    """Which frames [count, steps] of a modality are missing; equal along the steps for `unit="sample"`."""
    generator = np.random.default_rng([seed, MODALITIES.index(modality), UNITS.index(unit)])
    draws = generator.random((count, steps if unit == "frame" else 1))
    return np.broadcast_to(draws < rate, (count, steps))


def check_rates(rates: Sequence[float]) -> None:
    """Raise ValueError unless every rate lies in [0, 1]."""
    for rate in rates:
        if not 0 <= rate <= 1:
            raise ValueError(f"the drop rate {rate} is outside [0, 1]; give shares of samples or frames")


def evaluate_grid(
    model: TrainedModel,
    data: PlaceLike,
    split: str,
    *,
    rates: Sequence[float] = RATES,
    units: Sequence[Unit] = UNITS,
    seed: int = 0,
) -> list[Cell]:
    """Evaluate a model with parts of its input missing.

    Raises:
        ValueError: a rate outside [0, 1], or data that the model cannot read.
    """
    check_rates(rates)
    batches = list(read_samples(data, model.card, splits=[split]))
    labels = torch.from_numpy(np.concatenate([samples.labels for samples in batches]))
    scoring = model.modules.scoring
    cells = []
    for unit in units:
        for target in TARGETS:
            lost = MODALITIES if target == "all" else (target,)
            for rate in rates:
                inputs = [samples.inputs for samples in batches]
                predicted = _predict(model, inputs, _masks(model, len(labels), lost, unit, rate, seed))
                metrics = head_metrics(predicted, labels, scoring)
                cells.append(Cell(unit=unit, target=target, rate=rate, metrics=metrics))
    return cells


def _masks(model: TrainedModel, count: int, lost: Sequence[str], unit: Unit, rate: float, seed: int) -> Arrays:
    """{modality: [count, T, 1]}, 1 where a frame is there, for the modalities that lose some."""
    lengths = model.card.data["lengths"]
    kept = {m: ~dropped(m, count, int(lengths[m]), unit=unit, rate=rate, seed=seed) for m in lost}
    return {m: torch.from_numpy(mask.astype(np.float32))[..., None] for m, mask in kept.items()}


def _predict(model: TrainedModel, batches: list[Inputs], masks: Arrays) -> Tensor:
    """Fused predictions [N] (logits [N, classes]) with the masks applied to the features."""
    parts, begin = [], 0
    for inputs in batches:
        end = begin + len(inputs)
        part = {m: mask[begin:end] for m, mask in masks.items()}
        behind = inputs.text_mask
        if model.modules.network.text_encoder is not None and "text" in part:
            mask = part.pop("text")
            behind = mask if behind is None else mask * behind
        masked = {m: array * part[m] if m in part else array for m, array in inputs.arrays.items()}
        parts.append(model.read(model.output(replace(inputs, arrays=masked, text_mask=behind))))
        begin = end
    return join(parts).heads["fused"]


def missing_table(cells: Sequence[Cell], split: str) -> Table:
    """Every cell of the grid with all metrics."""
    titles = headings_of(cells[0].metrics)
    rows = [[cell.unit, cell.target, f"{cell.rate:g}", *(show(m, cell.metrics[m]) for m in titles)] for cell in cells]
    return Table(
        name="missing",
        title=f"Missing modalities on the {split} split, fused prediction",
        split=split,
        note=f"The rate is a share. {unit_note(titles)}",
        header=["dropped by", "modality", "rate", *titles.values()],
        rows=rows,
    )


def missing_figure(grids: Sequence[Sequence[Cell]]) -> Figure:
    """MAE and Acc2 (other metrics of other tasks) over the drop rate, a line per modality: the mean over the grids."""
    names = in_view("missing", grids[0][0].metrics)
    units = list(dict.fromkeys(cell.unit for cell in grids[0]))
    figure = new_figure(9.2, 2.9 * len(units))
    panels = figure.subplots(len(units), len(names), squeeze=False, sharex=True)
    for row, unit in zip(panels, units, strict=True):
        for axes, metric in zip(row, names, strict=True):
            for number, target in enumerate(TARGETS):
                rates = [cell.rate for cell in grids[0] if (cell.unit, cell.target) == (unit, target)]
                values = np.array(
                    [
                        [
                            shown(metric, cell.metrics[metric])
                            for cell in grid
                            if (cell.unit, cell.target) == (unit, target)
                        ]
                        for grid in grids
                    ]
                ).mean(0)
                axes.plot(
                    rates,
                    values,
                    linestyle=DASHES[number],
                    marker="o^sD"[number],
                    markersize=5,
                    color=(*COLOURS, INK)[number],
                    label=target,
                )
            axes.set_title(f"{heading(metric)}, dropped by {unit}")
    for axes in panels[-1]:
        axes.set_xlabel("drop rate")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(TARGETS))
    return figure


def check_one_config(run: Path, card: ModelCard, first: Path, of_first: ModelCard) -> None:
    """Raise ValueError unless two models are seeds of one config, whose mean says something."""
    values, reference = (
        {
            **compared_values(config_to_dict(config_of(c)), c.data["dims"]),
            "data": c.data["name"],
            "generation": c.data["generation"],
        }
        for c in (card, of_first)
    )
    for key in reference | values:
        if values.get(key) != reference.get(key):
            raise ValueError(
                f"{run} has {key}={values.get(key)}, {first} has {reference.get(key)}: a mean over both says nothing; "
                "give seeds of one config, and another config with another --out"
            )


def missing_page(
    runs: Sequence[Path],
    out: Path,
    *,
    data: Place | None,
    split: str,
    rates: Sequence[float],
    units: Sequence[Unit],
    seed: int,
    text_encoder: str | None = None,
) -> Path:
    """Write the grid of one or more runs (seeds of one config) as a page with its figure and tables.

    Args:
        text_encoder: see `TrainedModel`; of all runs.

    Raises:
        ValueError: as `evaluate_grid`, a run that is not there, runs of different configs, or another process that
            writes there.
    """
    check_rates(rates)
    for number, run in enumerate(runs):
        if run.resolve() in [other.resolve() for other in runs[:number]]:
            raise ValueError(f"{run} is named twice; name each run once")
    models = [load(run, text_encoder=text_encoder) for run in runs]
    for run, model in zip(runs[1:], models[1:], strict=True):
        check_one_config(run, model.card, runs[0], models[0].card)
    check_seeds((run, "", config_of(model.card).train.seed) for run, model in zip(runs, models, strict=True))
    with sole_writer(out):
        grids = [
            evaluate_grid(model, data or training_data(run), split, rates=rates, units=units, seed=seed)
            for run, model in zip(runs, models, strict=True)
        ]
        title = f"{split} split, seed {seed} of what is dropped"
        with rc_context(RC):  # type: ignore[arg-type]
            return write_page(out, "Missing modalities", title, list(_sections(runs, grids, split)))


def _sections(runs: Sequence[Path], grids: Sequence[Sequence[Cell]], split: str) -> Iterator[Section]:
    """The figure over all runs, then a table of each."""
    picture = Picture(
        name="missing",
        figure=missing_figure(grids),
        caption=(
            f"Metrics of the fused prediction on the {split} split, mean over {len(runs)} runs; a rate of 1 leaves "
            "nothing of the modality."
        ),
    )
    yield Section(anchor="grid", title="Drop rate x modality", pictures=[picture])
    for run, grid in zip(runs, grids, strict=True):
        state = " (not finished)" if is_unfinished(run) else ""
        name = run.resolve().name
        yield Section(anchor=name, title=f"Run {name}{state}", tables=[missing_table(grid, split)])
