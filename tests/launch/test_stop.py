"""Signals, hangs, divergence, failing storage: a rank says what happened, ends as documented, and can go on."""

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from dmd.checkpoint.format import newest_whole
from launch.supervision.supervise import REPEAT_SECONDS
from tests.support.disks import fill
from tests.support.ranks import ENDLESS, Session, assert_bitwise, finish, last, losses, newest_step, train
from tests.support.small_data import build_from, mmsa
from tests.support.waiting import until

pytestmark = [pytest.mark.multiproc, pytest.mark.slow]
SAVES = "train.save_every=2"
KILLED, LOST, STORAGE, STOPPED = 137, 69, 74, 75


def test_sigterm_to_one_rank_stops_all_after_a_checkpoint(shards, reference, tmp_path):
    run = tmp_path / "run"
    for fault, asked in (("stop:step@2@1", 2), ("stop:backward@2@0", 4)):  # the signal takes a moment to arrive
        ended = train(shards, run, SAVES, *ENDLESS, ranks=2, DMD_FAULT=fault)
        assert ended.codes == [STOPPED, STOPPED], ended.output
        assert asked <= last(run).step
        assert f"stopped at step {last(run).step}; the command with --run {run} continues from" in ended.output
    finish(shards, run, SAVES, ranks=2, resume="4")
    assert_bitwise(run, reference(SAVES, ranks=2))


def test_sigterm_twice_leaves_at_once(shards, reference, tmp_path):
    """The first one cannot be obeyed: the write of step 4 hangs."""
    run = tmp_path / "run"
    session = Session(shards, run, SAVES, DMD_FAULT="hang:checkpoint.model@2")
    root = run / "checkpoints"
    until(lambda: list(root.glob(".staging-step_00000004-*/model.safetensors")), lambda: session.output)
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):  # one request, sent by several processes
        os.kill(session.supervisor(0), number)
    until(lambda: "stopping after a checkpoint" in session.output, lambda: session.output)
    time.sleep(REPEAT_SECONDS)
    assert session.processes[0].is_alive()
    os.kill(session.supervisor(0), signal.SIGTERM)
    ended = session.wait()
    assert ended.codes == [KILLED], ended.output
    assert newest_whole(root) == (root / "step_00000002", [])
    finish(shards, run, SAVES)
    assert_bitwise(run, reference(SAVES))


@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGSEGV])
def test_a_dead_supervisor_leaves_no_rank_and_a_crash_shows_its_stack(shards, tmp_path, death):
    session = Session(shards, tmp_path / "run", DMD_FAULT="hang:step@2")
    until(
        lambda: len(losses(tmp_path / "run")) == 1 if (tmp_path / "run" / "metrics.jsonl").exists() else 0,
        lambda: session.output,
    )
    trainer = session.trainer(0)
    os.kill(session.supervisor(0) if death == signal.SIGKILL else trainer, death)
    ended = session.wait()
    if death == signal.SIGSEGV:
        assert ended.codes == [128 + death]
        assert "stack of rank 0 on" in ended.output
        assert "Segmentation fault" in ended.output
        assert "was killed by SIGSEGV (signal 11)" in ended.output
    until(lambda: not Path(f"/proc/{trainer}").exists(), lambda: f"{trainer} lives")


def test_a_rank_that_hangs_is_noticed_and_every_stack_is_shown(shards, reference, tmp_path, capsys):
    run, timeout = tmp_path / "run", "train.collective_timeout=20"
    ended = train(shards, run, SAVES, timeout, ranks=2, DMD_FAULT="hang:step@3@1")
    assert ended.codes == [LOST, KILLED], ended.output
    assert "rank 1 on" in ended.output
    assert "gave no heartbeat in time" in ended.output
    assert "stack of rank 1 on" in ended.output
    assert "in fault_point" in ended.output
    finish(shards, run, SAVES, ranks=2)
    assert_bitwise(run, reference(SAVES, ranks=2))
    with capsys.disabled():
        print(f"\na hang: the last rank ended {ended.seconds:.1f} s after the first")


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory) -> Path:
    """Shards of 23 training samples, the audio of one of which overflows in float32."""
    folder = tmp_path_factory.mktemp("poisoned")
    data = mmsa()
    data["train"]["audio"][7] = np.float32(3e38)
    build_from(data, folder)
    return folder / "shards"


