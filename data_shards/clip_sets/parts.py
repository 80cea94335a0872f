"""The finished directory of a set of clips: Parquet parts with labels, what failed, and how it was made.

Parts are put together in a hidden directory and moved to their places when all are written. Until that directory is
removed at the end, `dmd shard` does not take the set.
"""

import csv
import hashlib
import io
import json
import os
import re
import shutil
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_shards.clip_sets.clip_rows import KnownClip, RowReader, has_records, read_records, write_rows
from data_shards.clip_sets.jobs import ClipJob
from data_shards.durable import replace_file, sync_directory
from data_shards.format.extraction_files import (
    FAILURES_FILE,
    FORMER_NAMES,
    OWN_FILES,
    SETTINGS_FILE,
    WARNINGS_FILE,
    WORK_DIRECTORY,
    differences,
    extraction_of,
    own_file,
    read_extraction,
)
from data_shards.sole_writer import LEASE_FILE, DirectoryInUse, Lease

PART_CLIPS = 64
"""Clips of a part: a row group, which `dmd shard` reads at once."""
NO_SPLIT = "clips"
"""What counts call clips without a split."""
_PART = re.compile(r"part-(\d{5}|[1-9]\d{5,})\.parquet")
"""Name of a part; `dmd predict` and Spark write others."""


@dataclass(frozen=True, kw_only=True)
class FinishedClip:
    """A clip that belongs to the set."""

    job: ClipJob
    known: KnownClip


def find_known(out: Path, settings: dict[str, Any]) -> dict[str, KnownClip]:
    """The clips of a directory that have features, by id.

    Raises:
        ValueError: the directory holds something else, features of other settings, or a damaged file.
    """
    _check_strangers(path for path in out.iterdir() if not _is_named_by_us(path))
    known: dict[str, KnownClip] = {}
    for path in (*_parts_of(out), *sorted((out / WORK_DIRECTORY).rglob("*.parquet"))):
        for clip in read_records(path):
            known[clip.record.id] = clip
        before = read_extraction(extraction_of(pq.read_schema(path)), path)
        if changes := differences(before, settings):
            raise ValueError(
                f"{out} holds features of other settings ({'; '.join(changes)}; first there, then here); give the "
                "same, another OUT, or --restart to extract all clips again"
            )
    return known


def discard(out: Path) -> None:
    """Remove all that an extraction has written.

    Raises:
        ValueError: the directory holds something else; nothing was removed. OSError.
    """
    is_set = own_file(out, SETTINGS_FILE).is_file() or (out / WORK_DIRECTORY).is_dir()
    paths = list(out.iterdir())
    _check_strangers(path for path in paths if not _is_named_by_us(path) or not _may_hold_clips(path, is_set=is_set))
    for path in paths:
        if path.name == WORK_DIRECTORY:
            shutil.rmtree(path)
        elif path.name != LEASE_FILE:
            path.unlink()


def publish(
    out: Path,
    clips: Sequence[FinishedClip],
    failed: Sequence[tuple[str, str]],
    settings: dict[str, Any],
    lease: Lease,
) -> None:
    """Make the directory that of these clips, and remove what belongs to no set.

    Args:
        clips: in their order; at least one.
        failed: (clip, reason).

    Raises:
        DirectoryInUse: another command has taken over; nothing was replaced. OSError.
    """
    assert clips
    content = _content(clips, settings)
    if not _is_published(out, clips, content):
        staging = out / WORK_DIRECTORY / f"parts-{uuid.uuid4().hex}"
        staging.mkdir()
        names = list(_write_parts(staging, clips, settings))
        check_lease(lease)
        own_file(out, SETTINGS_FILE).unlink(missing_ok=True)
        for name in names:
            os.replace(staging / name, out / name)
        for path in _parts_of(out):
            if path.name not in names:
                path.unlink()
        sync_directory(out)
    check_lease(lease)
    warnings = [(clip.job.id, *warning) for clip in clips for warning in clip.known.record.warnings]
    _replace(out / FAILURES_FILE, _failures(failed))
    _replace(out / WARNINGS_FILE, _csv(("clip", "kind", "warning"), warnings))
    facts = {
        "settings": settings,
        "clips": Counter(clip.job.split or NO_SPLIT for clip in clips),
        "failed": len(failed),
        "warnings": Counter(kind for _, kind, _ in warnings),
        "content": content,
    }
    _replace(out / SETTINGS_FILE, (json.dumps(facts, indent=2, ensure_ascii=False) + "\n").encode())
    for former in FORMER_NAMES.values():
        (out / former).unlink(missing_ok=True)
    shutil.rmtree(out / WORK_DIRECTORY)


