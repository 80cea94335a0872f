"""A report from runs: read, evaluate once, group by config, and lay out the page.

build_report([Path("runs/1111"), Path("runs/1112")], Path("report"))
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from numpy.typing import NDArray

from data_shards.places import Place, redact
from data_shards.sole_writer import sole_writer
from dmd.evaluation.trained_run import training_data
from dmd.metrics import Scoring
from dmd.model.config import Kind, kind_of
from dmd.report.calibration import (
    calibrate,
    calibration_figure,
    calibration_table,
    can_be_calibrated,
    has_finite_answers,
)
from dmd.report.compare import comparison_figure
from dmd.report.costs import command_table, cost_table, typed_command
from dmd.report.curves import curves_by_config, learning, loss_terms, train_beside_validation, validation_metrics
from dmd.report.edges import edge_curves, edge_heatmaps, last_edges, prior_of
from dmd.report.explorer import explorer
from dmd.report.groups import Group, Measured, identity, make_groups, of_how_many, shown_together
from dmd.report.identity import BOOKKEEPING, check_seeds, flatten, value_text
from dmd.report.inference import load_and_run_splits, splits_of
from dmd.report.overview import expectation, overview_tables, sets_of
from dmd.report.page import PAGE, PAGE_IDS, Picture, Section, write_page
from dmd.report.predictions import heads_figure, prediction_figure
from dmd.report.projection import Method, projection_figure
from dmd.report.runs import RunRecord, read_run
from dmd.report.sample_errors import error_tables_and_figures, videos_of
from dmd.report.style import RC
from dmd.report.tables import Table, heads_table
from dmd.system.models import MODELS

_FIGURES: dict[Kind, str] = {
    "regression": "confusion, scatter, residuals",
    "classes": "confusion, shares, probabilities",
    "multilabel": "shares, probabilities",
}
_APART = (
    "the runs have different tasks (model.task), protocols, names of classes or emotions, or units of sentiments, "
    "which no table compares; report them apart"
)
_ERRORS: dict[Kind, str] = {
    "regression": "Error is the distance of prediction and label.",
    "classes": "Error is what the probability of the true class lacks of 1.",
    "multilabel": "Error is the mean distance of an emotion's probability from its label.",
}
_LAST_EPOCHS = "Where seeds end at different epochs, later means are of those that still train."
_FITTED_ON = "valid"
"""The split on which calibration is fitted."""
_PANELS = 12
"""Configs of a figure with a panel for each."""
_VECTOR_RUNS = 6
"""Single runs up to which the page holds their pictures as vector graphics, and projects the features of each as asked
for; of more it does so for the first run of each config, and by PCA for the others, which takes no seconds."""
_RESERVED = frozenset({"overview", "learning", "samples", "errors", "calibration", "costs", "config", PAGE, *PAGE_IDS})
_PROJECTION = {"tsne": "t-SNE", "pca": "PCA"}


def build_report(
    paths: list[Path],
    out: Path,
    *,
    data: Place | None = None,
    split: str = "valid",
    method: Method = "tsne",
    unfinished: bool = False,
    text_encoder: str | None = None,
    small: bool = False,
) -> Path:
    """Write the report of one or more runs; returns the page.

    Args:
        paths: run directories, each once.
        out: directory of the page and its files.
        data: shards to evaluate on; None: those of each run's training.
        split: evaluated once per run.
        method: how features are projected into the plane; where runs are many, those of the first run of each config.
        unfinished: take runs whose training has not ended too.
        text_encoder: see `dmd.system.trained_model.TrainedModel`; of all runs.
        small: a page of fewer bytes: a section of its own for the first run of each config alone, and pictures of a few
            shades in the page; the files beside it are as ever.

    Raises:
        ValueError: a run that is named twice, is none, or whose shards are not there; two runs of one seed; runs that
            no table compares; another writer.
    """
    seen: set[Path] = set()
    for path in paths:
        if path.resolve() in seen:
            raise ValueError(f"{path} is named twice; name each run once")
        seen.add(path.resolve())
    records = [read_run(path, unfinished=unfinished) for path in paths]
    if len({(str(record.task), record.protocol) for record in records}) > 1:
        raise ValueError(_APART)
    check_seeds((record.path, identity(record), record.seed) for record in records)
    with sole_writer(out), rc_context(RC):  # type: ignore[arg-type]
        seeds = Counter(identity(run) for run in records)
        kind = kind_of(records[0].task)
        measured = [
            _measure(run, data, split, text_encoder, with_valid=can_be_calibrated(kind, seeds[identity(run)]))
            for run in records
        ]
        check_comparable([one.result.scoring for one in measured])
        groups = make_groups(measured)
        names = ", ".join(sorted({str(run.info.get("data_name")) for run in records}))
        runs = f"{len(records)} run{'s' if len(records) > 1 else ''}, {len(groups)} config{'s' * (len(groups) > 1)}"
        samples = " / ".join(dict.fromkeys(str(len(one.result.ids)) for one in measured))
        return write_page(
            out,
            f"{_models(records)} on {names}",
            f"{runs}; {split} split, {samples} samples",
            _sections(groups, measured, split, data, method, small=small),
            names={group.name: group.full for group in groups},
            small=small,
        )


def _models(records: list[RunRecord]) -> str:
    """The models of some runs, as tables call them."""
    return ", ".join(dict.fromkeys(MODELS[record.model].title for record in records))


def _measure(run: RunRecord, data: Place | None, split: str, text_encoder: str | None, *, with_valid: bool) -> Measured:
    """A run on the split of the report and, to calibrate, on the valid split where that is another."""
    place = data or training_data(run.path)
    splits = {split} | ({_FITTED_ON}.intersection(splits_of(place)) if with_valid else set())
    results = load_and_run_splits(run.path, place, sorted(splits), text_encoder=text_encoder)
    return Measured(run=run, result=results[split], valid=None if split == _FITTED_ON else results.get(_FITTED_ON))


def _sections(
    groups: list[Group], measured: list[Measured], split: str, data: Place | None, method: Method, *, small: bool
) -> Iterator[Section]:
    """The page from top to bottom; single runs are folded where there are several."""
    yield _overview(groups, split, data)
    yield _learning_section(groups)
    yield _sample_section(groups, split)
    yield _error_section(groups)
    yield _calibration_section(groups, split)
    yield Section(anchor="costs", title="Costs", tables=[cost_table(groups), command_table(groups)])
    names = {id(member): group for group in groups for member in group.members}
    first = {group.members[0].run.path for group in groups}
    kept = [one for one in measured if not small or one.run.path in first]
    anchors = dict(zip((one.run.path for one in measured), anchors_of([one.run.name for one in measured]), strict=True))
    light = len(kept) > _VECTOR_RUNS
    for one in kept:
        group = names[id(one)]
        way = "pca" if light and one is not group.members[0] else method
        section = _run_section(one, group, anchors[one.run.path], way)
        yield replace(section, part="Single runs", folded=len(kept) > 1, light=light)
    yield _config_section(groups)


def check_comparable(scorings: Iterable[Scoring]) -> None:
    """Raise ValueError unless answers of models are measured by the same metrics, of sentiments in the same units."""
    measures = {
        (
            scoring.kind,
            scoring.outputs,
            scoring.protocol,
            scoring.classes_by,
            scoring.names,
            tuple(row.name for row in scoring.rows()),
            scoring.limits if scoring.kind == "regression" else (),
        )
        for scoring in scorings
    }
    if len(measures) > 1:
        raise ValueError(_APART)


def anchors_of(names: Sequence[str]) -> list[str]:
    """What each run is called in the page, by the name of its directory: with the first free number behind a name that
    several runs have, or that the page gives to something else."""
    counts = Counter(names)
    taken = {*names, *_RESERVED}
    anchors = []
    for name in names:
        anchor = name
        if counts[name] > 1 or name in _RESERVED:
            anchor = next(one for one in (f"{name}_{number}" for number in count(1)) if one not in taken)
            taken.add(anchor)
        anchors.append(anchor)
    return anchors


def _overview(groups: list[Group], split: str, data: Place | None) -> Section:
    """What the runs reach, what differs, and the published figures."""
    sets = sets_of(groups, data)
    pictures = []
    if sum(len(group.members) for group in groups) > 1:
        pictures.append(
            Picture(
                name="comparison",
                figure=comparison_figure(groups),
                caption=f"Metrics on the {split} split: a dot per seed, the mean and its 95 % interval per config.",
            )
        )
    return Section(
        anchor="overview",
        title="Overview",
        text=expectation(groups, split, sets),
        tables=overview_tables(groups, split, sets),
        pictures=pictures,
    )


def _learning_section(groups: list[Group]) -> Section:
    """Whether configs learn, by epoch, over their seeds."""
    shown = shown_together(groups)
    pictures = [
        Picture(
            name="configs",
            figure=curves_by_config(shown),
            caption=(
                "Validation of the fused prediction and learning rate by epoch: mean over seeds, the band is one "
                f"standard deviation (n - 1) to either side. {_LAST_EPOCHS}{of_how_many(shown, groups)}"
            ),
        )
    ]
    for begin in range(0, len(groups), _PANELS):
        part = groups[begin : begin + _PANELS]
        pictures.append(
            Picture(
                name=f"train_and_valid_{begin // _PANELS + 1}" if len(groups) > _PANELS else "train_and_valid",
                figure=train_beside_validation(part),
                caption=(
                    "Loss of the fused prediction in training, with dropout and while the weights change, beside that "
                    f"of the valid split: mean and standard deviation over seeds. {_LAST_EPOCHS} Where validation "
                    f"rises while training falls, the model learns its samples by heart.{_weighted(part)}"
                ),
            )
        )
    return Section(anchor="learning", title="Learning", pictures=pictures)


def _weighted(groups: list[Group]) -> str:
    """A sentence about configs whose losses in training are weighted; empty where none is."""
    key = "label_density_smoothing"
    names = [group.name for group in groups if group.config["objective"].get(key)]
    if not names:
        return ""
    return (
        f" Of {', '.join(names)} the training loss is weighted by the density of labels (objective.{key}) and the "
        "validation loss is not, so the distance between both says nothing."
    )


def _sample_section(groups: list[Group], split: str) -> Section:
    found = explorer(groups)
    text = (
        f"The {split} split, sample by sample: of each config the ensemble of its seeds (the mean of sentiments, or of "
        f"probabilities). {_ERRORS[groups[0].members[0].result.scoring.kind]} Spread is the standard deviation over "
        "seeds; one seed has none."
    )
    if found.left_out:
        names = ", ".join(found.left_out)
        text += f" To keep the page small, {len(found.left_out)} configs lack the other heads and edges here: {names}."
    return Section(anchor="samples", title="Samples", text=text, explorer=found)


def _error_section(groups: list[Group]) -> Section:
    """Where a config is wrong: by length, speaker and label; of configs with the samples of the first one."""
    ids = groups[0].members[0].result.ids
    same = [group for group in groups if group.members[0].result.ids == ids]
    shown = shown_together(same)
    tables, figures = error_tables_and_figures(shown)
    text = f"Of each config the ensemble of its seeds.{of_how_many(shown, same)}"
    if len(same) < len(groups):
        others = ", ".join(group.name for group in groups if group not in same)
        text += f" Left out, since their samples are others: {others}."
    if not videos_of(ids):
        text += " There is no table by video or speaker: the ids of the samples do not begin with one."
    pictures = [Picture(name=name, figure=figure, caption=caption) for name, (figure, caption) in figures.items()]
    return Section(anchor="errors", title="Errors", text=text, tables=tables, pictures=pictures)


def _calibration_section(groups: list[Group], split: str) -> Section:
    """Whether uncertainties can be believed."""
    kind = groups[0].members[0].result.scoring.kind
    calibrated = {group.name: calibrate(group) for group in groups}
    found = [one for one in calibrated.values() if one is not None]
    without = [name for name, one in calibrated.items() if one is None]
    what = (
        "The spread over seeds, times one scale, as the standard deviation of a normal distribution around the "
        "prediction: how many errors lie inside its central intervals."
        if kind == "regression"
        else "How often an answer is right, by the probability that it is given; logits are divided by one temperature."
    )
    text = what + (
        f" On the {split} split itself, the number that is tried on one half was fitted on the other."
        if split == _FITTED_ON
        else f" The number is fitted on the {_FITTED_ON} split where the shards have one."
    )
    undefined = [group.name for group in groups if not has_finite_answers(group)]
    alone = [name for name in without if name not in undefined]
    if alone:
        text += f" Without it, since one seed, and one sample, have no spread: {', '.join(alone)}."
    if undefined:
        text += f" Without it, since some answers are not finite numbers: {', '.join(undefined)}."
    if not found:
        return Section(anchor="calibration", title="Calibration", text=text)
    regression = kind == "regression"
    shown = {group.name for group in shown_together([group for group in groups if group.name not in without])}
    drawn = [one for one in found if one.name in shown]
    caption = "Below the diagonal the model is overconfident." + (
        f" {len(drawn)} of {len(found)} configs; the table has all." if len(drawn) < len(found) else ""
    )
    return Section(
        anchor="calibration",
        title="Calibration",
        text=text,
        tables=[calibration_table(found, split, regression=regression)],
        pictures=[
            Picture(name="calibration", figure=calibration_figure(drawn, regression=regression), caption=caption)
        ],
    )


def _run_section(one: Measured, group: Group, anchor: str, method: Method) -> Section:
    """Everything about one run: is it learning, what is distilled into what, what does it predict."""
    run, result = one.run, one.result
    figures = _FIGURES[result.scoring.kind]
    caption = "Is it learning? Objective and validation loss."
    pictures = [Picture(name="learning", figure=learning(run), caption=caption)]
    curves = edge_curves(run)
    if curves is not None:
        pictures.append(
            Picture(
                name="edges",
                figure=curves,
                caption=(
                    "What is distilled into what? Each edge teacher → student over the steps, with the prior that the "
                    "objective pulls it to. An edge that only follows its prior says nothing about the data."
                ),
            )
        )
        ends: dict[str, NDArray[np.floating]] = {
            space: edges for space in result.edges if (edges := last_edges(run, space)) is not None
        }
        priors: dict[str, NDArray[np.floating]] = {space: prior_of(run, space) for space in ends}
        pictures.append(
            Picture(
                name="edge_matrices",
                figure=edge_heatmaps(ends, priors),
                caption="Edges over the last tenth of the training, each matrix beside its prior.",
            )
        )
    pictures += [
        Picture(
            name="predictions",
            figure=prediction_figure(result),
            caption=f"Fused predictions on the {result.split} split: {figures}.",
        ),
    ]
    if len(result.predictions) > 1:
        pictures.append(
            Picture(
                name="heads",
                figure=heads_figure(result),
                caption=f"All heads on the {result.split} split; the fused one is the model's prediction.",
            )
        )
    if result.features:
        pictures.append(
            Picture(
                name="features",
                figure=projection_figure(result, method),
                caption=(
                    f"{_PROJECTION[method]} of the representations that the GD-Units compare, "
                    f"{len(result.feature_labels)} samples of the {result.split} split in each modality."
                ),
            )
        )
    pictures += [
        Picture(
            name="validation",
            figure=validation_metrics(run),
            caption=(
                "Metrics of the fused prediction on the valid split by step; the line marks the best validation loss."
            ),
        ),
        Picture(
            name="losses",
            figure=loss_terms(run),
            caption=(
                "Every loss term by step before weighting, with a running mean; outliers of the first steps are cut."
            ),
        ),
    ]
    return Section(
        anchor=anchor,
        title=f"Run {anchor}: {group.name}, seed {run.seed}",
        short=anchor,
        facts=[("config", group.full), *_facts(run)],
        commands=[typed_command(run)],
        tables=[heads_table(one)],
        pictures=pictures,
    )


def _facts(run: RunRecord) -> list[tuple[str, str]]:
    info, last = run.info, run.sessions[-1]
    step, loss = run.best()
    versions: dict[str, Any] = last.get("versions", {})
    facts = [
        ("directory", str(run.path)),
        ("seed", str(run.seed)),
        ("data", f"{info.get('data_name')}, generation {info.get('generation')}, samples {info.get('counts')}"),
        ("best", f"validation {run.loss_title} {loss:.4f} at step {step}"),
        ("ranks", f"{info.get('ranks')} on {info.get('device')}; {info.get('parameters')} parameters"),
        ("sessions", f"{len(run.sessions)}, {'finished' if run.finished else 'NOT FINISHED'} at step {run.last_step}"),
        ("command of rank 0", redact(str(last.get("command")))),
        ("commit", str(last.get("git_commit"))),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
    ]
    return [(name, value) for name, value in facts if value not in ("None", "")]


def _config_section(groups: list[Group]) -> Section:
    """Every config value, a column per config."""
    flat = [flatten(group.config) for group in groups]
    keys = list(dict.fromkeys(key for config in flat for key in config))
    rows = [[key, *(value_text(config.get(key, "–")) for config in flat)] for key in keys if key != "train.seed"]
    note = f"Of the first run of each config. Its seeds may differ in {', '.join(sorted(BOOKKEEPING))}."
    header = ["key", *(group.name for group in groups)]
    tables = [Table(name="config", title="Every value", note=note, header=header, rows=rows)]
    if any(group.name != group.full for group in groups):
        called = [[group.name, group.seeds, group.full] for group in groups]
        tables.insert(
            0, Table(name="names", title="Names of configs", header=["config", "runs", "values"], rows=called)
        )
    return Section(anchor="config", title="Configuration", tables=tables)
