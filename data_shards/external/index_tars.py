"""An index for externally created tars, in place: `dmd index DIR --map text=emb.npy,audio=wav.npz:x,...`.

A sample is the run of members with the same name up to the first dot, as WebDataset has it. Arrays may be of any
number type and of different lengths; they are padded when they are read. Formats that can run code are refused.
"""

import re
from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from data_shards.external.scan_tar import scan, widen
from data_shards.file_kinds import is_litter
from data_shards.format.arrays import check_format
from data_shards.format.feature_statistics import describe_all
from data_shards.format.index_file import INDEX_NAME
from data_shards.format.index_writer import IndexWriter
from data_shards.format.schema import MODALITIES, SPLITS, DatasetInfo, ShardInfo, generation_of
from data_shards.format.tar import ShardRows
from data_shards.labels import Labels
from data_shards.places import to_place
from data_shards.sources.splits import ALIASES, find_splits, named_split
from data_shards.writing.build import builder
from data_shards.writing.collect import Collector
from data_shards.writing.declared import Ids
from data_shards.writing.destination import open_output
from data_shards.writing.identity import numbered
from data_shards.writing.process_pool import ordered

OWN_MAP = {
    **{modality: f"{modality}.npy" for modality in MODALITIES},
    **{f"{modality}_length": f"json:lengths.{modality}" for modality in MODALITIES},
    "label": "json:label",
    "id": "json:id",
    "raw_text": "json:raw_text",
    "class": "json:class",
}
_REQUIRED = (*MODALITIES, "label")