SMALL_STEPS = ("train.ghost_batches_per_step=2", "train.epochs=3", "model.kernel_text=1")


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_step_that_is_not_finite_is_never_applied(poisoned, tmp_path, stage):
    stop, skip, zero = tmp_path / "stop", tmp_path / "skip", f"train.zero_stage={stage}"
    ended = train(poisoned, stop, *SMALL_STEPS, zero, "train.save_every=1", ranks=2)
    assert ended.codes == [2, 2], ended.output
    assert "the training has diverged: step" in ended.output
    ended = train(poisoned, skip, *SMALL_STEPS, zero, "train.on_nonfinite=skip", ranks=2)
    assert ended.codes == [0, 0], ended.output
    logs = sorted((skip / "nonfinite").iterdir())
    assert len(logs) == 3, "once per epoch"
    for log in logs:
        ghosts = json.loads(log.read_text())["ghost_batches"]
        assert len(ghosts) == 1
        assert "video7.mp4/é$_$7" in ghosts[0]
    assert len([loss for _, loss in losses(skip) if loss is None]) == 3
    assert len(losses(skip)) == 9
    assert all(tensor.isfinite().all() for tensor in last(skip).model.values())
    assert last(skip).optimizer["step"] == 6


def test_too_many_in_a_row_end_the_training_and_name_the_last_good_checkpoint(shards, tmp_path):
    run = tmp_path / "run"
    finish(shards, run, "train.max_steps=1", "train.learning_rate=1e18")
    ended = train(
        shards, run, "train.learning_rate=1e18", "train.on_nonfinite=skip", "train.nonfinite_limit=2", ranks=2
    )
    assert ended.codes == [2, 2], ended.output
    assert f"last good checkpoint: {run / 'checkpoints' / 'step_00000001'}" in ended.output
    assert len(list((run / "nonfinite").iterdir())) == 3


@pytest.mark.parametrize("policy", ["stop", "continue"])
def test_a_disk_that_is_full_to_the_end_keeps_the_last_checkpoint(shards, reference, disk, tmp_path, policy):
    run, overrides = tmp_path / "run", (SAVES, "train.epochs=4", "train.early_stop=100")
    (disk / "run").mkdir()
    run.symlink_to(disk / "run")  # what the ranks print is not on the disk
    held = f"train.on_storage_error={policy}", "train.keep_checkpoints=9999"  # retention makes no room
    session = Session(shards, run, *overrides, *held, ranks=2)
    until(lambda: newest_step(run) >= 2, lambda: session.output)
    trainer = session.trainer(0)
    os.kill(trainer, signal.SIGSTOP)
    filler = fill(disk, leave=200_000)
    os.kill(trainer, signal.SIGCONT)

    def failed_to_save() -> bool:
        """Whether a write has failed; until then the room of one that was under way is filled as well."""
        fill(disk, leave=200_000)
        return "cannot write the checkpoint" in session.output

    until(failed_to_save, lambda: session.output)
    ended = session.wait()
    assert ended.codes == [STORAGE, STORAGE], ended.output
    step = last(run).step
    assert step < 20
    assert "cannot write the checkpoint of step " in ended.output
    assert f"No space left on device; the previous checkpoint is kept: step_{step:08d}" in ended.output
    assert ("the checkpoint of step 20 in" in ended.output) == (policy == "continue")
    filler.unlink()
    finish(shards, run, *overrides, ranks=2)
    assert_bitwise(run, reference(*overrides, ranks=2))


def newest_name(run: Path) -> str:
    """Name of the newest checkpoint of a run that is under way."""
    return max(path.name for path in (run / "checkpoints").glob("step_*"))


@pytest.mark.parametrize("trouble", ["full", "vanished"])
def test_storage_that_comes_back_costs_nothing(shards, disk, trouble):
    """Training goes on without its storage, and what the log missed is in it afterwards."""
    run, away = disk / "run", disk / "away"
    session = Session(shards, run, "train.save_every=1", "train.epochs=500", "train.early_stop=500", ranks=2)
    until(lambda: newest_step(run) >= 3, lambda: session.output)
    if trouble == "full":  # a checkpoint under way is whole, and an old one goes: its room is filled too
        until(lambda: fill(disk, leave=0) and "storage: " in session.output, lambda: session.output)
        (disk / "filler").unlink()
    else:
        run.rename(away)
        until(lambda: "storage: " in session.output, lambda: session.output)
        away.rename(run)
    newest = newest_name(run)
    until(lambda: newest_name(run) > newest, lambda: session.output)
    os.kill(session.supervisor(1), signal.SIGTERM)
    ended = session.wait()
    assert ended.codes == [STOPPED, STOPPED], ended.output
    assert [step for step, _ in losses(run)] == list(range(1, last(run).step + 1))
