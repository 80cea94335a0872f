"""What `dmd predict` reads: shards, or a feature pickle with or without splits and labels, as batches of samples.

A pickle holds `{split: fields}` or the fields themselves: `text` (or `text_bert` for a model with a text encoder),
`audio`, `vision`, and where there are `id`, `raw_text` and `regression_labels` (`classification_labels` for a model of
stored classes); `[N, T, D]` each, or one sample without the first axis. A split may be called by any of its names.
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_shards.places import Place, Where, to_place
from data_shards.reader import ShardReader
from data_shards.schema import MODALITIES
from data_shards.sources.base import to_text
from data_shards.sources.pickled import Fields, as_text, size_of, text_keys
from data_shards.sources.splits import find_splits, split_of
from data_shards.unpickle import Pickle
from dmd.config import Config
from dmd.data.targets import check_classes, targets
from dmd.predictor import BATCH_SIZE, Arrays, ModelCard, check_arrays
from dmd.presets import config_from_dict

_log = logging.getLogger(__name__)
_LABELS = ("regression_labels", "labels", "label")
_CLASSES = ("classification_labels",)


@dataclass(frozen=True, kw_only=True)
class Samples:
    """B samples of one split."""

    split: str
    """"" for a pickle without splits."""
    ids: list[str]
    texts: list[str]
    labels: NDArray[np.float64]
    """[B], what the model is to predict: sentiments or class numbers; NaN where there is none."""
    arrays: Arrays
    """{modality: [B, ...]}"""

    def pick(self, wanted: set[str]) -> "Samples":
        """Those whose id is wanted."""
        rows = [row for row, name in enumerate(self.ids) if name in wanted]
        return replace(
            self,
            ids=[self.ids[row] for row in rows],
            texts=[self.texts[row] for row in rows],
            labels=self.labels[rows],
            arrays={m: array[rows] for m, array in self.arrays.items()},
        )


def read_samples(
    given: Where, card: ModelCard, *, splits: list[str] | None = None, ids: list[str] | None = None
) -> Iterator[Samples]:
    """Samples of a place in batches, ready for the model.

    Args:
        given: directory or URL of shards, or a feature pickle.
        card: the model that will read them.
        splits: which; None: all that are there.
        ids: which samples; None: all.

    Raises:
        ValueError: what is not there, is there twice, or does not fit the model.
    """
    wanted, path = _unique(ids), to_place(given)
    batches = _from_shards(path, card, splits) if path.is_dir() else _from_pickle(path.path, card, splits)
    seen: dict[str, set[str]] = {}
    for samples in batches:
        there = seen.setdefault(samples.split, set())
        for name in samples.ids:
            if name in there:
                where = f"{path} {samples.split}".rstrip()
                raise ValueError(
                    f"{where}: the id {name!r} is there twice; give every sample an id of its own, or number them with "
                    "`dmd shard --ids number` and predict the shards"
                )
            there.add(name)
        if wanted is None:
            yield samples
        elif wanted.intersection(samples.ids):
            yield samples.pick(wanted)
    if not seen:
        raise ValueError(f"{path} holds no sample; give a file with at least one")
    unknown = sorted(wanted - set().union(*seen.values())) if wanted else []
    if unknown:
        count = sum(map(len, seen.values()))
        raise ValueError(f"{path} has no sample {unknown[0]!r} among its {count}; ids look like {min(there)!r}")


def _unique(ids: list[str] | None) -> set[str] | None:
    if not ids:
        return None
    twice = [name for number, name in enumerate(ids) if name in ids[:number]]
    if twice:
        raise ValueError(f"the id {twice[0]!r} is asked for twice; name each sample once")
    return set(ids)


def _chosen(path: Place | Path, there: Iterable[str], splits: list[str] | None) -> list[str]:
    known = list(there)
    wanted = [split_of(name) or name for name in splits or []]
    for split in wanted:
        if split not in known:
            raise ValueError(f"{path} has no split {split!r}; it has: {', '.join(filter(None, known)) or 'none'}")
    return wanted or known


def _from_shards(path: Place, card: ModelCard, splits: list[str] | None) -> Iterator[Samples]:
    config = config_from_dict(card.config)
    with ShardReader(path) as reader:
        info = reader.index.info
        check_classes(config, info)
        for what, here in (("text_kind", info.text_kind), ("dims", info.dims), ("lengths", info.lengths)):
            if card.data[what] != here:
                raise ValueError(
                    f"the model was trained on data with {what} {card.data[what]}, {path} has {here}; give shards "
                    "that were made from the same features"
                )
        for split in _chosen(path, info.counts, splits):
            for begin in range(0, info.counts[split], BATCH_SIZE):
                rows = range(begin, min(begin + BATCH_SIZE, info.counts[split]))
                batch = reader.read(split, rows)
                known = batch["class" if config.data.classes == "stored" else "label"]
                yield Samples(
                    split=split, ids=reader.index.ids(split, rows), texts=reader.raw_texts(split, rows),
                    labels=_targets(known, config),
                    arrays={m: torch.from_numpy(batch[m]) for m in MODALITIES},
                )  # fmt: skip


def _from_pickle(path: Path, card: ModelCard, splits: list[str] | None) -> Iterator[Samples]:
    if not path.exists():
        raise ValueError(
            f"{path} is empty or no file: there is nothing at this path; give a feature pickle or a directory of "
            "shards (where the shards of a run have moved: --data)"
        )
    content = Pickle(path).value
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a dict of arrays; give an MMSA feature pickle")
    there = {split: name for split, name in find_splits(content, str(path)).items() if isinstance(content[name], dict)}
    if there:
        unread = {as_text(name): size_of(part) for name, part in content.items() if name not in there.values()}
        _warn_of(unread, str(path))
    for split in _chosen(path, there or [""], splits):
        fields = Fields(text_keys(content[there[split]] if split else content))
        yield from _from_fields(fields, split, card, path)
        _warn_of(fields.unused(), f"{path} {split}".rstrip())


def _warn_of(ignored: dict[str, int], where: str) -> None:
    if ignored:
        found = ", ".join(f"{name} ({count})" for name, count in sorted(ignored.items()))
        _log.warning("warning: %s: ignored: %s", where, found)


def _from_fields(fields: Fields, split: str, card: ModelCard, path: Path) -> Iterator[Samples]:
    names = {m: m for m in MODALITIES}
    if card.data["text_kind"] == "tokens":
        names["text"] = "text_bert"
    lacking = [name for name in names.values() if name not in fields]
    where = f"{path} {split}: " if split else f"{path}: "
    if lacking:
        there = ", ".join(map(str, fields)) or "nothing"
        raise ValueError(f"{where}{lacking[0]!r} is missing, which the model reads; it has: {there}")
    if not np.size(fields["audio"]):
        raise ValueError(f"{where}no sample; give a file with at least one")
    arrays = check_arrays(card, {m: fields[name] for m, name in names.items()}, where)
    count = len(arrays["audio"])
    ids = _texts(fields.get("id"), count, where, "id") or [str(row) for row in range(count)]
    texts = _texts(fields.get("raw_text"), count, where, "raw_text") or [""] * count
    config = config_from_dict(card.config)
    names_of = _CLASSES if config.data.classes == "stored" else _LABELS
    given = next((fields[name] for name in names_of if name in fields), None)
    labels = np.full(count, np.nan) if given is None else np.asarray(given, dtype=np.float64).reshape(-1)
    labels = _targets(labels * card.data.get("label_scale", 1.0) if names_of == _LABELS else labels, config)
    if len(labels) != count:
        raise ValueError(f"{where}{len(labels)} labels for {count} samples; give one per sample, or none")
    for begin in range(0, count, BATCH_SIZE):
        part = slice(begin, begin + BATCH_SIZE)
        yield Samples(
            split=split, ids=ids[part], texts=texts[part], labels=labels[part],
            arrays={m: array[part] for m, array in arrays.items()},
        )  # fmt: skip


def _targets(labels: NDArray[Any], config: Config) -> NDArray[np.float64]:
    """What the model is to predict; a label that is not there stays NaN."""
    known = torch.from_numpy(labels.astype(np.float64))
    return torch.where(known.isnan(), known, targets(known.nan_to_num(), config)).numpy()


def _texts(values: Any, count: int, where: str, name: str) -> list[str]:
    if values is None:
        return []
    listed = [values] if isinstance(values, (str, bytes)) else list(values)
    if len(listed) != count:
        raise ValueError(f"{where}{len(listed)} values of {name} for {count} samples; give one per sample")
    return [to_text(value) for value in listed]
