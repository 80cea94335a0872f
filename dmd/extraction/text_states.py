"""Hidden states of words: a pretrained text encoder's last layer, one state per word, the mean of its tokens."""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_shards.extraction.clip import ClipError
from data_shards.text.tokenizer import TokenCounts, Tokenizer, load_tokenizer
from dmd.model.text import TextEncoder, first_position, load_text_encoder
from dmd.model.text_base import weights_digest

if TYPE_CHECKING:
    from tokenizers import Encoding


def load_text_states(name: str, *, local: bool = False) -> "TextStates":
    """A Hugging Face encoder and its tokenizer, by model directory or hub name, on the CPU in float32.

    Args:
        local: fetch nothing: a directory, or what this machine has fetched from the hub before.

    Raises:
        ValueError: either cannot be loaded.
    """
    tokenizer = load_tokenizer(name, local=local)
    return TextStates(load_text_encoder(name, frozen=True, local=local), tokenizer)


class TextStates:
    """Makes hidden states of words, as `data_shards.extraction.text.States`."""

    def __init__(self, encoder: TextEncoder, tokenizer: Tokenizer) -> None:
        self._encoder = encoder.eval()
        self._tokenizer = tokenizer
        config: Any = encoder.network.config
        positions = getattr(config, "max_position_embeddings", None)
        limits = [tokenizer.max_length, None if positions is None else positions - first_position(config)]
        self._limit = min((limit for limit in limits if limit is not None), default=None)
        self._vocab_size = int(config.vocab_size)

    @property
    def dim(self) -> int:
        """Features of a hidden state."""
        return self._encoder.dim

    @cached_property
    def digest(self) -> str:
        """sha256 of the encoder's weights and of the tokenizer."""
        parts = weights_digest(self._encoder.network) + self._tokenizer.digest
        return hashlib.sha256(parts.encode()).hexdigest()

    def look(self, words: Sequence[str]) -> TokenCounts:
        """What the tokenizer makes of the text that words make with spaces between them."""
        return self._tokenizer.look(" ".join(words))

    def __call__(self, words: Sequence[str]) -> NDArray[np.float32]:
        """One hidden state per word [words, dim], of the text that they make with spaces between them.

        A word of which the tokenizer makes nothing has zeros. A text of more tokens than the encoder takes is halved
        until its parts fit, each of which is encoded for itself.

        Raises:
            ClipError: one word has more tokens than the encoder takes.
            ValueError: the tokenizer knows tokens that the encoder does not.
        """
        text = " ".join(words)
        encoding = self._tokenizer.backend.encode(text)
        if self._limit is not None and len(encoding) > self._limit:
            if len(words) == 1:
                raise ClipError(
                    f"its word {words[0]!r:.40} has {len(encoding)} tokens, and the text encoder takes {self._limit}"
                )
            middle = len(words) // 2
            return np.concatenate([self(words[:middle]), self(words[middle:])])
        ids = torch.tensor(encoding.ids)  # [T]
        if ids.numel() and int(ids.max()) >= self._vocab_size:
            raise ValueError(
                f"the tokenizer {self._tokenizer.name} gives token {int(ids.max())}, and its encoder knows "
                f"{self._vocab_size}; give a directory whose tokenizer and weights belong together"
            )
        owners = _owners(words, encoding)
        types = torch.tensor(encoding.type_ids) if self._tokenizer.has_types else torch.zeros_like(ids)
        with torch.no_grad():
            states = self._encoder(torch.stack([ids, torch.ones_like(ids), types])[None])[0].numpy()  # [T, dim]
        means = np.zeros((len(words), self.dim), dtype=np.float32)
        for word in range(len(words)):
            if (own := owners == word).any():
                means[word] = states[own].mean(axis=0, dtype=np.float64)
        return means


def _owners(words: Sequence[str], encoding: "Encoding") -> NDArray[np.int64]:
    """The word to which each token of the words, with spaces between them, belongs [tokens]; -1 for special tokens. A
    space belongs to the word behind it, also where the tokenizer gives a token of its own to it."""
    of_character = [number for number, word in enumerate(words) for _ in range(len(word) + (number > 0))]
    owners = [-1] * len(encoding)
    for token, (start, stop) in enumerate(encoding.offsets):
        if not encoding.special_tokens_mask[token]:
            # RoBERTa says of a space alone that it is nothing in front of the word
            owners[token] = of_character[max(start, stop - 1)]
    return np.array(owners, dtype=np.int64)
