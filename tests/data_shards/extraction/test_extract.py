"""The features of a clip, and every clip that has none or not all of them."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from data_shards.extraction.audio import AUDIO_DIMS
from data_shards.extraction.clip import Clip, ClipError, ExtractedClip, WarningKind
from data_shards.extraction.extract import extract_clip
from data_shards.extraction.preparation import find_face_model, other_versions, prepare
from data_shards.extraction.settings import ExtractionSettings
from data_shards.extraction.transcript import Transcript, Word
from data_shards.extraction.vision import BLENDSHAPES, LANDMARKS, POSE
from data_shards.text.tokenizer import TokenCounts, load_tokenizer
from tests.support.clips import (
    Video,
    frame_times,
    needs_speech,
    speech,
    tones,
    write_clip,
    write_video,
    write_wav,
)
from tests.support.imports import ROOT
from tests.support.tokenizers import save_tokenizer

SAID = Transcript(text="so it is", words=(Word("so", 0.1, 0.4), Word("it", 0.4, 0.6), Word("is", 0.7, 1.0)))
PLAIN = Transcript(text="so it is")
NO_FACE: dict[str, Any] = {"vision": "none"}
NO_SOUND: dict[str, Any] = {"audio": "none"}
"""Settings of tests that are about the other modality."""


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> Path:
    """A second and a half of a moving face, with tones."""
    return write_clip(tmp_path_factory.mktemp("media") / "clip.mp4", tones(1.5))


@pytest.fixture(scope="module")
def wav(tmp_path_factory) -> Path:
    return write_wav(tmp_path_factory.mktemp("sound") / "clip.wav", tones(1.5))


def extract(
    path: Path, transcript: Transcript | None = SAID, *, span: Any = (0.0, None), **settings: Any
) -> ExtractedClip:
    clip = Clip(id="a", media=path, transcript=transcript, start=span[0], stop=span[1])
    return extract_clip(clip, prepare(ExtractionSettings(**settings)))


def warnings(made: ExtractedClip) -> dict[str, str]:
    assert len({warning.kind for warning in made.warnings}) == len(made.warnings)
    return {warning.kind: warning.text for warning in made.warnings}


def contents(made: ExtractedClip) -> list[object]:
    arrays = (made.text, made.audio, made.vision)
    return [*(None if array is None else (array.shape, array.tobytes()) for array in arrays), made.lengths]


def test_an_unaligned_clip(media):
    made = extract(media)
    assert made.raw_text == "so it is"
    assert made.text is None
    assert made.audio.shape == (made.lengths["audio"], AUDIO_DIMS["opensmile-egemaps"])
    assert made.vision.shape == (made.lengths["vision"], BLENDSHAPES + POSE)
    # AAC pads the sound to whole frames of 46 ms
    assert made.lengths["audio"] in (30, 31)
    assert made.lengths["vision"] == pytest.approx(1.5 * 15, abs=1)
    assert made.duration == pytest.approx(1.5, abs=0.05)
    assert made.warnings == ()
    for array in (made.audio, made.vision):
        assert array.dtype == np.float32
        assert np.isfinite(array).all()
        assert (array.std(axis=0) > 0).mean() > 0.8
    shapes = made.vision[:, :BLENDSHAPES]
    assert shapes.min() >= 0
    assert shapes.max() <= 1


def test_the_pitch_of_tones_is_found(wav):
    """From 150 Hz to 225 Hz: in semitones over 27.5 Hz, openSMILE's column 11; in Hz, librosa's last."""
    semitones = extract(wav, **NO_FACE).audio[:, 10]
    time = np.arange(len(semitones)) / 20 + 0.025
    wanted = 150 * (1 + 0.5 * time / 1.5)
    inner = slice(2, -2)
    np.testing.assert_allclose(semitones[inner], 12 * np.log2(wanted / 27.5)[inner], atol=0.5)
    hertz = extract(wav, audio="librosa", **NO_FACE).audio
    assert hertz.shape == (30, AUDIO_DIMS["librosa"])
    np.testing.assert_allclose(hertz[inner, -1], wanted[inner], rtol=0.02)


@pytest.mark.slow
def test_the_same_clip_gives_the_same_bytes_in_any_process(media):
    """Whatever was extracted before it."""
    first, again = extract(media), extract(media)
    assert contents(first) == contents(again)
    code = f"""
