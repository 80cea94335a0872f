"""From a clip to a prediction: the same numbers by the command, in Python and from extracted features; what is said."""

import csv
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import data_shards.progress
import dmd
from data_shards.clip_sets.clip_rows import to_table
from data_shards.clip_sets.jobs import ClipJob
from data_shards.extraction.clip import Clip, ClipError, ClipWarning
from data_shards.extraction.extract import extract_clip
from data_shards.extraction.settings import ExtractionSettings
from data_shards.extraction.transcript import Transcript
from data_shards.reading.reader import ShardReader
from dmd.extraction.text_states import load_text_states
from dmd.inference.clips import FeatureMaker, check_made_alike, clip_fields, clip_jobs, extraction_settings
from dmd.inference.export import CARD
from dmd.inference.inputs import read_samples
from dmd.inference.outputs import predictions
from dmd.inference.transcript_text import TranscriptText
from tests.support.clips import tones, write_clip, write_wav
from tests.support.commands import command, rejected
from tests.support.encoders import save_encoder
from tests.support.tokenizers import save_tokenizer
from tests.support.trained import train

pytestmark = pytest.mark.slow
LABELS = (-2.0, 1.5, -1.0, 2.5, 0.5)
SAID = (
    "the plot was slow",
    "the music is good",
    "boring and badly acted",
    "the best movie",
    "unbelievable, um, and far too long",
)
STEPS = 8
"""Tokens of a sample; the last text has more."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Clips with labels, their features, shards, a run, an export and the text encoder of all."""
    folder = tmp_path_factory.mktemp("clips")
    (folder / "clips").mkdir()
    encoder = save_encoder("bert", folder / "encoder", vocab_size=300)
    save_tokenizer("bert", encoder)
    with open(folder / "labels.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "split", "label", "text"])
        for number, (label, text) in enumerate(zip(LABELS, SAID, strict=True)):
            write_clip(folder / "clips" / f"c{number}.mp4", tones(0.8 + 0.1 * number, pitch=120 + 20 * number))
            rows.writerow([f"c{number}", "train" if number < 3 else "valid" if number == 3 else "test", label, text])
    text = ("--text", "tokens", "--text-encoder", encoder, "--lengths", f"text={STEPS}")
    clips = ("extract", folder / "clips", folder / "features", "--labels", folder / "labels.csv", "--processes", 1)
    assert command(*clips, *text) == 0
    assert command("shard", folder / "features", folder / "shards") == 0
    train(folder / "shards", {folder / "run": ["train.epochs=1", f"text.encoder={encoder}", "model.text_dropout=0"]})
    assert command("export", folder / "run", folder / "export", "--no-program") == 0
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return dmd.load(folder / "export")


@pytest.fixture(scope="module")
def want(folder, model) -> torch.Tensor:
    """Prediction of the clip of the test split, from its features, by itself."""
    (found,) = predictions(model, read_samples(folder / "features", model.card, splits=["test"]))
    return found[1].sentiment


def test_settings_travel_from_the_features_to_the_export(folder, model):
    metadata = pq.read_schema(next((folder / "features").glob("*.parquet"))).metadata
    settings = json.loads(metadata[b"dmd.extraction"])
    with ShardReader(folder / "shards") as reader:
        assert reader.index.info.extraction == settings
    assert model.card.data["extraction"] == settings == dmd.load(folder / "run").card.data["extraction"]
    assert extraction_settings(model.card).to_dict() == settings
    assert settings["vision"] == "mediapipe-blendshapes"
    assert settings["text_encoder"] == str(folder / "encoder")


def test_a_clip_is_predicted_as_its_features_are(folder, model, want, tmp_path, capsys):
    clip, said = folder / "clips" / "c4.mp4", SAID[4]
    assert torch.equal(dmd.predict_clip(model, clip, transcript=said).sentiment, want)
    assert command("predict", folder / "run", clip, "--transcript", said, "--out", tmp_path / "out.parquet") == 0
    row = pq.read_table(tmp_path / "out.parquet").to_pylist()[0]
    assert (row["id"], row["text"], row["label"], row["split"]) == ("c4", said, None, "")
    assert row["prediction"] == float(want)
    shards = (
        "predict",
        folder / "export",
        folder / "shards",
        "--split",
        "test",
        "--out",
        tmp_path / "of_shards.parquet",
    )
    assert command(*shards) == 0
    assert pq.read_table(tmp_path / "of_shards.parquet")["prediction"].to_pylist() == want.tolist()
    (part,) = (folder / "features").glob("*.parquet")
    table = pq.read_table(part).drop_columns(["split", "label"])
    pq.write_table(table, tmp_path / "unlabelled.parquet")  # as `dmd extract` writes clips without labels
    assert command("predict", folder / "run", tmp_path / "unlabelled.parquet", "--out", tmp_path / "out.parquet") == 0
    rows = {row["id"]: row["prediction"] for row in pq.read_table(tmp_path / "out.parquet").to_pylist()}
    assert sorted(rows) == ["c0", "c1", "c2", "c3", "c4"]
    assert rows["c4"] == pytest.approx(float(want), abs=1e-5)
    capsys.readouterr()
    assert command("predict", folder / "export", clip, "--transcript", said) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["id", "prediction"],
        ["c4", f"{float(want):.3f}"],
        ["checkpoint", "of", "step", str(model.card.source["step"])],
    ]


