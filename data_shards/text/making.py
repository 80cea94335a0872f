"""Tokens or word features for all samples of a source: how long they are, what was cut or is unknown, the source."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from data_shards.executor import Executor
from data_shards.text.tokenizer import Tokenizer
from data_shards.text.transcripts import MadeText, Measured, TranscriptFacts, TranscriptSource, look_at
from data_shards.text.word_vectors import WordVectors, count_words, name_words, read_word_vectors, split_words
from data_shards.writing.source import Source


@dataclass(frozen=True)
class MadeTokens:
    """Token ids of transcripts (`transcripts.MadeText`)."""

    tokenizer: Tokenizer
    length: int
    """Tokens of each sample, with padding."""

    def make(self, raw_text: str) -> tuple[NDArray[Any], int]:
        """Ids, mask and token types [3, T] of a transcript, and its tokens."""
        tokens = self.tokenizer.encode(raw_text, self.length)
        return tokens, int(tokens[1].sum())

    def memory(self) -> int:
        """Bytes of the tokenizer."""
        return self.tokenizer.memory()


@dataclass(frozen=True)
class MadeWordFeatures:
    """Vectors of the words of transcripts (`transcripts.MadeText`)."""

    vectors: WordVectors
    length: int
    """Words of each sample, with padding."""

    def make(self, raw_text: str) -> tuple[NDArray[Any], int]:
        """Features [T, D] of a transcript, and its words."""
        return self.vectors.features(raw_text, self.length), min(count_words(raw_text), self.length)

    def memory(self) -> int:
        """Bytes of the vectors, and of their dictionary."""
        return self.vectors.memory()


@dataclass(frozen=True, kw_only=True)
class TextPlan:
    """A source with text, and what is to be said about it."""

    source: TranscriptSource
    made_with: dict[str, str]
    """`name` and `digest` of the tokenizer or the vectors, for the index."""
    unused: dict[str, int]
    """What of the transcripts is not in the samples -> how many."""
    notes: tuple[str, ...]
    """Lines for the user."""
    memory: int
    """Bytes that making the text takes at most."""


def plan_tokens(
    source: Source, tokenizer: Tokenizer, executor: Executor, *, length: int | None = None, memory: int = 0
) -> TextPlan:
    """Tokens of all transcripts of a source.

    Args:
        executor: where transcripts are looked at.
        length: tokens of each sample; None: those of the longest transcript, or as many as the tokenizer's model takes.
        memory: bytes that reading the source takes at most.

    Raises:
        ValueError: no transcripts, a length without room for a token, or a tokenizer that knows no word of them.
    """
    if length is not None:
        tokenizer.check_length(length)
    facts = look_at(source, executor, _MeasureTokens(tokenizer), memory=memory + tokenizer.memory())
    unknown = facts.words
    if not facts.known:
        examples = f", such as {name_words(unknown)}" if unknown else ""
        raise ValueError(
            f"the tokenizer {tokenizer.name} knows no word of the {facts.count} transcripts{examples}; give one of "
            "their language and script: --tokenizer NAME_OR_PATH"
        )
    if length is None:
        length = max(min(facts.longest, tokenizer.max_length or facts.longest), tokenizer.shortest)
    notes = [
        f"text: {length} tokens a sample by the tokenizer {tokenizer.name}; the longest transcript has {facts.longest}"
    ]
    become = f"are unknown to the tokenizer and become token {tokenizer.unknown_id}"
    notes += _unknown_words(unknown, facts.known, become)
    unused = {"words that the tokenizer does not know": unknown.total()} if unknown else {}
    return _plan(source, MadeTokens(tokenizer, length), facts, tokenizer, notes=notes, unit="tokens", unused=unused)


def plan_word_features(
    source: Source, path: str | Path, executor: Executor, *, length: int | None = None, memory: int = 0
) -> TextPlan:
    """Vectors for the words of all transcripts of a source.

    Args:
        path: the file of word vectors.
        executor: where transcripts are looked at.
        length: words of each sample; None: those of the longest transcript.
        memory: bytes that reading the source takes at most.

    Raises:
        ValueError: no transcripts, or as `read_word_vectors`.
    """
    facts = look_at(source, executor, _measure_words, memory=memory)
    vectors = read_word_vectors(path, facts.words)
    length = facts.longest if length is None else length
    unknown = vectors.unknown(facts.words)
    notes = [
        f"text: {length} words a sample, {vectors.dim} values each from {vectors.name}; the longest transcript has "
        f"{facts.longest}"
    ]
    known = facts.words.total() - unknown.total()
    notes += _unknown_words(unknown, known, "are not among the vectors and become zeros")
    unused = {"words without a vector": unknown.total()} if unknown else {}
    return _plan(source, MadeWordFeatures(vectors, length), facts, vectors, notes=notes, unit="words", unused=unused)


def _plan(
    source: Source,
    text: MadeText,
    facts: TranscriptFacts,
    made_with: Tokenizer | WordVectors,
    *,
    notes: list[str],
    unit: str,
    unused: dict[str, int],
) -> TextPlan:
    cut, lost = facts.cut(text.length)
    if cut:
        notes.append(
            f"text: {cut} of {facts.count} transcripts are cut after {text.length} {unit}, {lost} {unit} are dropped; "
            f"--text-length {facts.longest} keeps all"
        )
        unused = {**unused, f"{unit} beyond {text.length} of a transcript": lost}
    if facts.empty:
        notes.append(f"text: {facts.empty} of {facts.count} transcripts are empty, the first is {facts.first_empty}")
    return TextPlan(
        source=TranscriptSource(source, text),
        made_with={"name": made_with.name, "digest": made_with.digest},
        unused=unused,
        notes=tuple(notes),
        memory=text.memory(),
    )


@dataclass(frozen=True)
class _MeasureTokens:
    """Looks at a transcript."""

    tokenizer: Tokenizer

    def __call__(self, raw_text: str) -> Measured:
        counts = self.tokenizer.look(raw_text)
        return Measured(steps=counts.tokens, known=counts.known, words=counts.unknown)


def _measure_words(raw_text: str) -> Measured:
    """A transcript whose words are looked up later."""
    words = split_words(raw_text)
    return Measured(steps=len(words), known=0, words=words)


def _unknown_words(unknown: Counter[str], known: int, what: str) -> list[str]:
    """The line about words that are unknown, beside some that are known."""
    if not unknown:
        return []
    count = unknown.total()
    total = known + count
    return [f"text: {count} of {total} words ({count / total:.1%}) {what}: {name_words(unknown)}"]
