"""States, sessions and log lines that parse and mean nothing: one line and exit code 2 wherever they are read."""

import json
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from dmd.checkpoint.format import Snapshot
from dmd.checkpoint.select import chosen_checkpoint
from dmd.checkpoint.standing import finished_at
from dmd.checkpoint.writer import write_checkpoint
from dmd.documents import parse_line
from tests.support.commands import command
from tests.support.trained import SMALL

GONE = object()
CHANGES: list[tuple[str, Any]] = [
    ("cursor", {}),
    ("cursor/epoch", -1),
    ("cursor/epoch", 10**30),
    ("cursor/epoch", True),
    ("cursor/step", "x"),
    ("cursor/more", 1),
    ("cursor", GONE),
    ("schedule", {}),
    ("schedule/best_loss", None),
    ("schedule/best_epoch", "x"),
    ("schedule/best_epoch", GONE),
    ("schedule/learning_rates", ["x"]),
    ("schedule/learning_rates", 3),
    ("schedule/plateau", []),
    ("schedule/plateau/best", None),
    ("schedule/plateau/min_lrs", [[1]]),
    ("nonfinite_in_a_row", "x"),
    ("nonfinite_in_a_row", GONE),
    ("averaged_steps", "x"),
    ("best_step", "x"),
    ("data", GONE),
    ("version", None),
    ("config", []),
    ("text_encoder", 3),
]


def changed(content: dict[str, Any], where: str, value: Any) -> dict[str, Any]:
    """A copy of JSON content with one value replaced, or gone."""
    result = deepcopy(content)
    *above, last = where.split("/")
    inner = result
    for name in above:
        inner = inner[name]
    if value is GONE:
        del inner[last]
    else:
        inner[last] = value
    return result


@pytest.fixture
def copy(run, tmp_path) -> Path:
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize(("where", "value"), CHANGES)
def test_a_state_that_does_not_say_how_far_a_training_is(copy, shards, capsys, where, value):
    snapshot = chosen_checkpoint(copy)
    state = changed(snapshot.state | {"best_step": None}, where, value)
    shutil.rmtree(copy / "checkpoints")
    write_checkpoint(
        copy / "checkpoints",
        Snapshot(step=snapshot.step, model=snapshot.model, optimizer={"none": torch.zeros(1)}, state=state),
        keep=2,
    )
    train = ("train", "--data", shards, "--run", copy, *SMALL, "train.seed=1")
    for arguments in (train, ("checkpoints", copy), ("report", copy, "--out", copy.parent / "out")):
        capsys.readouterr()
        assert command(*arguments) == 2, arguments[0]
        error = capsys.readouterr().err.strip()
        assert len(error.splitlines()) == 1, error
        assert len(error) < 500


@pytest.mark.parametrize("value", [None, "x", GONE, -1, 1e400, 10**30, True])
def test_a_session_that_was_finished_at_no_step(copy, value):
    document = json.loads((copy / "run.json").read_text())
    assert finished_at(copy) is not None
    document["sessions"][-1] = changed(document["sessions"][-1], "last_step", value)
    (copy / "run.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match="was finished at no step"):
        finished_at(copy)


def test_a_step_that_nothing_holds():
    assert parse_line(b'{"step": 9223372036854775807}') is not None
    assert parse_line(b'{"step": 9223372036854775808}') is None


def test_where_the_best_checkpoint_is_gone_the_last_one_is_offered(copy, capsys):
    snapshot = chosen_checkpoint(copy)
    root, step = copy / "checkpoints", snapshot.step
    shutil.rmtree(root)
    state = snapshot.state | {"best_step": step + 1}
    write_checkpoint(root, Snapshot(step=step, model=snapshot.model, optimizer=snapshot.optimizer, state=state), keep=2)
    assert command("evaluate", copy) == 2
    error = capsys.readouterr().err
    assert f"the best checkpoint, of step {step + 1}, is gone from {root}; give --last " in error
    assert f"the newest one, of step {step}" in error
