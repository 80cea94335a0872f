"""Writing checkpoints so that each is whole or invisible, in the foreground or in the background.

A checkpoint is staged under a hidden name, every file fsynced, the manifest last; one rename makes it visible, and the
directory above is fsynced. One process writes; a hidden directory of ours that it finds is what a killed one left.
A write at step s supersedes what is there for s and above: those belong to a course of the run that was discarded. What
is none of ours stays where it is, and so does a checkpoint that cannot be read.
"""

import contextlib
import errno
import hashlib
import os
import re
import shutil
import struct
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from json import dumps
from pathlib import Path

import torch
from torch import Tensor

from data_shards.durable import FileEntry, Unreadable, sync_directory, write_file
from dmd.checkpoint.format import (
    MANIFEST,
    MODEL,
    OPTIMIZER,
    STATE,
    Snapshot,
    checkpoint_name,
    checkpoint_paths,
    encode_manifest,
    encode_state,
    read_state,
    verify_checkpoint,
)
from dmd.testing.fault_points import fault_point

_LEFTOVER = re.compile(r"\.(staging-(step_\d{8,}|removed|trial)|replaced-step_\d{8,})-[0-9a-f]{32}")
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_checkpoint(root: Path, snapshot: Snapshot, *, keep: int, trusted: set[Path] | None = None) -> Path:
    """Write a checkpoint under `root` (RUN/checkpoints, made if RUN is there) and remove those no longer needed.

    The newest `keep` whole ones stay, every step that one of these names as `state["best_step"]`, and newer ones that
    cannot be read.

    Args:
        trusted: checkpoints whose tensors are not hashed again for that; gains those that this call wrote or hashed.

    Raises:
        ValueError: keep < 2.
        OSError: storage that fails; the message names `root` and what is kept there.
    """
    _check_keep(keep)
    trusted = set() if trusted is None else trusted
    state = encode_state(snapshot.state)
    path = root / checkpoint_name(snapshot.step)
    staging = root / _hidden(".staging", path)
    try:
        if not root.is_dir():
            root.mkdir()
            sync_directory(root.parent)
        _clear_leftovers(root)
        _stage(staging, snapshot, state)
        _commit(staging, path, snapshot.step)
    except OSError as error:
        raise _storage_error(root, snapshot.step, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    trusted.add(path)
    fault_point("checkpoint.committed")
    try:
        _clear_leftovers(root)
        _retain(root, keep, trusted)
    except OSError as error:
        message = f"the checkpoint {path} is written, but an older one cannot be removed: {error.strerror or error}"
        raise OSError(error.errno or errno.EIO, message) from error
    return path


def _check_keep(keep: int) -> None:
    if keep < 2:
        raise ValueError(f"keep={keep} leaves no earlier checkpoint if the last one is damaged; give 2 or more")


def _hidden(prefix: str, path: Path) -> str:
    return f"{prefix}-{path.name}-{uuid.uuid4().hex}"


def _stage(staging: Path, snapshot: Snapshot, state: bytes) -> None:
    """Write all four files, durable, under the hidden name."""
    staging.mkdir()
    fault_point("checkpoint.staged")
    files: dict[str, FileEntry] = {MODEL: write_file(staging / MODEL, tensor_bytes(snapshot.model))}
    fault_point("checkpoint.model")
    files[OPTIMIZER] = write_file(staging / OPTIMIZER, tensor_bytes(snapshot.optimizer))
    fault_point("checkpoint.optimizer")
    files[STATE] = write_file(staging / STATE, [state])
    fault_point("checkpoint.state")
    write_file(staging / MANIFEST, [encode_manifest(snapshot.step, files)])
    sync_directory(staging)
    fault_point("checkpoint.manifest")


def _commit(staging: Path, path: Path, step: int) -> None:
    """Make the staged checkpoint visible and those that it supersedes invisible.

    Raises:
        OSError: the staged one is gone, since another training has taken the directory over; nothing is changed.
    """
    staging.stat()
    for other, old in reversed(checkpoint_paths(path.parent).items()):
        if other > step:
            os.rename(old, path.parent / _hidden(".staging", old))
    if path.exists():
        os.rename(path, path.parent / _hidden(".replaced", path))
    fault_point("checkpoint.replacing")
    os.rename(staging, path)
    fault_point("checkpoint.renamed")
    sync_directory(path.parent)


def _clear_leftovers(root: Path) -> None:
    """Remove hidden directories; a replaced checkpoint without its successor gets its name back."""
    for step, path in checkpoint_paths(root).items():
        if path.name.startswith(".replaced-"):
            os.rename(path, root / checkpoint_name(step))
    for path in root.iterdir():
        if _LEFTOVER.fullmatch(path.name):
            _remove(path)


def _remove(path: Path) -> None:
    """Take a directory out of sight, and out of the hands of a writer that may still be in it, then remove it."""
    gone = path.parent / f".staging-removed-{uuid.uuid4().hex}"
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, gone)
    fault_point("checkpoint.removing")
    shutil.rmtree(gone, ignore_errors=True)


