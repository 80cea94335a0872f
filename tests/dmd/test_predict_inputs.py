"""Features of any length, missing modalities, values that are not finite, tables: what `dmd predict` makes of them."""

import csv
import hashlib
import pickle
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import torch

import dmd
from dmd.config.loading import config_to_dict, load_config
from dmd.inference.export import example
from dmd.inference.inputs import read_samples
from dmd.inference.outputs import printed, schema
from dmd.inference.transcript_text import TranscriptText
from dmd.metrics import Scoring
from dmd.model.config import MODALITIES
from dmd.report.missing import _masks, _predict
from dmd.system.input_arrays import Inputs
from tests.support.commands import command, rejected
from tests.support.token_model import token_model
from tests.support.trained import SMALL


@pytest.fixture(scope="module")
def model(run):
    return dmd.load(run)


def ragged(model, modality: str, more: int = 0) -> list[np.ndarray]:
    """Three samples of different lengths, the second `more` steps longer than the training's."""
    steps, width = model.card.shape(modality)
    draw = np.random.default_rng(MODALITIES.index(modality))
    return [draw.normal(size=(n, width)).astype(np.float32) for n in (3, steps + more, 1)]


def padded(model, modality: str, arrays: list[np.ndarray]) -> torch.Tensor:
    """As the training had them: zeros at the end."""
    whole = torch.zeros(len(arrays), *model.card.shape(modality))
    for row, array in enumerate(arrays):
        kept = torch.from_numpy(array)[: whole.shape[1]]
        whole[row, : len(kept)] = kept
    return whole


def save(path: Path, content: object) -> Path:
    path.write_bytes(pickle.dumps(content))
    return path


def predicted(path: Path) -> list[float]:
    table = pq.read_table(path) if path.suffix == ".parquet" else None
    if table is not None:
        return table["prediction"].to_pylist()
    with open(path, newline="") as file:
        return [float(row["prediction"]) for row in csv.DictReader(file)]


def test_sequences_of_any_length_are_padded_or_cut_at_their_end(run, model, tmp_path, caplog):
    arrays = {m: ragged(model, m, more=7 if m == "audio" else 0) for m in MODALITIES}
    want = model.predict(**{m: padded(model, m, arrays[m]) for m in MODALITIES}).sentiment
    assert not caplog.records
    assert torch.equal(model.predict(**arrays).sentiment, want)
    line = "audio of 1 of 3 samples is longer than the 50 steps of the training; 7 steps were cut"
    assert line in caplog.text
    objects = {m: np.empty(3, dtype=object) for m in MODALITIES}
    for m in MODALITIES:
        objects[m][:] = arrays[m]
    for content in (arrays, {"val": objects}, {"valid": {m: [a.tolist() for a in arrays[m]] for m in MODALITIES}}):
        path = save(tmp_path / "ragged.pkl", content)
        caplog.clear()
        assert command("predict", run, path, "--out", tmp_path / "out.parquet") == 0
        assert predicted(tmp_path / "out.parquet") == want.tolist()
        assert line in caplog.text
        assert str(path) in caplog.text
    caplog.clear()
    alone = {m: arrays[m][0] for m in MODALITIES}
    assert model.predict(**alone).sentiment[0] == pytest.approx(float(want[0]), abs=1e-6)
    longer = {m: np.pad(padded(model, m, arrays[m]).numpy(), ((0, 0), (0, 9), (0, 0))) for m in MODALITIES}
    assert torch.equal(model.predict(**longer).sentiment, want)
    assert not caplog.records, "frames of zeros that are cut are no loss"


def test_tensors_alone_in_lists_with_gradients_and_in_bfloat16(model):
    arrays = {m: ragged(model, m) for m in MODALITIES}
    want = model.predict(**arrays).sentiment
    tensors = {m: [torch.tensor(array, requires_grad=True) for array in arrays[m]] for m in MODALITIES}
    assert torch.equal(model.predict(**tensors).sentiment, want)
    short = {m: padded(model, m, arrays[m]).bfloat16() for m in MODALITIES}
    want = model.predict(**{m: array.float() for m, array in short.items()}).sentiment
    assert torch.equal(model.predict(**short).sentiment, want)
    assert torch.equal(model.predict(**{m: list(array) for m, array in short.items()}).sentiment, want)


