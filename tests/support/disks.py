"""Disks that are small, full or failing."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from dmd.checkpoint.format import MANIFEST


@contextmanager
def small_disk(path: Path, size: str) -> Iterator[Path]:
    """A tmpfs of a size such as "1m", mounted at a new directory; the test skips where none can be mounted."""
    path.mkdir()
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("mounting a tmpfs needs root and mount(8)")
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], capture_output=True, text=True
    )
    if mount.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mount.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


def fill(disk: Path, leave: int) -> Path:
    """Fill a disk but for some bytes, again where others have made room meanwhile."""
    filler = disk / "filler"
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    with suppress(OSError), filler.open("ab", buffering=0) as file:  # somebody else may take the room first
        file.write(b"x" * max(0, free - leave))
    return filler


@contextmanager
def failing(checkpoint: Path, name: str = MANIFEST) -> Iterator[None]:
    """Every read of a file of a checkpoint gives EIO: this process's memory has no page at 0."""
    aside = checkpoint.parent.parent / "aside"
    (checkpoint / name).rename(aside)
    (checkpoint / name).symlink_to("/proc/self/mem")
    try:
        yield
    finally:
        (checkpoint / name).unlink()
        aside.rename(checkpoint / name)
