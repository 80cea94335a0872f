"""What a model reads as text, made of transcripts as that of its training was: by a tokenizer, or of word vectors."""

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from dmd.system.input_arrays import InputFitter
from dmd.system.trained_model import ModelCard

if TYPE_CHECKING:
    from data_shards.text.tokenizer import Tokenizer

_SHOWN = 12
"""Digits of a digest that a message shows."""


class TranscriptText:
    """Makes the text of one model. What that takes is loaded when the first transcript comes."""

    def __init__(self, card: ModelCard, *, tokenizer: str | None = None, word_vectors: str | None = None) -> None:
        """Nothing is loaded yet.

        Args:
            tokenizer: path or hub name of the tokenizer; None: as the training named it.
            word_vectors: their file; None: as the training named it.

        Raises:
            ValueError: one of them is given that makes no text of this model.
        """
        self.is_tokens = card.data["text_kind"] == "tokens"
        """Whether the text is token ids."""
        self.option = "--tokenizer PATH" if self.is_tokens else "--word-vectors FILE"
        """What names it."""
        self.is_given = (tokenizer or word_vectors) is not None
        """Whether the user says what makes the text."""
        self._check_given(card, tokenizer=tokenizer, word_vectors=word_vectors)
        self._given = tokenizer if self.is_tokens else word_vectors
        self._trained: dict[str, str] = card.data.get("tokenizer") or {}
        """`name` and `digest` of what made the text of the training."""
        self._length = int(card.data["lengths"]["text"])
        self.is_known = bool(self._given or self._trained)
        """Whether something says what makes the text."""
        self.has_untold = (card.data.get("extraction") or {}).get("missing") == "zeros"
        """Whether clips without a transcript may have been among those of the training; their text was empty."""

    def _check_given(self, card: ModelCard, *, tokenizer: str | None, word_vectors: str | None) -> None:
        made_states = (card.data.get("extraction") or {}).get("text") == "states"
        trained = "token ids" if self.is_tokens else "hidden states of a text encoder" if made_states else "features"
        if word_vectors is not None and trained != "features":
            advice = f"give {self.option}" if self.is_tokens else "name the encoder with --text-encoder PATH"
            raise ValueError(
                f"--word-vectors {word_vectors} makes features of words, and the model was trained on {trained}; leave "
                f"it out, or {advice}"
            )
        if tokenizer is not None and not self.is_tokens:
            raise ValueError(
                f"--tokenizer {tokenizer} makes token ids, and the model was trained on {trained}; leave it out"
            )

    @property
    def _name(self) -> str:
        return self._given or self._trained["name"]

    @cached_property
    def tokenizer(self) -> "Tokenizer":
        """The tokenizer. Of a name that only the card says nothing is fetched: it may come from anybody.

        Raises:
            ValueError: it is not here, or gives other ids than that of the training.
        """
        from data_shards.text.tokenizer import load_tokenizer

        try:
            found = load_tokenizer(self._name, local=self._given is None)
        except ValueError as error:
            raise self._not_here(error) from error
        self._check_digest(found.digest)
        return found

    def make(self, texts: Sequence[str | None], fitter: InputFitter, where: str) -> list[NDArray[Any] | None]:
        """Tokens [3, T] or features [T, D] of each transcript; the fitter counts what is cut. Where there is none it is
        None, or that of an empty one where the training had such.

        Raises:
            ValueError: what makes them is not here, or is another than that of the training.
        """
        known = ["" if text is None and self.has_untold else text for text in texts]
        return self._tokens(known, fitter, where) if self.is_tokens else self._vectors(known, fitter, where)

    def _tokens(self, texts: Sequence[str | None], fitter: InputFitter, where: str) -> list[NDArray[Any] | None]:
        for text in texts:
            if text is None:
                continue
            counts = self.tokenizer.look(text)
            if (over := counts.tokens - self._length) > 0:
                fitter.count_cut((where, "text"), over)
            fitter.count_unknown(where, Counter(counts.unknown), counts.known + len(counts.unknown))
        return [None if text is None else self.tokenizer.encode(text, self._length) for text in texts]

    def _vectors(self, texts: Sequence[str | None], fitter: InputFitter, where: str) -> list[NDArray[Any] | None]:
        """All words of each text; the fitter cuts them."""
        from data_shards.text.word_vectors import read_word_vectors, split_words

        words = Counter(word for text in texts for word in split_words(text or ""))
        if not words:
            return [None] * len(texts)
        try:
            vectors = read_word_vectors(self._name, words, may_lack_all=True)
        except ValueError as error:
            raise self._not_here(error) from error
        self._check_digest(vectors.digest)
        fitter.count_unknown(where, vectors.unknown(words), words.total())
        return [None if not text else vectors.features(text, len(split_words(text))) for text in texts]

    def _not_here(self, error: ValueError) -> ValueError:
        what = "token ids of the tokenizer" if self.is_tokens else "word vectors of"
        trained = self._trained.get("name", "a name that is not known")
        return ValueError(
            f"the model was trained on {what} {trained}, and {self._name} cannot be used: {error}; give {self.option}"
        )

    def _check_digest(self, here: str) -> None:
        """Raise ValueError where something else would make the text than did for the training."""
        there = self._trained.get("digest", here)
        if here != there:
            raise ValueError(
                f"{self._name} (sha256 {here[:_SHOWN]}) makes another text of a transcript than what made that of the "
                f"training, {self._trained['name']} (sha256 {there[:_SHOWN]}); give that one: {self.option}"
            )