def check_lease(lease: Lease) -> None:
    """Raise DirectoryInUse where another command has taken the directory over."""
    if (taken := lease.check()) is not None:
        raise DirectoryInUse(taken)


def list_failures(out: Path, failed: Sequence[tuple[str, str]], lease: Lease) -> None:
    """Say why no clip of a command has features. The set that was there before stays.

    Args:
        failed: (clip, reason).

    Raises:
        DirectoryInUse: another command has taken over. OSError.
    """
    check_lease(lease)
    _replace(out / FAILURES_FILE, _failures(failed))
    (out / FORMER_NAMES[FAILURES_FILE]).unlink(missing_ok=True)
    if not any((out / WORK_DIRECTORY).rglob("*.parquet")):  # features of an earlier command that was interrupted
        shutil.rmtree(out / WORK_DIRECTORY)


def _failures(failed: Sequence[tuple[str, str]]) -> bytes:
    return _csv(("clip", "reason"), failed)


def _is_named_by_us(path: Path) -> bool:
    return path.name in {*OWN_FILES, WORK_DIRECTORY, LEASE_FILE} or _PART.fullmatch(path.name) is not None


def _may_hold_clips(path: Path, *, is_set: bool) -> bool:
    """False for a part that somebody else wrote; a damaged one is ours where the directory `is_set` of clips."""
    if _PART.fullmatch(path.name) is None:
        return True
    try:
        return has_records(path)
    except (pa.ArrowException, ValueError, OSError):
        return is_set


def _check_strangers(paths: Iterable[Path]) -> None:
    if strangers := sorted(paths):
        raise ValueError(
            f"{strangers[0].parent} holds {strangers[0].name}, which `dmd extract` does not write; give features a "
            "directory of their own"
        )


def _parts_of(out: Path) -> list[Path]:
    return sorted(path for path in out.iterdir() if _PART.fullmatch(path.name))


def _content(clips: Sequence[FinishedClip], settings: dict[str, Any]) -> str:
    """Digest of all that the parts of a set depend on."""
    facts = [(clip.job.id, clip.job.split, clip.job.labels, asdict(clip.known.record)) for clip in clips]
    return hashlib.sha256(json.dumps([settings, facts], sort_keys=True).encode()).hexdigest()


def _published_content(out: Path) -> str | None:
    """What `_content` was of the set that is there; None where there is none, or it is not whole."""
    try:
        return str(json.loads(own_file(out, SETTINGS_FILE).read_bytes())["content"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _is_published(out: Path, clips: Sequence[FinishedClip], content: str) -> bool:
    """Whether the parts that are there are those of these clips."""
    if content != _published_content(out) or any(clip.known.file.parent != out for clip in clips):
        return False
    return {path.name for path in _parts_of(out)} == {_part_name(number) for number, _ in _split_up(clips)}


def _split_up(clips: Sequence[FinishedClip]) -> Iterator[tuple[int, Sequence[FinishedClip]]]:
    """The clips of each part, with its number."""
    return enumerate(clips[start : start + PART_CLIPS] for start in range(0, len(clips), PART_CLIPS))


def _part_name(number: int) -> str:
    return f"part-{number:05d}.parquet"


def _write_parts(staging: Path, clips: Sequence[FinishedClip], settings: dict[str, Any]) -> Iterator[str]:
    """Write all parts; their names."""
    reader = RowReader()
    for number, part in _split_up(clips):
        features = reader.read([clip.known for clip in part])
        for name, values in _labels(part).items():
            features = features.append_column(name, values)
        name = _part_name(number)
        write_rows(staging / name, features, [clip.known.record for clip in part], settings)
        yield name


def _labels(part: Sequence[FinishedClip]) -> dict[str, pa.Array]:
    """Column -> splits and labels of a part, where the set has them: classes as text or as numbers."""
    splits = {"split": pa.array([clip.job.split for clip in part])} if part[0].job.split else {}
    return splits | {name: pa.array([clip.job.labels[name] for clip in part]) for name in part[0].job.labels}


def _csv(header: Sequence[str], rows: Sequence[Sequence[str]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode(errors="backslashreplace")  # a reason may name any path


def _replace(path: Path, content: bytes) -> None:
    """Replace a file of a set atomically; what a kill leaves of it is in the hidden directory."""
    staged = path.parent / WORK_DIRECTORY / path.name
    replace_file(staged, content)
    os.replace(staged, path)
    sync_directory(path.parent)