from pathlib import Path
from tests.data_shards.extraction.{Path(__file__).stem} import contents, extract
print(repr(contents(extract(Path({str(media)!r})))))
"""
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert other.stdout == f"{contents(first)!r}\n"


def test_words_are_means_of_frames(media):
    """Audio of 100 frames a second and vision of 15, by their centres."""
    made = extract(media, alignment="words")
    assert made.lengths == {"audio": 3, "vision": 3}
    frames = extract(media, audio_rate=100)
    for row, word in enumerate(SAID.words):
        # the step of 100 a second that begins at t holds the frame whose centre is t
        audio = frames.audio[round(word.start * 100) : round(word.stop * 100)].mean(axis=0, dtype=np.float64)
        np.testing.assert_allclose(made.audio[row], audio, rtol=1e-4, atol=1e-4)
        centres = (np.arange(len(frames.vision)) + 0.5) / 15
        inside = (word.start <= centres) & (centres < word.stop)
        vision = frames.vision[inside].mean(axis=0, dtype=np.float64)
        np.testing.assert_allclose(made.vision[row], vision, rtol=1e-5, atol=1e-6)


@needs_speech
def test_spoken_words_are_louder_than_the_pauses_between_them(tmp_path):
    """Loudness, openSMILE's first column, in words and in intervals of silence that are given as words."""
    sound = speech("wonderful terrible movie")
    assert sound.transcript is not None
    words = sound.transcript.words
    silence = [Word("-", word.stop, word.stop + 0.05) for word in words]
    both = Transcript(text="any", words=tuple(sorted((*words, *silence), key=lambda word: word.start)))
    made = extract(write_wav(tmp_path / "said.wav", sound), both, alignment="words", **NO_FACE)
    loudness = made.audio[:, 0]
    assert loudness[::2].min() > 2 * loudness[1::2].max()


def test_a_part_of_a_longer_file(media):
    later = Transcript(text="it is", words=SAID.words[1:])
    made = extract(media, later, span=(0.4, 1.2), alignment="words", audio_rate=100)
    whole = extract(media, SAID, alignment="words", audio_rate=100)
    assert made.duration == pytest.approx(0.8)
    np.testing.assert_allclose(made.audio[:, 0], whole.audio[1:, 0], rtol=0.1)
    with pytest.raises(ClipError, match=r"^it has no sound from 9 to 10 s; `--missing zeros`"):
        extract(media, span=(9.0, 10.0))
    with pytest.raises(ClipError, match=r"^its media file has nothing from 9 s on$"):
        extract(media, span=(9.0, None), missing="zeros")


def test_landmarks_do_not_depend_on_where_the_face_is(tmp_path):
    """The astronaut moves by 40 pixels of 256 and her landmarks by less than a tenth of their spread."""
    path = write_video(tmp_path / "face.mp4", Video(times=frame_times(1.0, rate=5), stop=1.0))
    made = extract(path, PLAIN, vision="mediapipe-landmarks", frames_per_second=5, **NO_SOUND)
    points = made.vision[:, : 3 * LANDMARKS].reshape(-1, LANDMARKS, 3)
    np.testing.assert_allclose(points.mean(axis=1), 0, atol=1e-6)
    np.testing.assert_allclose((points**2).sum(axis=2).mean(axis=1), 1, rtol=1e-5)
    assert np.abs(points - points[0]).max() < 0.1 * np.abs(points[0]).max()
    position = made.vision[:, -3]
    assert np.ptp(position) > 0.01


def test_sequences_are_padded_and_cut(wav):
    made = extract(wav, lengths={"audio": 40}, **NO_FACE)
    assert (made.audio.shape[0], made.lengths["audio"]) == (40, 30)
    assert not made.audio[30:].any()
    cut = extract(wav, lengths={"audio": 20}, **NO_FACE)
    assert warnings(cut) == {"audio-cut": "10 of its 30 steps of audio are cut off"}
    np.testing.assert_array_equal(cut.audio, made.audio[:20])


