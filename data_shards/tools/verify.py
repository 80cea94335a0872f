"""Check every byte of a set of shards against its index, several shards at once, and name what is broken."""

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from data_shards.format.schema import MEMBERS, MODALITIES, DatasetInfo, ShardInfo
from data_shards.format.tar import BLOCK, member_header
from data_shards.places import Where
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
class _Job:
    """One shard and what the index says about it."""

    shard: ShardInfo
    keys: list[str]
    ids: list[str]
    records: Records
    packed: bool


def verify(path: Where, *, threads: int = 1, progress: Callable[[int, int], None] | None = None) -> Report:
    """Read every shard of the set at a directory or URL: its sha256, and each member's header, crc32 and facts.

    Args:
        threads: shards that are read at once; hashing lets threads run side by side.
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
        for job in _jobs(index):
            pending.append(pool.submit(_verify_shard, index, job))
            while len(pending) > threads or (pending and len(pending) + done == len(index.info.shards)):
                damage += pending.pop(0).result()
                shard = index.info.shards[done]
                done += 1
                if progress:
                    progress(shard.samples, shard.bytes)
    return Report(info=index.info, damage=tuple(damage), bytes=sum(shard.bytes for shard in index.info.shards))


def _jobs(index: ShardIndex) -> Iterator[_Job]:
    starts = dict.fromkeys(index.info.counts, 0)
    for shard in index.info.shards:
        positions = np.arange(starts[shard.split], starts[shard.split] + shard.samples)
        starts[shard.split] += shard.samples
        keys, ids = (index.strings(column, shard.split, positions) for column in ("key", "id"))
        yield _Job(shard, keys, ids, index.records(shard.split, positions), index.info.layout == "packed")


def _verify_shard(index: ShardIndex, job: _Job) -> list[Damage]:
    shard = job.shard
    try:
        handle = index.store.open(shard)
    except Unreachable:
        raise
    except ValueError as error:  # a remote shard that cannot be had whole
        return [Damage(shard=shard.name, key="", what=str(error))]
    except FileNotFoundError:
        return [Damage(shard=shard.name, key="", what="the shard is missing")]
    except OSError as error:
        return [Damage(shard=shard.name, key="", what=f"the shard cannot be read: {error.strerror}")]
    with open(handle, "rb") as file:
        return _verify_file(file, job)


def _verify_file(file: BinaryIO, job: _Job) -> list[Damage]:
    shard = job.shard
    size = os.fstat(file.fileno()).st_size
    found: list[Damage] = []
    if size != shard.bytes:
        found.append(Damage(shard=shard.name, key="", what=f"{size} bytes instead of {shard.bytes}"))
    sha256, broken = _read_members(file, job)
    found += [Damage(shard=shard.name, key=job.keys[i], what=", ".join(what)) for i, what in sorted(broken.items())]
    if not found and sha256 != shard.sha256:
        found.append(Damage(shard=shard.name, key="", what="sha256 differs, in padding between the samples' members"))
    return found


def _read_members(file: BinaryIO, job: _Job) -> tuple[str, dict[int, list[str]]]:
    """Read a shard from end to end: its sha256, and what is wrong with which sample."""
    broken: dict[int, list[str]] = {}
    offsets, sizes, checksums = (job.records[name] for name in ("offset", "size", "crc32"))
    digest = hashlib.sha256()
    at, raw, gap = 0, b"", b""
    for place in np.argsort(offsets, axis=None, kind="stable").tolist():
        i, m = divmod(place, len(MEMBERS))
        offset, size = int(offsets[i, m]), int(sizes[i, m])
        if size == 0:
            continue
        if offset + size != at:  # two modalities may share a member, which then was just read
            gap, raw = file.read(offset - at), file.read(size)
            digest.update(gap)
            digest.update(raw)
            at = offset + size
        wrong = _wrong(job, i, m, gap, raw, int(checksums[i, m]))
        if wrong:
            broken.setdefault(i, []).append(f"{MEMBERS[m]} {wrong}")
    while rest := file.read(1 << 20):
        digest.update(rest)
    return digest.hexdigest(), broken


def _wrong(job: _Job, i: int, m: int, gap: bytes, raw: bytes, crc32: int) -> str:
    """What is wrong with a member, in words; empty where nothing is."""
    if len(raw) != job.records["size"][i, m]:
        return "is cut short"
    if zlib.crc32(raw) != crc32:
        return "does not match its crc32"
    if not job.packed:
        return ""
    suffix = "json" if m == _JSON else f"{MEMBERS[m]}.npy"
    if gap[-BLOCK:] != member_header(f"{job.keys[i]}.{suffix}", len(raw)):
        return "has a damaged tar header"
    if m == _JSON:
        facts, record = json.loads(raw), job.records[i]
        lengths = [facts["lengths"][modality] for modality in MODALITIES]
        label = np.float32(np.nan if facts["label"] is None else facts["label"])
        told = facts["id"], lengths, facts.get("class", -1), label.tobytes()
        if told != (job.ids[i], record["length"].tolist(), record["class"], record["label"].tobytes()):
            return "differs from the index"
    return ""
