"""Sound and frames of media files: at the right times, upright, small, one at a time; damaged files are named."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from data_shards.clip_sets.clip_files import MEDIA_SUFFIXES
from data_shards.extraction.clip import ClipError
from data_shards.extraction.media import Frame, FrameCount, Span, media_facts, read_frames, read_sound
from tests.support.clips import (
    SAMPLE_RATE,
    Sound,
    Video,
    frame_times,
    picture,
    tones,
    write_clip,
    write_video,
    write_wav,
)

RATE = 16000
CODECS = {
    **{".avi": "mp3", ".webm": "libopus", ".flv": "mp3", ".wmv": "mp3", ".mpg": "mp2", ".mpeg": "mp2"},
    **{".wav": "pcm_s16le", ".flac": "flac", ".mp3": "mp3", ".ogg": "libopus", ".opus": "libopus"},
}
"""Of sound, by the suffix of the file; AAC in others."""


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """Two seconds of a face and tones, 15 frames per second."""
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", tones(2.0))


def frames(path: Path, rate: float, span: Span | None = None, *, size: int = 640) -> list[Frame]:
    return list(read_frames(path, rate, size, span or Span(), FrameCount()))


def steps(found: list[Frame]) -> list[tuple[int, int]]:
    return [(frame.steps.start, frame.steps.stop) for frame in found]


def shown_at(frame: Frame, times: list[float]) -> int:
    """Which of the pictures of these times a frame is."""
    return int(np.argmin([np.abs(frame.pixels.astype(float) - picture(time)).mean() for time in times]))


def test_frames_are_those_that_are_shown_at_the_middle_of_steps(clip):
    found = frames(clip, 5)
    assert steps(found) == [(step, step + 1) for step in range(10)]
    # 0.1, 0.3, ... s: at 15 frames per second frames 1, 4 (0.267 s), 7, ...
    assert [shown_at(frame, frame_times(2.0)) for frame in found] == [1, 4, 7, 10, 13, 16, 19, 22, 25, 28]


def test_a_part_of_a_longer_file_has_the_same_frames_and_sound(clip):
    part = frames(clip, 5, Span(0.8, 1.4))
    assert steps(part) == [(0, 1), (1, 2), (2, 3)]
    for frame, same in zip(part, frames(clip, 5)[4:7], strict=True):
        np.testing.assert_array_equal(frame.pixels, same.pixels)
    whole, sound = read_sound(clip, RATE, Span()), read_sound(clip, RATE, Span(0.8, 1.4))
    assert len(sound) == 0.6 * RATE
    # the resampler began at another sample
    np.testing.assert_allclose(sound, whole[round(0.8 * RATE) : round(1.4 * RATE)], atol=0.02)


def test_a_variable_frame_rate_is_sampled_by_time(tmp_path):
    times = [0, 0.04, 0.08, 0.5, 0.52, 1.7]
    path = write_video(tmp_path / "variable.mkv", Video(times=times, stop=2.0))
    found = frames(path, 10)
    assert steps(found) == [(0, 1), (1, 5), (5, 17), (17, 20)]
    assert [shown_at(frame, times) for frame in found] == [1, 2, 4, 5]


def test_a_video_shorter_than_a_step_has_one(tmp_path):
    path = write_video(tmp_path / "short.mkv", Video(times=[0.0], stop=0.04))
    assert steps(frames(path, 5)) == [(0, 1)]


def test_a_video_that_begins_late_has_no_frame_before(tmp_path):
    times = [1.0, 1.2, 1.4]
    path = write_video(tmp_path / "late.mp4", Video(times=times, stop=1.6, sound=tones(1.6)))
    found = frames(path, 5)
    assert steps(found) == [(5, 6), (6, 7), (7, 8)]
    assert [shown_at(frame, times) for frame in found] == [0, 1, 2]
    assert steps(frames(path, 5, Span(0.8, 1.4))) == [(1, 2), (2, 3)]
    assert steps(frames(path, 0.2)) == [(0, 1)], "one is all it has, though it is not shown at 2.5 s"


def test_large_frames_are_scaled_down(tmp_path):
    path = write_video(tmp_path / "4k.mp4", Video(times=[0.0, 0.1], stop=0.2, size=(3840, 2160)))
    assert {frame.pixels.shape for frame in frames(path, 10, size=640)} == {(360, 640, 3)}


def turned(source: Path, path: Path) -> Path:
    """A copy of a video whose key frames say that it is to be turned by 90 degrees."""
    import av

    with av.open(str(source)) as given, av.open(str(path), "w") as copy:
        stream = given.streams.video[0]
        out = copy.add_stream_from_template(stream)
        turn = av.bitstream.BitStreamFilterContext("h264_metadata=display_orientation=insert:rotate=90", stream, out)
        for packet in given.demux(stream):
            for changed in turn.filter(packet if packet.dts is not None else None):
                changed.stream = out
                copy.mux(changed)
    return path


def test_turned_videos_stand_upright(tmp_path):
    source = write_video(tmp_path / "lying.mp4", Video(times=frame_times(0.4), stop=0.4, size=(320, 240)))
    lying, upright = frames(source, 5), frames(turned(source, tmp_path / "turned.mp4"), 5)
    assert len(lying) == len(upright) == 2
    for before, after in zip(lying, upright, strict=True):
        np.testing.assert_array_equal(after.pixels, np.rot90(before.pixels))


def test_frames_are_not_all_in_memory(clip):
    """Reading stops where the caller does: one frame is ahead."""
    count = FrameCount()
    next(read_frames(clip, 15, 640, Span(), count))
    assert count.read == 2


def spectrum_peak(sound: NDArray[np.float32]) -> float:
    """The strongest frequency in Hz."""
    return float(np.argmax(np.abs(np.fft.rfft(sound))) * RATE / len(sound))


def test_a_recording_without_video(tmp_path):
    time = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    path = write_wav(tmp_path / "a.wav", Sound((8000 * np.sin(2 * np.pi * 440 * time)).astype(np.int16)))
    facts = media_facts(path)
    assert (facts.has_sound, facts.has_video, facts.seconds) == (True, False, 1.0)
    sound = read_sound(path, RATE, Span())
    assert (sound.dtype, len(sound)) == (np.float32, RATE)
    assert spectrum_peak(sound) == 440
    assert np.abs(sound).max() == pytest.approx(8000 / 32768, rel=0.01)


@pytest.mark.parametrize("layout", ["mono", "stereo", "5.1"])
def test_equal_channels_are_as_loud_as_one(tmp_path, layout):
    import av

    path = tmp_path / "channels.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=RATE, layout=layout)
        frame = av.AudioFrame.from_ndarray(
            np.full((1, RATE * stream.channels), 8000, dtype=np.int16), format="s16", layout=layout
        )
        frame.sample_rate, frame.pts = RATE, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    sound = read_sound(path, RATE, Span())
    assert (sound.dtype, len(sound)) == (np.float32, RATE)
    assert np.abs(sound - 8000 / 32768).max() < 1e-6


def test_the_cover_of_a_recording_is_no_video(tmp_path):
    import av.stream

    path = tmp_path / "cover.m4a"
    with av.open(str(path), "w", format="mp4") as container:
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        voice = container.add_stream("aac", rate=RATE, layout="mono")
        container.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        container.mux(cover.encode())
        sound = av.AudioFrame.from_ndarray(np.zeros((1, RATE), np.int16), format="s16", layout="mono")
        sound.sample_rate, sound.pts = RATE, 0
        container.mux(voice.encode(sound))
        container.mux(voice.encode())
    facts = media_facts(path)
    assert (facts.has_sound, facts.has_video) == (True, False)


def test_sound_that_begins_late_and_pauses_is_where_it_belongs(tmp_path):
    import av

    path = tmp_path / "gaps.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=RATE, layout="mono")
        for second in (0, 1, 3):
            samples = np.full((1, RATE), 1000 * (second + 1), dtype=np.int16)
            frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            frame.sample_rate, frame.pts = RATE, second * RATE
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    sound = read_sound(path, RATE, Span())
    levels = [round(float(sound[round(at * RATE)]) * 32768) for at in (0.5, 1.5, 2.5, 3.5)]
    assert (len(sound), levels) == (4 * RATE, [1000, 2000, 0, 4000])
    part = read_sound(path, RATE, Span(2.5, 3.5))
    assert [round(float(part[round(at * RATE)]) * 32768) for at in (0.25, 0.75)] == [0, 4000]


def test_files_that_are_no_media(tmp_path, clip):
    whole = clip.read_bytes()
    for name, content in {"junk.mp4": b"junk" * 999, "cut.mp4": whole[: len(whole) // 2]}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ClipError, match=r"cannot be opened \(Invalid data found .*\); it is missing"):
            media_facts(tmp_path / name)
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(ClipError, match=r"its media file is empty \(0 bytes\)"):
        media_facts(tmp_path / "empty.mp4")
    with pytest.raises(ClipError, match="No such file or directory"):
        media_facts(tmp_path / "none.mp4")


def test_a_list_of_other_files_is_no_media(tmp_path):
    write_wav(tmp_path / "other.wav", tones(0.1))
    (tmp_path / "clip.mp4").write_text("ffconcat version 1.0\nfile other.wav\n")
    with pytest.raises(ClipError, match="its media file cannot be opened"):
        media_facts(tmp_path / "clip.mp4")


@pytest.mark.parametrize("suffix", sorted(MEDIA_SUFFIXES))
def test_a_file_of_every_suffix_is_media(tmp_path, suffix):
    import av

    path, rate = tmp_path / f"clip{suffix}", 8000 if suffix == ".3gp" else 48000
    with av.open(str(path), "w") as container:
        stream = container.add_stream(CODECS.get(suffix, "aac"), rate=rate, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, rate), np.int16), format="s16", layout="mono")
        sound.sample_rate, sound.pts = rate, 0
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    assert media_facts(path).has_sound


def test_a_damaged_file_is_named(tmp_path, clip):
    content = bytearray(clip.read_bytes())
    begin = content.index(b"mdat") + len(content) // 4
    content[begin : begin + 3000] = b"\xff" * 3000
    (tmp_path / "damaged.mp4").write_bytes(content)
    with pytest.raises(ClipError, match="its video is damaged"):
        frames(tmp_path / "damaged.mp4", 15)
    with pytest.raises(ClipError, match="its sound is damaged"):
        read_sound(tmp_path / "damaged.mp4", RATE, Span())


@pytest.mark.parametrize("span", [(-1.0, None), (2.0, 2.0), (float("nan"), None), (0.0, float("inf"))])
def test_impossible_parts_are_named(span):
    with pytest.raises(ClipError, match="give 0 <= start < stop, in seconds"):
        Span(*span).check()


def test_a_clip_is_no_film():
    with pytest.raises(ClipError, match="it lasts more than 3600 s"):
        Span(10.0, 4000.0).check()
