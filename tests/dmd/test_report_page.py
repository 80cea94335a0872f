"""The page of a report, of made-up results: samples and their escapes, bands of seeds, calibration, errors, costs."""

import json
import math
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from data_shards.sole_writer import sole_writer
from dmd.checkpoint.standing import Standing, Validation
from dmd.config import Config
from dmd.config.loading import config_to_dict
from dmd.metrics import Scoring, head_metrics
from dmd.metrics.calibration import coverage_error, fit_scale
from dmd.report.build import anchors_of
from dmd.report.calibration import (
    calibrate,
    calibration_figure,
    calibration_table,
    can_be_calibrated,
    halves,
    has_finite_answers,
)
from dmd.report.costs import command_table, cost_table, step_seconds, typed_command
from dmd.report.curves import by_epoch, over_seeds, train_beside_validation
from dmd.report.ensembles import ensemble_of
from dmd.report.explorer import WORST, cell_text, explorer
from dmd.report.groups import LONGEST_NAME, SHOWN, Group, Measured, make_groups, of_how_many, shown_together
from dmd.report.inference import SplitResult
from dmd.report.page import PAGE_IDS, Picture, Section, write_page
from dmd.report.runs import Curve, RunRecord
from dmd.report.sample_errors import (
    divisions,
    error_row,
    error_tables_and_figures,
    errors_of,
    quantile_sets,
    video_of,
    videos_of,
)
from dmd.report.tables import Table

SAMPLES = 60
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&amp;\u2028 (size)"


def made_result(seed: int = 0, samples: int = SAMPLES, *, valid: bool = True) -> SplitResult:
    """Sentiments whose spread over seeds is half of what their errors are."""
    shared = np.random.default_rng(0)
    labels = np.round(shared.uniform(-3, 3, samples), 1)
    common = shared.normal(size=samples)
    prediction = labels + common + np.random.default_rng(seed + 1).normal(size=samples) / 2
    heads = {"fused": prediction, "text": prediction / 2}
    texts = ["a few words " * (number % 7 + 1) for number in range(samples)]
    return SplitResult(
        split="valid" if valid else "test",
        ids=[f"video{number % 6}$_${number}" for number in range(samples)],
        labels=labels,
        predictions=heads,
        edges={"homo": np.full((samples, 6), 1 / 6, dtype=np.float32)},
        features={},
        feature_labels=labels,
        metrics={head: head_metrics(torch.from_numpy(v), torch.from_numpy(labels)) for head, v in heads.items()},
        answers=prediction,
        probabilities=np.empty((samples, 0)),
        texts=texts,
        steps={"text": np.arange(samples) % 9 + 1, "audio": np.arange(samples) % 9 + 1},
        titles={"fused": "fused", "text": "text alone"},
    )


def made_classes(seed: int = 0) -> SplitResult:
    """Three classes, surer than right."""
    result, draws = made_result(seed), np.random.default_rng(seed)
    labels = np.arange(SAMPLES) % 3
    logits = 6 * np.eye(3)[np.where(draws.random(SAMPLES) < 0.6, labels, (labels + 1) % 3)]
    return replace(
        result,
        labels=labels.astype(np.float64),
        predictions={"fused": logits, "text": logits},
        answers=logits.argmax(1),
        probabilities=torch.from_numpy(logits).softmax(-1).numpy(),
        scoring=Scoring(kind="classes", protocol="classes", outputs=3, names=("no", "so-so", "yes")),
    )


