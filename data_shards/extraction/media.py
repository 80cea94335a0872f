"""Sound and frames of a media file, decoded by PyAV (FFmpeg's libraries), at the times at which they are presented.

Times count in seconds from the beginning of the file, or of the part of it that is asked for. Frames come one at a
time.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_shards.extraction.clip import ClipError
from data_shards.extraction.libraries import load

if TYPE_CHECKING:
    import av
    from av.audio.frame import AudioFrame
    from av.container import InputContainer
    from av.video.frame import VideoFrame

    InputStream = av.AudioStream | av.VideoStream

MICROSECONDS = 1_000_000
LONGEST_SECONDS = 3600.0
"""A clip is an utterance; its sound is in memory as a whole, 0.23 GB an hour at 16 kHz."""
_LEAD_SECONDS = 0.5
"""Sound that is decoded before a part that is asked for: codecs need what came before."""
_GAP_SECONDS = 0.05
"""Sound that is presented later than this after what came before it leaves silence between them."""
_EARLY_SECONDS = 0.002
"""A frame counts as shown so much earlier: containers round its time, to a millisecond at worst."""
_DEFAULT_FRAME_SECONDS = Fraction(1, 25)
"""How long a frame lasts where the file says nothing."""
_FORMATS = (
    *("mov", "matroska", "webm", "avi", "flv", "live_flv", "asf", "mpeg", "mpegts", "mpegvideo", "dv"),
    *(
        "m4v",
        "h264",
        "hevc",
        "wav",
        "w64",
        "aiff",
        "caf",
        "au",
        "flac",
        "mp3",
        "ogg",
        "aac",
        "loas",
        "amr",
        "ac3",
        "eac3",
    ),
)
"""FFmpeg's names of what a file may be, whatever it is called. Lists of other files (concat, hls, dash) are none."""


@dataclass(frozen=True)
class Span:
    """The part of a file that is asked for."""

    start: float = 0.0
    """Seconds."""
    stop: float | None = None
    """Seconds; None: the end of the file."""

    def __str__(self) -> str:
        """What errors add, such as ` from 9 to 12.5 s`; nothing for the whole file."""
        if self.stop is not None:
            return f" from {self.start:g} to {self.stop:g} s"
        return f" from {self.start:g} s on" if self.start else ""

    def check(self) -> None:
        """Raise ClipError for a part that cannot be."""
        stop = self.start + 1 if self.stop is None else self.stop
        if not 0 <= self.start < stop or not math.isfinite(stop):
            raise ClipError(f"its part from {self.start} to {self.stop} s is none; give 0 <= start < stop, in seconds")
        self.check_length(stop - self.start)

    def check_length(self, seconds: float) -> None:
        """Raise ClipError for a clip that is too long."""
        if seconds > LONGEST_SECONDS:
            raise ClipError(
                f"it lasts more than {LONGEST_SECONDS:g} s; cut it into utterances, or give start and stop of each"
            )


@dataclass(frozen=True)
class MediaFacts:
    """What the header of a file says."""

    has_sound: bool
    has_video: bool
    seconds: float | None
    """The length of the file; None: not said."""


@dataclass(frozen=True)
class Frame:
    """A frame, as a face is looked for in it."""

    steps: range
    """The steps of the sampled sequence at which it is shown."""
    pixels: NDArray[np.uint8]
    """[height, width, 3]: red, green, blue."""


@dataclass
class FrameCount:
    """What is known of the frames that were read so far."""

    read: int = 0
    damaged: int = 0
    """Frames in which the decoder concealed errors."""
    stop: float = 0.0
    """Seconds at which the last one ends."""


def media_facts(path: Path) -> MediaFacts:
    """Look into a file; `ClipError` where it is no media file."""
    with _opened(path) as container:
        seconds = None if container.duration is None else container.duration / MICROSECONDS
        return MediaFacts(bool(container.streams.audio), _video_stream(container) is not None, seconds)


