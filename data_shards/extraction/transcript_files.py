"""Transcripts from files: csv, srt, json and plain text.

A csv has a header; its column names are those of `_COLUMNS`, in any order, and others are not read. A json is a list of
words or one of the forms of whisperX, Whisper, gentle and the Montreal Forced Aligner (`--output_format json`). Times
are seconds. Words without times share what is between their neighbours; words of a cue or segment that has times share
them by their letters.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_shards.extraction.transcript import Transcript, Word, split_words, spread_words

TRANSCRIPT_SUFFIXES = (".json", ".csv", ".srt", ".txt")
"""What a transcript's file may be called; of several beside a clip the first is the best, since it has word times."""
_COLUMNS = {
    "clip": ("clip", "id", "clip_id"),
    "word": ("word",),
    "text": ("text", "transcript", "sentence"),
    "start": ("start", "begin", "onset"),
    "stop": ("stop", "end", "offset"),
}
"""What a column holds -> the names that it may have, in any case."""
_WORD_KEYS, _STOP_KEYS = ("word", "text"), ("stop", "end")
_ARROW = "-->"
_CUE_TIME = re.compile(r"\s*(?:(\d+):)?(\d{1,2}):(\d{2})[,.](\d{1,3})")
_MARKUP = re.compile(r"<[^>]*>|\{\\[^}]*\}")
"""Tags and positions of subtitles, which are not said."""


@dataclass(frozen=True)
class _Timed:
    """A word of a file, which may lack its time."""

    text: str
    start: float | None
    stop: float | None


def read_transcript(path: Path) -> Transcript:
    """The transcript of one clip, by the suffix of its file (TRANSCRIPT_SUFFIXES).

    Raises:
        ValueError: the file is no transcript: its name, what is wrong where in it.
    """
    read = _READERS.get(path.suffix.lower())
    if read is None:
        raise ValueError(f"{path} is no transcript; give one of {', '.join(TRANSCRIPT_SUFFIXES)}")
    text = _text_of(path)
    try:
        return read(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_transcript_table(path: Path) -> dict[str, Transcript]:
    """The transcripts of many clips, by clip: a csv with a row per clip (`clip`, `text`) or per word (`clip`, `word`,
    `start`, `stop`).

    Raises:
        ValueError: as `read_transcript`; a clip has two rows without words.
    """
    text = _text_of(path)
    try:
        rows = _rows(text)
        if any("clip" not in row for row in rows):
            raise ValueError("it has no column clip; name the clip of each row in it")
        by_clip: dict[str, list[dict[str, str]]] = {}
        for row in rows:
            by_clip.setdefault(row["clip"], []).append(row)
        return {clip: _of_clip(clip, own) for clip, own in by_clip.items()}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _of_clip(clip: str, rows: Sequence[dict[str, str]]) -> Transcript:
    try:
        return _from_rows(rows)
    except ValueError as error:
        raise ValueError(f"clip {clip!r:.80}: {error}") from error


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error


def _plain(text: str) -> Transcript:
    return Transcript(text=" ".join(text.split()))


def _csv(text: str) -> Transcript:
    return _from_rows(_rows(text))


def _rows(text: str) -> list[dict[str, str]]:
    """The rows of a csv by what their columns hold; a `;` or tab in the header separates columns as a comma does."""
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    table = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names = {name: held for held, known in _COLUMNS.items() for name in known}
    columns = {name: held for name in table.fieldnames or () if (held := names.get(name.strip().lower()))}
    for held in set(columns.values()):
        if list(columns.values()).count(held) > 1:
            raise ValueError(f"two columns may be its {held}; leave one of {', '.join(columns)}")
    if not {"word", "text"} & set(columns.values()):
        raise ValueError(f"it has no column word or text; its first line is {header.strip()!r:.80}")
    rows = []
    try:
        for row in table:
            if None in row or None in row.values():
                raise ValueError(f"line {table.line_num} has another number of fields than the header; quote commas")
            rows.append({held: row[name].strip() for name, held in columns.items()})
    except csv.Error as error:
        raise ValueError(f"line {table.line_num}: {error}") from error
    return rows


def _from_rows(rows: Sequence[dict[str, str]]) -> Transcript:
    if rows and "word" in rows[0]:
        timed = [
            _Timed(row["word"], _seconds(row.get("start", "")), _seconds(row.get("stop", "")))
            for row in rows
            if row["word"]
        ]
        return _from_words(timed)
    if len(rows) > 1:
        raise ValueError(f"it has {len(rows)} rows of text, and a clip has one; give a row per word, or a column clip")
    return _plain(rows[0]["text"] if rows else "")


def _seconds(value: object) -> float | None:
    """A number of seconds, None for an empty field; a decimal comma is read as a point."""
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"time {value!r:.40} is no number of seconds")
    try:
        return float(value.replace(",", ".") if isinstance(value, str) else value)
    except ValueError as error:
        raise ValueError(f"time {value!r:.40} is no number of seconds") from error


def _srt(text: str) -> Transcript:
    """Cues, separated by empty lines: a number, a line of times, lines of text."""
    words: list[Word] = []
    for block in re.split(r"\n\s*\n", text.strip()):
        lines = block.splitlines()
        timing = next((number for number, line in enumerate(lines) if _ARROW in line), None)
        if timing is None:
            if block.strip():
                raise ValueError(f"a cue has no line of times with {_ARROW}: {lines[0]!r:.80}")
            continue
        start, stop = (_cue_time(part, lines[timing]) for part in lines[timing].split(_ARROW, 1))
        said = split_words(_MARKUP.sub("", " ".join(lines[timing + 1 :])))
        words += _shared(said, start, stop)
    return Transcript(text=" ".join(word.text for word in words), words=tuple(words), filled=len(words))


