"""Text made of the `raw_text` of any source's samples: what a set needs to know of all of them, and the source.

All transcripts are read twice: by `look_at` for their lengths and words, which decide what all samples are padded to,
and when shards are written. Both are tasks of an executor, so the bytes are the same wherever they run.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

from numpy.typing import NDArray

from data_shards.executor import Executor
from data_shards.format.schema import Sample, is_utf8
from data_shards.writing.source import Source

_AT_ONCE = 512
"""Samples that a task looks at."""


class MadeText(Protocol):
    """Makes the text of samples. Picklable as its content, so that other hosts need none of its files."""

    @property
    def length(self) -> int:
        """Steps of each sample, with padding."""

    def make(self, raw_text: str) -> tuple[NDArray[Any], int]:
        """Tokens [3, T] or features [T, D] of a transcript, and how many steps of them are no padding."""

    def memory(self) -> int:
        """Bytes that it takes in a process, at most."""


class Measured(NamedTuple):
    """What is to be known of one transcript."""

    steps: int
    known: int
    """Words, or parts of words, that are not among `words`."""
    words: list[str]
    """What is counted by name: all words, or those that are unknown already."""


@dataclass
class TranscriptFacts:
    """What is known of many transcripts."""

    lengths: Counter[int] = field(default_factory=Counter)
    """How many transcripts have how many steps."""
    known: int = 0
    """Words that are known while transcripts are looked at."""
    words: Counter[str] = field(default_factory=Counter)
    """How often each of the other words occurs."""
    empty: int = 0
    """Transcripts without any character but white space."""
    first_empty: str = ""
    """The split and the id of the first of them."""

    @property
    def count(self) -> int:
        """How many there are."""
        return self.lengths.total()

    @property
    def longest(self) -> int:
        """Steps of the longest."""
        return max(self.lengths)

    def add(self, others: "TranscriptFacts") -> None:
        """Count others, which come later, too."""
        self.lengths.update(others.lengths)
        self.known += others.known
        self.words.update(others.words)
        self.first_empty = self.first_empty or others.first_empty
        self.empty += others.empty

    def cut(self, length: int) -> tuple[int, int]:
        """How many transcripts are longer than a length, and how many steps of them are beyond it."""
        longer = {steps: number for steps, number in self.lengths.items() if steps > length}
        return sum(longer.values()), sum((steps - length) * number for steps, number in longer.items())


@dataclass(frozen=True)
class _LookAt:
    """Looks at transcripts, some samples a task. Picklable."""

    source: Source
    tasks: tuple[tuple[str, int, int], ...]
    """Split, first sample, last sample + 1."""
    measure: Callable[[str], Measured]

    def __call__(self, number: int) -> TranscriptFacts:
        """The facts of a task's transcripts."""
        split, start, stop = self.tasks[number]
        facts = TranscriptFacts()
        for place, sample in enumerate(self.source.read(split, start, stop), start=start):
            where = f"{split} sample {repr(sample.id) if sample.id else place}"
            if not is_utf8(sample.raw_text):
                raise ValueError(f"{self.source.name}: {where}: its text cannot be written as UTF-8; mend it")
            measured = self.measure(sample.raw_text)
            facts.lengths[measured.steps] += 1
            facts.known += measured.known
            facts.words.update(measured.words)
            if not sample.raw_text.strip():
                facts.empty += 1
                facts.first_empty = facts.first_empty or where
        return facts


def look_at(
    source: Source,
    executor: Executor,
    measure: Callable[[str], Measured],
    *,
    memory: int = 0,
) -> TranscriptFacts:
    """Look at all transcripts of a source.

    Args:
        measure: looks at one; picklable.
        memory: bytes that reading the source and measuring take at most.

    Raises:
        ValueError: no transcript that says anything.
    """
    tasks = tuple(
        (split, start, min(start + _AT_ONCE, count))
        for split, count in source.counts().items()
        for start in range(0, count, _AT_ONCE)
    )
    facts = TranscriptFacts()
    with executor.map_in_order(_LookAt(source, tasks, measure), len(tasks), memory=memory) as results:
        for result in results:
            facts.add(result)
    if facts.empty == facts.count:
        raise ValueError(
            f"{source.name}: none of its {facts.count} samples has a transcript, of which text could be made; give "
            "them a field or column raw_text (computational sequences: --csd words=FILE of the same videos), or leave "
            "--tokenizer and --word-vectors out"
        )
    return facts


class TranscriptSource:
    """Another source's samples (`data_shards.writing.source.Source`) with text that is made of their transcripts."""

    def __init__(self, source: Source, text: MadeText) -> None:
        self._source = source
        self._text = text

    @property
    def name(self) -> str:
        """The data set's name."""
        return self._source.name

    def counts(self) -> dict[str, int]:
        """Samples per split."""
        return self._source.counts()

    def read(self, split: str, start: int, stop: int) -> Iterator[Sample]:
        """Samples `start` to `stop` of a split."""
        for sample in self._source.read(split, start, stop):
            array, length = self._text.make(sample.raw_text)
            yield replace(sample, text=array, lengths=(length, *sample.lengths[1:]))
