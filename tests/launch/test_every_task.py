"""Every task from a feature pickle to a report: one epoch on two ranks, then every command that reads the run.

Emotions go through the launcher, the other two through the ranks that it starts.
"""

import csv
import json
import math
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dmd
from dmd.config.loading import load_config
from dmd.inference.export import example
from dmd.model.dmd import HEADS
from launch.trainer.preflight import check_command
from tests.support.commands import command
from tests.support.ranks import TINY, finish
from tests.support.small_data import mmsa

pytestmark = [pytest.mark.multiproc, pytest.mark.slow]
COUNTS = {"train": 36, "valid": 9, "test": 12}
CLASSES = ("joy", "fear", "anger", "neutral")
EMOTIONS = ("happy", "sad", "very angry")
OPTIONS = {
    "range": ("--label-range", "1", "5"),
    "classes": ("--classes", "--class-names", ",".join(CLASSES), "--protocol", "meld"),
    "emotions": ("--emotions", ",".join(EMOTIONS)),
}
EXPLICIT = {
    "range": ["model.task=regression"],
    "classes": ["model.task=4", "data.classes=stored"],
    "emotions": ["model.task=multilabel"],
}

PROTOCOLS = {"range": "mosi", "classes": "meld", "emotions": "emotions"}
LOSSES = {"range": "mae", "classes": "cross_entropy", "emotions": "binary_cross_entropy"}


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A task's run, and what it was trained on."""

    task: str
    data: dict[str, dict[str, Any]]
    pickled: Path
    shards: Path
    run: Path


def labelled(task: str) -> dict[str, dict[str, Any]]:
    """Features with the labels of a task alone."""
    data, draw = mmsa(COUNTS), np.random.default_rng(1)
    for fields in data.values():
        sentiments = fields.pop("regression_labels")
        count = len(sentiments)
        if task == "range":
            fields["regression_labels"] = np.round((sentiments + 3) / 6 * 4 + 1, 1)
        elif task == "classes":
            fields["labels"] = draw.permutation(np.arange(count) % len(CLASSES))
        else:
            fields["emotions"] = np.array([[row % 2, row % 3 > 0, row % 4 == 0] for row in draw.permutation(count)])
    return data


@pytest.fixture(scope="module", params=OPTIONS)
def trained(request, tmp_path_factory) -> Trained:
    folder, task = tmp_path_factory.mktemp(request.param), request.param
    data, pickled, shards, run = labelled(task), folder / "in.pkl", folder / "shards", folder / "run"
    pickled.write_bytes(pickle.dumps(data))
    assert command("shard", pickled, shards, *OPTIONS[task]) == 0
    if task == "emotions":
        arguments = ["train", "--data", shards, "--run", run, "--ranks", 2, *TINY, "train.epochs=1"]
        assert command(*arguments) == 0
    else:
        finish(shards, run, "train.epochs=1", ranks=2)
    return Trained(task=task, data=data, pickled=pickled, shards=shards, run=run)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def predicted(trained: Trained, source: Path, out: Path) -> list[dict[str, str]]:
    assert command("predict", trained.run, source, "--split", "test", "--out", out) == 0
    return rows(out)


def numbers(table: list[dict[str, str]], *columns: str) -> np.ndarray:
    return np.array([[float(row[column]) for column in columns] for row in table]).squeeze()


def test_every_command_reads_a_run_of_every_task(trained, tmp_path, capsys):
    task = trained.task
    config = json.loads((trained.run / "run.json").read_text())["config"]
    assert config["model"]["task"] == {"range": "regression", "classes": 4, "emotions": "multilabel"}[task]
    assert command("evaluate", trained.run, "--split", "test", "--json", tmp_path / "test.json") == 0
    evaluated = json.loads((tmp_path / "test.json").read_text())
    assert evaluated["protocol"] == PROTOCOLS[task]
    assert f"Protocol {PROTOCOLS[task]}: " in capsys.readouterr().out
    table = predicted(trained, trained.shards, tmp_path / "shards.csv")
    check_predictions(trained, table, evaluated["metrics"]["fused"])
    again = predicted(trained, trained.pickled, tmp_path / "pickle.csv")
    assert list(again[0]) == list(table[0])
    words = [column for column, value in table[0].items() if value in CLASSES]
    assert bool(words) == (task == "classes")
    columns = [column for column in table[0] if column not in ("split", "id", "text", *words)]
    assert numbers(again, *columns) == pytest.approx(numbers(table, *columns), abs=1e-5)
    assert [[row[column] for column in words] for row in again] == [[row[column] for column in words] for row in table]

    check_log(trained)
    if task != "classes":  # of classifiers tests/dmd/test_tasks.py has it
        check_report(trained, tmp_path / "report")
    if task == "emotions":
        check_one_rank(trained, tmp_path / "run")