def index_tars(
    root: str | Path,
    *,
    mapping: dict[str, str] | None = None,
    splits: dict[str, str] | None = None,
    name: str | None = None,
    labels: Labels | None = None,
    ids: Ids = "keep",
    processes: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> DatasetInfo:
    """Write the index of the tars under a directory, beside them.

    Args:
        mapping: what holds `text`, `audio`, `vision` (`emb.npy`, `feats.npz:array`), `label`, and optionally `id`,
            `class`, `raw_text`, `audio_length` etc. (`json:field`, or a text member such as `txt`). Default: our tars'.
        splits: split -> file pattern. Default: the word train, valid, val, dev or test in a tar's path.
        labels: what the labels are; None: sentiments in [-3, 3], whatever they look like.
        ids: `number` gives each the place of its sample in its split, so that all differ.

    Raises:
        ValueError: no tars, a member that is missing, cannot be read or can run code, samples that do not fit, ids that
            are there twice, labels of doubtful meaning.
    """
    place = to_place(root)
    if place.is_url or not place.path.is_dir():
        raise ValueError(f"{place} is no local directory; index tars where they are, then copy them with their index")
    folder, chosen = place.path, _checked(mapping or OWN_MAP)
    if labels is not None and labels.reading != "sentiments" and mapping and mapping.get("class"):
        raise ValueError(f"--{labels.reading} takes the label for the class number, but --map names a class; give one")
    if labels is not None and labels.scale is not None and not chosen.get("label"):
        raise ValueError("--label-scale multiplies sentiments, but --map names no label; leave it out, or name one")
    tars = _assign(folder, splits or {})
    collector = Collector(str(place), labels, numbered=ids == "number")
    with open_output(folder, keep=[name for _, name in tars]) as output:
        index = IndexWriter(output.staging / INDEX_NAME)
        try:
            with ordered(
                lambda task: scan(folder / tars[task][1], tars[task][0], chosen, labels or Labels()),
                len(tars),
                processes=processes,
                close=output.inherited,
            ) as results:
                facts, shards = _take(zip(tars, results, strict=True), ids, collector, index, progress)
            if mapping and mapping.get("class") and not facts.num_classes:
                raise ValueError(f"no sample under {root} has the class label {mapping['class']}; leave class out")
            meaning = collector.finish()
            meaning["ignored"] |= _unread(folder)
            info = _describe(name or folder.resolve().name, chosen, facts, shards, meaning)
            index.finish(info)
        finally:
            index.abort()
        output.publish()
    return info


def _take(
    scanned: Iterable[tuple[tuple[str, str], ShardRows]],
    ids: Ids,
    collector: Collector,
    index: IndexWriter,
    progress: Callable[[int, int], None] | None,
) -> tuple[ShardRows, list[ShardInfo]]:
    """Write the rows of all tars into the index; what they have in common, and the tars."""
    facts, shards, before = ShardRows(""), [], dict.fromkeys(SPLITS, 0)
    for number, ((split, relative), rows) in enumerate(scanned):
        samples = len(rows.keys)
        shards.append(ShardInfo(name=relative, split=split, samples=samples, bytes=rows.bytes, sha256=rows.sha256))
        if ids == "number":
            rows.ids = [numbered(given, split, before[split] + i) for i, given in enumerate(rows.ids)]
        before[split] += samples
        collector.take(rows, where=relative, start=0)
        facts.join_classes(rows, first=number == 0)
        widen(facts, rows, relative)
        index.add(rows, shard=number)
        if progress:
            progress(samples, rows.bytes)
    return facts, shards


def _checked(mapping: dict[str, str]) -> dict[str, str]:
    """The mapping, after each name and format in it was found to be possible."""
    unknown = sorted(set(mapping) - set(OWN_MAP))
    missing = [name for name in _REQUIRED if not mapping.get(name)]
    if missing == ["label"] and mapping.get("class"):
        missing = []
    if unknown or missing:
        problem = f"does not know {unknown[0]!r}" if unknown else f"lacks {missing[0]}"
        raise ValueError(
            f"--map {problem}; it takes {', '.join(OWN_MAP)}; the first three and label or class are needed"
        )
    for modality in MODALITIES:
        check_format(mapping[modality])
    for name, member in mapping.items():
        if name not in MODALITIES and member.partition(":")[0].rsplit(".", 1)[-1] not in ("json", "txt", "cls", "text"):
            raise ValueError(f"--map {name}={member}: use a .json field such as json:{name}, or a .txt or .cls member")
    return mapping


def _assign(folder: Path, splits: dict[str, str]) -> list[tuple[str, str]]:
    """(split, path relative to the folder) of all tars, in the order of the index."""
    splits = {split: splits[name] for split, name in find_splits(_known(splits), "--split").items()}
    paths = [path.relative_to(folder) for path in folder.rglob("*.tar") if not is_litter(str(path.relative_to(folder)))]
    names = sorted(str(path) for path in paths if not path.parts[0].startswith("."))
    if not names:
        packed = next(folder.rglob("*.tar.*"), None) or next(folder.rglob("*.tgz"), None)
        raise ValueError(f"{folder} holds no .tar files" + (f"; uncompress {packed.name} etc." if packed else ""))
    tars = [(_split_of(name, splits), name) for name in names]
    return sorted(tars, key=lambda tar: (SPLITS.index(tar[0]), tar[1]))


def _unread(folder: Path) -> dict[str, int]:
    """The files beside the tars, by what their names end in -> how many."""
    found: dict[str, int] = {}
    for path in folder.rglob("*"):
        inside = path.relative_to(folder)
        litter = is_litter(str(inside)) or any(part.startswith(".") for part in inside.parts)
        if path.is_file() and path.suffix != ".tar" and not litter and str(inside) != INDEX_NAME:
            ending = f"file *{''.join(path.suffixes[-2:])}" if path.suffixes else f"file {path.name}"
            found[ending] = found.get(ending, 0) + 1
    return found


def _split_of(name: str, splits: dict[str, str]) -> str:
    if splits:
        found = {split for split, pattern in splits.items() if fnmatch(name, pattern)}
    else:
        found = {ALIASES[word] for word in re.split(r"[^a-z]+", name.lower()) if word in ALIASES}
    if len(found) != 1:
        what = "no split" if not found else f"several splits ({', '.join(sorted(found))})"
        raise ValueError(f"{name} belongs to {what}; say which files belong where, as in --split 'train=tr*.tar'")
    return found.pop()


def _known(names: Iterable[str]) -> list[str]:
    """Names of splits, all of which are known."""
    for name in names:
        named_split(name, "--split: split")
    return list(names)


def _describe(
    name: str, mapping: dict[str, str], rows: ShardRows, shards: list[ShardInfo], meaning: dict[str, Any]
) -> DatasetInfo:
    counts = {split: sum(s.samples for s in shards if s.split == split) for split in SPLITS}
    facts: dict[str, Any] = {
        "name": name,
        "text_kind": "tokens" if rows.tokens else "features",
        "dims": {m: 0 if m == "text" and rows.tokens else rows.shapes[m][1] for m in MODALITIES},
        "lengths": {m: rows.shapes[m][1 if m == "text" and rows.tokens else 0] for m in MODALITIES},
        "vocab_size": rows.vocab_size,
        "dtype": "float32",
        "samples_per_shard": -(-sum(counts.values()) // len(shards)),
        "counts": {split: count for split, count in counts.items() if count},
        "layout": "mapped",
        "members": {**{m: mapping[m] for m in MODALITIES}, "json": mapping.get("raw_text", "")},
    }
    generation = generation_of(facts=facts, shards=[(shard.split, shard.samples, shard.sha256) for shard in shards])
    statistics = describe_all(rows.moments, facts["dims"])
    return DatasetInfo(
        **facts,
        **meaning,
        classes=rows.num_classes,
        statistics=statistics,
        shards=tuple(shards),
        generation=generation,
        builder=builder(),
    )
