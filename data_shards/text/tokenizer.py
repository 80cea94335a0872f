"""The tokenizer of a text encoder, by model directory, hub name or a bare `vocab.txt` of BERT: texts become token ids.

transformers finds and builds it; what encodes is the tokenizer of the `tokenizers` library inside, so the ids are those
of `transformers.AutoTokenizer`. Code that a model directory brings along is never run. A `Tokenizer` is pickled as its
content: processes on other hosts need neither its files nor the hub, and neither transformers nor torch.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_shards.file_kinds import check_file_kind
from data_shards.format.schema import canonical_json

if TYPE_CHECKING:
    from tokenizers import Encoding
    from tokenizers import Tokenizer as Backend

_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model", "*.tiktoken", "tekken.json", "bpe.codes")
"""Files that hold a vocabulary, of which a model directory has at least one; transformers invents one otherwise."""
_BESIDE = ("config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt")
"""Files that say more about it."""
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_NO_EFFECT = ("special", "trim_offsets")
"""Settings in a tokenizer's JSON that change no id."""
_PROBE = "a"
"""A text that shows which special tokens stand around any."""
_TABLE_BYTES, _TRIE_BYTES = 25, 100
"""Of a loaded tokenizer, for each character of its JSON; measured up to 24 (WordPiece) and 91 (Unigram)."""
_ENDLESS = 1 << 31
"""transformers writes 10^30 where it knows no limit."""
_TRIES = "give a model directory, a name on the hub that this machine reaches, or BERT's vocab.txt: --tokenizer PATH"


class NoTokenizer(ValueError):
    """There is a model, but no tokenizer with it."""


class TokenCounts(NamedTuple):
    """What a tokenizer makes of a text."""

    tokens: int
    """With special ones; at least 1."""
    known: int
    """Tokens that are words or parts of words."""
    unknown: list[str]
    """The words, or the parts of words, that become the token for unknown ones."""


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """Makes token ids of texts. Picklable."""

    name: str
    """The absolute path of a directory or a file, or a name on the hub."""
    digest: str
    """sha256 of what determines the ids: vocabulary, merges, normalisation, splitting, added and special tokens. Equal
    for tokenizers that give the same ids, however their files spell it, as far as that can be told from them."""
    backend: "Backend"
    pad_id: int
    """What padded steps hold: the pad token, or else the end of a text, or 0."""
    unknown_id: int | None
    """What unknown words become; None: it spells all of them, by bytes."""
    has_types: bool
    """Whether its models know token types; they are 0 otherwise."""
    cut_side: Literal["left", "right"]
    """Where a text that is too long loses tokens, as the tokenizer's own settings say; mostly right."""
    max_length: int | None
    """The most tokens that its model takes, by its own settings; None: they do not say."""

    @property
    def shortest(self) -> int:
        """The smallest length that `encode` takes: special tokens and one of the text."""
        return self.backend.num_special_tokens_to_add(is_pair=False) + 1

    def count(self, text: str) -> int:
        """How many tokens a text has, with special ones: `encode` cuts off what this exceeds `length` by."""
        return self.look(text).tokens

    def look(self, text: str) -> TokenCounts:
        """How many tokens a text has, and what of it is unknown. Punctuation and spaces alone are no words."""
        encoding = self._encode(text)
        known, unknown = 0, []
        for number, is_special in enumerate(encoding.special_tokens_mask):
            if is_special:
                continue
            if encoding.ids[number] == self.unknown_id:
                unknown.append(text[slice(*encoding.offsets[number])])
            else:
                known += any(char.isalnum() for char in encoding.tokens[number])
        return TokenCounts(tokens=len(encoding) or 1, known=known, unknown=unknown)

    def encode(self, text: str, length: int) -> NDArray[np.int32]:
        """Ids, attention mask and token types [3, length] of a text, padded at the end, also where the tokenizer's own
        padding stands in front.

        A text without any token, which is an empty one where the tokenizer adds no special tokens, gets one padding
        token that the mask counts: no sample is without a step.

        Raises:
            ValueError: a length below `shortest`.
        """
        self.check_length(length)
        encoding = self._encode(text)
        if len(encoding) > length:
            bare = self.backend.encode(text, add_special_tokens=False)
            bare.truncate(length - self.shortest + 1, direction=self.cut_side)
            encoding = self.backend.post_process(bare)
        ids, types = (encoding.ids, encoding.type_ids) if len(encoding) else ([self.pad_id], [0])
        tokens = np.zeros((3, length), dtype=np.int32)
        tokens[0] = self.pad_id
        tokens[0, : len(ids)] = ids
        tokens[1, : len(ids)] = 1
        if self.has_types:
            tokens[2, : len(ids)] = types
        return tokens

    def check_length(self, length: int) -> None:
        """Raise ValueError for a length that has no room for a token of a text."""
        if length < self.shortest:
            raise ValueError(
                f"text length {length} is too short for the tokenizer {self.name}, which adds {self.shortest - 1} "
                f"special tokens; give --text-length {self.shortest} or more"
            )

    def memory(self) -> int:
        """Bytes that it takes in a process, at most."""
        is_trie = type(self.backend.model).__name__ == "Unigram"
        return (_TRIE_BYTES if is_trie else _TABLE_BYTES) * len(self.backend.to_str())

    def _encode(self, text: str) -> "Encoding":
        return self.backend.encode(text)


