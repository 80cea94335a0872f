"""Check every byte of a set of shards against its index, and name what is broken."""

import hashlib
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_shards.index import Records, ShardIndex
from data_shards.schema import MEMBERS, DatasetInfo, ShardInfo
from data_shards.tar import BLOCK, member_header


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


def verify(path: str | Path) -> Report:
    """Read every shard of the set in directory `path`: its sha256, and each member's header and crc32.

    Raises:
        ValueError: the index itself is missing or damaged, so there is nothing to compare with.
    """
    index = ShardIndex.load(path)
    damage: list[Damage] = []
    done = 0
    starts = dict.fromkeys(index.info.counts, 0)
    for shard in index.info.shards:
        positions = np.arange(starts[shard.split], starts[shard.split] + shard.samples)
        starts[shard.split] += shard.samples
        keys = index.strings("key", shard.split, positions)
        records = index.records(shard.split, positions)
        damage += _verify_shard(index.store.shard(shard), shard, keys, records)
        done += shard.bytes
    return Report(info=index.info, damage=tuple(damage), bytes=done)


def _verify_shard(path: Path, shard: ShardInfo, keys: list[str], records: Records) -> list[Damage]:
    if not path.is_file():
        return [Damage(shard=shard.name, key="", what="the shard is missing")]
    size = os.path.getsize(path)
    found: list[Damage] = []
    if size != shard.bytes:
        found.append(Damage(shard=shard.name, key="", what=f"{size} bytes instead of {shard.bytes}"))
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for key, record in zip(keys, records, strict=True):
            broken = []
            for m, member in enumerate(MEMBERS):
                offset, length = int(record["offset"][m]), int(record["size"][m])
                raw = file.read(offset + length + -length % BLOCK - file.tell())
                digest.update(raw)
                name = f"{key}.{'json' if member == 'json' else f'{member}.npy'}"
                if len(raw) != BLOCK + length + -length % BLOCK:
                    broken.append(f"{member} is cut short")
                elif raw[:BLOCK] != member_header(name, length):
                    broken.append(f"{member} has a damaged tar header")
                elif zlib.crc32(memoryview(raw)[BLOCK : BLOCK + length]) != record["crc32"][m]:
                    broken.append(f"{member} does not match its crc32")
            if broken:
                found.append(Damage(shard=shard.name, key=key, what=", ".join(broken)))
        digest.update(file.read())
    if not found and digest.hexdigest() != shard.sha256:
        found.append(Damage(shard=shard.name, key="", what="sha256 differs, in padding between the samples' members"))
    return found
