"""A report from runs: read, evaluate once, group by config, and lay out the page.

build_report([Path("runs/1111"), Path("runs/1112")], Path("report"))
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from numpy.typing import NDArray

from data_shards.places import Place, redact
from data_shards.sole_writer import sole_writer
from dmd.evaluation.trained_run import training_data
from dmd.metrics import Scoring
from dmd.model.config import Kind
from dmd.report.compare import comparison_figure
from dmd.report.curves import learning, loss_terms, seeds_together, validation_metrics
from dmd.report.edges import edge_curves, edge_heatmaps, last_edges, prior_of
from dmd.report.groups import Group, Measured, identity, make_groups
from dmd.report.identity import BOOKKEEPING, check_seeds, flatten, value_text
from dmd.report.inference import load_and_run
from dmd.report.overview import expectation, overview_tables
from dmd.report.page import Picture, Section, write_page
from dmd.report.predictions import heads_figure, prediction_figure
from dmd.report.projection import Method, projection_figure
from dmd.report.runs import RunRecord, read_run
from dmd.report.style import RC
from dmd.report.tables import Table, heads_table

_FIGURES: dict[Kind, str] = {
    "regression": "confusion, scatter, residuals",
    "classes": "confusion, shares, probabilities",
    "multilabel": "shares, probabilities",
}
_APART = (
    "the runs have different tasks (model.task), protocols, names of classes or emotions, or units of sentiments, "
    "which no table compares; report them apart"
)
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
        method: how features are projected into the plane.
        unfinished: take runs whose training has not ended too.
        text_encoder: see `dmd.system.trained_model.TrainedModel`; of all runs.
        small: a page of fewer bytes: a section of its own for the first run of each config alone, and pictures of a few
            shades in the page; the files beside it are as ever.

    Raises:
        ValueError: a run that is named twice, is none, or whose shards are not there; two runs of one seed; runs that
            no table compares; another writer.
    """
    resolved = [path.resolve() for path in paths]
    for number, path in enumerate(resolved):
        if path in resolved[:number]:
            raise ValueError(f"{paths[number]} is named twice; name each run once")
    records = [read_run(path, unfinished=unfinished) for path in paths]
    if len({(str(record.task), record.protocol) for record in records}) > 1:
        raise ValueError(_APART)
    check_seeds((record.path, identity(record), record.seed) for record in records)
    with sole_writer(out), rc_context(RC):  # type: ignore[arg-type]
        results = [
            load_and_run(run.path, data or training_data(run.path), split, text_encoder=text_encoder) for run in records
        ]
        check_comparable([result.scoring for result in results])
        measured = [Measured(run=run, result=result) for run, result in zip(records, results, strict=True)]
        groups = make_groups(measured)
        sections = [_overview(groups, split, data)]
        first = {group.members[0].run.path for group in groups}
        for one, anchor in zip(measured, _anchors(records), strict=True):
            if not small or one.run.path in first:
                sections.append(_run_section(one, anchor, method))
        sections.append(_config_section(groups))
        names = ", ".join(sorted({str(run.info.get("data_name")) for run in records}))
        count = f"{len(records)} run{'s' if len(records) > 1 else ''}, {len(groups)} config{'s' * (len(groups) > 1)}"
        samples = " / ".join(dict.fromkeys(str(len(one.result.ids)) for one in measured))
        return write_page(out, f"DMD on {names}", f"{count}; {split} split, {samples} samples", sections, small=small)


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


def _anchors(records: list[RunRecord]) -> list[str]:
    names = [record.name for record in records]
    return [name if names.count(name) == 1 else f"{name}_{number}" for number, name in enumerate(names, 1)]


def _overview(groups: list[Group], split: str, data: Place | None) -> Section:
    """What the runs reach, what differs, and the published figures."""
    runs = {group.name: [member.run for member in group.members] for group in groups}
    pictures = [Picture(name="seeds", figure=seeds_together(runs), caption="Validation loss of every run by step.")]
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
        text=expectation(groups, split, data=data),
        tables=overview_tables(groups, split, data=data),
        pictures=pictures,
    )


def _run_section(one: Measured, anchor: str, method: Method) -> Section:
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
    if len(run.heads) > 1:
        pictures.append(
            Picture(
                name="heads",
                figure=heads_figure(result, run.heads),
                caption=f"The {len(run.heads)} heads on the {result.split} split; the fused one is the model's.",
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
        anchor=anchor, title=f"Run {anchor}", facts=_facts(run), tables=[heads_table(one)], pictures=pictures
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
        ("command", redact(str(last.get("command")))),
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
    table = Table(name="config", title="Every value", note=note, header=header, rows=rows)
    return Section(anchor="config", title="Configuration", tables=[table])
