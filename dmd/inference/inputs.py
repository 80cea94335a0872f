"""What `dmd predict` reads: shards, a feature pickle, a table or clips, as batches of samples.

A pickle holds `{split: fields}` or the fields themselves: `text` (or `text_bert` for a model with a text encoder),
`audio`, `vision`, and where there are `id`, `raw_text` and `regression_labels` (`classification_labels` for a model of
stored classes, `emotions` for one of emotions); `[N, T, D]` each, N arrays of different T, or one sample without the
first axis. A split may be called by any of its names. A table (`dmd.inference.tables`) has the same as columns, and of
clips `dmd.inference.clips` makes the same. `dmd.system.input_arrays` makes of these what the model reads. Where the
text is missing and `raw_text` is there, it is made as that of the training was, by a tokenizer or of word vectors.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_shards.clip_sets.clip_files import MEDIA_SUFFIXES
from data_shards.clip_sets.jobs import ClipJob
from data_shards.format.index_file import INDEX_NAME
from data_shards.format.schema import MODALITIES
from data_shards.label_options import format_counts
from data_shards.places import Place, PlaceLike, to_place
from data_shards.reading.reader import ShardReader
from data_shards.safe_pickle.load import Pickle
from data_shards.sources.conversions import is_missing, to_id, to_raw_text
from data_shards.sources.mmsa import Nonfinite
from data_shards.sources.pickled import PICKLE_SUFFIXES, Fields, as_text, size_of, text_keys
from data_shards.sources.splits import find_splits, split_of
from data_shards.sources.table import TABLE_SUFFIXES
from dmd.data.targets import check_same_labels, scoring_of
from dmd.encoder_tokenizer import check_same_text
from dmd.inference.clips import FeatureMaker, check_made_alike, clip_fields
from dmd.inference.labels import pickle_labels, shard_labels
from dmd.inference.tables import Table, is_table
from dmd.inference.transcript_text import TranscriptText
from dmd.system.input_arrays import InputFitter, Inputs
from dmd.system.modules import BATCH_SIZE
from dmd.system.trained_model import ModelCard, config_of

_log = logging.getLogger(__name__)
Choose = Callable[[Iterable[str]], list[str]]
"""Of the splits that are there those to read."""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """B samples of one split."""

    split: str
    """"" for what has no splits."""
    ids: list[str]
    texts: list[str]
    labels: NDArray[np.float64]
    """[B], what the model is to predict: sentiments in the units of its data, or class numbers; [B, L], emotions. NaN
    where there is none."""
    inputs: Inputs

    def pick(self, wanted: set[str]) -> "Samples":
        """Those whose id is wanted."""
        rows = [row for row, name in enumerate(self.ids) if name in wanted]
        return replace(
            self,
            ids=[self.ids[row] for row in rows],
            texts=[self.texts[row] for row in rows],
            labels=self.labels[rows],
            inputs=self.inputs.pick(rows),
        )


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """For which model something is read, and what that takes."""

    card: ModelCard
    fitter: InputFitter
    text: TranscriptText


def read_samples(
    given: PlaceLike,
    card: ModelCard,
    *,
    splits: list[str] | None = None,
    default: str | None = None,
    ids: list[str] | None = None,
    nonfinite: Nonfinite = "refuse",
    tokenizer: str | None = None,
    word_vectors: str | None = None,
) -> Iterator[Samples]:
    """Samples of a place in batches, ready for the model. What was cut, missing or zeroed is a warning at the end.

    Args:
        given: directory or URL of shards, a feature pickle, a table, or a directory of its files.
        card: the model that will read them.
        splits: which; None: `default`.
        default: the split that is read of what has splits, where none is named; None: all.
        ids: which samples; None: all.
        nonfinite: whether NaN and infinities are an error, or become 0.
        tokenizer: see `TranscriptText`.
        word_vectors: the same.

    Raises:
        ValueError: what is not there, is there twice, or does not fit the model.
    """
    wanted, path = _unique(ids), to_place(given)

    def choose(there: Iterable[str]) -> list[str]:
        return chosen_splits(path, there, splits, default)

    reading = _Reading(
        card=card,
        fitter=card.fitter(nonfinite),
        text=TranscriptText(card, tokenizer=tokenizer, word_vectors=word_vectors),
    )
    return _checked(_batches(path, reading, choose), reading.fitter, path, wanted)


def read_clips(
    jobs: Sequence[ClipJob], card: ModelCard, maker: FeatureMaker, text: TranscriptText, *, ids: list[str] | None = None
) -> Iterator[Samples]:
    """Clips as `read_samples` gives the samples of a place, in their order.

    Args:
        jobs: at least one.
        ids: which clips; None: all.

    Raises:
        ValueError: an id of no clip, or no clip of which features can be made.
    """
    wanted = _unique(ids)
    unknown = sorted(wanted - {job.id for job in jobs}) if wanted else []
    if unknown:
        known = min(job.id for job in jobs)
        raise ValueError(f"there is no clip {unknown[0]!r} among {len(jobs)}; ids look like {known!r}")
    chosen = [job for job in jobs if wanted is None or job.id in wanted]
    where = str(chosen[0].media if len(chosen) == 1 else chosen[0].media.parent)
    reading = _Reading(card=card, fitter=card.fitter(), text=text)
    batches = (
        samples
        for fields in clip_fields(chosen, maker, BATCH_SIZE)
        for samples in _from_fields(Fields(fields), "", reading, where)
    )
    return _checked(batches, reading.fitter, where, None)


def are_shards(path: Place) -> bool:
    """Whether a place is read as shards: it has an index, or is a directory of nothing else."""
    if path.is_url or (path.path / INDEX_NAME).exists():
        return True
    return path.is_dir() and not is_table(path.path)


def is_named_as_input(path: Path) -> bool:
    """Whether a path has a suffix of what is predicted, so that it names no model: media, pickles and tables."""
    return path.suffix.lower() in {*MEDIA_SUFFIXES, *PICKLE_SUFFIXES, *TABLE_SUFFIXES}


def _checked(
    batches: Iterator[Samples], fitter: InputFitter, path: Place | str, wanted: set[str] | None
) -> Iterator[Samples]:
    """The wanted samples, each once; what was changed is said at the end."""
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
    for line in fitter.warnings():
        _log.warning("warning: %s", line)
    if not seen:
        raise ValueError(f"{path} holds no sample; give a file with at least one")
    unknown = sorted(wanted - set().union(*seen.values())) if wanted else []
    if unknown:
        count = sum(map(len, seen.values()))
        raise ValueError(f"{path} has no sample {unknown[0]!r} among its {count}; ids look like {min(there)!r}")


def _batches(path: Place, reading: _Reading, choose: Choose) -> Iterator[Samples]:
    """The samples of what a place is."""
    if are_shards(path):
        return _from_shards(path, reading.card, choose)
    read = _from_table if is_table(path.path) else _from_pickle
    return read(path.path, reading, choose)


def _unique(ids: list[str] | None) -> set[str] | None:
    if not ids:
        return None
    twice = [name for number, name in enumerate(ids) if name in ids[:number]]
    if twice:
        raise ValueError(f"the id {twice[0]!r} is asked for twice; name each sample once")
    return set(ids)


def chosen_splits(path: Place, there: Iterable[str], splits: list[str] | None, default: str | None) -> list[str]:
    """Which of the splits that are there ("" alone: there are none) are to be read, as `read_samples` is asked.

    Raises:
        ValueError: a split that is not there.
    """
    known = list(there)
    if splits is None and default is not None and known != [""]:
        if default not in known:
            raise ValueError(
                f"{path} has no split {default!r}; it has: {', '.join(known)}; ask for one, such as --split {known[0]}"
            )
        return [default]
    wanted = [split_of(name) or name for name in splits or []]
    for split in wanted:
        if split not in known:
            raise ValueError(f"{path} has no split {split!r}; it has: {', '.join(filter(None, known)) or 'none'}")
    return wanted or known


def _from_shards(path: Place, card: ModelCard, choose: Choose) -> Iterator[Samples]:
    with ShardReader(path) as reader:
        counts = reader.index.info.counts
        splits = choose(counts)
        check_shards(card, reader, splits)
        for split in splits:
            yield from shard_batches(reader, card, split, range(counts[split]))


def check_shards(card: ModelCard, reader: ShardReader, splits: list[str]) -> None:
    """Raise ValueError unless the model reads what the shards hold; other lengths are a warning."""
    info, root = reader.index.info, reader.index.root
    check_same_text(card.data, info)
    check_same_labels(config_of(card), card.data, info)
    for what, here in (("text_kind", info.text_kind), ("dims", info.dims)):
        if card.data[what] != here:
            raise ValueError(
                f"the model was trained on data with {what} {card.data[what]}, {root} has {here}; give shards that "
                "were made from the same features"
            )
    check_made_alike(card, info.extraction, str(root))
    if card.data["lengths"] != info.lengths:
        _log.warning(
            "warning: the model was trained on data with lengths %s, %s has %s: shorter samples are padded%s",
            card.data["lengths"],
            root,
            info.lengths,
            "".join(_longer(card.data["lengths"], reader, splits)),
        )


def _longer(lengths: dict[str, int], reader: ShardReader, splits: list[str]) -> Iterator[str]:
    """What is cut of shards whose samples may be longer than the model's."""
    info = reader.index.info
    records = [reader.index.records(split, range(info.counts[split]))["length"] for split in splits]
    steps = np.concatenate(records).astype(np.int64)  # [samples, modalities]
    for number, modality in enumerate(MODALITIES):
        over = np.maximum(steps[:, number] - lengths[modality], 0)
        if over.any():
            yield f"; {modality} of {np.count_nonzero(over)} of {len(steps)} samples is cut, by {over.sum()} steps"