def test_a_missing_modality_is_zeros_and_said(run, model, tmp_path, caplog):
    arrays = {m: padded(model, m, ragged(model, m)) for m in MODALITIES}
    for lost in MODALITIES:
        want = model.predict(**arrays | {lost: torch.zeros_like(arrays[lost])}).sentiment
        assert torch.equal(model.predict(**arrays | {lost: None}).sentiment, want)
        rest = {m: array.numpy() for m, array in arrays.items() if m != lost}
        for fields in (rest, rest | {lost: None}):
            caplog.clear()
            command("predict", run, save(tmp_path / "in.pkl", {"dev": fields}), "--out", tmp_path / "out.parquet")
            assert predicted(tmp_path / "out.parquet") == want.tolist()
            assert f"valid: {lost} is missing in 3 of 3 samples; they are predicted without it" in caplog.text
    caplog.clear()
    some = [arrays["vision"][0], None, np.zeros((0, model.card.shape("vision")[1]))]
    zeroed = arrays["vision"].clone()
    zeroed[1:] = 0
    got = model.predict(**arrays | {"vision": some}).sentiment
    assert torch.equal(got, model.predict(**arrays | {"vision": zeroed}).sentiment)
    assert "vision is missing in 2 of 3 samples" in caplog.text
    with pytest.raises(ValueError, match="text, audio and vision are all missing"):
        model.predict()


def test_missing_tokens_are_zeros_behind_the_encoder_as_of_dmd_missing():
    model = token_model()
    arrays = example(model.card, 4)
    whole = _predict(model, [Inputs(arrays=arrays)], {})
    want = _predict(model, [Inputs(arrays=arrays)], _masks(model, 4, ["text"], "sample", 1.0, 0))
    assert torch.equal(model.predict(**arrays | {"text": None}).sentiment, want)
    some = model.predict(**arrays | {"text": [None, *arrays["text"][1:]]}).sentiment
    assert some.tolist() == pytest.approx([float(want[0]), *whole[1:].tolist()], abs=1e-6)
    assert not torch.equal(want, whole)


def test_tokens_are_padded_with_masked_ones_and_cut_before_the_last(caplog):
    model = token_model()
    arrays = example(model.card, 1)
    tokens = torch.tensor([[2, 7, 8, 9, 10, 11, 12, 13, 14, 15, 3], [1] * 11, [0] * 11])
    cut = tokens[:, [0, 1, 2, 3, 4, 5, 6, 7, 10]]
    assert torch.equal(
        model.predict(**arrays | {"text": tokens}).sentiment, model.predict(**arrays | {"text": cut}).sentiment
    )
    assert "text of 1 of 1 samples is longer than the 9 steps of the training; 2 steps were cut" in caplog.text
    short = tokens[:, :4]
    filled = torch.nn.functional.pad(short, (0, 5))
    assert torch.equal(
        model.predict(**arrays | {"text": short}).sentiment, model.predict(**arrays | {"text": filled}).sentiment
    )
    with pytest.raises(ValueError, match="holds the token id 30, the text encoder of the model knows 0 to 29"):
        model.predict(**arrays | {"text": tokens + 15})
    with pytest.raises(ValueError, match=r"shape \[2, 11\] per sample, .* on token ids \[3, steps\]"):
        model.predict(**arrays | {"text": tokens[:2]})


def test_values_that_are_not_finite_are_counted_and_zeroed_when_asked(run, model, tmp_path, caplog, capsys):
    arrays = {m: padded(model, m, ragged(model, m)).numpy() for m in MODALITIES}
    broken = arrays | {"audio": arrays["audio"].astype(np.float64)}
    broken["audio"][0, 0, :3] = -np.inf, np.nan, 1e39
    path = save(tmp_path / "in.pkl", broken)
    error = rejected(capsys, "predict", run, path)
    assert f"{path}: audio holds 3 values that are not finite; repair them, or zero them: --nonfinite zero" in error
    with pytest.raises(ValueError, match="audio holds 3 values that are not finite"):
        model.predict(**broken)
    arrays["audio"][0, 0, :3] = 0
    want = model.predict(**arrays).sentiment
    assert torch.equal(model.predict(**broken, nonfinite="zero").sentiment, want)
    caplog.clear()
    assert command("predict", run, path, "--nonfinite", "zero", "--out", tmp_path / "out.csv") == 0
    assert predicted(tmp_path / "out.csv") == pytest.approx(want.tolist(), abs=1e-6)
    assert f"{path}: 3 values of audio that are not finite became 0" in caplog.text