def read_sound(path: Path, rate: int, span: Span) -> NDArray[np.float32]:
    """The first sound track [samples] at `rate` samples per second, the mean of its channels; where it pauses or begins
    late, zeros.

    Raises:
        ClipError: it cannot be decoded, or is too long.
    """
    pieces: list[tuple[int, NDArray[np.float32]]] = []
    with _opened(path) as container, _decoding("sound"):
        frames = _decoded(container, container.streams.audio[0], span, lead=_LEAD_SECONDS)
        for position, samples in _pieces(frames, rate, _origin(container)):
            first = position - round(span.start * rate)
            span.check_length(first / rate)
            pieces.append((first, samples))
    stop = max((first + len(samples) for first, samples in pieces), default=0)
    if span.stop is not None:
        stop = min(stop, round((span.stop - span.start) * rate))
    sound = np.zeros(max(stop, 0), dtype=np.float32)
    for first, samples in pieces:
        begin, end = max(first, 0), min(first + len(samples), len(sound))
        if end > begin:
            sound[begin:end] = samples[begin - first : end - first]
    return sound


def read_frames(path: Path, rate: float, size: int, span: Span, count: FrameCount) -> Iterator[Frame]:
    """The frames that are shown at the middles of steps of 1/`rate` seconds, each once, in order. Steps before the
    first frame of a video that begins late have none.

    Args:
        rate: steps per second.
        size: pixels of the longer side, at most; larger frames are scaled down.
        count: is brought up to date while frames are read.

    Raises:
        ClipError: the video cannot be decoded, or is too long.
    """
    with _opened(path) as container, _decoding("video"):
        stream = _video_stream(container)
        assert stream is not None
        interval = float(1 / stream.average_rate) if stream.average_rate else float(_DEFAULT_FRAME_SECONDS)
        aspect = float(stream.sample_aspect_ratio or 1)
        shown: _Shown | None = None
        turn = 0
        first = step = 0
        for frame in _decoded(container, stream, span):
            start = _time(frame, _origin(container), count.stop + span.start) - span.start
            span.check_length(start)
            own = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 0.0
            _count(count, frame, start, stop=start + max(own, interval))
            if shown is None:
                first = step = _step_at(start, rate)
            steps = range(step, max(step, _step_at(start, rate)))
            if shown is not None and steps:
                yield Frame(steps, _pixels(shown, size, aspect))
                step = steps.stop
            if frame.key_frame or frame.rotation:
                turn = frame.rotation
            shown = _Shown(frame, turn)
        if span.stop is not None:
            count.stop = min(count.stop, span.stop - span.start)
        if shown is not None and count.stop > 0:
            last = max(_step_at(count.stop, rate), 1)
            if step == first:
                step = min(step, last - 1)  # a video that is shown at no middle has its last step
            if last > step:
                yield Frame(range(step, last), _pixels(shown, size, aspect))


def _count(count: FrameCount, frame: "VideoFrame", start: float, *, stop: float) -> None:
    if stop > 0:
        count.read += 1
        count.damaged += frame.is_corrupt
    count.stop = max(count.stop, stop)


def _step_at(seconds: float, rate: float) -> int:
    """The first step whose middle is not before a time."""
    return max(math.ceil((seconds - _EARLY_SECONDS) * rate - 0.5), 0)


class _Shown(NamedTuple):
    """A frame until the next one is shown."""

    frame: "VideoFrame"
    turn: int
    """Degrees by which it is turned counterclockwise to stand upright; frames after a key frame are turned as it is."""


def _pixels(shown: _Shown, size: int, aspect: float) -> NDArray[np.uint8]:
    """[height, width, 3], with square pixels, no side longer than `size`.

    Args:
        aspect: width of a stored pixel by its height.
    """
    frame, turn = shown
    width = frame.width * aspect
    scale = min(1.0, size / max(width, frame.height))
    picture = frame.reformat(
        width=max(round(width * scale), 1),
        height=max(round(frame.height * scale), 1),
        format="rgb24",
        interpolation="AREA",
        threads=1,
    )
    return np.ascontiguousarray(np.rot90(picture.to_ndarray(), round(turn / 90)))