def load_tokenizer(name: str | Path, *, local: bool = False) -> Tokenizer:
    """The tokenizer of a model directory, of a name on the hub, or of a BERT's bare `vocab.txt`.

    A bare vocabulary is that of a cased model if one of its pieces has an upper-case letter.

    Args:
        local: fetch nothing: of a name on the hub what this machine has fetched before.

    Raises:
        NoTokenizer: a directory or a hub name without one.
        ValueError: nothing there or nothing reached, a file that is not whole, or a tokenizer that needs code of its
            own or that the `tokenizers` library does not know.
    """
    path = Path(name)
    if path.is_file():
        return _wrap(_from_vocabulary(path), name=str(path.absolute()))
    if path.is_dir():
        return _wrap(_from_directory(path, str(name)), name=str(path.absolute()))
    return _wrap(_from_directory(_fetch(str(name), local=local), str(name)), name=str(name))


def _from_vocabulary(path: Path) -> Any:
    check_file_kind(path, "BERT's vocab.txt", allowed=("a JSON file",))
    if path.suffix == ".json":
        raise ValueError(f"{path} is one file of a tokenizer; give the directory in which it lies: {path.parent}")
    try:
        pieces = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the vocabulary {path}: {error}") from error
    if missing := [piece for piece in _SPECIAL if piece not in pieces]:
        raise ValueError(f"{path} is no BERT vocabulary: it lacks {', '.join(missing)}; {_TRIES}")

    from transformers import BertTokenizer

    cased = any(piece != piece.lower() for piece in pieces if not piece.startswith("["))
    return BertTokenizer(vocab=str(path), do_lower_case=not cased)


def _fetch(name: str, *, local: bool) -> Path:
    """The directory into which a hub's tokenizer was fetched."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=[*_FILES, *_BESIDE], local_files_only=local))
    except HFValidationError as error:
        raise ValueError(f"tokenizer {name!r}: no such file or directory, and no name on the hub; {_TRIES}") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"tokenizer {name!r} is no file or directory, and it cannot be fetched ({_first_line(error)}); {_TRIES}"
        ) from error


def _from_directory(folder: Path, name: str) -> Any:
    files = sorted({file for pattern in _FILES for file in folder.glob(pattern)})
    if not files:
        raise NoTokenizer(f"{name} holds no tokenizer ({', '.join(_FILES)}); {_TRIES}")
    for file in files:
        check_file_kind(file, "a file of a tokenizer", allowed=("a JSON file",))

    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as error:
        # What the Rust of `tokenizers` raises has no type of its own.
        known = (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError)
        if type(error) is not Exception and not isinstance(error, known):
            raise
        raise ValueError(
            f"the tokenizer of {name} cannot be loaded ({_first_line(error)}); download the model again, or give "
            "another one: --tokenizer PATH"
        ) from error


def _wrap(found: Any, *, name: str) -> Tokenizer:
    """The tokenizer that transformers has built."""
    backend = getattr(found, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(
            f"the tokenizer of {name} ({type(found).__name__}) is written in Python, and nothing says which ids "
            "such a one gives; convert it to a tokenizer.json of the `tokenizers` library, or choose another model"
        )
    backend.no_truncation()
    backend.no_padding()
    endless = found.model_max_length is None or found.model_max_length >= _ENDLESS
    content = json.loads(backend.to_str())
    pad = next((token for token in (found.pad_token_id, found.eos_token_id) if token is not None), 0)
    return Tokenizer(
        name=name,
        digest=_digest(content, backend),
        backend=backend,
        pad_id=int(pad),
        unknown_id=_unknown_id(content["model"], backend),
        has_types="token_type_ids" in found.model_input_names,
        cut_side=found.truncation_side,
        max_length=None if endless else int(found.model_max_length),
    )


def _unknown_id(model: dict[str, Any], backend: "Backend") -> int | None:
    """The token for unknown words: a number of Unigram, a name of others."""
    number: int | None = model.get("unk_id")
    return backend.token_to_id(model["unk_token"]) if model.get("unk_token") is not None else number


def _digest(content: dict[str, Any], backend: "Backend") -> str:
    """sha256 of what determines ids.

    Left out is what does not: decoding, offsets, and settings that are off, which versions of the library add. Special
    tokens are taken from what a text gets, since several processors spell the same.

    Args:
        content: the JSON of the tokenizer, which is changed.
    """
    model = content["model"]
    if "merges" in model:
        model["merges"] = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    added = sorted(content["added_tokens"], key=lambda token: token["id"])
    facts = {name: _plain(content[name]) for name in ("model", "normalizer", "pre_tokenizer")}
    facts |= {"added_tokens": [_plain(token) for token in added], "framed": backend.encode(_PROBE).ids}
    return hashlib.sha256(canonical_json(facts).encode()).hexdigest()


def _plain(value: Any) -> Any:
    """A part of a tokenizer's JSON without what is off and what changes no id."""
    if isinstance(value, dict):
        kept = {name: _plain(inner) for name, inner in value.items() if name not in _NO_EFFECT}
        return {name: inner for name, inner in kept.items() if inner is not None and inner is not False}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]