def shard_batches(reader: ShardReader, card: ModelCard, split: str, rows: range) -> Iterator[Samples]:
    """Samples `rows` of a split for a model, in batches that begin at multiples of `BATCH_SIZE`, whoever reads them."""
    assert rows.start % BATCH_SIZE == 0, "a batch has the same samples in every command"
    config = config_of(card)
    scoring = scoring_of(config, card.data)
    fitter = card.fitter() if card.data["lengths"] != reader.index.info.lengths else None
    for begin in range(rows.start, rows.stop, BATCH_SIZE):
        batch_rows = range(begin, min(begin + BATCH_SIZE, rows.stop))
        batch = reader.read(split, batch_rows)
        yield Samples(
            split=split,
            ids=reader.index.ids(split, batch_rows),
            texts=reader.raw_texts(split, batch_rows),
            labels=shard_labels(batch, config, scoring),
            inputs=Inputs(arrays={m: torch.from_numpy(batch[m]) for m in MODALITIES})
            if fitter is None
            else fitter.fit({m: batch[m] for m in MODALITIES}),
        )


def _from_pickle(path: Path, reading: _Reading, choose: Choose) -> Iterator[Samples]:
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
    for split in choose(there or [""]):
        fields = Fields(text_keys(content[there[split]] if split else content))
        yield from _from_fields(fields, split, reading, path)
        _warn_of(fields.unused(), f"{path} {split}".rstrip())


