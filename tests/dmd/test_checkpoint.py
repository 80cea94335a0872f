"""Checkpoints are whole or invisible: damage in every file, retention, superseded steps, storage that fails."""

import contextlib
import errno
import math
import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
import safetensors.torch
import torch

from dmd.training.checkpoint import (
    FILES,
    MANIFEST,
    Snapshot,
    checkpoint_paths,
    find_step,
    list_checkpoints,
    newest_valid,
    read_checkpoint,
    verify_checkpoint,
)
from dmd.training.checkpoint_writer import AsyncWriter, tensor_bytes, write_checkpoint
from dmd.training.durable import read_entry, replace_file, write_file


def snapshot(step: int, best: int | None = None, salt: int = 0, size: int = 64) -> Snapshot:
    generator = torch.Generator().manual_seed(step + 1000 * salt)
    weight = torch.randn(size, 4, generator=generator)
    return Snapshot(
        step=step,
        model={"dmd.head.weight": weight, "homo.scale": torch.tensor(2.5)},
        optimizer={"exp_avg/dmd.head.weight": weight * 2, "step/dmd.head.weight": torch.tensor(step)},
        state={"cursor": {"epoch": 1, "step": step}, "best": math.inf, "best_step": best, "salt": salt},
    )


def equal(one: Snapshot, other: Snapshot) -> bool:
    def tensors(a: dict, b: dict) -> bool:
        return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)

    same = tensors(one.model, other.model) and tensors(one.optimizer, other.optimizer)
    return same and one.step == other.step and one.state == other.state


def steps(root: Path) -> list[int]:
    return list(checkpoint_paths(root))


def hidden(root: Path) -> list[str]:
    return [path.name for path in root.iterdir() if path.name.startswith(".")]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """RUN/checkpoints with the steps 10, 20 and 30; 10 is the best."""
    for step in (10, 20, 30):
        write_checkpoint(tmp_path / "checkpoints", snapshot(step, best=10), keep=2)
    return tmp_path / "checkpoints"


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
    path, skipped = newest_valid(root)
    assert path == root / "step_00000020"
    assert len(skipped) == 1
    assert skipped[0].startswith(f"step_00000030: {name} ")
    assert [info.reason is None for info in list_checkpoints(root)] == [True, True, False]
    with pytest.raises(ValueError, match=name):
        read_checkpoint(root / "step_00000030")
    with pytest.raises(ValueError, match=f"not valid: {name}"):
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
    assert newest_valid(root)[0] == root / "step_00000020"
    with pytest.raises(ValueError, match="not the name of a checkpoint"):
        verify_checkpoint(root)


def test_never_a_silent_fresh_start(root, tmp_path):
    assert newest_valid(tmp_path / "elsewhere") == (None, [])
    for step in (10, 20, 30):
        remove(root / f"step_{step:08d}" / MANIFEST)
    with pytest.raises(ValueError, match=r"no checkpoint .* is valid .*step_00000030: manifest.json is missing; .*10"):
        newest_valid(root)


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
    assert newest_valid(root) == (root / "step_00000030", [])
    write_checkpoint(root, snapshot(50), keep=2)
    assert not hidden(root)
    assert newest_valid(root) == (root / "step_00000050", [])


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
    assert newest_valid(root) == (root / "step_00000060", [])
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


def test_a_vanished_run_directory_is_named(root):
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


@pytest.fixture
def small_disk(tmp_path):
    """A tmpfs of 1 MiB with a checkpoint of step 10 on it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("mounting a tmpfs needs root and mount(8)")
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mount.stderr.strip()}")
    write_checkpoint(disk / "checkpoints", snapshot(10), keep=2)
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.mark.parametrize("size", [20_000, 50_000, 100_000], ids=["optimizer", "model-and-optimizer", "model"])
def test_a_full_disk_keeps_the_previous_checkpoint(small_disk, size):
    root = small_disk / "checkpoints"
    writer = AsyncWriter(root, keep=2)
    writer.submit(snapshot(20, size=4 * size))
    with pytest.raises(OSError, match=f"step 20 in {root}: No space left.*is kept: step_00000010") as caught:
        writer.close()
    assert caught.value.errno == errno.ENOSPC
    assert not hidden(root), "the room that the torn one took is free again"
    assert newest_valid(root) == (root / "step_00000010", [])
    write_checkpoint(root, snapshot(20), keep=2)
    assert steps(root) == [10, 20]


def test_a_read_only_disk_keeps_the_previous_checkpoint(small_disk):
    root = small_disk / "checkpoints"
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(OSError, match=f"step 20 in {root}: Read-only file system; .*is kept: step_00000010") as caught:
        write_checkpoint(root, snapshot(20), keep=2)
    assert caught.value.errno == errno.EROFS
    assert equal(read_checkpoint(newest_valid(root)[0]), snapshot(10))
