"""Checkpoints: what one is, which of them are whole, and how they are read. `dmd.checkpoint.writer` writes them.

    RUN/checkpoints/step_00000042/
        model.safetensors       parameters and buffers by flat name, averaged where `train.ema_decay` asks for it
        optimizer.safetensors   optimizer state by flat name, such as `exp_avg/<parameter>`; with an average also
                                `weights/<parameter>`, what the training continues from; `objective/<name>`, what
                                an objective remembers of samples
        state.json              cursor, seed, scheduler, early stopping, config, generation, versions
        manifest.json           size and sha256 of the other three; written last

A checkpoint is whole if its manifest vouches for every bit of it, and damaged if a digest, a size or a missing file
says otherwise. One that cannot be read (`Unreadable`) is neither: nothing is decided over it. What is none of ours,
files or directories without any of the four files, is not seen. Names that start with a dot are a writer's own:
`.staging-*` is not there yet or no longer, and `.replaced-step_*` is a checkpoint whose successor at the same step is
being put in its place; until that stands, it counts.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_shards.durable import FileEntry, Unreadable, as_unreadable, read_entry
from dmd.documents import parse_object

if TYPE_CHECKING:
    from torch import Tensor

MODEL, OPTIMIZER, STATE, MANIFEST = "model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"
FILES = (MODEL, OPTIMIZER, STATE)
FORMAT = 1
"""Version of this layout, part of the manifest."""

_NAME = re.compile(r"step_(\d{8,})")
_REPLACED = re.compile(r"\.replaced-step_(\d{8,})-[0-9a-f]{32}")


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Everything that a run continues from, on the CPU."""

    step: int
    """Optimizer steps done."""
    model: dict[str, Tensor]
    """Parameters and buffers by flat name."""
    optimizer: dict[str, Tensor]
    """Optimizer state by flat name."""
    state: dict[str, Any]
    """JSON-able rest; comes back as JSON gives it (tuples as lists, keys as str, inf and nan as they were). Its
    `best_step`, if there is one, names the checkpoint that retention spares."""


@dataclass(frozen=True, kw_only=True)
class CheckpointInfo:
    """One checkpoint directory; `reason` says what is wrong with it, None if it is whole."""

    step: int
    path: Path
    reason: str | None
    readable: bool = True
    """False where that is all there is to say: it cannot be read, so it is neither whole nor damaged."""


def checkpoint_paths(root: Path) -> dict[int, Path]:
    """The checkpoint directories under `root` by step, ascending, whole or not; none if `root` is not there.

    Raises:
        Unreadable: `root` is there and cannot be read.
    """
    with as_unreadable(root):
        try:
            entries = [root / name for name in os.listdir(root)]
        except (FileNotFoundError, NotADirectoryError):
            return {}
        found = {int(match[1]): path for path in entries if (match := _REPLACED.fullmatch(path.name))}
        found |= {int(match[1]): path for path in entries if (match := _NAME.fullmatch(path.name))}
        return {step: path for step, path in sorted(found.items()) if _holds_any(path)}


def _holds_any(path: Path) -> bool:
    """Whether a path is a directory with a file of a checkpoint in it, be it a damaged one."""
    return any(_is_file(path / name) for name in (*FILES, MANIFEST))


def _is_file(path: Path) -> bool:
    """Whether there is a file; where `Path.is_file` hides an error and says no, this raises it.

    Raises:
        OSError: that cannot be seen.
    """
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def checkpoint_name(step: int) -> str:
    """The directory name of a step."""
    return f"step_{step:08d}"


def encode_state(state: dict[str, Any]) -> bytes:
    """The bytes of state.json.

    Raises:
        TypeError: something that JSON cannot hold.
    """
    return json.dumps(state, indent=1).encode()


def encode_manifest(step: int, files: dict[str, FileEntry]) -> bytes:
    """The bytes of manifest.json: one spelling for one content and a hash of that, so that a changed bit is seen."""
    content: dict[str, Any] = {"format": FORMAT, "step": step, "files": {name: asdict(files[name]) for name in FILES}}
    content["sha256"] = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return json.dumps(content, indent=1).encode()


def verify_checkpoint(path: Path, *, tensors: bool = True) -> str | None:
    """None if the checkpoint is whole, else which file is wrong and how.

    Args:
        tensors: whether the files of tensors are hashed; else only their sizes count.

    Raises:
        ValueError: a path that is not named like a checkpoint.
        Unreadable: it cannot be read.
    """
    with as_unreadable(path):
        try:
            return _fault(path, FILES if tensors else (STATE,))
        except FileNotFoundError as error:  # removed since the look at the names
            return f"{Path(error.filename).name} is missing"