def _from_table(path: Path, reading: _Reading, choose: Choose) -> Iterator[Samples]:
    table = Table(path)
    check_made_alike(reading.card, table.extraction(), str(path))
    _warn_of(table.other_files, str(path))
    unused: dict[str, int] = {}
    for split in choose(table.splits()):
        for rows in table.read(split, BATCH_SIZE):
            fields = Fields(_label_fields(rows, reading.card))
            yield from _from_fields(fields, split, reading, path)
            for name, count in fields.unused().items():
                unused[name] = unused.get(name, 0) + count
    _warn_of(unused, str(path))


def _warn_of(ignored: dict[str, int], where: str) -> None:
    if ignored:
        _log.warning("warning: %s: ignored: %s", where, format_counts(ignored))


def _label_fields(rows: dict[str, Any], card: ModelCard) -> dict[str, Any]:
    """The columns of a table with the labels that the model predicts under their names in a pickle."""
    if config_of(card).data.classes == "stored" and "class" in rows:
        rows["classification_labels"] = rows.pop("class")
    emotions = card.data.get("emotions") or ()
    if emotions and set(emotions) <= rows.keys():
        rows["emotions"] = list(map(list, zip(*(rows.pop(name) for name in emotions), strict=True)))
    return rows


def _from_fields(fields: Fields, split: str, reading: _Reading, path: Path | str) -> Iterator[Samples]:
    names = {m: m for m in MODALITIES}
    if reading.card.data["text_kind"] == "tokens":
        names["text"] = "text_bert"
    where = f"{path} {split}: " if split else f"{path}: "
    if not any(name in fields for name in names.values()):
        there = ", ".join(map(str, fields)) or "nothing"
        raise ValueError(f"{where}it has none of {', '.join(names.values())}, which the model reads; it has: {there}")
    if any(hasattr(fields.get(name), "__len__") and not len(fields[name]) for name in names.values()):
        raise ValueError(f"{where}no sample; give a file with at least one")
    arrays = {m: fields.get(name) for m, name in names.items()}
    lengths = {
        name: (m, fields[name])
        for m in MODALITIES
        for name in (f"{m}_lengths", f"{m}_length")  # as a pickle and a table call them
        if fields.get(name) is not None
    }
    _check_text_option(reading.text, arrays["text"], fields, names["text"], where)
    if arrays["text"] is None and reading.text.is_known and fields.get("raw_text") is not None:
        arrays["text"] = reading.text.make(_texts(fields), reading.fitter, where)
        lengths = {name: of for name, of in lengths.items() if of[0] != "text"}
    inputs = reading.fitter.fit(arrays, where, lengths=lengths)
    count = len(inputs)
    given = _listed(fields.get("id"), count, where, "id")
    ids = [to_id(name, f"{where}sample {row}") for row, name in enumerate(given)] or [str(row) for row in range(count)]
    texts = list(map(to_raw_text, _listed(fields.get("raw_text"), count, where, "raw_text"))) or [""] * count
    labels = pickle_labels(fields, count, reading.card, where)
    reading.fitter.count_unlabelled(where, int(np.isnan(labels.reshape(count, -1)).any(1).sum()))
    for begin in range(0, count, BATCH_SIZE):
        part = slice(begin, begin + BATCH_SIZE)
        yield Samples(
            split=split,
            ids=ids[part],
            texts=texts[part],
            labels=labels[part],
            inputs=inputs.pick(part),
        )


