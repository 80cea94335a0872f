"""Checkpoints are whole or invisible: damage in every file, retention, superseded steps, two writers."""

import contextlib
import os
import shutil
import threading
from pathlib import Path

import pytest
import safetensors.torch
import torch

from data_shards.durable import read_entry, replace_file, write_file
from dmd.checkpoint import writer as checkpoint_writer
from dmd.checkpoint.format import (
    FILES,
    MANIFEST,
    Snapshot,
    find_step,
    list_checkpoints,
    newest_whole,
    read_checkpoint,
    verify_checkpoint,
)
from dmd.checkpoint.writer import tensor_bytes, write_checkpoint
from dmd.testing.fault_points import fault_point
from tests.support.snapshots import equal, hidden, snapshot, steps, three_checkpoints


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return three_checkpoints(tmp_path)


def test_what_was_written_is_read(tmp_path):
    path = write_checkpoint(tmp_path / "checkpoints", snapshot(42), keep=2)
    assert path == tmp_path / "checkpoints" / "step_00000042"
    assert {file.name for file in path.iterdir()} == {*FILES, MANIFEST}
    assert equal(read_checkpoint(path), snapshot(42))
    assert not hidden(path.parent)


def test_tensor_files_are_safetensors(tmp_path):
    whole = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
    floats = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
    tensors = {f"x/{dtype}": torch.arange(-3, 4).abs().to(dtype) for dtype in whole + floats}
    tensors |= {"bool": torch.tensor([True, False, True]), "scalar": torch.tensor(7.0), "none": torch.zeros(0, 3)}
    tensors |= {"turned": torch.arange(6.0).reshape(2, 3).T, "grad": torch.ones(2, requires_grad=True)}
    entry = write_file(tmp_path / "x.safetensors", tensor_bytes(tensors))
    assert entry == read_entry(tmp_path / "x.safetensors")
    read = safetensors.torch.load_file(tmp_path / "x.safetensors")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor), name
    empty = write_file(tmp_path / "empty.safetensors", tensor_bytes({}))
    assert safetensors.torch.load_file(tmp_path / "empty.safetensors") == {}
    assert empty.size == 16
    with pytest.raises(ValueError, match=r"'c' is torch.complex64"):
        list(tensor_bytes({"c": torch.zeros(1, dtype=torch.complex64)}))


def test_retention_keeps_the_newest_and_the_best(root):
    assert steps(root) == [10, 20, 30]
    write_checkpoint(root, snapshot(40, best=30), keep=2)
    assert steps(root) == [10, 30, 40], "30 still names 10"
    write_checkpoint(root, snapshot(50, best=30), keep=2)
    assert steps(root) == [30, 40, 50]
    write_checkpoint(root, snapshot(60, best=60), keep=3)
    assert steps(root) == [30, 40, 50, 60]
    with pytest.raises(ValueError, match="keep=1 "):
        write_checkpoint(root, snapshot(70), keep=1)


def test_retention_does_not_count_a_damaged_one(root):
    flip_a_bit(root / "step_00000030" / "state.json")
    write_checkpoint(root, snapshot(40), keep=2)
    assert [(info.step, info.reason) for info in list_checkpoints(root)] == [(10, None), (20, None), (40, None)]


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def empty(file: Path) -> None:
    os.truncate(file, 0)


def remove(file: Path) -> None:
    file.unlink()


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, empty, remove, flip_a_bit])
@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_torn_checkpoint_is_skipped_with_its_reason(root, name, damage):
    damage(root / "step_00000030" / name)
    path, skipped = newest_whole(root)
    assert path == root / "step_00000020"
    assert len(skipped) == 1
    assert skipped[0].startswith(f"step_00000030: {name} ")
    assert [info.reason is None for info in list_checkpoints(root)] == [True, True, False]
    with pytest.raises(ValueError, match=name):
        read_checkpoint(root / "step_00000030")
    with pytest.raises(ValueError, match=f"is damaged: {name}"):
        find_step(root, 30)