def test_a_video_without_sound(tmp_path):
    path = write_video(tmp_path / "silent.mp4", Video(times=frame_times(0.4), stop=0.4))
    with pytest.raises(ClipError, match=r"^it has no sound; `--missing zeros` takes such clips$"):
        extract(path, PLAIN)
    made = extract(path, PLAIN, missing="zeros")
    assert warnings(made) == {"no-sound": "it has no sound"}
    assert (made.audio.shape, made.audio.any(), made.lengths["audio"]) == ((1, 25), np.False_, 1)
    aligned = extract(path, PLAIN, missing="zeros", alignment="words", word_times="spread")
    assert (aligned.audio.shape, aligned.audio.any(), aligned.lengths["vision"]) == ((3, 25), np.False_, 3)
    only = extract(path, PLAIN, **NO_SOUND)
    assert (only.audio, only.warnings, list(only.lengths)) == (None, (), ["vision"])


def test_a_recording_without_video(wav):
    with pytest.raises(ClipError, match=r"^it has no video; `--missing zeros` takes such clips$"):
        extract(wav)
    made = extract(wav, missing="zeros")
    assert warnings(made) == {"no-video": "it has no video"}
    assert (made.vision.shape, made.vision.any()) == ((1, BLENDSHAPES + POSE), np.False_)


def test_a_video_without_a_face(tmp_path):
    video = Video(times=frame_times(0.6), stop=0.6, kinds=("grey",))
    path = write_video(tmp_path / "grey.mp4", video)
    with pytest.raises(ClipError, match=r"^no face is found in any of its 9 frames; `--missing zeros` takes"):
        extract(path, PLAIN, **NO_SOUND)
    made = extract(path, PLAIN, missing="zeros", **NO_SOUND)
    assert warnings(made) == {"no-face": "no face is found in any of its 9 frames"}
    assert (made.lengths["vision"], made.vision.any()) == (9, np.False_)


def test_frames_without_a_face_are_counted_and_zero(tmp_path):
    video = Video(times=frame_times(0.6), stop=0.6, kinds=("face",) * 6 + ("grey",) * 3)
    made = extract(write_video(tmp_path / "partly.mp4", video), PLAIN, **NO_SOUND)
    assert warnings(made) == {"frames-without-face": "no face is found in 3 of its 9 frames (33.3 %)"}
    assert made.vision.any(axis=1).tolist() == [True] * 6 + [False] * 3


def test_a_4k_video_has_the_features_of_a_small_one(tmp_path):
    times = frame_times(0.2, rate=10)
    made = [
        extract(write_video(tmp_path / f"{size[0]}.mp4", Video(times=times, stop=0.2, size=size)), PLAIN, **NO_SOUND)
        for size in ((3840, 2160), (640, 360))
    ]
    large, small = (clip.vision for clip in made)
    assert large.shape == small.shape
    assert np.abs(large - small)[:, :BLENDSHAPES].max() < 0.1


def test_a_variable_frame_rate_is_aligned_by_time(tmp_path):
    """The face is there from 0.5 s on: in the second word and not in the first, whatever the number of frames."""
    times = [0, 0.02, 0.04, 0.06, 0.08, 0.5, 0.6]
    video = Video(times=times, stop=1.0, kinds=("grey",) * 5 + ("face",) * 2)
    said = Transcript(text="so it", words=(Word("so", 0, 0.5), Word("it", 0.5, 1.0)))
    made = extract(write_video(tmp_path / "variable.mkv", video), said, alignment="words", **NO_SOUND)
    assert made.vision.any(axis=1).tolist() == [False, True]


def test_sound_of_zero_length(tmp_path):
    path = write_wav(tmp_path / "none.wav", tones(0.0))
    with pytest.raises(ClipError, match="it has no sound"):
        extract(path, **NO_FACE)
    short = write_wav(tmp_path / "short.wav", tones(0.02))
    with pytest.raises(ClipError, match=r"its sound lasts 0\.020 s, and a window of the features 0\.06 s"):
        extract(short, **NO_FACE)


def test_a_file_that_ends_early_is_named(tmp_path):
    whole = write_clip(tmp_path / "whole.mkv", tones(3.0), kind="grey").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    text = warnings(extract(tmp_path / "cut.mkv", **NO_FACE))["ends-early"]
    assert text.startswith("its sound ends at 1.")
    assert text.endswith(" s, and 3.046 s are asked for")


@pytest.mark.parametrize(
    ("transcript", "message"),
    [
        (None, "it has no transcript"),
        (Transcript(text=" "), "its transcript has no word: ' '"),
        (Transcript(text="..."), "its transcript has no word: '...'"),
    ],
)
def test_an_empty_transcript(wav, transcript, message):
    with pytest.raises(ClipError, match=f"^{message}; `--missing zeros` takes such clips$"):
        extract(wav, transcript, **NO_FACE)
    assert warnings(extract(wav, transcript, missing="zeros", **NO_FACE)) == {"no-transcript": message}
    with pytest.raises(ClipError, match=r"it has no word to which its features can be aligned"):
        extract(wav, transcript, missing="zeros", alignment="words", **NO_FACE)


