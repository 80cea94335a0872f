"""Storage that fails before the first step: every rank ends with 74, and nothing of the run is changed."""

import os
import shutil
import signal
import socket
from pathlib import Path

import pytest

from data_shards.sole_writer import LEASE_FILE
from dmd.checkpoint.format import MANIFEST
from dmd.cli import main
from tests.support.disks import failing, fill
from tests.support.ranks import TINY, Session, assert_bitwise, errors, finish, newest_step, train
from tests.support.waiting import until

pytestmark = pytest.mark.multiproc
SAVES = "train.save_every=2"
STORAGE, STOPPED = 74, 75


def content(run: Path) -> dict[str, int]:
    """Every file of a run, but logs and their times."""
    return {str(path.relative_to(run)): path.lstat().st_ino for path in run.rglob("*") if path.name != LEASE_FILE}


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_checkpoint_that_cannot_be_read_ends_all_ranks(shards, reference, half_done, tmp_path, capsys, ranks):
    run = half_done(tmp_path)
    newest = run / "checkpoints" / "step_00000008"
    with failing(newest):
        before = content(run)
        ended = train(shards, run, ranks=ranks)
        assert ended.codes == [STORAGE] * ranks, ended.output
        assert f"{newest} cannot be read: Input/output error; nothing was decided over it or changed" in ended.output
        assert len(errors(ended.output)) == 1
        assert main(["train", "--data", str(shards), "--run", str(run), *TINY]) == STORAGE
        assert f"{newest} cannot be read" in capsys.readouterr().err
        assert content(run) == before
    finish(shards, run)
    assert_bitwise(run, reference())


def test_a_checkpoint_that_one_rank_cannot_read_ends_all_and_names_it(shards, half_done, tmp_path):
    """Rank 1 sees the same run through a directory of its own, whose newest manifest cannot be read."""
    run, view = half_done(tmp_path), tmp_path / "view"
    shutil.copytree(run, view)
    (view / LEASE_FILE).symlink_to(run / LEASE_FILE)
    manifest = view / "checkpoints" / "step_00000008" / MANIFEST
    manifest.unlink()
    manifest.symlink_to("/proc/self/mem")
    ended = train(shards, run, ranks=2, own=[[], ["--run", str(view)]])
    assert ended.codes == [STORAGE, STORAGE], ended.output
    assert f"rank 1 on {socket.gethostname()}: {manifest.parent} cannot be read: Input/output error" in ended.output


def test_storage_that_cannot_hold_a_checkpoint_is_found_before_the_first_step(shards, disk):
    run = disk / "run"
    filler = fill(disk, leave=100_000)
    for ranks in (1, 2):
        ended = train(shards, run, ranks=ranks)
        assert ended.codes == [STORAGE] * ranks, ended.output
        assert f"{run}/checkpoints cannot hold a checkpoint of" in ended.output
        assert "No space left on device; make room, or give another --run" in ended.output
        assert not (run / "metrics.jsonl").exists(), "no step was made"
    filler.unlink()
    session = Session(shards, run, SAVES, "train.epochs=500", "train.early_stop=500")
    until(lambda: newest_step(run) >= 2, lambda: session.output)
    os.kill(session.supervisor(0), signal.SIGTERM)
    assert session.wait().codes == [STOPPED], session.output