def test_every_single_bit_of_a_manifest_counts(root):
    file = root / "step_00000030" / MANIFEST
    content = file.read_bytes()
    for position in range(8 * len(content)):
        changed = bytearray(content)
        changed[position // 8] ^= 1 << position % 8
        file.write_bytes(changed)
        reason = verify_checkpoint(root / "step_00000030")
        assert reason is not None, position
        assert reason.startswith(MANIFEST), position


def test_a_renamed_checkpoint_is_not_taken_for_another_step(root):
    (root / "step_00000030").rename(root / "step_00000031")
    assert newest_whole(root)[0] == root / "step_00000020"
    with pytest.raises(ValueError, match="not the name of a checkpoint"):
        verify_checkpoint(root)


def test_never_a_silent_fresh_start(root, tmp_path):
    assert newest_whole(tmp_path / "elsewhere") == (None, [])
    for step in (10, 20, 30):
        remove(root / f"step_{step:08d}" / MANIFEST)
    with pytest.raises(ValueError, match=r"no checkpoint .* is whole .*step_00000030: manifest.json is missing; .*10"):
        newest_whole(root)


def test_a_step_that_is_asked_for_must_be_there(root):
    assert find_step(root, 20) == root / "step_00000020"
    with pytest.raises(ValueError, match=r"no checkpoint of step 25 .* 10, 20, 30"):
        find_step(root, 25)


def test_a_write_supersedes_the_same_and_later_steps(root):
    write_checkpoint(root, snapshot(20, salt=1), keep=2)
    assert steps(root) == [10, 20]
    assert equal(read_checkpoint(root / "step_00000020"), snapshot(20, salt=1))
    assert not hidden(root)


def test_stale_staging_directories_are_invisible_and_cleared(root):
    half = root / f".staging-step_00000040-{'0' * 32}"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    shutil.copytree(root / "step_00000030", root / f".staging-step_00000041-{'1' * 32}")
    assert newest_whole(root) == (root / "step_00000030", [])
    write_checkpoint(root, snapshot(50), keep=2)
    assert not hidden(root)
    assert newest_whole(root) == (root / "step_00000050", [])


def test_two_writers_at_once_harm_nothing(root):
    """A zombie goes on saving while its successor saves: each may fail, what is visible is whole."""

    def zombie() -> None:
        for step in range(40, 60):
            with contextlib.suppress(OSError):
                write_checkpoint(root, snapshot(step, size=20_000), keep=2)

    thread = threading.Thread(target=zombie)
    thread.start()
    while thread.is_alive():
        with contextlib.suppress(OSError):
            write_checkpoint(root, snapshot(35), keep=2)
    assert all(info.reason is None for info in list_checkpoints(root))
    write_checkpoint(root, snapshot(60), keep=2)
    assert newest_whole(root) == (root / "step_00000060", [])
    assert not hidden(root)


def test_a_write_that_its_successor_overtook_hides_nothing(root, monkeypatch):
    """It was stopped when all was staged; the successor has removed what it staged, and saved a later step."""

    def overtake(point: str) -> None:
        if point == "checkpoint.manifest":
            monkeypatch.setattr(checkpoint_writer, "fault_point", fault_point)
            write_checkpoint(root, snapshot(50), keep=2)

    monkeypatch.setattr(checkpoint_writer, "fault_point", overtake)
    with pytest.raises(OSError, match=r"cannot write the checkpoint of step 40 in .*No such file"):
        write_checkpoint(root, snapshot(40), keep=2)
    assert newest_whole(root) == (root / "step_00000050", [])
    assert not hidden(root)


def test_state_that_json_cannot_hold_leaves_nothing_behind(root):
    bad = Snapshot(step=40, model={}, optimizer={}, state={"x": torch.zeros(1)})
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_checkpoint(root, bad, keep=2)
    assert steps(root) == [10, 20, 30]
    assert not hidden(root)


def test_replace_file_is_whole_or_not_at_all(tmp_path):
    replace_file(tmp_path / "run.json", b"one")
    replace_file(tmp_path / "run.json", b"two")
    assert (tmp_path / "run.json").read_bytes() == b"two"
    assert len(list(tmp_path.iterdir())) == 1
