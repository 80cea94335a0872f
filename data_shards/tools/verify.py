"""Check every byte of a set of shards against its index, several shards at once, and name what is broken.

Members are read where the index says that they are, not through tar iterators: those of tarfile, and so WebDataset's
(`tar_file_iterator`), end at the first damaged header as if the archive did, and would hide all that comes after it.
"""

import hashlib
import json
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from data_shards.format.schema import MEMBERS, MODALITIES, DatasetInfo, ShardInfo, member_suffix
from data_shards.places import PlaceLike
from data_shards.reading.index import Records, ShardIndex
from data_shards.storage.remote import Unreachable

_JSON = MEMBERS.index("json")


@dataclass(frozen=True, kw_only=True)
class Damage:
    """One thing that is wrong."""

    shard: str
    key: str
    """The sample's key; empty where the damage belongs to no sample."""
    what: str

    def __str__(self) -> str:
        return f"{self.shard}: sample {self.key}: {self.what}" if self.key else f"{self.shard}: {self.what}"


@dataclass(frozen=True, kw_only=True)
class Report:
    """What `verify` found."""

    info: DatasetInfo
    damage: tuple[Damage, ...]
    bytes: int
    """Bytes that were read and compared."""


@dataclass(frozen=True)
class _ShardCheck:
    """One shard and what the index says about it."""

    shard: ShardInfo
    keys: list[str]
    ids: list[str]
    records: Records
    packed: bool


def verify(path: PlaceLike, *, threads: int = 1, progress: Callable[[int, int], None] | None = None) -> Report:
    """Read every shard of the set at a directory or URL: its sha256, and each member's header, crc32 and facts.

    Args:
        threads: shards that are read at once; hashing releases the GIL.
        progress: called with (samples, bytes) after each shard.

    Raises:
        ValueError: the index itself is missing or damaged, so there is nothing to compare with.
        Unreachable: the server of the shards does not answer.
    """
    index = ShardIndex.load(path)
    damage: list[Damage] = []
    done = 0
    with ThreadPoolExecutor(threads) as pool:
        pending = []
        for check in _shard_checks(index):
            pending.append(pool.submit(_verify_shard, index, check))
            while len(pending) > threads or (pending and len(pending) + done == len(index.info.shards)):
                damage += pending.pop(0).result()
                shard = index.info.shards[done]
                done += 1
                if progress:
                    progress(shard.samples, shard.bytes)
    return Report(info=index.info, damage=tuple(damage), bytes=sum(shard.bytes for shard in index.info.shards))


def _shard_checks(index: ShardIndex) -> Iterator[_ShardCheck]:
    starts = dict.fromkeys(index.info.counts, 0)
    for shard in index.info.shards:
        positions = np.arange(starts[shard.split], starts[shard.split] + shard.samples)
        starts[shard.split] += shard.samples
        keys, ids = (index.strings(column, shard.split, positions) for column in ("key", "id"))
        yield _ShardCheck(shard, keys, ids, index.records(shard.split, positions), index.info.layout == "packed")


def _verify_shard(index: ShardIndex, check: _ShardCheck) -> list[Damage]:
    shard = check.shard
    try:
        handle = index.store.open(shard)
    except Unreachable:
        raise
    except ValueError as error:  # a remote shard that stays damaged
        return [Damage(shard=shard.name, key="", what=str(error))]
    except FileNotFoundError:
        return [Damage(shard=shard.name, key="", what="the shard is missing")]
    except OSError as error:
        return [Damage(shard=shard.name, key="", what=f"the shard cannot be read: {error.strerror}")]
    with open(handle, "rb") as file:
        return _verify_file(file, check)


def _verify_file(file: BinaryIO, check: _ShardCheck) -> list[Damage]:
    shard = check.shard
    size = os.fstat(file.fileno()).st_size
    found: list[Damage] = []
    if size != shard.bytes:
        found.append(Damage(shard=shard.name, key="", what=f"{size} bytes instead of {shard.bytes}"))
    sha256, broken = _read_members(file, check)
    found += [Damage(shard=shard.name, key=check.keys[i], what=", ".join(what)) for i, what in sorted(broken.items())]
    if not found and sha256 != shard.sha256:
        found.append(Damage(shard=shard.name, key="", what="sha256 differs, in padding between the samples' members"))
    return found


def _read_members(file: BinaryIO, check: _ShardCheck) -> tuple[str, dict[int, list[str]]]:
    """Read a shard from end to end: its sha256, and what is wrong with which sample."""
    broken: dict[int, list[str]] = {}
    offsets, sizes = check.records["offset"], check.records["size"]
    digest = hashlib.sha256()
    position, content, gap = 0, b"", b""
    for place in np.argsort(offsets, axis=None, kind="stable").tolist():
        i, m = divmod(place, len(MEMBERS))
        offset, size = int(offsets[i, m]), int(sizes[i, m])
        if size == 0:
            continue
        if offset + size != position:  # two modalities may share a member, which then was just read
            gap = file.read(offset - position)
            content = file.read(size)
            digest.update(gap)
            digest.update(content)
            position = offset + size
        if problem := _problem(check, i, m, gap=gap, content=content):
            broken.setdefault(i, []).append(f"{MEMBERS[m]} {problem}")
    while rest := file.read(1 << 20):
        digest.update(rest)
    return digest.hexdigest(), broken


def _problem(check: _ShardCheck, i: int, m: int, *, gap: bytes, content: bytes) -> str:
    """What is wrong with member `m` of sample `i`, in words; empty where nothing is.

    Args:
        gap: the bytes between the member before it and its content, which end with its tar header.
    """
    if len(content) != check.records["size"][i, m]:
        return "is cut short"
    if zlib.crc32(content) != check.records["crc32"][i, m]:
        return "does not match its crc32"
    if not check.packed:
        return ""
    if not _is_header(gap[-tarfile.BLOCKSIZE :], f"{check.keys[i]}.{member_suffix(MEMBERS[m])}", len(content)):
        return "has a damaged tar header"
    if m == _JSON and not _equals_index(json.loads(content), check, i):
        return "differs from the index"
    return ""


def _is_header(block: bytes, name: str, size: int) -> bool:
    """Whether a block is the tar header, whole by its own checksum, of a file with that name and size."""
    try:
        header = tarfile.TarInfo.frombuf(block, tarfile.ENCODING, "surrogateescape")
    except tarfile.HeaderError:
        return False
    return header.isreg() and (header.name, header.size) == (name, size)


def _equals_index(facts: dict[str, Any], check: _ShardCheck, i: int) -> bool:
    """Whether the JSON of sample `i` says the same as its row of the index."""
    record = check.records[i]
    label = np.float32(np.nan if facts["label"] is None else facts["label"])
    return (
        facts["id"] == check.ids[i]
        and [facts["lengths"][modality] for modality in MODALITIES] == record["length"].tolist()
        and facts.get("class", -1) == record["class"]
        and facts.get("emotions", []) == record["emotions"].tolist()
        and label.tobytes() == record["label"].tobytes()
    )
