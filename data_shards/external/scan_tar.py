"""Reads one externally created tar from end to end, for its rows in an index.

WebDataset's `group_by_keys` makes samples of the members, so a sample here is a sample there. The members themselves
come from tarfile: `tar_file_iterator` of `webdataset/tariterators.py` gives name and content alone, without the place
in the tar that an index needs, and passes over what is no regular file without a word, which a user is told of here.
"""

import math
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from webdataset.tariterators import base_plus_ext, group_by_keys

from data_shards.durable import read_entry
from data_shards.file_kinds import check_file_kind, is_macos_metadata
from data_shards.format.arrays import decode_array, json_field
from data_shards.format.schema import MODALITIES, Sample, check_sample
from data_shards.format.shard_rows import ShardRows
from data_shards.labels import Labels
from data_shards.sources.conversions import (
    is_missing,
    to_class,
    to_count,
    to_emotions,
    to_features,
    to_label,
    to_raw_text,
    to_text,
    to_tokens,
)


@dataclass(frozen=True)
class _Member:
    """A member of a tar."""

    offset: int
    """Where its content starts in the tar."""
    content: bytes


class _SampleMembers:
    """The members of one sample: those that the mapping names, and the suffixes of the others."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.members: dict[str, _Member] = {}
        """By suffix."""
        self.other_suffixes: list[str] = []

    def member(self, name: str) -> _Member:
        """The member that `name` of the mapping means; what follows a colon in it names a part of the content."""
        suffix = name.partition(":")[0]
        if suffix not in self.members:
            raise ValueError(f"it has no {suffix}, only {', '.join([*self.members, *self.other_suffixes])}")
        return self.members[suffix]

    def value(self, name: str) -> Any:
        """A field of a JSON member, or the text of another."""
        content = self.member(name).content
        field = name.partition(":")[2]
        return json_field(content, field) if field else content.decode("utf-8").strip()

    def array(self, name: str) -> NDArray[Any]:
        """The array of a member."""
        return decode_array(self.member(name).content, name)


def scan(path: Path, split: str, mapping: dict[str, str], labels: Labels) -> ShardRows:
    """The index rows of a tar, and the largest shape of each modality; `ValueError` names the sample that is wrong."""
    check_file_kind(path, "a tar archive", allowed=("a tar archive",))
    rows = ShardRows(split)
    wanted = {name.partition(":")[0] for name in mapping.values()}
    for members in _with_wanted_member(_read_samples(path, wanted, rows.ignored)):
        try:
            sample = _to_sample(members, split, mapping, labels)
            check_sample(sample)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: sample {members.key}: {error}") from error
        _add_places(rows, members, mapping)
        _add_sample(rows, sample, where=f"{path}: {members.key}")
    if not rows.keys:
        raise ValueError(f"{path} holds no samples; remove it, or name its members with --map")
    entry = read_entry(path)
    rows.bytes = entry.size
    rows.sha256 = entry.sha256
    return rows


def _add_places(rows: ShardRows, members: _SampleMembers, mapping: dict[str, str]) -> None:
    """Append the key of a sample, and where its members are."""
    names = [*(mapping[modality] for modality in MODALITIES), mapping.get("raw_text", "")]
    found = [members.member(name) if name else _Member(0, b"") for name in names]
    rows.keys.append(members.key)
    rows.offsets.append([member.offset for member in found])
    rows.sizes.append([len(member.content) for member in found])
    rows.crc32.append([zlib.crc32(member.content) for member in found])


def _add_sample(rows: ShardRows, sample: Sample, *, where: str) -> None:
    """Append what a sample is; `where` is what errors call it."""
    rows.ids.append(sample.id)
    rows.lengths.append(sample.lengths)
    rows.add_labels(sample)
    tokens = sample.text.dtype == np.int32
    rows.facts.widen_shapes({m: getattr(sample, m).shape for m in MODALITIES}, tokens=tokens, where=where)
    if tokens:
        rows.facts.vocab_size = max(rows.facts.vocab_size, int(sample.text[0].max()) + 1)
    for modality in MODALITIES[1:] if tokens else MODALITIES:
        rows.add_statistics(modality, getattr(sample, modality))


def _with_wanted_member(samples: Iterator[_SampleMembers]) -> Iterator[_SampleMembers]:
    """The samples with a member that is wanted, so without a LICENSE.txt. Where no sample has one, the first of them:
    the error about it names the members that it lacks."""
    first: _SampleMembers | None = None
    found = False
    for sample in samples:
        first = first or sample
        if sample.members:
            found = True
            yield sample
    if first is not None and not found:
        yield first


def _read_samples(path: Path, wanted: set[str], ignored: dict[str, int]) -> Iterator[_SampleMembers]:
    """The samples of a tar in their order: runs of members whose names are equal up to the first dot.

    Args:
        wanted: suffixes of the members that are read.
        ignored: counts the members that are not read. A sample may have no other.
    """

    def reject(error: Exception) -> NoReturn:
        name = str(error.args[0]).partition(": duplicate")[0]
        raise ValueError(f"{path}: two members of a sample have the name {name}; give each one its own") from error

    try:
        for found in group_by_keys(_read_members(path, wanted, ignored), lcase=False, handler=reject):
            sample = _SampleMembers(found["__key__"])
            for suffix, member in found.items():
                if isinstance(member, _Member):
                    sample.members[suffix] = member
                elif member is None:
                    sample.other_suffixes.append(suffix)
            yield sample
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{path} is no tar that can be read: {error}; download or write it again") from error


def _read_members(path: Path, wanted: set[str], ignored: dict[str, int]) -> Iterator[dict[str, Any]]:
    """The members of samples, as `group_by_keys` takes them; the data of one that is not wanted is None."""
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            if member.isdir() or is_macos_metadata(member.name):
                continue
            key, suffix = base_plus_ext(member.name)
            is_regular = member.isfile() and not member.issparse()
            if not is_regular or not key or not suffix:
                ignored[f"{'file' if is_regular else 'special or sparse member'} {member.name}"] = 1
                continue
            data = None
            if suffix in wanted:
                content = tar.extractfile(member)
                assert content is not None, "a regular file"
                data = _Member(member.offset_data, content.read())
            else:
                ignored[f"member .{suffix}"] = ignored.get(f"member .{suffix}", 0) + 1
            yield {"fname": member.name, "data": data, "__url__": str(path)}
        _check_end(path, tar.offset)


def _check_end(path: Path, offset: int) -> None:
    """Reject a tar with anything behind the zeros that end it: every reader of tars stops there."""
    with open(path, "rb") as file:
        file.seek(offset)
        while block := file.read(1 << 20):
            if block.strip(b"\0"):
                raise ValueError(
                    f"{path} goes on behind its end at {offset}: other tars were appended, or a part of it is zeros; "
                    "pack all samples into one tar, or make it again"
                )


def _to_sample(members: _SampleMembers, split: str, mapping: dict[str, str], labels: Labels) -> Sample:
    arrays = {modality: members.array(mapping[modality]) for modality in MODALITIES}
    text = arrays["text"]
    is_tokens = text.dtype.kind in "iu" and text.ndim == 2 and text.shape[0] == 3
    found: dict[str, Any] = {}
    lengths: dict[str, int] = {}
    for modality, array in arrays.items():
        if modality == "text" and is_tokens:
            found["text"] = to_tokens(array)
            lengths["text"] = int(np.count_nonzero(found["text"][1]))
        else:
            found[modality] = _to_features(array, f"{modality} ({mapping[modality]})")
            lengths[modality] = found[modality].shape[0]
    own_class = _own_class(members, mapping["class"], labels) if mapping.get("class") else None
    emotions = _emotions(members, mapping["emotions"], labels) if mapping.get("emotions") else None
    is_required = own_class is None and emotions is None
    label, declared_class = _label(members, mapping.get("label", ""), labels, required=is_required)
    for modality in MODALITIES:
        if name := mapping.get(f"{modality}_length"):
            lengths[modality] = to_count(members.value(name), f"{modality}_length")
    return Sample(
        id=_id(members, mapping["id"]) if mapping.get("id") else members.key,
        split=split,
        label=label,
        raw_text=to_raw_text(members.value(mapping["raw_text"])) if mapping.get("raw_text") else "",
        **found,
        lengths=(lengths["text"], lengths["audio"], lengths["vision"]),
        class_label=own_class if declared_class is None else declared_class,
        emotions=emotions,
    )


def _to_features(array: NDArray[Any], where: str) -> NDArray[np.float32]:
    try:
        return to_features(array)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _label(members: _SampleMembers, name: str, labels: Labels, *, required: bool) -> tuple[float, int | None]:
    """Sentiment and class number as declared; NaN where there is no label and none is required."""
    value: Any = members.value(name) if name else None
    if value is None and not required:
        return math.nan, None
    if value is None:
        raise ValueError(f"it has no label{', class number or emotions' if not name else f': {name} is null'}")
    return labels.read(to_label(value, labels.label_names, f"label ({name})"))


def _id(members: _SampleMembers, name: str) -> str:
    """The id of a sample; `ValueError` where the member has none."""
    found = members.value(name)
    if is_missing(found):
        raise ValueError(f"it has no id: {name} is {found}; give it one, or leave id out of --map")
    return to_text(found)


def _own_class(members: _SampleMembers, name: str, labels: Labels) -> int | None:
    """The class label of a sample beside its sentiment; None where it has none."""
    try:
        found = members.value(name)
    except ValueError:
        return None
    return to_class(found, labels.class_names, f"class ({name})")


def _emotions(members: _SampleMembers, name: str, labels: Labels) -> NDArray[np.uint8] | None:
    """The emotions of a sample; None where it has none."""
    try:
        found = members.value(name)
    except ValueError:
        return None
    return to_emotions(found, labels.emotions, f"emotions ({name})")
