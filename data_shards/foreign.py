"""An index for tars that other programs wrote, in place: `dmd index DIR --map text=emb.npy,audio=wav.npz:x,...`.

A sample is the run of members with the same name up to the first dot, as WebDataset has it. Arrays may be of any
number type and of different lengths; they are padded when they are read. Formats that can run code are refused.
"""

import re
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from data_shards.decode import check_format
from data_shards.foreign_scan import scan, widen
from data_shards.index_file import INDEX_NAME
from data_shards.index_writer import IndexWriter
from data_shards.moments import describe_all
from data_shards.output import open_output
from data_shards.remote import is_url
from data_shards.schema import MODALITIES, SPLITS, DatasetInfo, ShardInfo, generation_of
from data_shards.tar import ShardRows
from data_shards.workers import ordered
from data_shards.writer import builder

OWN_MAP = {
    **{modality: f"{modality}.npy" for modality in MODALITIES},
    **{f"{modality}_length": f"json:lengths.{modality}" for modality in MODALITIES},
    "label": "json:label", "id": "json:id", "raw_text": "json:raw_text", "class": "json:class",
}  # fmt: skip
_REQUIRED = (*MODALITIES, "label")
_WORDS = {"train": "train", "valid": "valid", "val": "valid", "dev": "valid", "test": "test"}


def index_tars(
    root: str | Path,
    *,
    mapping: dict[str, str] | None = None,
    splits: dict[str, str] | None = None,
    name: str | None = None,
    processes: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> DatasetInfo:
    """Write the index of the tars under a directory, beside them.

    Args:
        mapping: what holds `text`, `audio`, `vision` (`emb.npy`, `feats.npz:array`), `label`, and optionally `id`,
            `class`, `raw_text`, `audio_length` etc. (`json:field`, or a text member such as `txt`). Default: our tars'.
        splits: split -> file pattern. Default: the word train, valid, val, dev or test in a tar's path.

    Raises:
        ValueError: no tars, a member that is missing, cannot be read or can run code, samples that do not fit.
    """
    if is_url(root) or not Path(root).is_dir():
        raise ValueError(f"{root} is no local directory; index tars where they are, then copy them with their index")
    folder, chosen = Path(root), _checked(mapping or OWN_MAP)
    tars = _assign(folder, splits or {})
    shards: list[ShardInfo] = []
    facts = ShardRows("")
    with open_output(folder, keep=[name for _, name in tars]) as output:
        index = IndexWriter(output.staging / INDEX_NAME)
        try:
            results = ordered(
                lambda task: scan(folder / tars[task][1], tars[task][0], chosen),
                len(tars), processes=processes, close=output.inherited,
            )  # fmt: skip
            for number, ((split, relative), rows) in enumerate(zip(tars, results, strict=True)):
                samples = len(rows.keys)
                shards.append(
                    ShardInfo(name=relative, split=split, samples=samples, bytes=rows.bytes, sha256=rows.sha256)
                )
                facts.join_classes(rows, first=number == 0)
                widen(facts, rows, relative)
                index.add(rows, shard=number)
                if progress:
                    progress(samples, rows.bytes)
            if mapping and mapping.get("class") and not facts.num_classes:
                raise ValueError(f"no sample under {root} has the class label {mapping['class']}; leave class out")
            info = _describe(name or folder.resolve().name, chosen, facts, shards)
            index.finish(info)
        finally:
            index.abort()
        output.publish()
    return info


def _checked(mapping: dict[str, str]) -> dict[str, str]:
    """The mapping, after each name and format in it was found to be possible."""
    unknown = sorted(set(mapping) - set(OWN_MAP))
    missing = [name for name in _REQUIRED if not mapping.get(name)]
    if unknown or missing:
        problem = f"does not know {unknown[0]!r}" if unknown else f"lacks {missing[0]}"
        raise ValueError(f"--map {problem}; it takes {', '.join(OWN_MAP)}, the first three and label are needed")
    for modality in MODALITIES:
        check_format(mapping[modality])
    for name, member in mapping.items():
        if name not in MODALITIES and member.partition(":")[0].rsplit(".", 1)[-1] not in ("json", "txt", "cls", "text"):
            raise ValueError(f"--map {name}={member}: use a .json field such as json:{name}, or a .txt or .cls member")
    return mapping


def _assign(folder: Path, splits: dict[str, str]) -> list[tuple[str, str]]:
    """(split, path relative to the folder) of all tars, in the order of the index."""
    if unknown := sorted(set(splits) - set(SPLITS)):
        raise ValueError(f"split {unknown[0]!r} is unknown; use {', '.join(SPLITS)}")
    paths = [path.relative_to(folder) for path in folder.rglob("*.tar")]
    names = sorted(str(path) for path in paths if not path.parts[0].startswith("."))
    if not names:
        packed = next(folder.rglob("*.tar.*"), None) or next(folder.rglob("*.tgz"), None)
        raise ValueError(f"{folder} holds no .tar files" + (f"; uncompress {packed.name} etc." if packed else ""))
    tars = [(_split_of(name, splits), name) for name in names]
    return sorted(tars, key=lambda tar: (SPLITS.index(tar[0]), tar[1]))


def _split_of(name: str, splits: dict[str, str]) -> str:
    if splits:
        found = {split for split, pattern in splits.items() if fnmatch(name, pattern)}
    else:
        found = {_WORDS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in _WORDS}
    if len(found) != 1:
        what = "no split" if not found else f"several splits ({', '.join(sorted(found))})"
        raise ValueError(f"{name} belongs to {what}; say which files belong where, as in --split 'train=tr*.tar'")
    return found.pop()


def _describe(name: str, mapping: dict[str, str], rows: ShardRows, shards: list[ShardInfo]) -> DatasetInfo:
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
        **facts, classes=rows.num_classes, statistics=statistics, shards=tuple(shards), generation=generation,
        builder=builder(),
    )  # fmt: skip
