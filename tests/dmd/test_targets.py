"""Labels from which nothing can be learned are rejected before a training; class numbers are asked for as such."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from data_shards.reading.reader import ShardReader
from dmd.config.loading import load_config
from dmd.data.targets import check_targets, resolve_task
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
        for asked in ("7", "regression", "multilabel"):
            with pytest.raises(ValueError, match=f"hold {classes} classes and no sentiments; set model.task=auto"):
                resolve_task(load_config(None, [f"model.task={asked}"]), reader.index.info)
        resolved = resolve_task(load_config(None, SMALL), reader.index.info)
        assert (resolved.model.task, resolved.data.classes) == (classes, "stored")
        assert resolve_task(resolved, reader.index.info) == resolved
        explicit = load_config(None, [*SMALL, f"model.task={classes}", "data.classes=stored"])
        assert resolve_task(explicit, reader.index.info) == explicit == resolved
        check_training(resolved, reader, tmp_path / "run", 1)
