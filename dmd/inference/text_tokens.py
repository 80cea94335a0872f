"""Token ids of texts, by the tokenizer that made those of a model's training."""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from dmd.system.input_arrays import InputFitter
from dmd.system.trained_model import ModelCard

if TYPE_CHECKING:
    from data_shards.text.tokenizer import Tokenizer


class TextTokens:
    """Makes token ids for one model. Its tokenizer is loaded when the first text comes."""

    def __init__(self, card: ModelCard, name: str | None = None) -> None:
        """Nothing is loaded yet; `name` is a path or a hub name, by default that of the training's tokenizer."""
        self._named = name
        self._known = _tokenizer_of(card)
        self._length = int(card.data["lengths"]["text"])
        self.is_known = card.data["text_kind"] == "tokens" and bool(name or self._known)
        """Whether the model reads tokens, and of which tokenizer is known."""

    @cached_property
    def tokenizer(self) -> "Tokenizer":
        """The tokenizer. Of a name that only the card says nothing is fetched: it may come from anybody.

        Raises:
            ValueError: it is not here, or gives other ids than that of the training.
        """
        from data_shards.text.tokenizer import load_tokenizer

        name = self._named or self._known["name"]
        try:
            found = load_tokenizer(name, local=self._named is None)
        except ValueError as error:
            raise ValueError(
                f"the model was trained on tokens of the tokenizer {name}, which is not here: {error}; name it: "
                "--tokenizer PATH"
            ) from error
        trained = self._known.get("digest", found.digest)
        if found.digest != trained:
            raise ValueError(
                f"the tokenizer {name} gives other token ids (digest {found.digest[:12]}) than that of the training, "
                f"{self._known['name']} ({trained[:12]}); give that one: --tokenizer PATH"
            )
        return found

    def make(self, texts: Sequence[str | None], fitter: InputFitter, where: str) -> list[NDArray[Any] | None]:
        """Tokens [3, T] of each text, None where there is none; the fitter counts what is cut off."""
        found: list[NDArray[Any] | None] = []
        for text in texts:
            if text is None:
                found.append(None)
                continue
            found.append(self.tokenizer.encode(text, self._length))
            over = self.tokenizer.count(text) - self._length
            if over > 0:
                fitter.count_cut((where, "text"), over)
        return found


def _tokenizer_of(card: ModelCard) -> dict[str, str]:
    """`name` and `digest` of the tokenizer of a model's training, made it tokens of shards or of clips; else empty."""
    extraction = card.data.get("extraction") or {}
    if extraction.get("text") == "tokens":
        return {"name": extraction["text_encoder"], "digest": extraction["text_digest"]}
    return card.data.get("tokenizer") or {}
