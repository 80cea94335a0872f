"""Scripts: whether a transcript is written in that of its language."""

import unicodedata
from collections import Counter

_LATIN = (
    "af az ca cs cy da de en es et eu fi fr ga gl hr hu id is it lt lv ms mt nl no pl pt ro sk sl sq sv sw tl tr uz vi"
)
_OTHERS = {
    "am": ("ETHIOPIC",),
    "ar": ("ARABIC",),
    "be": ("CYRILLIC",),
    "bg": ("CYRILLIC",),
    "bn": ("BENGALI",),
    "el": ("GREEK",),
    "fa": ("ARABIC",),
    "gu": ("GUJARATI",),
    "he": ("HEBREW",),
    "hi": ("DEVANAGARI",),
    "hy": ("ARMENIAN",),
    "ja": ("CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"),
    "ka": ("GEORGIAN",),
    "kk": ("CYRILLIC",),
    "km": ("KHMER",),
    "kn": ("KANNADA",),
    "ko": ("HANGUL",),
    "ml": ("MALAYALAM",),
    "mr": ("DEVANAGARI",),
    "my": ("MYANMAR",),
    "ne": ("DEVANAGARI",),
    "pa": ("GURMUKHI",),
    "ru": ("CYRILLIC",),
    "si": ("SINHALA",),
    "sr": ("CYRILLIC", "LATIN"),
    "ta": ("TAMIL",),
    "te": ("TELUGU",),
    "th": ("THAI",),
    "uk": ("CYRILLIC",),
    "ur": ("ARABIC",),
    "zh": ("CJK",),
}
SCRIPTS: dict[str, tuple[str, ...]] = {**dict.fromkeys(_LATIN.split(), ("LATIN",)), **_OTHERS}
"""A language (ISO 639-1) -> its scripts, as the names of Unicode's characters begin."""


def other_script(text: str, language: str) -> str:
    """The script of most letters, where most letters are of no script of the language; else ""."""
    scripts = Counter(_script(char) for char in unicodedata.normalize("NFKC", text) if char.isalpha())
    own = sum(scripts[script] for script in SCRIPTS[language])
    if 2 * own >= scripts.total():
        return ""
    return next(script for script, _ in scripts.most_common() if script not in SCRIPTS[language])


def _script(char: str) -> str:
    return unicodedata.name(char, "UNKNOWN").split()[0]
