"""Storage that fails in mid-save, and the background writer that has to say so."""

import errno
import shutil
import subprocess
import threading

import pytest

from dmd.checkpoint.format import list_checkpoints, newest_whole, read_checkpoint
from dmd.checkpoint.writer import AsyncWriter, write_checkpoint
from tests.support.snapshots import equal, hidden, snapshot, steps, three_checkpoints


def test_a_vanished_run_directory_is_named(tmp_path):
    root = three_checkpoints(tmp_path)
    shutil.rmtree(root.parent)
    with pytest.raises(FileNotFoundError, match=f"step 40 in {root}: No such file.*no earlier checkpoint"):
        write_checkpoint(root, snapshot(40), keep=2)


def test_async_writer_writes_in_order_and_waits(tmp_path):
    writer = AsyncWriter(tmp_path / "checkpoints", keep=2)
    assert writer.wait() is None
    for step in (1, 2, 3):
        writer.submit(snapshot(step, best=1))
    assert writer.wait() == tmp_path / "checkpoints" / "step_00000003"
    assert not writer.busy
    writer.submit(snapshot(4, best=1))
    writer.close()
    assert steps(tmp_path / "checkpoints") == [1, 3, 4]
    assert all(info.reason is None for info in list_checkpoints(tmp_path / "checkpoints"))
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("checkpoint")]


def test_async_writer_raises_the_error_once_and_goes_on(tmp_path):
    run, away = tmp_path / "run", tmp_path / "away"
    run.mkdir()
    writer = AsyncWriter(run / "checkpoints", keep=2)
    writer.submit(snapshot(1))
    writer.wait()
    run.rename(away)
    writer.submit(snapshot(2))
    with pytest.raises(FileNotFoundError, match=f"step 2 in {run / 'checkpoints'}"):
        writer.submit(snapshot(3))
    away.rename(run)
    writer.submit(snapshot(3))
    assert writer.wait() == run / "checkpoints" / "step_00000003"
    writer.close()
    with pytest.raises(ValueError, match="keep=0 "):
        AsyncWriter(run, keep=0)


@pytest.mark.parametrize("size", [20_000, 50_000, 100_000], ids=["optimizer", "model-and-optimizer", "model"])
def test_a_full_disk_keeps_the_previous_checkpoint(small_disk, size):
    root = small_disk / "checkpoints"
    writer = AsyncWriter(root, keep=2)
    writer.submit(snapshot(20, size=4 * size))
    with pytest.raises(OSError, match=f"step 20 in {root}: No space left.*is kept: step_00000010") as caught:
        writer.close()
    assert caught.value.errno == errno.ENOSPC
    assert not hidden(root), "the room that the torn one took is free again"
    assert newest_whole(root) == (root / "step_00000010", [])
    write_checkpoint(root, snapshot(20), keep=2)
    assert steps(root) == [10, 20]


def test_a_read_only_disk_keeps_the_previous_checkpoint(small_disk):
    root = small_disk / "checkpoints"
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(OSError, match=f"step 20 in {root}: Read-only file system; .*is kept: step_00000010") as caught:
        write_checkpoint(root, snapshot(20), keep=2)
    assert caught.value.errno == errno.EROFS
    assert equal(read_checkpoint(newest_whole(root)[0]), snapshot(10))
