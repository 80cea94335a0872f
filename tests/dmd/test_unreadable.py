"""Could not look is not bad: a checkpoint that storage or permissions hold back is neither skipped nor replaced."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from data_shards.durable import Unreadable
from dmd.checkpoint.format import (
    STATE,
    checkpoint_paths,
    find_step,
    list_checkpoints,
    newest_whole,
    read_checkpoint,
    verify_checkpoint,
)
from dmd.checkpoint.storage_trial import try_storage
from dmd.checkpoint.writer import write_checkpoint
from tests.support.commands import command
from tests.support.disks import failing
from tests.support.snapshots import equal, hidden, snapshot, steps, three_checkpoints

NOBODY = 65534
STORAGE = 74


@contextmanager
def nobody() -> Iterator[None]:
    """Permissions count in the block: root's do not."""
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return three_checkpoints(tmp_path)


@pytest.fixture
def open_root() -> Iterator[Path]:
    """The same in a place that everybody may enter."""
    if os.geteuid() != 0:
        pytest.skip("becoming somebody else needs root")
    folder = Path(tempfile.mkdtemp(prefix="dmd-open-"))
    folder.chmod(0o755)
    yield three_checkpoints(folder)
    shutil.rmtree(folder)


def test_a_failing_disk_is_reported_and_decides_nothing(root):
    newest = root / "step_00000030"
    with failing(newest):
        for look in (
            lambda: newest_whole(root),
            lambda: find_step(root, 30),
            lambda: read_checkpoint(newest),
            lambda: verify_checkpoint(newest),
        ):
            with pytest.raises(Unreadable, match=f"{newest} cannot be read: Input/output error; nothing was decided"):
                look()
        assert [(info.reason is None, info.readable) for info in list_checkpoints(root)] == [(True, True)] * 2 + [
            (False, False)
        ]
    assert newest_whole(root) == (newest, [])


@pytest.mark.parametrize("closed", ["checkpoints", "step_00000030", f"step_00000030/{STATE}"])
def test_permissions_are_reported_and_decide_nothing(open_root, closed):
    place = open_root if closed == "checkpoints" else open_root / closed
    mode = place.stat().st_mode
    place.chmod(0)
    with nobody(), pytest.raises(Unreadable, match=f"{place}.* cannot be read: Permission denied; nothing was decided"):
        newest_whole(open_root)
    place.chmod(mode)
    with nobody():
        assert newest_whole(open_root) == (open_root / "step_00000030", [])


def test_a_checkpoint_that_cannot_be_looked_at_is_not_superseded(root):
    newest = root / "step_00000030"
    with failing(newest):
        write_checkpoint(root, snapshot(40, best=10), keep=2)
        write_checkpoint(root, snapshot(40, best=10, salt=1), keep=2)
        assert steps(root) == [10, 20, 30, 40]
    assert equal(read_checkpoint(newest), snapshot(30, best=10))
    write_checkpoint(root, snapshot(50, best=10), keep=2)
    assert steps(root) == [10, 40, 50], "once it can be read it is one like others"


def test_what_is_proven_bad_is_replaced(root):
    (root / "step_00000030" / STATE).write_bytes(b"{}")
    write_checkpoint(root, snapshot(40, best=10), keep=2)
    assert steps(root) == [10, 20, 40]


def test_files_of_others_stay_where_they_are(root):
    files = (
        "notes.txt",
        "step_00000099",
        "step_00000050/notes.txt",
        ".staging-mine/x",
        ".replaced-mine/x",
        "step_00000010.bak/state.json",
        ".staging-step_00000020-abc/x",
        "step_7/state.json",
    )
    for name in files:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(name)
    assert newest_whole(root) == (root / "step_00000030", [])
    assert steps(root) == [10, 20, 30]
    for step in (40, 30):
        write_checkpoint(root, snapshot(step), keep=2)
    assert {name: (root / name).read_text() for name in files} == {name: name for name in files}


def test_commands_say_74_and_the_storage(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "run")
    newest = copy / "checkpoints" / f"step_{max(checkpoint_paths(copy / 'checkpoints')):08d}"
    with failing(newest):
        out = tmp_path / "out"
        for arguments in (("evaluate", copy), ("export", copy, out), ("report", copy, "--out", out)):
            assert command(*arguments) == STORAGE
            error = capsys.readouterr().err
            assert f"{newest} cannot be read: Input/output error" in error
            assert "the same command works when the storage works again" in error
            assert len(error.splitlines()) == 1
        assert command("checkpoints", copy) in (0, 1)
        assert f"UNREADABLE: {newest} cannot be read" in capsys.readouterr().out


def test_storage_that_cannot_hold_a_checkpoint_is_found_and_left_as_it_was(small_disk):
    root = small_disk / "checkpoints"
    before = sorted(path.name for path in root.iterdir())
    try_storage(root, {"model.safetensors": 200_000, "optimizer.safetensors": 400_000, "none": 0})
    with pytest.raises(OSError, match=f"{root} cannot hold a checkpoint of 1.9 MiB: No space left on device") as caught:
        try_storage(root, {"model.safetensors": 1_000_000, "optimizer.safetensors": 1_000_000})
    assert caught.value.errno == errno.ENOSPC
    assert sorted(path.name for path in root.iterdir()) == before
    elsewhere = small_disk / "run" / "checkpoints"
    with pytest.raises(OSError, match="No such file or directory"):
        try_storage(elsewhere, {})
    assert not elsewhere.parent.exists()
    assert not hidden(root)
