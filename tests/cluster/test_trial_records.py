"""A trial's record is that of its run: epochs that ASHA did not wait for, and reports that were lost."""

import json
import shutil
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cluster.search.asha import Asha
from cluster.search.trial_records import TrialRecord, TrialRecords
from dmd.checkpoint.format import checkpoint_paths
from dmd.checkpoint.saver import CHECKPOINTS
from dmd.checkpoint.select import chosen_checkpoint
from dmd.checkpoint.standing import read_lines, standing
from tests.support.trained import make_shards, train


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("records")
    return train(make_shards(folder / "shards"), {folder / "run": ["train.epochs=4"]})[0]


def records_of(run: Path, experiment: Path, record: TrialRecord) -> TrialRecords:
    shutil.copytree(run, experiment / "trials" / f"{record.number:04d}")
    trials = TrialRecords(experiment)
    trials.write(record)
    return trials


def test_a_trial_that_was_stopped_late_is_brought_up_to_date(run, tmp_path):
    record = TrialRecord(number=3, values={}, state="stopped", stopped_after=1)
    record.note(1, 9.0, {"acc7": 0.0})
    trials = records_of(run, tmp_path, record)
    trials.reconcile()
    stands = standing(run)
    assert stands is not None
    assert stands.best is not None
    for found in (trials.records[3], TrialRecords(tmp_path).records[3]):
        assert (found.epoch, found.best_loss, found.state) == (4, stands.best.loss, "stopped")
        assert found.metrics == pytest.approx(stands.best.metrics, nan_ok=True)
        assert stands.best.step == chosen_checkpoint(run).step
        assert [epoch for epoch, _ in found.seen_by_asha()] == [1]


def test_the_logs_of_a_stopped_trial_end_where_its_checkpoints_do(run, tmp_path):
    """It was stopped after it had logged its last validation and before the checkpoint stood."""
    trials = records_of(run, tmp_path, TrialRecord(number=0, values={}, state="stopped", stopped_after=3))
    trial = trials.run(0)
    newest = max(checkpoint_paths(trial / CHECKPOINTS).items())
    shutil.rmtree(newest[1])
    assert read_lines(trial)[-1]["step"] == newest[0]
    trials.reconcile()
    stands = standing(trial)
    assert stands is not None
    assert stands.best is not None
    assert [epoch for epoch, _ in trials.records[0].losses] == [1, 2, 3]
    assert max(line["step"] for line in read_lines(trial)) == stands.step < newest[0]
    events = EventAccumulator(str(trial)).Reload()
    shown = [(event.step, event.value) for event in events.Scalars("best_valid/loss")]
    assert shown[-1] == (stands.best.step, pytest.approx(stands.best.loss, rel=1e-6))
    assert [event.step for event in events.Scalars("valid/loss")] == [v.step for v in stands.validations]
    before = sorted(path.name for path in trial.iterdir())
    trials.reconcile()
    assert sorted(path.name for path in trial.iterdir()) == before, "done once"


def test_a_restart_tells_asha_what_it_saw_and_no_more(run, tmp_path):
    record = TrialRecord(number=0, values={}, state="stopped", stopped_after=1)
    trials = records_of(run, tmp_path, record)
    trials.reconcile()
    asha = Asha(trials, epochs=4, grace=1, reduction=2)
    rungs = {milestone: len(recorded) for milestone, recorded in asha._brackets[0]._rungs}
    assert rungs == {1: 1, 2: 0, 4: 0}


def test_reports_that_were_lost_are_found_in_the_run(run, tmp_path):
    record = TrialRecord(number=0, values={}, state="running")
    trials = records_of(run, tmp_path, record)
    trials.reconcile()
    assert [epoch for epoch, _ in trials.records[0].losses] == [1, 2, 3, 4]
    before = json.loads((tmp_path / "trials" / "0000" / "trial.json").read_text())
    trials.reconcile()
    assert json.loads((tmp_path / "trials" / "0000" / "trial.json").read_text()) == before


def test_a_trial_whose_checkpoints_are_damaged_says_so(run, tmp_path):
    trials = records_of(run, tmp_path, TrialRecord(number=0, values={}, state="finished"))
    for path in tmp_path.glob("trials/0000/checkpoints/*/model.safetensors"):
        path.write_bytes(b"")
    trials.reconcile()
    assert "no checkpoint in" in trials.records[0].reason
