"""Labels from which nothing can be learned are rejected before a training; class numbers are asked for as such."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_shards.reading.reader import ShardReader
from dmd.config.loading import load_config
from dmd.data.targets import check_same_labels, check_targets, resolve_task, scoring_of
from launch.trainer.preflight import check_training
from tests.support.commands import command
from tests.support.small_data import COUNTS, build_from, mmsa, save

SMALL = ("model.dim=8", "model.heads=2")


def labelled(folder: Path, *values: float, **options: object) -> Path:
    """Shards whose labels go through `values`, whatever they look like."""
    data = mmsa()
    for split, fields in data.items():
        fields["regression_labels"] = np.resize(np.array(values), COUNTS[split])
        fields["classification_labels"] = np.zeros(COUNTS[split])
    build_from(data, folder, **options)
    return folder / "shards"


@pytest.mark.parametrize(
    "values, task, words",
    [
        ((0, 1), "2", r"every training sample of tiny is class 1 of model\.task=2 \(labels: sentiments 0 to 1\)"),
        ((0.5, 2.5), "2", "is class 1 of model.task=2"),
        ((0.5, 2.5), "3", "is class 2 of model.task=3"),
        ((-0.4, 0.4), "5", "is class 2 of model.task=5"),
        ((-0.4, 0.4), "7", "is class 3 of model.task=7"),
        ((1.5, 1.5), "regression", "is sentiment 1.5"),
    ],
)
def test_targets_that_are_all_equal_are_rejected(tmp_path, values, task, words):
    config = load_config(None, [*SMALL, f"model.task={task}"])
    with (
        ShardReader(labelled(tmp_path, *values)) as reader,
        pytest.raises(ValueError, match=words) as caught,
    ):
        check_training(config, reader, tmp_path / "run", 1)
    assert "--label-scale" in str(caught.value)


@pytest.mark.parametrize("values, task", [((-1, 1), "2"), ((-1, 1), "3"), ((0, 1), "7"), ((0, 0.5), "regression")])
def test_targets_that_differ_are_trained(tmp_path, values, task):
    with ShardReader(labelled(tmp_path, *values)) as reader:
        check_training(load_config(None, [*SMALL, f"model.task={task}"]), reader, tmp_path / "run", 1)


def test_one_stored_class_is_rejected(tmp_path):
    with ShardReader(labelled(tmp_path, -1, 2, class_labels=True)) as reader:
        config = load_config(None, [*SMALL, "model.task=3", "data.classes=stored"])
        with pytest.raises(ValueError, match=r"is class 0 of model.task=3"):
            check_training(config, reader, tmp_path / "run", 1)


def test_a_set_of_an_older_program_is_checked_by_its_rows(tmp_path):
    shutil.copytree(Path(__file__).parent.parent / "data_shards" / "old", tmp_path / "old")
    with ShardReader(tmp_path / "old") as reader:
        assert reader.index.info.labels == {}
        check_targets(resolve_task(load_config(None), reader.index.info), reader.index)
        check_targets(load_config(None, ["model.task=3", "data.classes=stored"]), reader.index)


@pytest.mark.parametrize("classes", [2, 4, 9])
def test_class_numbers_alone_are_what_is_learned_unless_something_else_is_asked_for(tmp_path, classes):
    data = mmsa()
    for split, fields in data.items():
        fields["labels"] = np.arange(COUNTS[split]) % classes
        del fields["regression_labels"]
    shards = tmp_path / "shards"
    assert command("shard", save(data, tmp_path / "x.pkl"), shards, "--classes") == 0
    with ShardReader(shards) as reader:
        for asked in ("regression", "multilabel"):
            with pytest.raises(ValueError, match=f"hold {classes} classes and no sentiments; set model.task=auto"):
                resolve_task(load_config(None, [f"model.task={asked}"]), reader.index.info)
        resolved = resolve_task(load_config(None, SMALL), reader.index.info)
        assert (resolved.model.task, resolved.data.classes) == (classes, "stored")
        assert resolve_task(resolved, reader.index.info) == resolved
        explicit = load_config(None, [*SMALL, f"model.task={classes}", "data.classes=stored"])
        assert resolve_task(explicit, reader.index.info) == explicit == resolved
        assert resolve_task(load_config(None, [*SMALL, f"model.task={classes}"]), reader.index.info) == resolved
        more = resolve_task(load_config("meld", [f"model.task={classes + 1}"]), reader.index.info)
        assert (more.model.task, more.data.classes) == (classes + 1, "stored")
        if classes > 2:
            with pytest.raises(ValueError, match=rf"hold the class number .*; set model\.task to at least {classes}$"):
                resolve_task(load_config(None, [f"model.task={classes - 1}"]), reader.index.info)
        check_training(resolved, reader, tmp_path / "run", 1)


def test_a_model_is_compared_by_the_names_that_it_uses(tmp_path):
    info = build_from(mmsa(), tmp_path)
    facts = {"class_names": ["no", "yes"], "emotions": ["happy", "sad"], "protocol": "mosi"}
    other = replace(info, classes=2, class_names=("yes", "no"), emotions=("sad", "happy"), labels={}, protocol="sims")
    config = load_config(None, ["model.task=regression"])
    check_same_labels(config, facts, other)
    check_same_labels(load_config(None, ["model.task=7"]), facts, other)
    for overrides, what in (
        (["model.task=2", "data.classes=stored"], "class_names no, yes, these shards have yes, no"),
        (["model.task=multilabel", "data.classes=emotions"], "emotions happy, sad, these shards have sad, happy"),
    ):
        with pytest.raises(ValueError, match=f"the model was trained on {what}"):
            check_same_labels(load_config(None, overrides), facts, other)
        check_same_labels(load_config(None, overrides), {}, other)


def test_names_of_classes_beyond_those_of_the_data_are_their_own():
    config = load_config(None, ["model.task=4", "data.classes=stored"])
    assert scoring_of(config, {"class_names": ["2", "a"]}).names == ("2", "a", "class 2", "3")
    assert scoring_of(config, {"class_names": []}).titles == ["0", "1", "2", "3"]
    with pytest.raises(ValueError, match=r"model\.task is 7, but a sentiment has 2, 3, 5 classes by the protocol sims"):
        scoring_of(load_config(None, ["model.task=7"]), {"protocol": "sims"})


def test_labels_are_told_in_the_units_of_the_source(tmp_path):
    data = mmsa()
    for split, fields in data.items():
        fields["regression_labels"] = np.full(COUNTS[split], 4.0)
        fields["classification_labels"] = np.arange(COUNTS[split]) % 2
    shards, options = tmp_path / "shards", ("--label-range", "1", "5", "--class-labels", "--class-names", "no,yes")
    assert command("shard", save(data, tmp_path / "x.pkl"), shards, *options) == 0
    words = r"is sentiment 4 \(labels: sentiments 4 to 4, stored as 1\.5 to 1\.5, classes no \(12\), yes \(11\)\)"
    with ShardReader(shards) as reader, pytest.raises(ValueError, match=words):
        check_targets(load_config(None, ["model.task=regression"]), reader.index)
