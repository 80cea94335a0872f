"""An index for externally created tars, in place: `dmd index DIR --map text=emb.npy,audio=wav.npz:x,...`.

A sample is the run of members with the same name up to the first dot, as WebDataset has it. Arrays may be of any
number type and of different lengths; they are padded when they are read. Formats that can run code are rejected.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from data_shards.external.scan_tar import scan
from data_shards.file_kinds import is_macos_metadata
from data_shards.format.arrays import check_array_member
from data_shards.format.index_file import INDEX_NAME
from data_shards.format.index_writer import IndexWriter
from data_shards.format.schema import MODALITIES, SPLITS, DatasetInfo, ShardInfo
from data_shards.format.shard_rows import ShardRows
from data_shards.labels import Labels
from data_shards.places import to_place
from data_shards.sources.paths import count_no_files
from data_shards.sources.splits import find_splits, named_split, splits_in_path
from data_shards.writing.build import OnProgress, WrittenShards, describe_set
from data_shards.writing.declared_source import Ids
from data_shards.writing.destination import open_destination
from data_shards.writing.duplicate_ids import numbered_id
from data_shards.writing.label_and_id_checks import LabelAndIdChecks
from data_shards.writing.process_pool import ForkedProcesses

DEFAULT_MAPPING = {
    **{modality: f"{modality}.npy" for modality in MODALITIES},
    **{f"{modality}_length": f"json:lengths.{modality}" for modality in MODALITIES},
    "label": "json:label",
    "id": "json:id",
    "raw_text": "json:raw_text",
    "class": "json:class",
    "emotions": "json:emotions",
}
"""What holds what in our own tars."""
_REQUIRED = (*MODALITIES, "label")


@dataclass(frozen=True)
class _Tar:
    """A tar that is to be indexed."""

    split: str
    name: str
    """Its path relative to the directory of the set."""


def index_tars(
    root: str | Path,
    *,
    mapping: dict[str, str] | None = None,
    splits: dict[str, str] | None = None,
    name: str | None = None,
    labels: Labels | None = None,
    ids: Ids = "keep",
    processes: int = 1,
    progress: OnProgress | None = None,
) -> DatasetInfo:
    """Write the index of the tars under a directory, beside them.

    Args:
        mapping: which member holds `text`, `audio`, `vision` (`emb.npy`, `feats.npz:array`), `label`, and optionally
            `id`, `class`, `emotions` (a list of numbers or a dict of them), `raw_text`, `audio_length` etc.
            (`json:field`, or a text member such as `txt`). Default: the members of our own tars.
        splits: split -> file pattern. Default: the word train, valid, val, dev or test in a tar's path.
        labels: what the labels are; None: sentiments in [-3, 3], without a check.
        ids: `number` appends split and number of its sample to each id, so that all differ.

    Raises:
        ValueError: no tars, a member that is missing, cannot be read or can run code, samples of different shapes,
            duplicate ids, ambiguous labels.
    """
    place = to_place(root)
    if place.is_url or not place.path.is_dir():
        raise ValueError(f"{place} is no local directory; index tars where they are, then copy them with their index")
    folder = place.path
    members = _check_mapping(mapping or DEFAULT_MAPPING)
    class_member = mapping.get("class") if mapping else None
    if labels is not None:
        _check_declaration(labels, members, class_member=class_member)
    tars = _find_tars(folder, splits or {})
    checks = LabelAndIdChecks(str(place), labels, numbered=ids == "number")
    with open_destination(folder, keep=[tar.name for tar in tars]) as destination:
        index = IndexWriter(destination.staging / INDEX_NAME)
        try:
            with ForkedProcesses(processes).map_in_order(
                lambda number: scan(folder / tars[number].name, tars[number].split, members, labels or Labels()),
                len(tars),
                memory=0,
                close_in_workers=destination.lock_handles,
            ) as results:
                scanned = zip(tars, results, strict=True)
                written = _write_rows(scanned, checks, index, number_ids=ids == "number", progress=progress)
            if class_member and not written.facts.num_classes:
                raise ValueError(f"no sample under {root} has the class label {class_member}; leave class out")
            provenance = checks.finish()
            provenance["ignored"] |= _other_files(folder)
            info = _describe(name or folder.resolve().name, members, written, provenance)
            index.finish(info)
        finally:
            index.abort()
        destination.publish()
    return info


def _check_declaration(labels: Labels, members: dict[str, str], *, class_member: str | None) -> None:
    """Raise ValueError where what the user says of the labels contradicts the members that `--map` names."""
    if labels.emotions and not members.get("emotions"):
        raise ValueError("--emotions names emotions, but --map names no member with them: emotions=json:FIELD")
    if labels.kind != "sentiments" and class_member:
        raise ValueError(f"--{labels.kind} takes the label for the class number, but --map names a class; give one")
    if labels.is_scale_declared and not members.get("label"):
        raise ValueError(f"{labels.scale_option} is of sentiments, but --map names no label; leave it out, or name one")


def _write_rows(
    scanned: Iterable[tuple[_Tar, ShardRows]],
    checks: LabelAndIdChecks,
    index: IndexWriter,
    *,
    number_ids: bool,
    progress: OnProgress | None,
) -> WrittenShards:
    """Write the rows of all tars into the index."""
    written = WrittenShards()
    samples_before = dict.fromkeys(SPLITS, 0)
    for number, (tar, rows) in enumerate(scanned):
        samples = len(rows.keys)
        written.shards.append(
            ShardInfo(name=tar.name, split=tar.split, samples=samples, bytes=rows.bytes, sha256=rows.sha256)
        )
        if number_ids:
            first = samples_before[tar.split]
            rows.ids = [numbered_id(given, tar.split, first + i) for i, given in enumerate(rows.ids)]
        samples_before[tar.split] += samples
        checks.add_shard(rows, where=tar.name, start=0)
        written.facts.merge(rows.facts, split=tar.split, num_classes=rows.num_classes, num_emotions=rows.num_emotions)
        written.facts.widen_shapes(rows.facts.shapes, tokens=rows.facts.tokens, where=tar.name)
        index.add(rows, shard=number)
        if progress:
            progress(samples, rows.bytes)
    return written


def _check_mapping(mapping: dict[str, str]) -> dict[str, str]:
    """The mapping itself. Raises ValueError where a name or a format in it is impossible."""
    unknown = sorted(set(mapping) - set(DEFAULT_MAPPING))
    missing = [name for name in _REQUIRED if not mapping.get(name)]
    if missing == ["label"] and (mapping.get("class") or mapping.get("emotions")):
        missing = []
    if unknown or missing:
        problem = f"does not know {unknown[0]!r}" if unknown else f"lacks {missing[0]}"
        raise ValueError(
            f"--map {problem}; it takes {', '.join(DEFAULT_MAPPING)}; the first three and label, class or emotions are "
            "needed"
        )
    for modality in MODALITIES:
        check_array_member(mapping[modality])
    for name, member in mapping.items():
        if name not in MODALITIES and member.partition(":")[0].rsplit(".", 1)[-1] not in ("json", "txt", "cls", "text"):
            raise ValueError(f"--map {name}={member}: use a .json field such as json:{name}, or a .txt or .cls member")
    return mapping


def _find_tars(folder: Path, splits: dict[str, str]) -> list[_Tar]:
    """All tars under a folder, in the order of the index."""
    splits = {split: splits[name] for split, name in find_splits(_check_splits(splits), "--split").items()}
    paths = [path.relative_to(folder) for path in folder.rglob("*.tar")]
    names = sorted(
        str(path) for path in paths if not is_macos_metadata(str(path)) and not path.parts[0].startswith(".")
    )
    if not names:
        packed = next(folder.rglob("*.tar.*"), None) or next(folder.rglob("*.tgz"), None)
        raise ValueError(f"{folder} holds no .tar files" + (f"; uncompress {packed.name} etc." if packed else ""))
    tars = [_Tar(_split_of(name, splits), name) for name in names]
    return sorted(tars, key=lambda tar: (SPLITS.index(tar.split), tar.name))


def _other_files(folder: Path) -> dict[str, int]:
    """The files beside the tars: the end of their names -> how many."""
    found: dict[str, int] = {}
    for path in folder.rglob("*"):
        inside = path.relative_to(folder)
        hidden = is_macos_metadata(str(inside)) or any(part.startswith(".") for part in inside.parts)
        if path.is_file() and path.suffix != ".tar" and not hidden and str(inside) != INDEX_NAME:
            ending = f"file *{''.join(path.suffixes[-2:])}" if path.suffixes else f"file {path.name}"
            found[ending] = found.get(ending, 0) + 1
    return found | count_no_files([folder])


def _split_of(name: str, splits: dict[str, str]) -> str:
    by_pattern = {split for split, pattern in splits.items() if fnmatch(name, pattern)}
    found = by_pattern if splits else splits_in_path(name)
    if len(found) != 1:
        what = "no split" if not found else f"several splits ({', '.join(sorted(found))})"
        raise ValueError(f"{name} belongs to {what}; say which files belong where, as in --split 'train=tr*.tar'")
    return found.pop()


def _check_splits(names: Iterable[str]) -> list[str]:
    """The names. Raises ValueError for one that names no split."""
    for name in names:
        named_split(name, "--split: split")
    return list(names)


def _describe(name: str, members: dict[str, str], written: WrittenShards, provenance: dict[str, Any]) -> DatasetInfo:
    """The facts of the set; `provenance` are those fields that are not part of its content."""
    counts = {split: sum(s.samples for s in written.shards if s.split == split) for split in SPLITS}
    content = {
        "name": name,
        **written.facts.as_fields(),
        "dtype": "float32",
        "samples_per_shard": -(-sum(counts.values()) // len(written.shards)),
        "counts": {split: count for split, count in counts.items() if count},
        "layout": "mapped",
        "members": {**{m: members[m] for m in MODALITIES}, "json": members.get("raw_text", "")},
    }
    return describe_set(written, content, provenance)