def check_report(trained: Trained, out: Path) -> None:
    """Tables have the metrics of the task, and say their protocol."""
    assert command("report", trained.run, "--projection", "pca", "--out", out) == 0
    summary = [row["metric"] for row in rows(out / "overview" / "summary.csv")]
    assert {"range": "MAE", "emotions": "WAcc very angry %"}[trained.task] in summary
    assert f"Protocol {PROTOCOLS[trained.task]}: " in (out / "index.html").read_text()


def check_one_rank(trained: Trained, run: Path) -> None:
    """One rank has the losses of two, up to rounding, in each step, and in the validation."""
    finish(trained.shards, run, "train.epochs=1")
    texts = ((of / "metrics.jsonl").read_text().splitlines() for of in (run, trained.run))
    alone, both = ([json.loads(line) for line in text] for text in texts)
    for one, two in zip(alone, both, strict=True):
        tags = [tag for tag in one if tag.startswith(("train/task", "train/margin", "train/homo", "valid/loss"))]
        assert [two[tag] for tag in tags] == pytest.approx([one[tag] for tag in tags], rel=1e-3, abs=1e-6)


def check_predictions(trained: Trained, table: list[dict[str, str]], metrics: dict[str, float]) -> None:
    """Columns, units and metrics of what `dmd predict` writes of the test split."""
    data, model = trained.data["test"], dmd.load(trained.run)
    result = model.predict(**{m: data[m] for m in ("text", "audio", "vision")})
    if trained.task == "range":
        label, answer = numbers(table, "label"), numbers(table, "prediction")
        assert label == pytest.approx(data["regression_labels"], abs=1e-6)
        assert answer == pytest.approx(result.sentiment.numpy(), abs=1e-5)
        assert abs(answer.mean() - 3) < 1, "near the middle of the scale, not near 0"
        assert metrics["mae"] == pytest.approx(np.abs(answer - label).mean(), abs=1e-5)
        assert numbers(table, "shared") == pytest.approx(result.heads["shared"].numpy(), abs=1e-5)
        signs = (answer >= 3) == (label >= 3 - 1e-6)
        assert metrics["acc2_has0"] == pytest.approx(signs.mean())
    elif trained.task == "classes":
        odds = numbers(table, *(f"probability_{name}" for name in CLASSES))
        assert odds == pytest.approx(result.probabilities.numpy(), abs=1e-5)
        assert np.array_equal(numbers(table, "prediction_number"), odds.argmax(1))
        assert np.array_equal(numbers(table, "label_number"), data["labels"])
        assert [row["prediction"] for row in table] == [CLASSES[number] for number in odds.argmax(1)]
        assert [row["label"] for row in table] == [CLASSES[number] for number in data["labels"]]
        assert metrics["acc"] == pytest.approx((odds.argmax(1) == data["labels"]).mean())
        assert result.names == list(CLASSES)
    else:
        odds = numbers(table, *(f"probability_{name}" for name in EMOTIONS))
        assert odds == pytest.approx(result.probabilities.numpy(), abs=1e-5)
        said = numbers(table, *(f"prediction_{name}" for name in EMOTIONS))
        assert np.array_equal(said, odds > 0.5)
        assert torch.equal(result.emotions, torch.from_numpy(said > 0))
        assert np.array_equal(numbers(table, *(f"label_{name}" for name in EMOTIONS)), data["emotions"])
        assert metrics["acc_each"] == pytest.approx((said == data["emotions"]).mean())
        assert metrics["wacc.very angry"] >= 0
        heads = [head for head in HEADS if head != "fused"]
        assert all(f"{head}_{name}" in table[0] for head in heads for name in EMOTIONS)
        with pytest.raises(ValueError, match="predicts emotions, no sentiment"):
            model.predict(**example(model.card, 2)).sentiment  # noqa: B018


def check_log(trained: Trained) -> None:
    """The validation loss is the metric that the task is selected by, in its units; each emotion has its curves."""
    lines = [json.loads(line) for line in (trained.run / "metrics.jsonl").read_text().splitlines()]
    valid = next(line for line in lines if "valid/loss" in line)
    assert valid["valid/loss"] == pytest.approx(valid[f"valid/{LOSSES[trained.task]}"], rel=1e-5)
    if trained.task == "range":
        assert valid["valid/loss"] < 4, "in units of the labels"
    assert all(math.isfinite(line["train/total"]) for line in lines if "train/total" in line)
    assert ("valid/f1.very angry" in valid) == (trained.task == "emotions")


def test_a_run_goes_on_by_whichever_name_its_task_was_given(trained):
    def check(*overrides: str) -> None:
        config = load_config(None, [*TINY, *overrides])
        check_command(config, trained.shards, trained.run, resume="auto", overrides=(), num_ranks=2, here=True)

    check()
    check(*EXPLICIT[trained.task])
    other = "model.task=multilabel" if trained.task != "emotions" else "model.task=regression"
    with pytest.raises(ValueError, match=r"set model\.task=auto"):
        check(other)