def _pieces(
    frames: Iterator["AudioFrame"],
    rate: int,
    origin: float,
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Resampled sound without gaps, and the sample of the file at which each piece of it begins."""
    av: Any = load("av")
    resampler, position, expected = None, 0, 0.0
    for frame in frames:
        start = _time(frame, origin, expected)
        if resampler is None or abs(start - expected) > _GAP_SECONDS:
            if resampler is not None:
                yield from _resampled(resampler, None, position)
            resampler = av.AudioResampler(format="fltp", rate=rate)  # in its own layout: FFmpeg would sum channels
            position = round(start * rate)
            expected = start
        expected += frame.samples / frame.sample_rate
        frame.pts = None
        for first, samples in _resampled(resampler, frame, position):
            position = first + len(samples)
            yield first, samples
    if resampler is not None:
        yield from _resampled(resampler, None, position)


def _resampled(
    resampler: Any,
    frame: "AudioFrame | None",
    position: int,
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """What the resampler gives for a frame, or at the end; each part with its place."""
    for part in resampler.resample(frame):
        samples = part.to_ndarray().mean(axis=0)  # [channels, samples]
        yield position, samples
        position += len(samples)


def _decoded(
    container: "InputContainer",
    stream: "InputStream",
    span: Span,
    *,
    lead: float = 0.0,
) -> Iterator[Any]:
    """The frames of a stream that overlap a part of the file, and some before it."""
    stream.codec_context.thread_count = 1
    origin = _origin(container)
    if span.start > lead:
        container.seek(round((span.start - lead + origin) * MICROSECONDS))
    frames: Iterator[Any] = container.decode(stream)
    for frame in frames:
        if span.stop is not None and frame.time is not None and frame.time - origin >= span.stop:
            return
        yield frame


def _time(frame: "AudioFrame | VideoFrame", origin: float, otherwise: float) -> float:
    """The seconds of the file at which a frame is presented."""
    return otherwise if frame.time is None else frame.time - origin


def _origin(container: "InputContainer") -> float:
    """The time stamp of the file's beginning, in seconds."""
    start: int | None = container.start_time
    return 0.0 if start is None else start / MICROSECONDS


def _video_stream(container: "InputContainer") -> "av.VideoStream | None":
    """The first stream of frames; the cover picture of a recording is none."""
    import av.stream

    pictures = av.stream.Disposition.attached_pic
    return next((stream for stream in container.streams.video if not stream.disposition & pictures), None)


@contextmanager
def _opened(path: Path) -> Iterator["InputContainer"]:
    """A container; it opens no other file or address that it names."""
    av: Any = load("av")
    try:
        if path.is_file() and not path.stat().st_size:
            raise ClipError("its media file is empty (0 bytes); copy it again")
        allowed = {"protocol_whitelist": "file", "format_whitelist": ",".join(_FORMATS)}
        container = av.open(str(path.resolve()), "r", options=allowed)
    except av.error.FFmpegError as error:
        raise ClipError(
            f"its media file cannot be opened ({_reason(error)}); it is missing, cut off or no media file"
        ) from error
    with container:
        yield container


@contextmanager
def _decoding(what: Literal["sound", "video"]) -> Iterator[None]:
    """Turn errors of the decoder into `ClipError`."""
    av: Any = load("av")
    try:
        yield
    except ClipError:
        raise
    except (av.error.FFmpegError, ValueError) as error:
        raise ClipError(f"its {what} is damaged ({_reason(error)}); copy the file again, or encode it anew") from error


def _reason(error: Any) -> str:
    return str(getattr(error, "strerror", None) or error).rstrip(".")
