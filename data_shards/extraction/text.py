"""What makes arrays of a transcript: a tokenizer, or an encoder that is handed in."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Tokens(Protocol):
    """Makes token ids: `data_shards.text.tokenizer.Tokenizer`."""

    @property
    def digest(self) -> str:
        """Equal for tokenizers that make the same ids."""

    def count(self, text: str) -> int:
        """How many tokens a text has, with special ones."""

    def encode(self, text: str, length: int) -> NDArray[np.int32]:
        """Token ids, attention mask and token types [3, length]; tokens beyond the length are cut off."""


class States(Protocol):
    """Makes hidden states: `dmd.extraction.text_states.TextStates`."""

    @property
    def digest(self) -> str:
        """Equal for encoders that make the same states."""

    @property
    def dim(self) -> int:
        """Features of a hidden state."""

    def __call__(self, words: Sequence[str]) -> NDArray[np.float32]:
        """One hidden state per word [words, D]."""
