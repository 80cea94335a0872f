"""BERT's WordPiece over words, for pickles that hold transcripts as words: greedy, the longest known piece first."""

import unicodedata
from pathlib import Path

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_MAX_LENGTH = 100
"""Longer words are unknown, as in BERT."""


class Vocabulary:
    """A `vocab.txt`: one piece per line, its number being the line's."""

    def __init__(self, path: str | Path) -> None:
        """Read the file; `ValueError` where it is no BERT vocabulary."""
        try:
            pieces = Path(path).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"cannot read the vocabulary {path}: {error}") from error
        self._numbers = {piece: number for number, piece in enumerate(pieces)}
        missing = [piece for piece in _SPECIAL if piece not in self._numbers]
        if missing:
            raise ValueError(f"{path} is no BERT vocabulary: it lacks {', '.join(missing)}")
        self._cased = any(piece != piece.lower() for piece in pieces if not piece.startswith("["))

    def encode(self, words: list[str]) -> list[int]:
        """The numbers of [CLS], the words' pieces, [SEP]."""
        pieces = [piece for word in words for part in self._split(word) for piece in self._pieces(part)]
        return [self._numbers["[CLS]"], *pieces, self._numbers["[SEP]"]]

    def _split(self, word: str) -> list[str]:
        """A word at its spaces and punctuation; without case and accents where the vocabulary has none."""
        if not self._cased:
            decomposed = unicodedata.normalize("NFD", word.lower())
            word = "".join(char for char in decomposed if unicodedata.category(char) != "Mn")
        spaced = "".join(f" {char} " if _is_own_token(char) else char for char in word if not _is_control(char))
        return spaced.split()

    def _pieces(self, word: str) -> list[int]:
        if len(word) > _MAX_LENGTH:
            return [self._numbers["[UNK]"]]
        pieces, start = [], 0
        while start < len(word):
            prefix = "##" if start else ""
            stop = next((end for end in range(len(word), start, -1) if prefix + word[start:end] in self._numbers), 0)
            if not stop:
                return [self._numbers["[UNK]"]]
            pieces.append(self._numbers[prefix + word[start:stop]])
            start = stop
        return pieces


def _is_own_token(char: str) -> bool:
    """Whether BERT makes a token of a character: punctuation, as BERT defines it, and Chinese characters."""
    code = ord(char)
    ascii_mark = 33 <= code <= 47 or 58 <= code <= 64 or 91 <= code <= 96 or 123 <= code <= 126
    chinese = 0x4E00 <= code <= 0x9FFF or 0x3400 <= code <= 0x4DBF or 0xF900 <= code <= 0xFAFF
    return ascii_mark or chinese or 0x20000 <= code <= 0x2FA1F or unicodedata.category(char).startswith("P")


def _is_control(char: str) -> bool:
    if char in "\t\n\r":
        return False
    return char in "\0\ufffd" or unicodedata.category(char) in ("Cc", "Cf", "Co", "Cs", "Cn")
