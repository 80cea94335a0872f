"""The features of a clip's sound and of the face in its video, frame by frame, and what is wrong with either."""

from pathlib import Path

import numpy as np

from data_shards.extraction.alignment import Track
from data_shards.extraction.audio import AUDIO_DIMS, audio_track
from data_shards.extraction.findings import Findings
from data_shards.extraction.media import FrameCount, MediaFacts, Span, read_frames, read_sound
from data_shards.extraction.preparation import find_face_model
from data_shards.extraction.settings import ExtractionSettings
from data_shards.extraction.vision import VISION_DIMS, vision_track

_ENDS_EARLY_SECONDS = 0.5
"""So much may a track be shorter than its file; encoders pad sound and video differently."""


def sound_of(
    media: Path,
    facts: MediaFacts,
    span: Span,
    settings: ExtractionSettings,
    findings: Findings,
) -> Track | None:
    """Features of the sound; None where the settings want none. Raises ClipError."""
    kind, rate = settings.audio, settings.sample_rate
    if kind == "none":
        return None
    samples = read_sound(media, rate, span) if facts.has_sound else np.zeros(0, dtype=np.float32)
    if not len(samples):
        findings.lacks("no-sound", f"it has no sound{span}")
        return _without_frames(AUDIO_DIMS[kind])
    track = audio_track(samples, rate, kind)
    _zero_nonfinite(track, "audio", findings)
    _check_end("sound", track, facts, span, findings)
    return track


def face_of(
    media: Path,
    facts: MediaFacts,
    span: Span,
    settings: ExtractionSettings,
    findings: Findings,
    *,
    face_model: Path | None,
) -> Track | None:
    """Features of the face; None where the settings want none. Raises ClipError."""
    kind, rate = settings.vision, settings.frames_per_second
    if kind == "none":
        return None
    track = _without_frames(VISION_DIMS[kind])
    count = FrameCount()
    if facts.has_video:
        frames = read_frames(media, rate, settings.frame_size, span, count)
        track = vision_track(frames, count, rate=rate, kind=kind, model=find_face_model(face_model))
    if not len(track.features):
        findings.lacks("no-video", f"it has no video{span}")
        return track
    if count.damaged:
        findings.warn("damaged-frames", f"{count.damaged} of its {count.read} frames are damaged")
    _zero_nonfinite(track, "vision", findings)
    _check_faces(track, findings)
    _check_end("video", track, facts, span, findings)
    return track


def _without_frames(dim: int) -> Track:
    return Track(np.zeros((0, dim), np.float32), np.zeros(0), 0.0, np.zeros(0, np.bool_))


def _check_faces(track: Track, findings: Findings) -> None:
    frames, without = len(track.usable), int((~track.usable).sum())
    if without == frames:
        findings.lacks("no-face", f"no face is found in any of its {frames} frames")
    elif without:
        share = f"{100 * without / frames:.1f} %"
        findings.warn("frames-without-face", f"no face is found in {without} of its {frames} frames ({share})")


def _check_end(what: str, track: Track, facts: MediaFacts, span: Span, findings: Findings) -> None:
    """Warn where a track ends before the part of the file does that is asked for."""
    stop = facts.seconds if span.stop is None else span.stop
    end = span.start + track.seconds
    if stop is not None and end < stop - _ENDS_EARLY_SECONDS:
        findings.warn("ends-early", f"its {what} ends at {end:.3f} s, and {stop:.3f} s are asked for")


def _zero_nonfinite(track: Track, modality: str, findings: Findings) -> None:
    """Store 0 for values that are not finite."""
    bad = int((~np.isfinite(track.features)).sum())
    if bad:
        findings.warn("nonfinite", f"{bad} values of {modality} are not finite and became 0")
        np.nan_to_num(track.features, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
