"""Features without labels, joined with a label file by the clip's id."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from data_shards.format.schema import SPLITS, Sample
from data_shards.sources.label_file import ClipLabels, LabelFile
from data_shards.sources.left_out import named, some
from data_shards.writing.source import IdentifiedSource


class LabelledSource:
    """The clips that are in both, in the order of the features; pickled with the labels of its clips."""

    def __init__(self, source: IdentifiedSource, labels: LabelFile, *, where: str) -> None:
        """Join them.

        Args:
            source: of the features, whose labels do not count.
            where: what errors call them.

        Raises:
            ValueError: no clip is in both; a clip that is there twice, or in two splits; no split anywhere.
        """
        self._source = source
        self.name = source.name
        self.extraction: dict[str, Any] = getattr(source, "extraction", {})
        """How the features were made of clips; empty: unknown."""
        by_name = {name: clip for clip in labels.clips for name in clip.names}
        found = [(split, number, name) for split in source.counts() for number, name in enumerate(source.ids(split))]
        self._clips: dict[str, list[tuple[str, int, ClipLabels]]] = {split: [] for split in SPLITS}
        """Split -> of each sample its split and number in the features, and its labels."""
        lacking, moved, rows = [], [], dict[int, str]()
        for split, number, name in found:
            clip = by_name.get(name)
            if clip is None:
                lacking.append(name)
                continue
            if clip.line in rows:
                raise ValueError(
                    f"{where}: {rows[clip.line]!r} and {name!r} are both the clip of line {clip.line} of "
                    f"{labels.path}; leave one"
                )
            rows[clip.line] = name
            if source.has_splits and clip.split not in ("", split):
                moved.append(f"{name} ({split} there, {clip.split} here)")
            if not source.has_splits and not clip.split:
                raise ValueError(
                    f"neither {where} nor {labels.path} says which split {name!r} is of; add a column mode with train, "
                    "valid and test"
                )
            self._clips[clip.split or split].append((split, number, clip))
        if moved:
            raise ValueError(
                f"{labels.path}: {len(moved)} clips are in another split than in {where}: {some(moved)}; correct the "
                "column mode, or leave it out"
            )
        if not rows:
            raise ValueError(
                f"no clip is in both {labels.path} and {where}: labels are of "
                f"{some([clip.names[0] for clip in labels.clips])}, features of {some(lacking)}; they are joined by "
                "VIDEO$_$CLIP or VIDEO/CLIP, as written"
            )
        self.notes = labels.notes
        """Lines for the user."""
        unused = [clip.names[0] for clip in labels.clips if clip.line not in rows]
        file = Path(labels.path).name
        self.ignored = {
            **source.ignored,
            **labels.left_out,
            **named(f"clips without a label in {file}", lacking),
            **named(f"rows of {file} without features", unused),
        }
        """What is in the files and in no sample -> how many entries it has."""
        self.nonfinite = source.nonfinite if source.has_splits else _of_all_splits(source.nonfinite)

    def counts(self) -> dict[str, int]:
        """Samples per split, for the splits that occur."""
        return {split: len(clips) for split, clips in self._clips.items() if clips}

    def memory(self) -> int:
        """Bytes that reading takes at most."""
        return self._source.memory()

    def read(self, split: str, start: int, stop: int) -> Iterator[Sample]:
        """Samples `start` to `stop` of a split, in the order of the features."""
        chosen = enumerate(self._clips[split][start:stop])
        for (own_split, _), run in groupby(chosen, lambda entry: (entry[1][0], entry[1][1] - entry[0])):
            clips = [(number, clip) for _, (_, number, clip) in run]
            samples = self._source.read(own_split, clips[0][0], clips[-1][0] + 1)
            for sample, (_, clip) in zip(samples, clips, strict=True):
                yield replace(sample, split=split, raw_text=sample.raw_text or clip.raw_text, **clip.fields)


def _of_all_splits(nonfinite: dict[str, int]) -> dict[str, int]:
    """Counts of what was read as one split, under the name of all."""
    return {f"all/{place.partition('/')[2]}": count for place, count in nonfinite.items()}