def test_the_libraries_that_read_a_clip_print_nothing(folder, capfd):
    capfd.readouterr()
    assert command("predict", folder / "export", folder / "clips" / "c4.mp4", "--transcript", SAID[4]) == 0
    assert capfd.readouterr().err == ""


def test_several_clips_and_a_folder_with_transcripts(folder, tmp_path, capsys, caplog):
    names = ("c3", "c4")
    table = tmp_path / "said.csv"
    table.write_text("clip,text\n" + "".join(f'{name},"{SAID[int(name[1])]}"\n' for name in names))
    mine = tmp_path / "mine"
    mine.mkdir()
    for name in names:
        (mine / f"{name}.mp4").symlink_to(folder / "clips" / f"{name}.mp4")
        (mine / f"{name}.txt").write_text(SAID[int(name[1])])
    (mine / "broken.mp4").write_bytes(b"no video")
    clips = [folder / "clips" / f"{name}.mp4" for name in names]
    for inputs in ([*clips, "--transcript", table], [*clips, "--transcript", mine], [mine]):
        caplog.clear()
        assert command("predict", folder / "run", *inputs, "--out", tmp_path / "out.csv") == 0
        with open(tmp_path / "out.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [(row["id"], row["text"]) for row in rows] == [(name, SAID[int(name[1])]) for name in names]
        assert ("not predicted: " in caplog.text) == (inputs == [mine])
    assert f"not predicted: {mine / 'broken.mp4'}: " in caplog.text
    assert command("predict", folder / "run", mine, "--id", "c3") == 0
    assert "c4" not in capsys.readouterr().out
    assert "there is no clip 'c9' among 3" in rejected(capsys, "predict", folder / "run", mine, "--id", "c9")
    run = ("predict", folder / "run")
    assert "there are 2 clips; give a folder" in rejected(capsys, *run, *clips, "--transcript", "all of them say this")
    assert "has no transcript of 1 of 1 clips, the first is c0" in rejected(
        capsys, *run, folder / "clips" / "c0.mp4", "--transcript", table
    )


def test_what_a_clip_lacks_is_missing_and_said(folder, model, want, tmp_path, caplog):
    sound = write_wav(tmp_path / "sound.wav", tones(0.8))
    got = dmd.predict_clip(model, sound, transcript=SAID[4]).sentiment
    assert f"{sound}: it has no video" in caplog.text
    assert got.isfinite().all()
    assert not torch.equal(got, want)
    caplog.clear()
    silent = dmd.predict_clip(model, folder / "clips" / "c4.mp4").sentiment
    assert "c4.mp4: it has no transcript" in caplog.text
    assert "text is missing in 1 of 1 samples; they are predicted without it, as `dmd missing` does" in caplog.text
    (samples,) = read_samples(folder / "features", model.card, splits=["test"])
    lost = {m: array for m, array in samples.inputs.arrays.items() if m != "text"}
    assert torch.equal(silent, model.predict(**lost).sentiment)


def test_a_transcript_is_tokenised_as_that_of_the_training(folder, model, want, tmp_path, capsys, caplog):
    tokenizer = {"name": str(folder / "encoder"), "digest": extraction_settings(model.card).text_digest}
    settings = model.card.data["extraction"] | {"text": "raw", "text_encoder": "", "text_digest": "", "lengths": {}}
    data = {**model.card.data, "extraction": settings, "tokenizer": tokenizer}
    model = dmd.load(folder / "export")
    model.card = replace(model.card, data=data)
    clip = folder / "clips" / "c4.mp4"
    assert torch.equal(dmd.predict_clip(model, clip, transcript=SAID[4]).sentiment, want)
    assert "text of 1 of 1 samples is longer than the 8 steps of the training" in caplog.text
    dmd.predict_clip(model, clip, transcript="good Привет")
    assert "1 of 2 words are unknown tokens, as in `dmd shard`: 'Привет' (1)" in caplog.text
    other = save_tokenizer("bert", tmp_path / "other", size=200)
    with pytest.raises(ValueError, match=r"makes another text of a transcript than what made that of the training"):
        dmd.predict_clip(model, clip, transcript=SAID[4], tokenizer=str(other))
    model.card = replace(model.card, data=data | {"tokenizer": {**tokenizer, "name": str(tmp_path / "gone")}})
    with pytest.raises(ValueError, match=r"cannot be used: .*; give --tokenizer PATH"):
        dmd.predict_clip(model, clip, transcript=SAID[4])
    got = dmd.predict_clip(model, clip, transcript=SAID[4], tokenizer=str(folder / "encoder")).sentiment
    assert torch.equal(got, want)
    model.card = replace(model.card, data=data | {"tokenizer": {}})
    with pytest.raises(ValueError, match="nothing says which tokenizer made the tokens of the training"):
        dmd.predict_clip(model, clip, transcript=SAID[4])


def test_hidden_states_are_those_of_the_encoder_of_the_training(folder, model, tmp_path):
    name = str(folder / "encoder")
    states = load_text_states(name)
    settings = ExtractionSettings(
        audio="none", vision="none", text="states", text_encoder=name, text_digest=states.digest
    )
    data = {**model.card.data, "text_kind": "features", "extraction": settings.to_dict(), "tokenizer": {}}
    data["dims"] = {"text": states.dim, "audio": 1, "vision": 1}
    card = replace(model.card, data=data, text_encoder=None)
    (job,) = clip_jobs([write_wav(tmp_path / "clip.wav", tones(0.5))], "the best movie")
    fields, _ = FeatureMaker(card, TranscriptText(card)).make(job)
    np.testing.assert_array_equal(fields["text"], states(["the", "best", "movie"]))
    assert fields["audio"].tolist() == fields["vision"].tolist() == [[0.0]], "as `dmd extract` writes what is left out"
    gone = replace(card, data=data | {"extraction": settings.to_dict() | {"text_encoder": str(tmp_path / "gone")}})
    with pytest.raises(ValueError, match=r"which cannot be used: .*; name it: --text-encoder PATH"):
        FeatureMaker(gone, TranscriptText(gone))
    assert FeatureMaker(gone, TranscriptText(gone), text_encoder=name).make(job)[0]["raw_text"] == "the best movie"
    none = replace(card, data=data | {"extraction": replace(settings, text="raw", text_encoder="").to_dict()})
    with pytest.raises(ValueError, match=r"the text features of the training were not made by `dmd extract`"):
        FeatureMaker(none, TranscriptText(none))


def test_other_libraries_are_a_warning_and_another_face_model_is_rejected(folder, tmp_path, caplog):
    model, clip = dmd.load(folder / "export"), folder / "clips" / "c4.mp4"
    card = model.card
    settings = card.data["extraction"]
    older = settings | {"versions": settings["versions"] | {"av": "1"}}
    model.card = replace(card, data={**card.data, "extraction": older})
    dmd.predict_clip(model, clip, transcript=SAID[4])
    assert f"the features were made with av 1, and here is {settings['versions']['av']}" in caplog.text
    (tmp_path / "face.task").write_bytes(b"another")
    with pytest.raises(ValueError, match=r"made with another face_landmarker.task"):
        dmd.predict_clip(model, clip, transcript=SAID[4], face_model=tmp_path / "face.task")
    model.card = replace(card, data={**card.data, "extraction": settings | {"frames_per_second": 5.0}})
    with pytest.raises(ValueError, match=r"features that were made otherwise .*frames_per_second 5.0 and 15.0"):
        list(read_samples(folder / "features", model.card, splits=["test"]))
    model.card = replace(card, data={**card.data, "extraction": older})
    caplog.clear()
    list(read_samples(folder / "shards", model.card, splits=["test"]))
    assert "features of other versions than those of the training: av 1 and " in caplog.text


@pytest.mark.parametrize(
    ("choices", "name", "value", "is_used"),
    [
        ({"vision": "none"}, "frame_size", 320, False),
        ({"vision": "none"}, "frames_per_second", 5.0, False),
        ({"audio": "none"}, "audio_rate", 5.0, False),
        ({"audio": "none"}, "sample_rate", 48000, False),
        ({"alignment": "words"}, "audio_rate", 5.0, False),
        ({"audio": "none", "vision": "none"}, "alignment", "words", False),
        ({"vision": "none"}, "audio_rate", 5.0, True),
        ({"audio": "none"}, "frame_size", 320, True),
        ({"alignment": "words"}, "frames_per_second", 5.0, True),
        ({"alignment": "words"}, "sample_rate", 48000, True),
        ({"vision": "none"}, "audio", "librosa", True),
    ],
)
def test_settings_are_compared_where_they_matter(model, choices, name, value, is_used):
    card = replace(model.card, data={**model.card.data, "extraction": ExtractionSettings(**choices).to_dict()})
    other = ExtractionSettings(**{**choices, name: value}).to_dict()
    if is_used:
        with pytest.raises(ValueError, match=rf"made otherwise .*\({name} "):
            check_made_alike(card, other, "there")
    else:
        check_made_alike(card, other, "there")


def test_clips_are_rejected_by_name(folder, tmp_path, capsys):
    clip, run, shards = folder / "clips" / "c4.mp4", folder / "run", folder / "shards"
    shutil.copytree(folder / "export", tmp_path / "other")
    card = json.loads((tmp_path / "other" / CARD).read_text())
    (tmp_path / "other" / CARD).write_text(json.dumps(card | {"data": card["data"] | {"extraction": {}}}))
    error = rejected(capsys, "predict", tmp_path / "other", clip, "--transcript", "good")
    assert "features that `dmd extract` did not make" in error
    for clips in ([tmp_path / "gone.mp4"], [tmp_path / "gone.mp4", clip]):
        assert "there is nothing at this path" in rejected(capsys, "predict", run, *clips)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    error = rejected(capsys, "predict", run, tmp_path / "broken.mp4", "--transcript", "good")
    assert f"no features can be made of {tmp_path / 'broken.mp4'}: " in error
    error = rejected(capsys, "predict", run, clip, "--transcript", "gone.srt")
    assert "--transcript gone.srt is not there" in error
    assert f"{shards} is named as a RUN, and holds none" in rejected(capsys, "predict", run, shards, shards)
    pickles = [tmp_path / "one.pkl", tmp_path / "two.pkl"]
    assert "2 inputs were given, which only clips may be" in rejected(capsys, "predict", run, *pickles)
    error = rejected(capsys, "predict", run, clip, shards)
    assert f"{shards} is no video and no sound file; give several clips" in error


@pytest.mark.parametrize("missing", ["refuse", "zeros"])
def test_a_clip_without_a_transcript_is_predicted_as_its_features_are(folder, tmp_path, caplog, missing):
    """Where the training had none such its text is missing, else it is an empty one."""
    model, media = dmd.load(folder / "export"), folder / "clips" / "c4.mp4"
    tokenizer = {"name": str(folder / "encoder"), "digest": extraction_settings(model.card).text_digest}
    trained = replace(
        extraction_settings(model.card), text="raw", text_encoder="", text_digest="", lengths={}, missing=missing
    )
    model.card = replace(model.card, data={**model.card.data, "extraction": trained.to_dict(), "tokenizer": tokenizer})
    made = extract_clip(Clip(id="c4", media=media), replace(trained, missing="zeros"))
    table = to_table([made])
    assert table["raw_text"].to_pylist() == [None]
    pq.write_table(table, tmp_path / "untold.parquet")
    (found,) = predictions(model, read_samples(tmp_path / "untold.parquet", model.card))
    of_features = "text is missing in 1 of 1 samples" in caplog.text
    caplog.clear()
    assert torch.equal(dmd.predict_clip(model, media).sentiment, found[1].sentiment)
    assert ("text is missing in 1 of 1 samples" in caplog.text) == of_features == (missing == "refuse")


def test_an_option_that_means_nothing_for_an_input_is_rejected(folder, tmp_path, capsys):
    clip, features, shards = folder / "clips" / "c4.mp4", folder / "features", folder / "shards"
    out = ("--out", f"{tmp_path}/parts/")
    for wrong in (
        (clip, "--split", "test"),
        (clip, "--nonfinite", "zero"),
        (clip, "--samples-per-part", 5),
        (features, "--face-model", clip),
        (features, "--transcript", "good"),
        (shards, "--transcript", "good"),
        (shards, "--tokenizer", folder / "encoder"),
        (shards, "--word-vectors", clip),
        (shards, "--nonfinite", "zero"),
        (shards, "--transcript", "good", *out),
        (shards, "--tokenizer", folder / "encoder", *out),
        (shards, "--nonfinite", "zero", *out),
    ):
        error = rejected(capsys, "predict", folder / "run", *wrong)
        assert f"{wrong[1]} is of " in error
        assert f"and {wrong[0]} is read as " in error
    assert not (tmp_path / "parts").exists()


def test_an_empty_transcript_says_nothing_and_is_no_directory(folder, model, monkeypatch):
    clip = folder / "clips" / "c4.mp4"
    monkeypatch.chdir(folder / "clips")
    for nothing in ("", " "):
        (job,) = clip_jobs([clip], nothing)
        assert (job.transcript, job.transcript_file) == (Transcript(text=nothing), None)


def test_a_clip_is_counted_when_it_is_done(monkeypatch, capsys):
    """Whether features were made of it or not."""

    class Maker(FeatureMaker):
        def __init__(self) -> None:
            pass

        def make(self, job: ClipJob) -> tuple[dict[str, object], list[ClipWarning]]:
            print(f"makes {job.id}", file=sys.stderr)
            if job.id == "broken":
                raise ClipError("broken")
            return {"id": job.id}, []

    jobs = [ClipJob(id=name, split="", labels={}, media=Path(name)) for name in ("whole", "broken")]
    monkeypatch.setattr(data_shards.progress, "LINE_SECONDS", -1.0)
    assert list(clip_fields(jobs, Maker(), 8)) == [{"id": ["whole"]}]
    said = [line.partition(",")[0] for line in capsys.readouterr().err.splitlines()[:4]]
    assert said == ["makes whole", "1 of 2 clips", "makes broken", "2 of 2 clips"]
