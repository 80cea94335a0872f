"""The features of one clip."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_shards.extraction.alignment import Track, even_steps, fit, interval_means
from data_shards.extraction.clip import Clip, ClipError, ExtractedClip, WarningKind
from data_shards.extraction.findings import Findings
from data_shards.extraction.media import MediaFacts, Span, media_facts
from data_shards.extraction.scripts import SCRIPTS, other_script
from data_shards.extraction.settings import ExtractionSettings
from data_shards.extraction.text import States
from data_shards.extraction.tracks import face_of, sound_of
from data_shards.extraction.transcript import Transcript
from data_shards.extraction.word_times import word_intervals, words_of
from data_shards.text.tokenizer import TokenCounts, Tokenizer
from data_shards.text.word_vectors import name_words


def extract_clip(
    clip: Clip,
    settings: ExtractionSettings,
    *,
    face_model: Path | None = None,
    tokenizer: Tokenizer | None = None,
    states: States | None = None,
) -> ExtractedClip:
    """Make the features of a clip; the same clip and settings give the same bytes. Frames are never all in memory.

    Args:
        settings: of `preparation.prepare`.
        face_model: as for `prepare`.
        tokenizer: of `settings.text_encoder`, where `settings.text` is `tokens`.
        states: of `settings.text_encoder`, where `settings.text` is `states`.

    Raises:
        ClipError: no features can be made of this clip: the reason.
        ValueError: none can be made of any clip: a library or the face model is missing.
    """
    findings = Findings(settings.missing)
    span = Span(clip.start, clip.stop)
    span.check()
    facts = media_facts(clip.media)
    transcript = _transcript(clip, settings.language, findings)
    sound = sound_of(clip.media, facts, span, settings, findings)
    face = face_of(clip.media, facts, span, settings, findings, face_model=face_model)
    tracks = {modality: track for modality, track in (("audio", sound), ("vision", face)) if track is not None}
    if span.start and tracks and not any(track.seconds for track in tracks.values()):
        raise ClipError(f"its media file has nothing{span}")
    seconds = _seconds(tracks, facts, span)
    if settings.alignment == "words":
        intervals = word_intervals(
            transcript,
            start=span.start,
            seconds=seconds,
            times=settings.word_times,
            findings=findings,
        )
        sequences = {name: interval_means(track, *intervals.T) for name, track in tracks.items()}
    else:
        rates = {"audio": settings.audio_rate, "vision": settings.frames_per_second}
        sequences = {name: even_steps(track, rates[name]) for name, track in tracks.items()}
    if settings.text == "states":
        assert states is not None
        sequences["text"] = _states(states, words_of(transcript), findings)
    arrays, lengths = _fitted(sequences, settings.lengths, findings)
    if settings.text == "tokens":
        assert tokenizer is not None
        arrays["text"], lengths["text"] = _tokens(tokenizer, transcript.text, settings.lengths["text"], findings)
    return ExtractedClip(
        id=clip.id,
        raw_text=transcript.text,
        text=arrays.get("text"),
        audio=arrays.get("audio"),
        vision=arrays.get("vision"),
        lengths=lengths,
        duration=seconds,
        warnings=findings.warnings(),
    )


def _transcript(clip: Clip, language: str, findings: Findings) -> Transcript:
    """The clip's transcript, an empty one where it has none and that is allowed. Raises ClipError."""
    transcript = clip.transcript
    if transcript is None:
        findings.lacks("no-transcript", "it has no transcript")
        return Transcript(text="")
    if not any(char.isalnum() for char in transcript.text):
        findings.lacks("no-transcript", f"its transcript has no word: {transcript.text!r:.40}")
    elif language and (script := other_script(transcript.text, language)):
        own = " or ".join(SCRIPTS[language])
        findings.warn("other-script", f"its transcript is written in {script}, and language {language} in {own}")
    return transcript


def _seconds(tracks: dict[str, Track], facts: MediaFacts, span: Span) -> float:
    """How long a clip is: as its tracks are, or else as the file says."""
    longest = max((track.seconds for track in tracks.values()), default=0.0)
    stop = facts.seconds if span.stop is None else span.stop
    return longest or (0.0 if stop is None else stop - span.start)


def _states(states: States, words: list[str], findings: Findings) -> NDArray[np.float32]:
    """Hidden states [words, D]; one of zeros where there is no word."""
    if not words:
        return np.zeros((1, states.dim), dtype=np.float32)
    _check_known(states.look(words), findings)
    return states(words)


def _tokens(
    tokenizer: Tokenizer,
    text: str,
    length: int,
    findings: Findings,
) -> tuple[NDArray[np.int32], int]:
    """Token ids, mask and types [3, length] and how many are unpadded."""
    counts = tokenizer.look(text)
    if (count := counts.tokens) > length:
        findings.warn("text-cut", f"{count - length} of its {count} tokens are cut off")
    _check_known(counts, findings)
    tokens = tokenizer.encode(text, length)
    return tokens, int(tokens[1].sum())


def _check_known(counts: TokenCounts, findings: Findings) -> None:
    """Say which words a tokenizer does not know. Raises ClipError where it knows none of them."""
    if not counts.unknown:
        return
    names = name_words(Counter(counts.unknown))
    if counts.known:
        words = counts.known + len(counts.unknown)
        findings.warn("unknown-words", f"{len(counts.unknown)} of its {words} words are unknown tokens: {names}")
    else:
        findings.lacks("unknown-words", f"the tokenizer knows no word of its transcript: {names}")


def _fitted(
    sequences: dict[str, NDArray[np.float32]],
    lengths: dict[str, int],
    findings: Findings,
) -> tuple[dict[str, NDArray[Any]], dict[str, int]]:
    """Sequences padded or cut to the lengths that the settings name, and their unpadded lengths."""
    kinds: dict[str, WarningKind] = {"text": "text-cut", "audio": "audio-cut", "vision": "vision-cut"}
    arrays: dict[str, NDArray[Any]] = {}
    for modality, sequence in sequences.items():
        steps = len(sequence)
        length = lengths.get(modality, steps)
        if steps > length:
            findings.warn(kinds[modality], f"{steps - length} of its {steps} steps of {modality} are cut off")
        arrays[modality] = fit(sequence, length)
    return arrays, {modality: min(len(sequences[modality]), len(array)) for modality, array in arrays.items()}
