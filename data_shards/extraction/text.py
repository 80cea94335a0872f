"""What makes hidden states of a transcript: an encoder that is handed in, since this floor has no torch."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from data_shards.text.tokenizer import TokenCounts


class States(Protocol):
    """Makes hidden states: `dmd.extraction.text_states.TextStates`."""

    @property
    def digest(self) -> str:
        """Equal for encoders that make the same states."""

    @property
    def dim(self) -> int:
        """Features of a hidden state."""

    def look(self, words: Sequence[str]) -> TokenCounts:
        """What the encoder's tokenizer makes of the words."""

    def __call__(self, words: Sequence[str]) -> NDArray[np.float32]:
        """One hidden state per word [words, D]; `ClipError` for words of which none can be made."""