def test_a_transcript_in_another_script_is_named(wav):
    text = "its transcript is written in CYRILLIC, and language en in LATIN"
    assert warnings(extract(wav, Transcript(text="это хорошо"), language="en", **NO_FACE)) == {"other-script": text}
    assert extract(wav, Transcript(text="это хорошо"), language="ru", **NO_FACE).warnings == ()
    assert extract(wav, Transcript(text="это хорошо"), **NO_FACE).warnings == ()


def test_words_without_times(wav):
    with pytest.raises(ClipError, match="its transcript has no word times; give a csv or json with times"):
        extract(wav, PLAIN, alignment="words", **NO_FACE)
    spread = extract(wav, PLAIN, alignment="words", word_times="spread", **NO_FACE)
    given = Transcript(text="so it is", words=(Word("so", 0, 0.5), Word("it", 0.5, 1.0), Word("is", 1.0, 1.5)))
    assert contents(spread) == contents(extract(wav, given, alignment="words", **NO_FACE))


def test_doubtful_word_times_are_named(wav):
    words = (Word("so", 0.1, 0.4), Word("it", 0.3, 0.6), Word("is", 1.6, 1.9))
    made = extract(wav, Transcript(text="so it is", words=words, filled=1), alignment="words", **NO_FACE)
    assert warnings(made) == {
        "words-overlap": "1 of its 3 words begin before the word before them ends",
        "words-outside": "1 of its 3 words are said outside its 1.500 s and have zeros",
        "words-without-times": "1 of its 3 words have no times of their own and share those around them",
    }
    assert made.audio.any(axis=1).tolist() == [True, True, False]
    late = Transcript(text="so", words=(Word("so", 61.0, 62.0),))
    with pytest.raises(ClipError, match=r"none of its 1 words is said in its 1\.500 s; word times are seconds from"):
        extract(wav, late, alignment="words", **NO_FACE)


class WordLengths:
    """In the place of an encoder: the state of a word is its length."""

    digest = "lengths"
    dim = 2

    def look(self, words: Sequence[str]) -> TokenCounts:
        unknown = [word for word in words if word.startswith("?")]
        return TokenCounts(tokens=len(words), known=len(words) - len(unknown), unknown=unknown)

    def __call__(self, words: Sequence[str]) -> NDArray[np.float32]:
        return np.array([[len(word), 1] for word in words], dtype=np.float32)


TEXT_ONLY: dict[str, Any] = {"audio": "none", "vision": "none", "text_encoder": "some"}


def test_text_as_tokens(wav, tmp_path):
    tokenizer = load_tokenizer(save_tokenizer("bert", tmp_path))
    said = Transcript(text="the plot was slow")
    count = tokenizer.count(said.text)
    settings = prepare(ExtractionSettings(text="tokens", lengths={"text": count - 2}, **TEXT_ONLY), tokenizer=tokenizer)
    assert (settings.dims, settings.text_digest) == ({"text": 0}, tokenizer.digest)
    made = extract_clip(Clip(id="a", media=wav, transcript=said), settings, tokenizer=tokenizer)
    np.testing.assert_array_equal(made.text, tokenizer.encode(said.text, count - 2))
    assert made.lengths == {"text": count - 2}
    assert warnings(made) == {"text-cut": f"2 of its {count} tokens are cut off"}
    foreign = Clip(id="a", media=wav, transcript=Transcript(text="Привет мир"))
    with pytest.raises(ClipError, match=r"the tokenizer knows no word of its transcript: 'Привет' \(1\), 'мир' \(1\);"):
        extract_clip(foreign, settings, tokenizer=tokenizer)
    made = extract_clip(foreign, dataclasses.replace(settings, missing="zeros"), tokenizer=tokenizer)
    assert list(warnings(made)) == ["unknown-words"]