def _retain(root: Path, keep: int, trusted: set[Path]) -> None:
    paths = checkpoint_paths(root)
    newest: list[int] = []
    spared: set[int] = set()
    for step, path in reversed(paths.items()):
        try:
            if len(newest) < keep and verify_checkpoint(path, tensors=path not in trusted) is None:
                newest.append(step)
                trusted.add(path)
        except Unreadable:
            spared.add(step)
    best = {read_state(paths[step]).get("best_step") for step in newest}
    for step, path in paths.items():
        if step not in newest and step not in best and step not in spared:
            _remove(path)
            trusted.discard(path)


def _storage_error(root: Path, step: int, error: OSError) -> OSError:
    previous = [path.name for other, path in checkpoint_paths(root).items() if other < step]
    kept = f"the previous checkpoint is kept: {previous[-1]}" if previous else "no earlier checkpoint is there"
    cause = error.strerror or str(error)
    return OSError(error.errno or errno.EIO, f"cannot write the checkpoint of step {step} in {root}: {cause}; {kept}")


def tensor_bytes(tensors: dict[str, Tensor]) -> Iterator[memoryview]:
    """The safetensors file of named dense tensors, piece by piece and without a copy of those on the CPU.

    The layout is https://huggingface.co/docs/safetensors#format: length of the header, JSON header, data; wider types
    first, so that each tensor is aligned. The library's own `save_file` neither fsyncs nor raises OSError.

    Raises:
        ValueError: a dtype that the format lacks.
    """
    header: dict[str, dict[str, object]] = {}
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    end = 0
    for name in names:
        tensor = tensors[name]
        if tensor.dtype not in _DTYPES:
            raise ValueError(f"tensor {name!r} is {tensor.dtype}, which a checkpoint cannot hold; convert it first")
        start, end = end, end + tensor.numel() * tensor.itemsize
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield memoryview(struct.pack("<Q", len(text)) + text)
    for name in names:
        yield tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """sha256 of the safetensors file that holds these weights. Raises as `tensor_bytes`."""
    digest = hashlib.sha256()
    for piece in tensor_bytes(dict(weights)):
        digest.update(piece)
    return digest.hexdigest()


class AsyncWriter:
    """Writes snapshots in a background thread, one at a time; the training goes on meanwhile."""

    def __init__(self, root: Path, keep: int) -> None:
        """Write under `root` as `write_checkpoint` does.

        Raises:
            ValueError: keep < 2.
        """
        _check_keep(keep)
        self._root = root
        self._keep = keep
        self._trusted: set[Path] = set()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[Path] | None = None

    @property
    def busy(self) -> bool:
        """Whether a write is under way, so that `wait` would block."""
        return self._pending is not None and not self._pending.done()

    def submit(self, snapshot: Snapshot) -> None:
        """Wait for the previous write, then start this one. The snapshot's tensors must be copies that nobody changes.

        Raises:
            OSError: the previous write failed, which is raised once; the snapshot is then not taken and may be
                submitted again.
        """
        self.wait()
        self._pending = self._thread.submit(
            write_checkpoint, self._root, snapshot, keep=self._keep, trusted=self._trusted
        )

    def wait(self) -> Path | None:
        """Wait for the write under way; its path, or None if there was none.

        Raises:
            OSError: that write failed, which is raised once.
        """
        pending, self._pending = self._pending, None
        return None if pending is None else pending.result()

    def close(self) -> None:
        """Wait as `wait` does and end the thread."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
