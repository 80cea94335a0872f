"""Vectors of words from a text file of GloVe, word2vec or fastText: transcripts become features, one step a word.

A transcript is split at white space, so that steps are its words, as features that are aligned to words have them. A
word is looked up as it is spelled, then in lower case, then both without the punctuation around it. One that the file
lacks is a zero vector. The file is read once, line by line; the vectors of words that occur are kept.

Sources: GloVe (https://nlp.stanford.edu/projects/glove/): `word v1 ... vD`, without a header, and in glove.840B some
"words" with spaces in them; word2vec's text format (https://code.google.com/archive/p/word2vec/): the same under a line
`number-of-words D`.
"""

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO, NoReturn

import numpy as np
from numpy.typing import NDArray

from data_shards.file_kinds import check_file_kind

_WANTED = "a text file of word vectors (GloVe, word2vec, fastText's .vec)"
_LONGEST_LINE = 1 << 20
"""Bytes; a longer one is no line of numbers."""
_ROW_BYTES = 256
"""Of a spelling and its number in a dictionary."""
_NAMED = 5
"""Unknown words that a message names."""


@dataclass(frozen=True, kw_only=True)
class WordVectors:
    """The vectors of the words of some transcripts. Picklable as its content."""

    name: str
    """The absolute path of their file."""
    digest: str
    """sha256 of the file."""
    rows: dict[str, int]
    """Spelling -> its row of `vectors`."""
    vectors: NDArray[np.float32]
    """[spellings, D]"""

    @property
    def dim(self) -> int:
        """Values of a vector."""
        return self.vectors.shape[1]

    def row(self, word: str) -> int | None:
        """The row of a word's vector; None: it is unknown."""
        return next((self.rows[form] for form in spellings(word) if form in self.rows), None)

    def features(self, raw_text: str, length: int) -> NDArray[np.float32]:
        """The vectors of a transcript's first `length` words, padded with zeros at the end [length, D]."""
        features = np.zeros((length, self.dim), dtype=np.float32)
        for step, word in enumerate(split_words(raw_text)[:length]):
            row = self.row(word)
            if row is not None:
                features[step] = self.vectors[row]
        return features

    def memory(self) -> int:
        """Bytes that it takes in a process, at most."""
        return self.vectors.nbytes + _ROW_BYTES * len(self.rows)

    def unknown(self, words: Counter[str]) -> Counter[str]:
        """Those of the words that have no vector, with how often they occur."""
        return Counter({word: number for word, number in words.items() if self.row(word) is None})


def split_words(raw_text: str) -> list[str]:
    """The words of a transcript: what stands between white space."""
    return raw_text.split()


def count_words(raw_text: str) -> int:
    """How many words a transcript has."""
    return len(split_words(raw_text))


def spellings(word: str) -> Iterator[str]:
    """What a word may be called in a file, the best first."""
    bare = _without_punctuation(word)
    yield from dict.fromkeys(form for form in (word, word.lower(), bare, bare.lower()) if form)


def name_words(words: Counter[str]) -> str:
    """The most frequent words with their counts, for a message."""
    named = ", ".join(f"{word!r:.40} ({number})" for word, number in words.most_common(_NAMED))
    return named + (", ..." if len(words) > _NAMED else "")


def read_word_vectors(path: str | Path, words: Counter[str], *, may_lack_all: bool = False) -> WordVectors:
    """The vectors of words that occur.

    Args:
        may_lack_all: whether a file with none of the words will do.

    Raises:
        ValueError: no such file, a file of another kind or that is not whole, or none of the words is in it.
    """
    check_file_kind(path, _WANTED, allowed=("a JSON file",))
    wanted = {form.encode(): form for word in words for form in spellings(word)}
    try:
        with open(path, "rb") as file:
            reading = _Reading(file, str(path))
            found = dict(reading.vectors_of(wanted.keys()))
    except OSError as error:
        raise ValueError(f"cannot read the word vectors {path}: {error}") from error
    if not found and not may_lack_all:
        raise ValueError(
            f"{path} has a vector for none of the {len(words)} words of the transcripts, such as {name_words(words)}; "
            "give vectors of their language and script (words are what stands between spaces), or --tokenizer"
        )
    return WordVectors(
        name=str(Path(path).absolute()),
        digest=reading.digest,
        rows={wanted[word]: row for row, word in enumerate(found)},
        vectors=np.stack(list(found.values())) if found else np.zeros((0, reading.dim), dtype=np.float32),
    )