def _cue_time(part: str, line: str) -> float:
    match = _CUE_TIME.match(part)
    if match is None:
        raise ValueError(f"{line!r:.80} is no line of times as in 00:00:01,500 {_ARROW} 00:00:03,250")
    hours, minutes, seconds, fraction = match.groups()
    return 3600 * int(hours or 0) + 60 * int(minutes) + int(seconds) + int(fraction.ljust(3, "0")) / 1000


def _json(text: str) -> Transcript:
    try:
        content = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"it is no JSON: {error}") from error
    if isinstance(content, list):
        return _from_words(_timed(content))
    if not isinstance(content, dict):
        raise ValueError(f"it holds {type(content).__name__}, and no words")
    language = content["language"] if isinstance(content.get("language"), str) else ""
    return replace(_from_object(content), language=language)


def _from_object(content: dict[str, Any]) -> Transcript:
    """The first that a json object holds of: `segments`, `words`, `word_segments`, `tiers`, `text`."""
    if isinstance(segments := content.get("segments"), list):
        return _from_segments(segments)
    for key in ("words", "word_segments"):
        if isinstance(content.get(key), list):
            return _from_words(_timed(content[key]))
    if isinstance(tiers := content.get("tiers"), dict):
        return _from_tiers(tiers)
    for key in ("text", "transcript"):
        if isinstance(content.get(key), str):
            return _plain(content[key])
    raise ValueError(f"it has no words, segments, tiers or text; its keys are {', '.join(map(str, content))[:80]}")


def _from_segments(segments: Sequence[Any]) -> Transcript:
    """whisperX's and Whisper's segments, with or without words."""
    timed: list[_Timed] = []
    shared = 0
    for segment in segments:
        if not isinstance(segment, dict):
            raise ValueError(f"a segment is {segment!r:.40}, and no object")
        if isinstance(segment.get("words"), list):
            timed += _timed(segment["words"])
            continue
        start, stop = (_seconds(_first(segment, keys)) for keys in (("start",), _STOP_KEYS))
        texts = split_words(str(segment.get("text", "")))
        if start is None or stop is None:
            raise ValueError(f"segment {segment.get('text', '')!r:.40} has no start and end")
        words = _shared(texts, start, stop)
        shared += len(words)
        timed += [_Timed(word.text, word.start, word.stop) for word in words]
    made = _from_words(timed)
    return replace(made, filled=made.filled + shared)


def _from_tiers(tiers: dict[str, Any]) -> Transcript:
    """The Montreal Forced Aligner's tier of words: entries [start, end, label]; empty labels are pauses."""
    names = [name for name in tiers if name == "words" or name.endswith("- words")]
    if len(names) != 1:
        raise ValueError(f"it has {len(names)} tiers of words, and it takes one; its tiers are {', '.join(tiers)}")
    entries = tiers[names[0]].get("entries", []) if isinstance(tiers[names[0]], dict) else []
    timed = []
    for entry in entries:
        if not isinstance(entry, list) or len(entry) != 3:
            raise ValueError(f"entry {entry!r:.60} is not [start, end, label]")
        if str(entry[2]).strip():
            timed.append(_Timed(str(entry[2]).strip(), _seconds(entry[0]), _seconds(entry[1])))
    return _from_words(timed)


def _timed(entries: Iterable[Any]) -> list[_Timed]:
    """Words of a json list: `word` or `text`, `start`, `stop` or `end`."""
    timed = []
    for entry in entries:
        text = _first(entry, _WORD_KEYS) if isinstance(entry, dict) else None
        if not isinstance(text, str):
            raise ValueError(
                f"{entry!r:.60} is no word with {', '.join(_WORD_KEYS)}, start and {', '.join(_STOP_KEYS)}"
            )
        if text.strip():
            timed.append(_Timed(text.strip(), _seconds(entry.get("start")), _seconds(_first(entry, _STOP_KEYS))))
    return timed


def _first(entry: dict[str, Any], keys: Sequence[str]) -> Any:
    return next((entry[key] for key in keys if key in entry), None)


def _from_words(timed: Sequence[_Timed]) -> Transcript:
    """A transcript of words, of which some may lack times; where all do there are no word times."""
    text = " ".join(word.text for word in timed)
    if all(word.start is None or word.stop is None for word in timed):
        return Transcript(text=text)
    words: list[Word] = []
    waiting: list[str] = []
    filled = 0
    for word in timed:
        if word.start is None or word.stop is None:
            waiting.append(word.text)
            continue
        before = words[-1].stop if words else word.start
        words += _shared(waiting, min(before, word.start), word.start)
        filled += len(waiting)
        waiting = []
        words.append(Word(word.text, word.start, word.stop))
    words += _shared(waiting, words[-1].stop, words[-1].stop)
    return Transcript(text=text, words=tuple(words), filled=filled + len(waiting))


def _shared(texts: Sequence[str], start: float, stop: float) -> tuple[Word, ...]:
    return spread_words(texts, start, max(start, stop)) if texts else ()


_READERS: dict[str, Callable[[str], Transcript]] = {".json": _json, ".csv": _csv, ".srt": _srt, ".txt": _plain}