def made_run(number: int = 0, seed: int = 1, **changes: object) -> RunRecord:
    config = config_to_dict(Config())
    config["train"] |= {"seed": seed, "learning_rate": 1e-3 * (number + 1) / 7}
    config["objective"]["gamma"] = 0.1 + number
    curves = {
        "valid/loss": Curve(steps=np.array([2, 4]), values=np.array([1.0, 0.5 + number / 100])),
        "train/task_fused": Curve(steps=np.array([1, 2, 3, 4]), values=np.array([4.0, 2.0, 2.0, 1.0]) + seed),
        "train/samples_per_second": Curve(steps=np.array([1, 2, 3]), values=np.array([10.0, 20.0, math.nan])),
    }
    best = Validation(step=4, epoch=1, loss=0.5 + number / 100, best_loss=0.5 + number / 100)
    run = RunRecord(
        path=Path(f"runs/{number}-{seed}"),
        name=f"{number}-{seed}",
        config=config,
        info={"steps_per_epoch": 2, "counts": {"train": 30}, "data": "shards", "ranks": 2, "device": "cpu"},
        sessions=[
            {
                "started": "2026-01-01T00:00:00+00:00",
                "ended": "2026-01-01T01:00:00+00:00",
                "finished": True,
                "costs": {"cpu_seconds": 1800.0, "peak_memory": 2 << 20, "no_energy": "there is no counter"},
            }
        ],
        curves=curves,
        stands=Standing(step=4, epoch=2, best=best, validations=(best,)),
    )
    return replace(run, **changes)


def made_groups(configs: int, seeds: int = 2, samples: int = SAMPLES) -> list[Group]:
    results = [made_result(seed, samples) for seed in range(seeds)]
    return make_groups(
        [
            Measured(run=made_run(number, seed), result=results[seed])
            for number in range(configs)
            for seed in range(seeds)
        ]
    )