def test_tables_are_read_as_pickles_are(run, model, tmp_path, caplog, capsys):
    arrays = {m: ragged(model, m) for m in MODALITIES}
    columns = {m: [array.tolist() for array in arrays[m]] for m in MODALITIES}
    columns["vision"][1], columns["vision"][2] = None, []
    arrays["vision"][1:] = [None, None]
    want = model.predict(**arrays).sentiment.tolist()
    known = {"id": ["a", "b", "c"], "raw_text": ["x", "y", "z"], "mood": [1, 2, 3], "audio_length": [3, 50, 1]}
    pq.write_table(pa.table(columns | known | {"label": [1.0, None, -1.0]}), tmp_path / "in.parquet", row_group_size=2)
    caplog.clear()
    assert command("predict", run, tmp_path / "in.parquet", "--out", tmp_path / "out.parquet") == 0
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["prediction"] for row in rows] == want
    assert [(row["id"], row["text"], row["label"], row["split"]) for row in rows] == [
        ("a", "x", 1.0, ""),
        ("b", "y", None, ""),
        ("c", "z", -1.0, ""),
    ]
    assert "vision is missing in 2 of 3 samples" in caplog.text
    assert "ignored: mood (3)" in caplog.text
    folder = tmp_path / "folder"
    folder.mkdir()
    plain = pa.table({m: columns[m] for m in MODALITIES if m != "vision"})
    for number, part in enumerate((plain.slice(0, 1), plain.slice(1))):
        part = part.append_column("split", pa.array(["dev"] * len(part)))
        part = part.append_column("id", pa.array([f"{number}.{row}" for row in range(len(part))]))
        pa.feather.write_feather(part, folder / f"{number}.arrow")
    assert command("predict", run, folder, "--split", "val", "--out", tmp_path / "out.parquet") == 0
    without = model.predict(text=arrays["text"], audio=arrays["audio"]).sentiment.tolist()
    assert predicted(tmp_path / "out.parquet") == without
    assert "has no split 'test'; it has: valid" in rejected(capsys, "predict", run, folder, "--split", "test")
    (folder / "1.arrow").write_bytes(b"ARROW1")
    assert f"{folder} is no whole Arrow table" in rejected(capsys, "predict", run, folder)


def test_labels_of_tables_are_those_that_the_model_predicts(model, tmp_path):
    columns = {m: [array.tolist() for array in ragged(model, m)] for m in MODALITIES}
    pq.write_table(pa.table(columns | {"label": [2.0, -1.0, 0.0], "class": [2, 0, 1]}), tmp_path / "in.parquet")
    config = config_to_dict(load_config(None, [*SMALL, "model.task=3", "data.classes=stored"]))
    for card, want in ((model.card, [2.0, -1.0, 0.0]), (replace(model.card, config=config), [2, 0, 1])):
        (samples,) = read_samples(tmp_path / "in.parquet", card)
        assert samples.labels.tolist() == want


def test_shards_of_other_lengths_are_padded_or_cut_and_said(run, model, tmp_path, caplog):
    arrays = {m: [array[:20] for array in ragged(model, m)] for m in MODALITIES}
    arrays["audio"][1] = np.ones((60, model.card.shape("audio")[1]), dtype=np.float32)
    longest = {m: max(map(len, arrays[m])) for m in MODALITIES}
    fields = {m: np.stack([np.pad(a, ((0, longest[m] - len(a)), (0, 0))) for a in arrays[m]]) for m in MODALITIES}
    fields |= {"id": ["a", "b", "c"], "regression_labels": [2.0, -1.0, 0.5]}
    fields["raw_text"] = [""] * 3
    path = save(tmp_path / "in.pkl", {"valid": fields | {"audio_lengths": [3, 60, 1]}})
    assert command("shard", path, tmp_path / "shards") == 0
    caplog.clear()
    assert command("predict", run, tmp_path / "shards", "--out", tmp_path / "out.parquet") == 0
    want = model.predict(**arrays).sentiment.tolist()
    assert predicted(tmp_path / "out.parquet") == want
    assert "shorter samples are padded; audio of 1 of 3 samples is cut, by 10 steps" in caplog.text
    assert command("predict", run, tmp_path / "shards", "--out", f"{tmp_path}/parts/") == 0
    assert pq.read_table(tmp_path / "parts")["prediction"].to_pylist() == want


def test_without_out_the_predictions_are_printed(run, model, shards, tmp_path, capsys):
    path = save(tmp_path / "in.pkl", {m: ragged(model, m) for m in MODALITIES})
    want = model.predict(**{m: ragged(model, m) for m in MODALITIES}).sentiment.tolist()
    capsys.readouterr()
    assert command("predict", run, path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["id", "prediction"],
        *([str(n), f"{v:.3f}"] for n, v in enumerate(want)),
        ["checkpoint", "of", "step", str(model.card.source["step"])],
    ]
    assert command("predict", run, shards, "--split", "train") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["split", "id", "label", "prediction"]
    assert lines[-2] == "and 20 more, which --out FILE writes"
    assert lines[-1] == f"checkpoint of step {model.card.source['step']}"
    assert len(lines) == 53