def _fault(path: Path, hashed: tuple[str, ...]) -> str | None:
    step = _step_of(path)
    for name in (*FILES, MANIFEST):
        if not _is_file(path / name):
            return f"{name} is missing"
    expected = _manifest_entries((path / MANIFEST).read_bytes(), step)
    if expected is None:
        return f"{MANIFEST} is damaged, or belongs to another step or format"
    for name, entry in expected.items():
        size = (path / name).stat().st_size
        if size != entry.size:
            return f"{name} has {size} bytes, the manifest says {entry.size}"
        if name in hashed and read_entry(path / name) != entry:
            return f"{name} is not what was written: its sha256 differs from the manifest's"
    return None


def _manifest_entries(content: bytes, step: int) -> dict[str, FileEntry] | None:
    """The entries of a manifest, or None where it is not, byte for byte, what `encode_manifest` gives for them."""
    try:
        files = json.loads(content)["files"]
        entries = {name: FileEntry(size=files[name]["size"], sha256=files[name]["sha256"]) for name in FILES}
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return entries if encode_manifest(step, entries) == content else None


def _step_of(path: Path) -> int:
    match = _NAME.fullmatch(path.name) or _REPLACED.fullmatch(path.name)
    if not match:
        raise ValueError(f"{path} is not the name of a checkpoint; give a directory such as {checkpoint_name(42)}")
    return int(match[1])


def list_checkpoints(root: Path) -> list[CheckpointInfo]:
    """Every checkpoint under `root` with its state, by ascending step; reads all of them."""
    found = []
    for step, path in checkpoint_paths(root).items():
        try:
            found.append(CheckpointInfo(step=step, path=path, reason=verify_checkpoint(path)))
        except Unreadable as error:
            found.append(CheckpointInfo(step=step, path=path, reason=str(error), readable=False))
    return found


def newest_whole(root: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint and, for each newer one that had to be skipped, its name and the reason.

    (None, []) if there is no checkpoint at all.

    Raises:
        ValueError: there are some and none is whole: a run is never started afresh in silence.
        Unreadable: one cannot be read that may be the newest whole one.
    """
    skipped: list[str] = []
    for path in reversed(checkpoint_paths(root).values()):
        reason = verify_checkpoint(path)
        if reason is None:
            return path, skipped
        skipped.append(f"{path.name}: {reason}")
    if skipped:
        raise ValueError(f"no checkpoint in {root} is whole ({'; '.join(skipped)}); restore one, or move them away")
    return None, []


def find_step(root: Path, step: int) -> Path:
    """The whole checkpoint of a step that was asked for.

    Raises:
        ValueError: it is missing or damaged.
        Unreadable: it cannot be read.
    """
    paths = checkpoint_paths(root)
    if step not in paths:
        known = ", ".join(map(str, paths)) or "none"
        raise ValueError(f"there is no checkpoint of step {step} in {root}; steps that are there: {known}")
    reason = verify_checkpoint(paths[step])
    if reason is not None:
        raise ValueError(f"the checkpoint {paths[step]} is damaged: {reason}; take another step")
    return paths[step]


def read_state(path: Path) -> dict[str, Any]:
    """The state of a checkpoint that is known to be whole.

    Raises:
        ValueError: its state.json is not a JSON object.
        Unreadable: it cannot be read.
    """
    with as_unreadable(path):
        state = parse_object((path / STATE).read_bytes())
    if state is None:
        raise ValueError(f"{path / STATE} is not a JSON object; take another step")
    return state


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint that is known to be whole, on the CPU.

    Raises:
        Unreadable: it cannot be read.
    """
    import safetensors.torch

    with as_unreadable(path):
        return safetensors.torch.load_file(path / MODEL)


def read_checkpoint(path: Path) -> Snapshot:
    """Verify a checkpoint and load it to the CPU.

    Raises:
        ValueError: it is damaged.
        Unreadable: it cannot be read.
    """
    reason = verify_checkpoint(path)
    if reason is not None:
        raise ValueError(f"the checkpoint {path} is damaged: {reason}; take another step")
    return read_whole(path)


def read_whole(path: Path) -> Snapshot:
    """Load a checkpoint that is known to be whole to the CPU.

    Raises:
        ValueError: its state.json is not a JSON object.
        Unreadable: it cannot be read.
    """
    import safetensors.torch

    with as_unreadable(path):
        return Snapshot(
            step=_step_of(path),
            model=read_weights(path),
            optimizer=safetensors.torch.load_file(path / OPTIMIZER),
            state=read_state(path),
        )