class Elements(HTMLParser):
    """What a browser takes a page for: its elements, and the text of each script."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._in_script = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._in_script = tag == "script"
        if self._in_script:
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in_script = self._in_script and tag != "script"

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts[-1] += data
        else:
            self.text += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_no_text_of_a_sample_becomes_a_part_of_the_page(tmp_path):
    result = replace(made_result(), texts=[HOSTILE] * SAMPLES, ids=[f"{HOSTILE}{n}" for n in range(SAMPLES)])
    group = Group(name=HOSTILE, members=(Measured(run=made_run(), result=result),), settings={"key": HOSTILE})
    table = Table(name="t", title=HOSTILE, note=HOSTILE, header=[HOSTILE, "n"], rows=[[HOSTILE, "1"]])
    sections = [
        Section(anchor="samples", title=HOSTILE, explorer=explorer([group])),
        Section(
            anchor="one", title="one", text=HOSTILE, commands=[HOSTILE], facts=[(HOSTILE, HOSTILE)], tables=[table]
        ),
    ]
    page = write_page(tmp_path, HOSTILE, HOSTILE, sections, names={HOSTILE: f"all {HOSTILE}"})
    found = Elements(page.read_text())
    data, code = found.scripts
    assert not found.named("img")
    assert "alert" not in code
    there = json.loads(data)
    assert there["sets"][0]["columns"][1]["values"][0] == HOSTILE
    assert there["configs"][0]["full"] == f"key={HOSTILE}"
    assert found.text.count("This page has") == 1, "texts that look like the place of the size stay as they are"
    assert HOSTILE in found.text


def test_samples_are_there_in_the_digits_that_are_shown_worst_first():
    groups = made_groups(2)
    found = explorer(groups)
    data = json.loads(found.json)
    ensemble = ensemble_of([member.result for member in groups[0].members])
    assert np.allclose(ensemble.answers, np.mean([m.result.answers for m in groups[0].members], axis=0))
    assert len(data["sets"]) == 1, "samples that configs share are there once"
    columns = {column["title"]: column for column in data["configs"][0]["columns"]}
    errors = np.abs(ensemble.answers - ensemble.labels)
    assert columns["prediction"]["values"] == np.rint(100 * ensemble.answers).astype(int).tolist()
    assert columns["error"]["values"] == np.rint(100 * errors).astype(int).tolist()
    spread = np.std([m.result.answers for m in groups[0].members], axis=0, ddof=1)
    assert np.allclose(np.array(columns["spread"]["values"]) / 100, spread, atol=0.0051)
    assert {column["of"] for column in columns.values()} == {"main", "heads", "edges"}
    assert "text alone" in columns
    assert len(found.worst.rows) == WORST
    shown = [float(row[found.worst.header.index("error")]) for row in found.worst.rows]
    assert shown == sorted(shown, reverse=True)
    assert shown[0] == pytest.approx(errors.max(), abs=0.0051)
    assert found.worst.rows[0][0] == ensemble.ids[int(errors.argmax())]
    speakers = data["sets"][0]["speakers"]
    assert [speakers["names"][place] for (place,) in speakers["values"]] == videos_of(ensemble.ids)


def test_samples_of_classes_and_emotions_have_names_and_of_no_number_a_dash():
    found = explorer([Group(name="one", members=(Measured(run=made_run(), result=made_classes()),))])
    prediction = found.data["configs"][0]["columns"][0]
    assert prediction["names"] == ["no", "so-so", "yes"]
    assert cell_text(prediction, 0) in prediction["names"]
    labels = (np.arange(2 * SAMPLES).reshape(SAMPLES, 2) % 3 == 0).astype(np.float64)
    logits = np.where(labels > 0, 1.0, -1.0)
    result = replace(
        made_result(),
        labels=labels,
        predictions={"fused": logits},
        answers=logits > 0,
        probabilities=torch.from_numpy(logits).sigmoid().numpy(),
        scoring=Scoring(kind="multilabel", protocol="iemocap", outputs=2, names=("happy", "sad")),
    )
    found = explorer([Group(name="one", members=(Measured(run=made_run(), result=result),))])
    sets = found.data["sets"][0]
    label = next(column for column in sets["columns"] if column["title"] == "label")
    assert set(label["values"]) == {"happy", "sad", "none"}
    assert sets["classes"]["values"][0] == np.flatnonzero(labels[0]).tolist()
    undefined = replace(made_result(), answers=np.full(SAMPLES, math.nan))
    found = explorer([Group(name="one", members=(Measured(run=made_run(), result=undefined),))])
    assert found.worst.rows[0][found.worst.header.index("prediction")] == "–"


def test_heads_and_edges_that_would_make_the_page_too_large_are_named(monkeypatch):
    groups = made_groups(3)
    monkeypatch.setattr("dmd.report.explorer.BUDGET", 2 * 7 * SAMPLES)
    found = explorer(groups)
    assert found.left_out == (groups[2].name,)
    assert [len(config["columns"]) for config in found.data["configs"]] == [10, 10, 3]


def test_names_of_configs_are_short_and_their_tooltips_whole(tmp_path):
    runs = [made_run(number) for number in range(3)]
    for number, run in enumerate(runs):
        run.config["text"]["encoder"] = f"/models/of/the/group/encoder-{number % 2}"
        for key in ("dim", "heads", "levels", "ffn_dropout" if "ffn_dropout" in run.config["model"] else "levels"):
            run.config["model"][key] = 100 + number
    groups = make_groups([Measured(run=run, result=made_result()) for run in runs])
    assert groups[0].name == "reference"
    assert len({group.name for group in groups}) == 3
    assert all(len(group.name) <= LONGEST_NAME for group in groups)
    assert all(", +" in group.name for group in groups[1:])
    assert "learning_rate=0.00028571428571428574" in groups[1].full
    assert "gamma=1.1" in groups[1].full
    table = Table(name="t", title="t", header=["c", f"{groups[1].name}, 2 seeds"], rows=[[groups[1].name, "1"]])
    names = {group.name: group.full for group in groups}
    page = write_page(tmp_path, "t", "t", [Section(anchor="one", title="one", tables=[table])], names=names)
    assert [found["title"] for found in Elements(page.read_text()).named("abbr")] == [groups[1].full] * 2


def test_of_many_configs_the_reference_and_the_best_are_drawn_together():
    groups = made_groups(9, seeds=1)
    shown = shown_together([groups[8], *groups[:8]])
    assert [group.name for group in shown] == [groups[8].name, *(group.name for group in groups[: SHOWN - 1])]
    assert "Of 9 configs the first one and the 5 with the lowest validation loss" in of_how_many(shown, groups)
    assert of_how_many(groups, groups) == ""


def test_bands_are_the_deviation_over_the_seeds_that_got_so_far():
    long = Curve(steps=np.array([1, 2, 3]), values=np.array([1.0, 2.0, 3.0]))
    short = Curve(steps=np.array([1, 2]), values=np.array([2.0, math.nan]))
    steps, mean, deviation = over_seeds([long, short])
    assert steps.tolist() == [1, 2, 3]
    assert mean.tolist() == [1.5, 2, 3]
    assert deviation[0] == pytest.approx(np.std([1, 2], ddof=1))
    assert np.isnan(deviation[1:]).all()
    epochs = by_epoch(made_run(seed=0), "train/task_fused")
    assert epochs is not None
    assert (epochs.steps.tolist(), epochs.values.tolist()) == ([1, 2], [3.0, 1.5])
    panel = train_beside_validation(made_groups(2))
    lines = {line.get_label(): np.asarray(line.get_ydata()).tolist() for line in panel.get_axes()[0].get_lines()}
    assert lines["validation"] == [1.0, 0.5]
    assert next(iter(lines.values())) == [3.5, 2.0], "the mean of seeds 0 and 1"


def test_the_spread_is_scaled_by_what_other_videos_ask_for():
    group = made_groups(1, seeds=3)[0]
    result, found = ensemble_of([member.result for member in group.members]), calibrate(group)
    assert found is not None
    half = halves(result.ids)
    assert not set(np.array(videos_of(result.ids))[half == 0]) & set(np.array(videos_of(result.ids))[half == 1])
    assert set(half) == {0, 1}
    error = torch.from_numpy(result.answers - result.labels)
    assert result.spread is not None
    spread = torch.from_numpy(result.spread)
    others = torch.from_numpy(half == 1)
    assert found.values[0] == pytest.approx(fit_scale(error[others], spread[others]))
    assert found.error_before == pytest.approx(coverage_error(error, spread))
    assert found.error_after < found.error_before / 2
    assert "by videos" in found.where
    table = calibration_table([found], "valid", regression=True)
    assert table.rows[0][4:] == [f"{found.error_before:.3f}", f"{found.error_after:.3f}"]
    assert len(calibration_figure([found], regression=True).get_axes()[0].get_lines()) == 3


def test_on_another_split_calibration_is_fitted_on_valid():
    members = tuple(
        Measured(run=made_run(seed=seed), result=made_result(seed, valid=False), valid=made_result(seed))
        for seed in range(3)
    )
    found = calibrate(Group(name="one", members=members))
    assert found is not None
    assert len(found.values) == 1
    assert found.where == "the valid split"
    alone = Group(name="one", members=members[:1])
    assert calibrate(alone) is None, "sentiments of one seed have no spread"
    classes = calibrate(Group(name="one", members=(Measured(run=made_run(), result=made_classes()),)))
    assert classes is not None
    assert min(classes.values) > 1, "it is surer than right"
    assert classes.error_after < classes.error_before


def test_divisions_hold_every_sample_once_and_intervals_their_mean():
    result = made_result()
    found = {division.name: division for division in divisions(result)}
    assert set(found) == {"words", "steps_text", "label", "video"}, "audio has the lengths of text"
    for division in found.values():
        assert (sum(chosen.astype(int) for chosen in division.sets.values()) == 1).all()
    assert "audio" in found["steps_text"].title
    ties = quantile_sets(np.array([1, 1, 1, 1, 1, 1, 5, 9]), "steps")
    assert {name: int(chosen.sum()) for name, chosen in ties.items()} == {"1 steps": 6, "2–9 steps": 2}
    errors = errors_of(result)
    row = error_row("all", errors, by_count=False)
    assert row.mean == pytest.approx(errors.mean())
    assert row.low < row.mean < row.high
    right = error_row("one", np.zeros(5), by_count=True)
    assert right.low == 0 < right.high < 1, "five right ones do not show that all are"
    tables, figures = error_tables_and_figures(made_groups(2))
    assert {table.name for table in tables} == set(figures)
    by_video = next(table for table in tables if table.name == "errors_by_video")
    assert sum(int(row[1]) for row in by_video.rows[:-1]) == int(by_video.rows[-1][1]) == SAMPLES


def test_ids_name_videos_as_data_sets_write_them():
    assert video_of("03bSnISJMiM$_$11") == "03bSnISJMiM"
    assert video_of("a$_$b$_$3") == "a$_$b"
    assert video_of("03bSnISJMiM[11]") == "03bSnISJMiM"
    assert video_of("sample 3") == ""
    assert videos_of(["a$_$1", "b$_$1"]) == [], "one sample of each says nothing of speakers"
    assert videos_of(["a$_$1", "a$_$2", "3"]) == []
    assert videos_of(["a$_$1", "a$_$2"]) == []
    assert halves(["a$_$1", "a$_$2"]).tolist() == [0, 1], "samples of one video alone are divided"


def test_costs_are_those_recorded_and_a_dash_has_its_reason(tmp_path):
    groups = made_groups(1)
    killed = made_run(5, sessions=[{"started": "2026-01-01T00:00:00+00:00"}, made_run().sessions[0]])
    groups.append(Group(name="killed", members=(Measured(run=killed, result=made_result()),)))
    table = cost_table(groups)
    rows = [dict(zip(table.header, row, strict=True)) for row in table.rows]
    assert (rows[0]["hours"], rows[0]["device hours"], rows[0]["CPU hours"]) == ("1", "2", "0.5")
    assert (rows[0]["peak MiB"], rows[0]["energy Wh"], rows[0]["parameters"]) == ("2", "–", "–")
    assert (rows[2]["hours"], rows[2]["CPU hours"]) == ("≥ 1", "≥ 0.5")
    assert "there is no counter (3 of 3 runs)" in table.note
    assert "a session was killed, which records no costs (1 of 3 runs)" in table.note
    assert step_seconds(made_run()) == pytest.approx(1.0), "15 samples a step, 15 in a second"
    begun = datetime.now(UTC) - timedelta(hours=1)
    going = made_run(7, path=tmp_path, sessions=[made_run().sessions[0], {"started": begun.isoformat()}])
    with sole_writer(tmp_path):
        table = cost_table([Group(name="going", members=(Measured(run=going, result=made_result()),))])
    row = dict(zip(table.header, table.rows[0], strict=True))
    assert (row["hours"], row["CPU hours"]) == ("2", "≥ 0.5")
    assert "the run is still running" in table.note
    assert "a session was killed, which" not in table.note


def test_commands_are_what_a_user_types():
    session = made_run().sessions[0]
    launched = "/venv/bin/python -u /repo/launch/train.py --local_rank=0 --data s --run r --resume auto train.epochs=3"
    rank = made_run(sessions=[{**session, "command": launched}])
    assert typed_command(rank) == "dmd train --ranks 2 --data s --run r train.epochs=3"
    asked = made_run(
        sessions=[{**session, "command": launched, "user_command": "dmd train --data https://me:pw@host/s"}]
    )
    assert typed_command(asked) == "dmd train --data https://host/s"
    notebook = shlex.split(typed_command(made_run(2, sessions=[{**session, "command": "python -"}])))
    assert notebook[:8] == ["dmd", "train", "--data", "shards", "--run", "runs/2-1", "--ranks", "2"]
    assert "objective.gamma=2.1" in notebook
    assert "train.epochs" not in " ".join(notebook)
    assert len(command_table(made_groups(2)).rows) == 4


def calls_of(work: Callable[[], object]) -> int:
    """How many functions of a report Python calls in some work."""
    count = 0

    def look(frame, event: str, argument: object) -> None:
        nonlocal count
        name = frame.f_globals.get("__name__", "")
        count += event == "call" and name.startswith("dmd.report")

    sys.setprofile(look)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def test_work_grows_with_the_runs_not_with_their_square(tmp_path):
    def work(configs: int) -> None:
        groups = made_groups(configs, seeds=1, samples=12)
        costs, found = cost_table(groups), explorer(groups)
        sections = [Section(anchor="s", title="s", explorer=found, tables=[costs, command_table(groups)])]
        sections += [
            Section(anchor=g.members[0].run.name, title=g.name, part="Single runs", folded=True) for g in groups
        ]
        write_page(tmp_path, "t", "t", sections, names={group.name: group.full for group in groups})

    few, many = (calls_of(lambda configs=configs: work(configs)) for configs in (10, 50))
    assert few > 100
    assert many < 5.5 * few
    found = Elements((tmp_path / "index.html").read_text())
    anchors = {attributes.get("id") for _, attributes in found.elements}
    links = [link["href"] for link in found.named("a") if not link.get("download")]
    assert len(links) == 51
    assert all(link is not None and link[1:] in anchors for link in links)
    assert len([one for one in found.named("details") if one.get("class") == "section"]) == 50


def test_latex_of_a_section_is_beside_the_page_and_in_it(tmp_path):
    named = (Table(name=name, title="t", header=["model"], rows=[["one"]]) for name in ("summary", "other"))
    sections = [Section(anchor="50%", title="one", tables=list(named))]
    page = write_page(tmp_path, "t", "t", sections)
    assert [path.name for path in (tmp_path / "50%").glob("*.tex")] == ["summary.tex"]
    links = [link["href"] for link in Elements(page.read_text()).named("a") if not link.get("download")]
    assert links == ["#50%25"], "an address in which % begins an escape"
    link = next(link for link in Elements(page.read_text()).named("a") if link.get("download"))
    assert link["download"] == "summary.tex"
    assert link["href"] is not None
    assert link["href"].startswith("data:text/plain;charset=utf-8;base64,")


def test_names_of_runs_are_those_of_one_element_each(tmp_path):
    assert anchors_of(["one", "two"]) == ["one", "two"]
    names = ["seed", "seed", "seed_1", "config", "config_1", "index.html", *PAGE_IDS]
    anchors = anchors_of(names)
    assert anchors[:5] == ["seed_2", "seed_3", "seed_1", "config_2", "config_1"]
    page = write_page(tmp_path, "t", "t", [Section(anchor="samples", title="s", explorer=explorer(made_groups(1)))])
    ids = {attributes["id"] for _, attributes in Elements(page.read_text()).elements if attributes.get("id")}
    assert {*PAGE_IDS, "samples"} == ids
    assert not {*anchors} & {*ids, "index.html"}
    assert len({*anchors}) == len(names)


def test_pictures_of_light_sections_are_drawn_once(tmp_path):
    pictures = [Picture(name="train_and_valid", figure=train_beside_validation(made_groups(1)), caption="c")]
    page = write_page(tmp_path, "t", "t", [Section(anchor="one", title="one", pictures=pictures, light=True)])
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["train_and_valid.png"]
    shown = Elements(page.read_text())
    (image,) = shown.named("img")
    assert (image["src"] or "").startswith("data:image/png")
    assert image["alt"] == "train and valid"


def test_a_figure_names_what_any_of_its_panels_shows():
    first, second = made_groups(2, seeds=1)
    del first.members[0].run.curves["train/task_fused"]
    names = [text.get_text() for text in train_beside_validation([first, second]).legends[0].get_texts()]
    assert len(names) == 2
    assert "validation" in names


def test_configs_without_finite_answers_are_named_and_not_calibrated():
    group = made_groups(1)[0]
    first = group.members[0]
    answers = np.where(np.arange(SAMPLES) == 3, math.nan, first.result.predictions["fused"])
    undefined = replace(first, result=replace(first.result, predictions={"fused": answers}))
    broken = Group(name="broken", members=(undefined, group.members[1]))
    assert calibrate(broken) is None
    assert not has_finite_answers(broken)
    assert has_finite_answers(group)
    assert can_be_calibrated("classes", 1)
    assert not can_be_calibrated("regression", 1)