def _check_text_option(text: TranscriptText, array: Any, fields: Fields, name: str, where: str) -> None:
    """Raise ValueError where the user says what makes the text, and none is to be made."""
    if not text.is_given:
        return
    if array is not None:
        raise ValueError(f"{where}it has {name}, so that no text is made of raw_text: leave {text.option} out")
    if fields.get("raw_text") is None:
        raise ValueError(f"{where}it has no raw_text, of which text could be made: leave {text.option} out")


def _texts(fields: Fields) -> list[str | None]:
    """The sentences of a split, None where there is none; one sample alone may have a plain one."""
    given = fields["raw_text"]
    listed = given if isinstance(given, list | tuple) or np.ndim(given) else [given]
    return [None if is_missing(text) else to_raw_text(text) for text in listed]


def _listed(values: Any, count: int, where: str, name: str) -> list[Any]:
    """The entries of a field, of which one sample alone may have a plain one; none where it is not there."""
    if values is None:
        return []
    alone = values.item() if isinstance(values, np.ndarray) and not values.ndim else values
    listed = list(values) if isinstance(values, (list, tuple)) or np.ndim(values) else [alone]
    if len(listed) != count:
        raise ValueError(f"{where}{len(listed)} values of {name} for {count} samples; give one per sample")
    return listed
