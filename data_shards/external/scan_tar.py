"""Reading one externally created tar from end to end, for its rows in an index."""

import hashlib
import math
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_shards.file_kinds import is_litter, refuse_kind
from data_shards.format.arrays import decode_array, json_field
from data_shards.format.feature_statistics import merge_all
from data_shards.format.schema import MODALITIES, Sample, check_sample
from data_shards.format.tar import ShardRows
from data_shards.labels import Labels
from data_shards.sources.conversions import (
    is_missing,
    to_count,
    to_features,
    to_number,
    to_raw_text,
    to_text,
    to_tokens,
)


class _Group:
    """One sample's members that matter: suffix -> where its bytes are, and the bytes."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.members: dict[str, tuple[int, bytes]] = {}
        self.others: list[str] = []

    def place(self, member: str) -> tuple[int, bytes]:
        """Offset and bytes of a member; what follows a colon is for whoever decodes it."""
        suffix = member.partition(":")[0]
        if suffix not in self.members:
            raise ValueError(f"it has no {suffix}, only {', '.join([*self.members, *self.others])}")
        return self.members[suffix]

    def value(self, member: str) -> Any:
        """A field of a JSON member, or the text of another."""
        raw, field = self.place(member)[1], member.partition(":")[2]
        return json_field(raw, field) if field else raw.decode("utf-8").strip()


def scan(path: Path, split: str, mapping: dict[str, str], labels: Labels) -> ShardRows:
    """The index rows of a tar, and the largest shape of each modality; `ValueError` names the sample that is wrong."""
    refuse_kind(path, "a tar archive", but=("a tar archive",))
    rows = ShardRows(split)
    members = [*(mapping[modality] for modality in MODALITIES), mapping.get("raw_text", "")]
    wanted = {member.partition(":")[0] for member in mapping.values()}
    for group in _samples(_groups(path, wanted, rows.ignored)):
        try:
            sample = _sample(group, split, mapping, labels)
            check_sample(sample)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: sample {group.key}: {error}") from error
        places = [group.place(member) if member else (0, b"") for member in members]
        rows.keys.append(group.key)
        rows.ids.append(sample.id)
        rows.offsets.append([offset for offset, _ in places])
        rows.sizes.append([len(raw) for _, raw in places])
        rows.crc32.append([zlib.crc32(raw) for _, raw in places])
        rows.labels.append(sample.label)
        rows.lengths.append(sample.lengths)
        rows.take_class(sample)
        tokens = sample.text.dtype == np.int32
        vocab_size = int(sample.text[0].max()) + 1 if tokens else 0
        shapes = {m: getattr(sample, m).shape for m in MODALITIES}
        widen(rows, ShardRows(split, shapes=shapes, tokens=tokens, vocab_size=vocab_size), f"{path}: {group.key}")
        for modality in MODALITIES[1:] if tokens else MODALITIES:
            rows.observe(modality, getattr(sample, modality))
    if not rows.keys:
        raise ValueError(f"{path} holds no samples; remove it, or name its members with --map")
    rows.bytes, rows.sha256 = _digest(path)
    return rows


def widen(facts: ShardRows, rows: ShardRows, where: str) -> None:
    """Make room in `facts` for the steps of `rows`, and join their statistics; else their shapes must agree."""
    if not facts.shapes:
        facts.shapes, facts.tokens = dict(rows.shapes), rows.tokens
    facts.vocab_size = max(facts.vocab_size, rows.vocab_size)
    for modality, shape in rows.shapes.items():
        steps = 1 if modality == "text" and rows.tokens else 0
        held = facts.shapes[modality]
        if rows.tokens != facts.tokens or shape[1 - steps] != held[1 - steps]:
            raise ValueError(f"{where}: {modality} has shape {shape}, which does not go with {held} elsewhere")
        longest = max(shape[steps], held[steps])
        facts.shapes[modality] = (3, longest) if steps else (longest, shape[1])
    merge_all(facts.moments, rows.moments)


def _samples(groups: Iterator[_Group]) -> Iterator[_Group]:
    """The groups with a member that is wanted, unlike a LICENSE.txt; where no group has one, the first of them, for
    whoever names what it lacks."""
    first: _Group | None = None
    found = False
    for group in groups:
        first = first or group
        if group.members:
            found = True
            yield group
    if first is not None and not found:
        yield first


def _groups(path: Path, wanted: set[str], ignored: dict[str, int]) -> Iterator[_Group]:
    """The samples of a tar in their order: runs of members whose names are equal up to the first dot.

    `ignored` counts the members that are no part of a sample as it is wanted. A group may have no member that is.
    """
    group: _Group | None = None
    try:
        with tarfile.open(path, "r:") as tar, open(path, "rb") as file:
            for member in tar:
                folder, _, base = member.name.rpartition("/")
                stem, _, suffix = base.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                if member.isdir() or is_litter(member.name):
                    continue
                if not member.isfile() or member.issparse() or not suffix:
                    kind = "file" if member.isfile() and not member.issparse() else "special or sparse member"
                    ignored[f"{kind} {member.name}"] = 1
                    continue
                if group is None or group.key != key:
                    if group is not None:
                        yield group
                    group = _Group(key)
                if suffix in group.members:
                    raise ValueError(f"{path}: sample {key} has two members {suffix}")
                if suffix not in wanted:
                    ignored[f"member .{suffix}"] = ignored.get(f"member .{suffix}", 0) + 1
                    group.others.append(suffix)
                else:
                    file.seek(member.offset_data)
                    group.members[suffix] = member.offset_data, file.read(member.size)
            _check_end(path, tar.offset)
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{path} is no tar that can be read: {error}; download or write it again") from error
    if group is not None:
        yield group


def _check_end(path: Path, offset: int) -> None:
    """Refuse a tar with anything behind the zeros that end it: every reader of tars stops there."""
    with open(path, "rb") as file:
        file.seek(offset)
        while block := file.read(1 << 20):
            if block.strip(b"\0"):
                raise ValueError(
                    f"{path} goes on behind its end at {offset}: other tars were appended, or a part of it is zeros; "
                    "pack all samples into one tar, or make it again"
                )


def _sample(group: _Group, split: str, mapping: dict[str, str], labels: Labels) -> Sample:
    arrays = {m: decode_array(group.place(mapping[m])[1], mapping[m]) for m in MODALITIES}
    text = arrays["text"]
    tokens = text.dtype.kind in "iu" and text.ndim == 2 and text.shape[0] == 3
    found = {
        m: to_tokens(array) if m == "text" and tokens else _features(array, f"{m} ({mapping[m]})")
        for m, array in arrays.items()
    }
    steps = {m: array.shape[1 if m == "text" and tokens else 0] for m, array in found.items()}
    if tokens:
        steps["text"] = int(np.count_nonzero(found["text"][1]))
    given = {m: mapping.get(f"{m}_length") for m in MODALITIES}
    number = _class(group, mapping["class"]) if mapping.get("class") else None
    label, declared = _label(group, mapping.get("label", ""), labels, alone=number is not None)
    lengths = [to_count(group.value(member), f"{m}_length") if (member := given[m]) else steps[m] for m in MODALITIES]
    return Sample(
        id=_id(group, mapping["id"]) if mapping.get("id") else group.key,
        split=split,
        label=label,
        raw_text=to_raw_text(group.value(mapping["raw_text"])) if mapping.get("raw_text") else "",
        text=found["text"],
        audio=found["audio"].astype(np.float32),
        vision=found["vision"].astype(np.float32),
        lengths=(lengths[0], lengths[1], lengths[2]),
        class_label=number if declared is None else declared,
    )


def _features(array: NDArray[Any], where: str) -> NDArray[np.float32]:
    try:
        return to_features(array)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _label(group: _Group, member: str, labels: Labels, *, alone: bool) -> tuple[float, int | None]:
    """Sentiment and class number as declared; NaN where a sample has a class number alone."""
    value: Any = group.value(member) if member else None
    if value is None and alone:
        return math.nan, None
    if value is None:
        raise ValueError(f"it has no label{' and no class number' if not member else f': {member} is null'}")
    return labels.read(to_number(value, f"label ({member})"))


def _id(group: _Group, member: str) -> str:
    """The id of a sample; `ValueError` where the member says none."""
    found = group.value(member)
    if is_missing(found):
        raise ValueError(f"it has no id: {member} is {found}; give it one, or leave id out of --map")
    return to_text(found)


def _class(group: _Group, member: str) -> int | None:
    """The class label of a sample; None where it has none."""
    try:
        found = group.value(member)
    except ValueError:
        return None
    return to_count(found, f"class ({member})")


def _digest(path: Path) -> tuple[int, str]:
    """Bytes and sha256 of a file."""
    digest, size = hashlib.sha256(), 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            size += len(block)
    return size, digest.hexdigest()