class _Reading:
    """Reads a file of vectors, once."""

    def __init__(self, file: BinaryIO, path: str) -> None:
        self._file = file
        self._path = path
        self._hash = hashlib.sha256()
        self._line = 0
        self.dim = 0
        """Values of a vector, once the first was read."""

    @property
    def digest(self) -> str:
        """sha256 of what was read."""
        return self._hash.hexdigest()

    def vectors_of(self, wanted: Iterable[bytes]) -> Iterator[tuple[bytes, NDArray[np.float32]]]:
        """The words that are wanted and found with their vectors [D]; of a word that is there twice the first."""
        lines = self._lines()
        line = next(lines, b"")
        announced = _header(line)
        if announced is not None:
            line = next(lines, b"")
        self.dim = dim = _trailing_numbers(line) if announced is None else announced[1]
        self._check_numbers(line, dim)
        missing, count = set(wanted), 0
        for last in chain([line], lines):
            count += 1
            word, _, rest = last.partition(b" ")
            if word in missing and rest.count(b" ") < dim:  # of a "word" with spaces there are more
                missing.remove(word)
                yield word, self._vector(rest.split(b" "), dim)
        self._check_numbers(last, dim)
        if announced is not None and announced[0] != count:
            raise ValueError(
                f"{self._path} is not whole: it announces {announced[0]} words and holds {count}; download it again"
            )

    def _lines(self) -> Iterator[bytes]:
        """The lines without white space at their ends, but for empty ones."""
        while line := self._file.readline(_LONGEST_LINE):
            self._line += 1
            self._hash.update(line)
            if len(line) == _LONGEST_LINE:
                self._reject("it does not end")
            if stripped := line.rstrip(b" \r\n"):
                yield stripped

    def _check_numbers(self, line: bytes, dim: int) -> None:
        if dim < 1 or _trailing_numbers(line) < dim:
            self._reject(f"a word and {dim or 'some'} numbers are expected")

    def _vector(self, values: list[bytes], dim: int) -> NDArray[np.float32]:
        try:
            vector = np.array([float(value) for value in values], dtype=np.float32)
        except ValueError:
            self._reject("what follows its word are no numbers")
        if len(vector) != dim:
            self._reject(f"it has {len(vector)} numbers and the lines before it {dim}")
        if not np.isfinite(vector).all():
            self._reject("its numbers are not finite")
        return vector

    def _reject(self, reason: str) -> NoReturn:
        raise ValueError(
            f"{self._path}, line {self._line}: {reason}; this is not {_WANTED}, or not a whole one: download "
            "it again, or write a binary file of word2vec as text with gensim's KeyedVectors: save_word2vec_format"
        )


def _header(line: bytes) -> tuple[int, int] | None:
    """Words and values of a vector, where the first line says them."""
    parts = line.split()
    if len(parts) == 2 and all(part.isdigit() for part in parts):
        return int(parts[0]), int(parts[1])
    return None


def _trailing_numbers(line: bytes) -> int:
    """How many numbers stand at the end of a line behind a word."""
    number = 0
    for part in reversed(line.split(b" ")[1:]):
        try:
            float(part)
        except ValueError:
            break
        number += 1
    return number


def _without_punctuation(word: str) -> str:
    """A word without punctuation and symbols at its ends."""
    kept = [place for place, char in enumerate(word) if unicodedata.category(char)[0] not in "PS"]
    return word[kept[0] : kept[-1] + 1] if kept else ""
