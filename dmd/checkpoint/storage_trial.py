"""Whether storage can hold a checkpoint, tried before a training instead of found out after it.

    try_storage(root, {"model.safetensors": 4096, ...})

A directory of the size of a checkpoint is staged as a real one is, made durable, renamed, and removed again.
"""

import errno
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

from data_shards.durable import sync_directory
from dmd.checkpoint.format import MODEL, OPTIMIZER
from dmd.distributed.engine import SystemSizes
from dmd.system.system import ADAM_MOMENTS

_BLOCK = 1 << 24


def checkpoint_sizes(sizes: SystemSizes, *, averages: bool, objective: int) -> dict[str, int]:
    """Bytes of the tensors of a checkpoint, by file; of its optimizer state as it is after the first step.

    Args:
        averages: whether it holds averaged weights beside those that the training goes on from.
        objective: bytes of what the objective remembers of samples (`ModelObjective.training_bytes`).
    """
    return {MODEL: sizes.state_bytes, OPTIMIZER: (ADAM_MOMENTS + averages) * sizes.trained_bytes + objective}


def try_storage(root: Path, sizes: Mapping[str, int]) -> None:
    """Stage files of these sizes under `root` (made for it if it is missing) and take them away again.

    Raises:
        OSError: the storage does not hold them, or lacks what a checkpoint needs.
    """
    made = not root.exists()
    staged = root / f".staging-trial-{uuid.uuid4().hex}"
    renamed = root / f".staging-trial-{uuid.uuid4().hex}"
    try:
        root.mkdir(exist_ok=True)
        staged.mkdir()
        for name, size in sizes.items():
            _reserve(staged / name, size)
        sync_directory(staged)
        os.rename(staged, renamed)
        sync_directory(root)
    except OSError as error:
        megabytes = sum(sizes.values()) / 2**20
        cause = error.strerror or str(error)
        message = f"{root} cannot hold a checkpoint of {megabytes:.1f} MiB: {cause}; make room, or give another --run"
        raise OSError(error.errno or errno.EIO, message) from error
    finally:
        for path in (staged, renamed):
            shutil.rmtree(path, ignore_errors=True)
        if made and root.is_dir() and not any(root.iterdir()):
            root.rmdir()


def _reserve(path: Path, size: int) -> None:
    """Make a durable file that takes `size` bytes; where the storage cannot reserve them, they are written."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        try:
            if size:
                os.posix_fallocate(handle, 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
            _write_zeros(handle, size)
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_zeros(handle: int, size: int) -> None:
    zeros = memoryview(bytes(min(size, _BLOCK)))
    while size:
        size -= os.write(handle, zeros[:size])
