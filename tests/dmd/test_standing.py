"""What a run says that it has reached is what its checkpoints hold: at its end, when given again, after a kill."""

import json
import math
import re
from pathlib import Path

import pytest

from dmd.checkpoint.select import chosen_checkpoint
from dmd.checkpoint.standing import (
    STORED_UNTIL,
    _in_units,
    finished_at,
    is_unfinished,
    read_lines,
    schedule_of,
    standing,
)
from dmd.evaluation.trained_run import evaluate_run
from dmd.metrics import METRICS
from dmd.training.logging.recorder import Recorder
from dmd.training.outcome import Outcome
from tests.support.trained import train, train_and_capture

CUT = ["train.ghost_batches_per_step=2", "train.max_steps=2"]
"""Two of the three steps of an epoch."""


def tell(shards: Path, run: Path, overrides: list[str]) -> str:
    """Train in another process; what it prints, its last line among it."""
    return train_and_capture(shards, {run: overrides})


def content(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def cut(shards, tmp_path_factory) -> tuple[Path, str]:
    """A run that `max_steps` ends inside its first epoch, and what it printed."""
    run = tmp_path_factory.mktemp("cut") / "run"
    return run, tell(shards, run, CUT)


def test_a_run_without_a_whole_epoch_tells_the_loss_of_its_checkpoint(cut):
    run, text = cut
    found = re.search(r"trained 2 steps \(0 epochs\) in 1 s; best validation loss (\d\.\d{4}) at step 2; run: ", text)
    assert found, text
    mae = evaluate_run(run, data=None, split="valid")["metrics"]["fused"]["mae"]
    assert float(found[1]) == pytest.approx(mae, abs=1e-4)
    assert json.loads((run / "run.json").read_text())["metrics"]["valid/loss"] == pytest.approx(mae, rel=1e-5)
    stands = standing(run)
    assert stands is not None
    assert stands.best is not None
    assert (stands.step, stands.epoch, stands.best.step, stands.best.epoch) == (2, 0, 2, 1)
    assert stands.best.loss == stands.best.best_loss == pytest.approx(mae, rel=1e-5)


def test_a_validation_names_protocol_and_unit(cut):
    line = next(line for line in cut[1].splitlines() if line.startswith("epoch "))
    metrics = r"valid \(mosi\) MAE \d\.\d{4}  Corr \S+  Acc2 Non0 \d+\.\d\d %  Acc7 \d+\.\d\d %"
    assert re.search(rf"{metrics}  lr \S+  \S+ samples/s  0:\d\d$", line), line


def test_a_finished_run_says_so_and_stays_as_it_is(cut, shards):
    run, _ = cut
    before = content(run)
    text = tell(shards, run, CUT).splitlines()[-1]
    assert content(run) == before
    assert re.search(rf"^{run} is finished: 2 steps \(0 epochs\); best validation loss \d\.\d{{4}} at step 2; ", text)
    assert "nothing was done" in text
    assert not re.search("resumed|trained|inf|nan", text)


def test_a_record_that_was_not_closed_is_closed(shards, tmp_path):
    run = tmp_path / "run"
    tell(shards, run, CUT)
    document = json.loads((run / "run.json").read_text())
    document["sessions"][-1].pop("finished")
    (run / "run.json").write_text(json.dumps(document))
    assert is_unfinished(run)
    assert re.search(
        r"trained 2 steps \(0 epochs\), 0 of them now .* best validation loss \d\.\d{4} at step 2",
        tell(shards, run, CUT),
    )
    assert finished_at(run) == 2
    assert re.search(r"trained 6 steps \(2 epochs\), 4 of them now", tell(shards, run, CUT[:1]))
    changed = json.loads((run / "run.json").read_text())["sessions"][-1]["changed"]
    assert changed == {"train.max_steps": ["2", "null"]} or changed == {"train.max_steps": [2, "null"]}


def test_no_loss_that_is_not_there_is_printed():
    outcome = Outcome(
        step=0, epoch=0, first_step=0, best_step=-1, best_loss=math.nan, stopped=False, finished_before=False
    )
    assert not re.search("inf|nan|-1|best", outcome.text(Path("r"), 1))


def test_the_log_beyond_the_checkpoints_does_not_count(shards, tmp_path):
    (run,) = train(shards, {tmp_path / "run": ["train.ghost_batches_per_step=2"]})
    stands = standing(run)
    assert stands is not None
    assert stands.best is not None
    losses = [validation.loss for validation in stands.validations]
    assert [validation.epoch for validation in stands.validations] == [1, 2]
    assert [validation.best_loss for validation in stands.validations] == [losses[0], min(losses)]
    assert stands.best.loss == min(losses)
    assert stands.best.step == chosen_checkpoint(run).step
    assert set(stands.best.metrics) <= set(METRICS)
    with open(run / "metrics.jsonl", "a") as log:
        log.write('{"step": 9, "time": 0, "kind": "valid", "valid/loss": 0.001, "valid/epoch": 2}\n{"step": 10, "ti')
    assert standing(run) == stands
    assert standing(tmp_path) is None


def test_the_best_numbers_of_the_log_are_those_of_the_checkpoint(runs):
    for run in runs:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        last = [line for line in lines if line["kind"] == "best_valid"][-1]
        assert last["step"] == chosen_checkpoint(run).step
        assert last["best_valid/loss"] == min(line["valid/loss"] for line in lines if line["kind"] == "valid")
        evaluated = evaluate_run(run, data=None, split="valid")["metrics"]["fused"]
        assert last["best_valid/acc7"] == pytest.approx(evaluated["acc7"])


def test_the_log_of_an_older_program_comes_into_the_units_of_the_labels(cut):
    """Its checkpoints name no offset, and its losses are on the scale of the shards."""
    old = {"data": {"label_scale": 3.0}, "config": {"model": {}}}
    newer = {**old, "data": {"label_scale": 3.0, "label_offset": 0.0}}
    lines = [
        {"step": 2, "valid/loss": 1.2, "valid/mae": 1.2, "valid/corr": 0.6, "valid/epoch": 0, "train/total": 6.0},
        {"step": 4, "valid_heads/fused/mae": 1.5, "best_valid/loss": None, "kind": "valid"},
    ]
    first = {"resume_step": None}
    resumed = {"resume_step": 2, STORED_UNTIL: 2}
    converted = _in_units(lines, [first], old)
    assert converted[0] == {
        **lines[0],
        "valid/loss": pytest.approx(0.4),
        "valid/mae": pytest.approx(0.4),
    }
    assert converted[1] == {**lines[1], "valid_heads/fused/mae": 0.5}
    for state in (newer, old):
        assert _in_units(lines, [first, resumed, {"resume_step": 3}], state) == [converted[0], lines[1]]
    assert _in_units(lines, [first, resumed, first], newer) == lines
    assert _in_units(lines, [first], newer) == lines
    assert _in_units(lines, [first], {**old, "config": {"model": {"task": 3}}}) == lines
    stands = standing(cut[0])
    assert stands is not None
    assert stands.lines == read_lines(cut[0])


def test_a_session_keeps_where_the_units_of_its_log_change(tmp_path):
    about = {"config": {"objective": {"prior": "published"}}, "info": {}}
    Recorder(tmp_path, **about, resume_step=None).close(None)
    Recorder(tmp_path, **about, resume_step=0, stored_losses_until=0).close(None)
    sessions = json.loads((tmp_path / "run.json").read_text())["sessions"]
    assert [session.get(STORED_UNTIL) for session in sessions] == [None, 0]


def test_losses_of_older_programs_come_into_the_units_of_the_labels():
    """They kept those of scaled labels on the scale of the shards."""
    schedule = {"plateau": {"best": 1.5, "num_bad_epochs": 2}, "best_loss": 1.2, "best_epoch": 3}
    old = {"schedule": schedule, "data": {"label_scale": 3.0}, "config": {"model": {"task": "regression"}}}
    scaled = {"plateau": {"best": 0.5, "num_bad_epochs": 2}, "best_loss": pytest.approx(0.4), "best_epoch": 3}
    assert schedule_of(old) == scaled
    assert schedule_of({**old, "config": {"model": {}}}) == scaled
    for other in (
        {**old, "data": {"label_scale": 3.0, "label_offset": 0.0}},
        {**old, "data": {}},
        {**old, "config": {"model": {"task": 3}}},
    ):
        assert schedule_of(other) == schedule