def test_text_as_states(wav):
    states = WordLengths()
    settings = prepare(ExtractionSettings(text="states", lengths={"text": 4}, **TEXT_ONLY), states=states)
    assert (settings.dims, settings.text_digest) == ({"text": 2}, "lengths")
    made = extract_clip(Clip(id="a", media=wav, transcript=SAID), settings, states=states)
    assert (made.text.tolist(), made.lengths) == ([[2, 1], [2, 1], [2, 1], [0, 0]], {"text": 3})
    partly = extract_clip(Clip(id="a", media=wav, transcript=Transcript(text="good ?x")), settings, states=states)
    assert warnings(partly) == {"unknown-words": "1 of its 2 words are unknown tokens: '?x' (1)"}
    empty = dataclasses.replace(settings, missing="zeros", lengths={})
    made = extract_clip(Clip(id="a", media=wav), empty, states=states)
    assert (made.text.tolist(), made.lengths) == ([[0, 0]], {"text": 1})


def test_the_face_model_is_found_or_named(tmp_path, media):
    model = find_face_model(None)
    assert prepare(ExtractionSettings(audio="none"), face_model=model).face_model
    with pytest.raises(ValueError, match=r"there is no face model .*none.task; give MediaPipe's face_landmarker.task"):
        find_face_model(tmp_path / "none.task")
    (tmp_path / "bad.task").write_bytes(b"no model")
    settings = prepare(ExtractionSettings(audio="none"), face_model=tmp_path / "bad.task")
    with pytest.raises(ValueError, match=r"MediaPipe does not take the face model .*; fetch face_landmarker.task"):
        extract_clip(Clip(id="a", media=media, transcript=PLAIN), settings, face_model=tmp_path / "bad.task")
    with pytest.raises(
        ValueError, match=r"the features were made with another face_landmarker.task \(.*\); give that one"
    ):
        prepare(settings, face_model=model)


def test_every_warning_is_documented():
    page = (ROOT / "docs" / "extraction.md").read_text()
    rows = [row for row in page.splitlines() if row.startswith("| `")]
    kinds = [kind for row in rows for kind in get_args(WarningKind) if f"`{kind}`" in row]
    assert sorted(kinds) == sorted(get_args(WarningKind))


def test_settings_travel_as_json():
    settings = prepare(ExtractionSettings(lengths={"audio": 50}, language="en"))
    same = ExtractionSettings.from_dict(json.loads(json.dumps(settings.to_dict())))
    assert same == settings
    assert set(settings.versions) == {"av", "opensmile", "mediapipe"}
    assert other_versions(settings) == []
    older = dataclasses.replace(settings, versions={**settings.versions, "av": "1.0"})
    assert other_versions(older) == [f"the features were made with av 1.0, and here is {settings.versions['av']}"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"audio": "covarep"}, "audio is 'covarep'; it must be one of opensmile-egemaps, librosa, none"),
        ({"sample_rate": 8000}, "sample_rate is 8000; it must be 16000 to 48000"),
        ({"sample_rate": 22050}, "sample_rate is 22050; it must be a multiple of 100"),
        ({"frames_per_second": 0}, "frames_per_second is 0; it must be 0.1 to 240"),
        ({"lengths": {"audio": 0}}, "lengths is {'audio': 0}; it must be a positive number of steps per modality"),
        ({"lengths": {"sound": 5}}, "lengths is {'sound': 5}"),
        ({"language": "english"}, "language is 'english'; it must be one of af, "),
        ({"text": "tokens"}, "text_encoder is '' and text 'tokens'; name a tokenizer or encoder"),
        ({"text": "tokens", "text_encoder": "bert"}, "text is 'tokens', and lengths names no text"),
        ({"rate": 5}, "know no 'rate'; they were written by another version"),
        ({"versions": {"av": 18}}, "versions is {'av': 18}; it must be a text per library"),
    ],
)
def test_impossible_settings_are_named(values, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        ExtractionSettings.from_dict(values)
    assert message in str(error.value)


@pytest.mark.slow
def test_nothing_of_it_is_imported_before_it_is_used():
    """And where a library is missing, the error says what to install."""
    code = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('av', 'mediapipe', 'opensmile', 'librosa', 'torch'): raise ImportError('blocked')
sys.meta_path.insert(0, Block())
from data_shards.extraction.extract import extract_clip
from data_shards.extraction.preparation import prepare
from data_shards.extraction.settings import ExtractionSettings
for settings in (ExtractionSettings(), ExtractionSettings(audio='librosa')):
    try: prepare(settings)
    except ValueError as error: print(error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout.startswith("features of clips need av, which cannot be loaded (blocked); install it: pip")