def test_printed_classes_have_their_names():
    scoring = Scoring(kind="classes", protocol="classes", outputs=2, names=("glad", "not glad"))
    wanted = schema(scoring, heads=["fused"], spaces=[])
    columns = {name: [None] * 2 for name in wanted.names}
    given = {
        "id": ["a", "b"],
        "label": ["not glad", None],
        "prediction": ["glad", "not glad"],
        "probability_glad": [0.75, 0.25],
    }
    lines = printed([pa.table(columns | given, schema=wanted)]).splitlines()
    assert [line.split("  ")[0] for line in lines] == ["id", "a", "b"]
    assert [re.split("  +", line) for line in lines] == [
        ["id", "label", "prediction", "probability_glad"],
        ["a", "not glad", "glad", "0.750"],
        ["b", "not glad", "0.250"],
    ]


def test_text_is_made_of_transcripts_with_the_word_vectors_of_the_training(model, tmp_path, caplog):
    draw = np.random.default_rng(0)
    known = {word: draw.normal(size=model.card.shape("text")[1]).astype(np.float32) for word in ("good", "bad")}
    vectors = tmp_path / "vectors.txt"
    lines = [f"{word} {' '.join(map(repr, vector.tolist()))}" for word, vector in known.items()]
    vectors.write_text("\n".join(lines) + "\n")
    made_with = {"name": str(vectors), "digest": hashlib.sha256(vectors.read_bytes()).hexdigest()}
    arrays = {m: ragged(model, m) for m in ("audio", "vision")}
    path = save(tmp_path / "in.pkl", arrays | {"raw_text": ["Good, not bad", None, "bad " * 52]})
    (samples,) = read_samples(path, replace(model.card, data={**model.card.data, "tokenizer": made_with}))
    zero = np.zeros_like(known["bad"])
    text = [np.stack([known["good"], zero, known["bad"]]), None, np.tile(known["bad"], (52, 1))]
    want = model.card.fitter().fit(arrays | {"text": text})
    assert torch.equal(samples.inputs.arrays["text"], want.arrays["text"])
    assert "text is missing in 1 of 3 samples" in caplog.text
    assert "text of 1 of 3 samples is longer than the 50 steps of the training; 2 steps were cut" in caplog.text
    assert "1 of 55 words have no vector and are zeros, as in `dmd shard`: 'not' (1)" in caplog.text
    unknown = save(tmp_path / "unknown.pkl", {m: array[:1] for m, array in arrays.items()} | {"raw_text": ["zzz qqq"]})
    card = replace(model.card, data={**model.card.data, "tokenizer": made_with})
    (none_known,) = read_samples(unknown, card)
    assert not none_known.inputs.arrays["text"].any()
    assert "2 of 2 words have no vector" in caplog.text
    other = replace(model.card, data={**model.card.data, "tokenizer": made_with | {"digest": "0" * 64}})
    with pytest.raises(ValueError, match=r"give that one: --word-vectors FILE"):
        list(read_samples(path, other))
    moved = replace(model.card, data={**model.card.data, "tokenizer": made_with | {"name": "/gone.txt"}})
    with pytest.raises(ValueError, match=r"word vectors of /gone.txt, and .* cannot be used: .*; give --word-vectors"):
        list(read_samples(path, moved))
    (again,) = read_samples(path, moved, word_vectors=str(vectors))
    assert torch.equal(again.inputs.arrays["text"], want.arrays["text"])
    with_text = save(tmp_path / "text.pkl", arrays | {"text": ragged(model, "text")})
    without = save(tmp_path / "none.pkl", arrays)
    for file, options, words in (
        (
            with_text,
            {"word_vectors": str(vectors)},
            "it has text, so that no text is made .*: leave --word-vectors",
        ),
        (without, {"word_vectors": str(vectors)}, "it has no raw_text, of which text could be made: leave --word-vect"),
        (path, {"tokenizer": "bert"}, "--tokenizer bert makes token ids, and the model was trained on features"),
    ):
        with pytest.raises(ValueError, match=words):
            list(read_samples(file, moved, **options))
    of_tokens = replace(moved, data={**moved.data, "text_kind": "tokens"}, text_encoder={"model_type": "bert"})
    with pytest.raises(ValueError, match=r"--word-vectors .* trained on token ids; leave it out, or give --tokenizer"):
        TranscriptText(of_tokens, word_vectors=str(vectors))
