"""Clips that tests make themselves: scikit-image's astronaut, who moves, with words that espeak-ng says, or tones."""

import functools
import shutil
import subprocess
import wave
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from data_shards.extraction.transcript import Transcript, Word

SAMPLE_RATE = 22050
"""Of what espeak-ng says, and of tones."""
PAUSE = 0.05
"""Seconds of silence after each word."""
needs_speech = pytest.mark.skipif(
    shutil.which("espeak-ng") is None, reason="espeak-ng is missing: apt-get install espeak-ng"
)

Picture = Literal["face", "grey"]


@dataclass(frozen=True)
class Sound:
    """Mono sound, and what is said in it."""

    samples: NDArray[np.int16]
    """[n] at SAMPLE_RATE"""
    transcript: Transcript | None = None

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLE_RATE


def speech(text: str, *, voice: str = "en", words_per_minute: int = 175) -> Sound:
    """What espeak-ng says, each word for itself, so that its times are known exactly."""
    parts: list[NDArray[np.int16]] = []
    words = []
    position = 0
    for word in text.split():
        command = ["espeak-ng", "--stdout", "-v", voice, "-s", str(words_per_minute), word]
        said = subprocess.run(command, capture_output=True, check=True).stdout
        # the header of a stream does not know its length
        samples = np.frombuffer(said[44:], dtype="<i2")
        words.append(Word(word, position / SAMPLE_RATE, (position + len(samples)) / SAMPLE_RATE))
        parts += [samples, np.zeros(int(PAUSE * SAMPLE_RATE), dtype=np.int16)]
        position += len(parts[-2]) + len(parts[-1])
    return Sound(np.concatenate(parts), Transcript(text=text, words=tuple(words)))


def tones(seconds: float, *, pitch: float = 150.0) -> Sound:
    """A voice-like sound: harmonics of a pitch in Hz that rises by a fifth."""
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    phase = 2 * np.pi * np.cumsum(pitch * (1 + 0.5 * time / max(seconds, 1e-9))) / SAMPLE_RATE
    wave_form = sum(np.sin(k * phase) / k for k in range(1, 6))
    return Sound(np.asarray(8000 * wave_form, dtype=np.int16))


def write_wav(path: Path, sound: Sound) -> Path:
    """A WAV file."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(sound.samples.astype("<i2").tobytes())
    return path


def picture(moment: float, *, kind: Picture = "face") -> NDArray[np.uint8]:
    """A square picture [256, 256, 3] at a moment in seconds: the face moves sideways and comes nearer and goes."""
    if kind == "grey":
        return np.full((256, 256, 3), 128, dtype=np.uint8)
    side = 256
    left = 100 + int(20 * np.sin(2 * moment))
    top = 10 - int(10 * np.cos(3 * moment))
    return np.ascontiguousarray(_astronaut()[top : top + side, left : left + side])


@functools.cache
def _astronaut() -> NDArray[np.uint8]:
    """[512, 512, 3]; a square of it has a face in its middle."""
    from skimage.data import astronaut

    return astronaut()


def frame_times(seconds: float, *, rate: float = 15.0) -> list[float]:
    """The moments of the frames of a video of constant rate."""
    return [number / rate for number in range(round(seconds * rate))]


@dataclass(frozen=True, kw_only=True)
class Video:
    """What `write_video` writes."""

    times: Sequence[float]
    """Seconds at which each frame is shown first."""
    stop: float
    """Seconds at which the last one ends."""
    sound: Sound | None = None
    size: tuple[int, int] = (256, 256)
    """Width and height."""
    kinds: Sequence[Picture] = field(default=("face",))
    """By frame; the last goes on."""


def write_video(path: Path, video: Video) -> Path:
    """A video file, its container by the suffix: H.264 and AAC. Frames are shown at any times."""
    import av

    clock = Fraction(1, 1000)
    with av.open(str(path), "w") as container:
        pictures = container.add_stream("libx264", rate=1000)
        pictures.width, pictures.height = video.size
        pictures.pix_fmt = "yuv420p"
        pictures.options = {"preset": "ultrafast", "threads": "1"}
        pictures.time_base = pictures.codec_context.time_base = clock
        voice = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono") if video.sound is not None else None
        packets: list[av.Packet] = []
        ends = [*video.times[1:], video.stop]
        for number, start in enumerate(video.times):
            kind = video.kinds[min(number, len(video.kinds) - 1)]
            frame = av.VideoFrame.from_ndarray(picture(start, kind=kind), format="rgb24")
            frame = frame.reformat(width=video.size[0], height=video.size[1], format="yuv420p")
            frame.pts, frame.time_base = round(start / clock), clock
            packets += pictures.encode(frame)
        packets += pictures.encode()
        for packet, start, stop in zip(packets, video.times, ends, strict=True):
            packet.duration = round(stop / clock) - round(start / clock)
            container.mux(packet)
        if video.sound is not None:
            sound = av.AudioFrame.from_ndarray(video.sound.samples[None], format="s16", layout="mono")
            sound.sample_rate, sound.pts, sound.time_base = SAMPLE_RATE, 0, Fraction(1, SAMPLE_RATE)
            container.mux(voice.encode(sound))
            container.mux(voice.encode())
    return path


def write_clip(path: Path, sound: Sound, *, rate: float = 15.0, kind: Picture = "face") -> Path:
    """A video of the moving face as long as a sound."""
    video = Video(times=frame_times(sound.seconds, rate=rate), stop=sound.seconds, sound=sound, kinds=(kind,))
    return write_video(path, video)
