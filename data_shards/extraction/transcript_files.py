"""Transcripts from files: csv, srt, json and plain text."""

from pathlib import Path

from data_shards.extraction.transcript import Transcript

TRANSCRIPT_SUFFIXES = (".json", ".srt", ".csv", ".txt")
"""What a transcript's file may be called; of several beside a clip the first is the best, since it has word times."""


def read_transcript(path: Path) -> Transcript:
    """The transcript of one clip, by the suffix of its file (TRANSCRIPT_SUFFIXES).

    Raises:
        ValueError: the file is no transcript: its name, what is wrong where in it.
    """
    raise NotImplementedError


def read_transcript_table(path: Path) -> dict[str, Transcript]:
    """The transcripts of many clips, by clip: a csv with a row per clip (`clip`, `text`) or per word (`clip`, `word`,
    `start`, `stop`).

    Raises:
        ValueError: as `read_transcript`; a clip has two rows without words.
    """
    raise NotImplementedError
