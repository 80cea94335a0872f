"""Predictions, exports and published checkpoints: the same numbers by every way, and what each rejects."""

import csv
import gzip
import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import BertConfig

import dmd
from data_shards.format.schema import MODALITIES
from data_shards.sources.pickled import Fields
from dmd.config.loading import config_to_dict, load_config, preset_names
from dmd.inference.export import CARD, PROGRAM, example
from dmd.inference.inputs import read_samples
from dmd.inference.labels import pickle_labels
from dmd.inference.outputs import predictions, schema, to_table
from dmd.losses import Objective
from dmd.metrics import Scoring
from dmd.model import DMD, ModelConfig
from dmd.model.dmd import HEADS
from dmd.model.text import build_text_encoder
from dmd.published.parameter_names import slots, to_published
from dmd.system.trained_model import ModelCard, TrainedModel
from tests.support.commands import command, rejected
from tests.support.golden import SETTINGS, Golden, relative_error
from tests.support.trained import damage_state


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("exports") / "model"
    assert command("export", run, out) == 0
    return out


def features(path: Path, model: TrainedModel, count: int, **more: object) -> Path:
    arrays = {m: array.numpy() for m, array in example(model.card, count).items()}
    path.write_bytes(pickle.dumps(arrays | more))
    return path


def test_predict_and_evaluate_agree(run, shards, tmp_path):
    assert command("evaluate", run, "--split", "test", "--json", tmp_path / "test.json") == 0
    assert command("predict", run, shards, "--split", "test", "--out", tmp_path / "out.parquet") == 0
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.schema.equals(schema(Scoring(), heads=HEADS, spaces=Objective.spaces))
    metrics = json.loads((tmp_path / "test.json").read_text())["metrics"]
    label = table["label"].to_numpy()
    for head in HEADS:
        column = table["prediction" if head == "fused" else head].to_numpy()
        assert np.abs(column - label).mean() == pytest.approx(metrics[head]["mae"], rel=1e-6)
    edges = np.stack([table[name].to_numpy() for name in table.column_names if name.startswith("edge_homo")])
    assert edges.sum(0) == pytest.approx(np.ones(table.num_rows), rel=1e-5)


def test_a_run_and_its_model_evaluate_as_the_command(run, shards, tmp_path, capsys):
    assert command("evaluate", run, "--split", "test", "--json", tmp_path / "test.json") == 0
    wanted = json.loads((tmp_path / "test.json").read_text())["metrics"]
    assert dmd.evaluate(run, split="test") == dmd.evaluate(str(run), shards, "testing") == wanted
    model = dmd.load(run)
    got = dmd.evaluate(model, dmd.Dataset.from_shards(shards), "test")
    assert list(got) == list(HEADS)
    for head, values in got.items():
        assert values == pytest.approx(wanted[head], rel=1e-4, abs=1e-6)
    with pytest.raises(ValueError, match=r"give it: dmd\.evaluate\(model, data\)"):
        dmd.evaluate(model)
    with pytest.raises(ValueError, match="split 'tset' is unknown"):
        dmd.evaluate(run, split="tset")
    other = dmd.Dataset.from_arrays(
        train={m: np.ones((2, 9, 3)) for m in MODALITIES} | {"labels": [0.5, 1.5], "ids": ["a", "b"]}
    )
    with pytest.raises(ValueError, match="the model was trained on data with dims"):
        dmd.evaluate(model, other, "train")


def test_features_are_what_the_heads_predict_from(run):
    model = dmd.load(run)
    config, given = model.config.model, example(model.card, 70)  # two batches
    features = model.features(**given)
    for m in MODALITIES:
        assert features.common[m].shape == (70, config.dim)
        assert features.private[m].shape == (70, 2 * config.dim)
    assert features.fused.shape == (70, 9 * config.dim)
    dmd_network, prediction = model.modules.network, model.predict(**given)
    assert torch.allclose(dmd_network.fused_head.out(features.fused).squeeze(1), prediction.sentiment, atol=1e-5)
    for m in MODALITIES:
        logits = dmd_network.hetero_heads[m].out(features.private[m]).squeeze(1)
        assert torch.allclose(logits, prediction.heads[f"{m}_hetero"], atol=1e-5)
    without = model.features(text=given["text"][:1], audio=None)
    assert torch.equal(without.fused, model.features(text=list(given["text"][:1])).fused)
    assert not torch.allclose(without.fused, features.fused[:1])


def test_a_model_says_what_it_is(run):
    said = repr(dmd.load(run))
    shapes = "text [50, 768], audio [50, 5], vision [50, 20]"
    assert said.startswith(f"TrainedModel(dmd, regression; {shapes}; ")
    assert said.endswith(
        f" parameters on cpu; data 'synthetic', run {str(run)!r}, step {dmd.load(run).card.source['step']})"
    )


def test_commands_take_a_split_by_any_of_its_names(run, tmp_path, capsys):
    assert command("evaluate", run, "--split", "dev", "--json", tmp_path / "dev.json") == 0
    assert json.loads((tmp_path / "dev.json").read_text())["split"] == "valid"
    assert "valid split, " in capsys.readouterr().out
    outs = {"predict": [tmp_path, "--out", tmp_path / "out.csv"], "evaluate": [], "report": [], "missing": []}
    for name, more in outs.items():
        with pytest.raises(SystemExit) as ended:
            command(name, run, *more, "--split", "tset")
        assert ended.value.code == 2
        assert "split 'tset' is unknown; use train, valid, test (or val, dev, validation)" in capsys.readouterr().err


def test_csv_holds_every_split_once(run, shards, tmp_path):
    splits = [part for split in ("train", "valid", "test") for part in ("--split", split)]
    assert command("predict", run, shards, *splits, "--out", tmp_path / "out.csv") == 0
    with open(tmp_path / "out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 100 == len({(row["split"], row["id"]) for row in rows})
    assert {row["split"] for row in rows} == {"train", "valid", "test"}
    assert all(row["text"] for row in rows)


def test_the_validation_split_is_predicted_unless_another_is_asked_for(run, shards, tmp_path, capsys):
    assert command("predict", run, shards, "--out", tmp_path / "out.parquet") == 0
    assert set(pq.read_table(tmp_path / "out.parquet")["split"].to_pylist()) == {"valid"}
    assert "predictions (valid 10)" in capsys.readouterr().out
    arrays = {m: array.numpy() for m, array in example(dmd.load(run).card, 3).items()}
    fields = arrays | {"id": ["a", "b", "c"], "raw_text": [""] * 3}
    broken = {**fields, "id": ["a", "a", "a"], "audio": fields["audio"][:, :, :1]}
    for name, content in (("both", {"train": broken, "valid": fields}), ("test", {"test": fields})):
        (tmp_path / f"{name}.pkl").write_bytes(pickle.dumps(content))
    assert command("predict", run, tmp_path / "both.pkl", "--out", tmp_path / "both.parquet") == 0
    assert pq.read_table(tmp_path / "both.parquet")["split"].to_pylist() == ["valid"] * 3
    error = rejected(capsys, "predict", run, tmp_path / "test.pkl", "--out", tmp_path / "no.parquet")
    assert "has no split 'valid'; it has: test; ask for one, such as --split test" in error
    assert not (tmp_path / "no.parquet").exists()


def test_one_sample_by_its_id_and_one_without_label(run, shards, tmp_path, capsys):
    assert command("predict", run, shards, "--split", "train", "--out", tmp_path / "all.parquet") == 0
    everything = pq.read_table(tmp_path / "all.parquet")
    name = everything["id"][60].as_py()
    assert command("predict", run, shards, "--id", name, "--out", tmp_path / "one.parquet") == 0
    one = pq.read_table(tmp_path / "one.parquet")
    assert one["id"].to_pylist() == [name]
    assert one["prediction"][0].as_py() == pytest.approx(everything["prediction"][60].as_py(), abs=1e-5)
    model = dmd.load(run)
    arrays = {m: array[0].numpy() for m, array in example(model.card, 1).items()}
    (tmp_path / "single.pkl").write_bytes(pickle.dumps(arrays | {"id": "only", "raw_text": "hello"}))
    assert command("predict", run, tmp_path / "single.pkl", "--out", tmp_path / "single.parquet") == 0
    row = pq.read_table(tmp_path / "single.parquet").to_pylist()[0]
    assert (row["id"], row["text"], row["label"]) == ("only", "hello", None)
    assert row["prediction"] == pytest.approx(float(model.predict(**arrays).sentiment[0]), abs=1e-6)


def test_predict_rejects(run, shards, tmp_path, capsys):
    model = dmd.load(run)
    out = ("--out", tmp_path / "out.csv")
    sample = example(model.card, 3)
    narrow = tmp_path / "narrow.pkl"
    narrow.write_bytes(pickle.dumps({m: a.numpy()[..., :2] for m, a in sample.items()}))
    assert "the model was trained on" in rejected(capsys, "predict", run, narrow, *out)
    (tmp_path / "empty.pkl").write_bytes(b"")
    assert "is empty" in rejected(capsys, "predict", run, tmp_path / "empty.pkl", *out)
    (tmp_path / "none.pkl").write_bytes(pickle.dumps({m: a.numpy()[:0] for m, a in sample.items()}))
    assert "no sample" in rejected(capsys, "predict", run, tmp_path / "none.pkl", *out)
    twice = features(tmp_path / "twice.pkl", model, 2, id=["a", "a"])
    assert "'a' is there twice" in rejected(capsys, "predict", run, twice, *out)
    assert "asked for twice" in rejected(capsys, "predict", run, shards, "--id", "x", "--id", "x", *out)
    assert "no sample 'x'" in rejected(capsys, "predict", run, shards, "--id", "x", *out)
    (tmp_path / "nothing.pkl").write_bytes(pickle.dumps({"faces": sample["vision"].numpy()}))
    nothing = rejected(capsys, "predict", run, tmp_path / "nothing.pkl", *out)
    assert "it has none of text, audio, vision, which the model reads; it has: faces" in nothing
    infinite = features(tmp_path / "inf.pkl", model, 2, audio=np.full((2, *model.card.shape("audio")), np.inf))
    assert "not finite" in rejected(capsys, "predict", run, infinite, *out)
    assert "'.txt'" in rejected(capsys, "predict", run, shards, "--out", tmp_path / "out.txt")
    assert "there is no directory" in rejected(capsys, "predict", tmp_path / "gone", shards, *out)
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".pkl") == []


@pytest.mark.parametrize("name", ["val", "dev", "validation", "valid", b"dev"])
def test_a_split_by_any_of_its_names(run, tmp_path, capsys, caplog, name):
    fields = {m: array.numpy() for m, array in example(dmd.load(run).card, 3).items()}
    fields |= {"id": ["a", "b", "c"], "mood": [1, 2, 3]}
    (tmp_path / "in.pkl").write_bytes(pickle.dumps({name: fields, "trian": fields}))
    assert command("predict", run, tmp_path / "in.pkl", "--out", tmp_path / "out.csv") == 0
    asked = ("--split", name.decode() if isinstance(name, bytes) else name, "--split", "valid")
    assert command("predict", run, tmp_path / "in.pkl", *asked, "--out", tmp_path / "again.csv") == 0
    with open(tmp_path / "out.csv", newline="") as file:
        assert {(row["split"], row["id"]) for row in csv.DictReader(file)} == {("valid", n) for n in "abc"}
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "again.csv").read_bytes()
    assert "ignored: trian (3)" in caplog.text
    assert "valid: ignored: mood (3)" in caplog.text
    (tmp_path / "in.pkl").write_bytes(pickle.dumps({name: fields, "VALID": fields}))
    error = rejected(capsys, "predict", run, tmp_path / "in.pkl", "--out", tmp_path / "no.csv")
    assert "both mean valid" in error


def test_files_of_the_wrong_kind_are_named(run, tmp_path, capsys):
    out = ("--out", tmp_path / "out.csv")
    sample = {m: array.numpy() for m, array in example(dmd.load(run).card, 2).items()}
    path = tmp_path / "in.pkl"
    for raw, words in (
        (gzip.compress(pickle.dumps(sample)), "is gzip compressed"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "is a Git-LFS pointer"),
        (b"<html>Sign in</html>", "is a web page"),
        (b"id,label\n1,2\n", "it is a text table"),
        (b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
        (b"PAR1....PAR1", "Parquet table"),
        (pickle.dumps(sample)[:99], "is cut short"),
    ):
        path.write_bytes(raw)
        assert f"{path} " in (error := rejected(capsys, "predict", run, path, *out))
        assert words in error
        error = rejected(capsys, "import", path, tmp_path / "run", "--preset", "mosi-aligned")
        assert words in error or "cut short" in words or "text table" in words
    beyond = features(path, dmd.load(run), 2, audio=np.full((2, *dmd.load(run).card.shape("audio")), 1e39))
    assert "audio holds 500 values that are not finite" in rejected(capsys, "predict", run, beyond, *out)


def test_labels_of_a_pickle_have_the_units_in_which_predictions_are(run, tmp_path):
    model = dmd.load(run)
    card = replace(model.card, data={**model.card.data, "label_scale": 0.75, "label_offset": 5.0})
    scaled = TrainedModel(card, model.modules.state_dict(), model.device)
    path = features(tmp_path / "in.pkl", model, 2, labels=[1.5, 3.0])
    ((samples, of_scaled),) = predictions(scaled, read_samples(path, card))
    assert list(samples.labels) == [1.5, 3.0]
    ((_, of_model),) = predictions(model, read_samples(path, model.card))
    for head in HEADS:
        torch.testing.assert_close(of_scaled.heads[head], of_model.heads[head].double() / 0.75 + 5, rtol=1e-12, atol=0)
    assert torch.equal(of_scaled.edges["homo"], of_model.edges["homo"])
    table = to_table(samples, of_scaled)
    assert table["prediction"].to_pylist() == of_scaled.sentiment.float().tolist()


@pytest.mark.slow
def test_an_export_predicts_as_its_run_without_deepspeed_ray_and_the_compiler(run, exported):
    """PyTorch imports its compiler for a second, for instance where a module on `meta` computes a buffer."""
    model, again = dmd.load(run), dmd.load(exported)
    samples = example(model.card, 70)
    want, got = model.predict(**samples), again.predict(**samples)
    for head in HEADS:
        assert torch.equal(got.heads[head], want.heads[head])
    assert torch.equal(got.edges["hetero"], want.edges["hetero"])
    code = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('deepspeed', 'ray', 'tensorboard', 'webdataset'): raise ImportError(name)
sys.meta_path.insert(0, Block())
import dmd, torch
from dmd.inference.export import example
model = dmd.load({str(exported)!r}, device='cpu')
print(float(model.predict(**example(model.card, 70)).sentiment.sum()))
assert 'torch._dynamo' not in sys.modules
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) == pytest.approx(float(want.sentiment.sum()), rel=1e-5)


def test_the_exported_program_predicts_any_number_of_samples(run, exported):
    program = torch.export.load(exported / PROGRAM).module()
    for count in (1, 4, 33):
        samples = example(dmd.load(run).card, count)
        heads, homo, _ = program(*samples.values())
        want = dmd.load(run).predict(**samples)
        assert heads[:, 0] == pytest.approx(want.sentiment.numpy(), abs=1e-5)
        assert homo.shape == (count, 6)


def test_exports_reject_damage(run, exported, tmp_path, capsys):
    copy = tmp_path / "copy"
    assert command("export", run, copy, "--no-program") == 0
    assert not (copy / PROGRAM).exists()
    (copy / CARD).write_text("{}")
    with pytest.raises(ValueError, match="no whole export"):
        dmd.load(copy)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    assert "holds other files" in rejected(capsys, "export", run, tmp_path / "taken")
    assert "holds no checkpoint" in rejected(capsys, "export", tmp_path / "taken", tmp_path / "new")
    damage_state(run, tmp_path / "other")
    with pytest.raises(ValueError, match="the weights do not belong to this model"):
        dmd.load(tmp_path / "other")


def published(setting: str, path: Path, **more: torch.Tensor) -> tuple[Golden, list[str]]:
    """A .pth under the published names, and the overrides that describe it."""
    golden = Golden(setting)
    torch.save({**golden.under("state/dmd/"), **more}, path)
    config = golden.model_config()
    names = ("dim", "heads", "levels", "kernel_text", "kernel_audio", "kernel_vision")
    return golden, [f"model.{name}={getattr(config, name)}" for name in names]


OLD_BUFFERS = {
    "text_model.model.embeddings.position_ids": torch.arange(512)[None],
    "trans_l_with_a.version": torch.ones(1),
    "trans_l_with_a.embed_positions._float_tensor": torch.ones(1),
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("buffers", [{}, OLD_BUFFERS], ids=["new", "old"])
def test_a_published_checkpoint_predicts_what_the_published_code_did(setting, buffers, tmp_path, capsys):
    golden, overrides = published(setting, tmp_path / "dmd.pth", **buffers)
    text, audio, vision, labels = (tensor.numpy() for tensor in golden.batch("in/"))
    fields = {"text": text, "audio": audio, "vision": vision, "regression_labels": labels.ravel() * 0}
    (tmp_path / "in.pkl").write_bytes(pickle.dumps({"test": fields | {"id": [str(n) for n in range(len(text))]}}))
    run = tmp_path / "run"
    assert command("import", tmp_path / "dmd.pth", run, "--preset", "mosi-aligned", *overrides) == 0
    output = capsys.readouterr().out
    assert "unknown: 0" in output
    assert ("position_ids" in output) == bool(buffers)
    assert command("predict", run, tmp_path / "in.pkl", "--split", "test", "--out", tmp_path / "out.parquet") == 0
    got = torch.from_numpy(pq.read_table(tmp_path / "out.parquet")["prediction"].to_numpy().copy())
    assert relative_error(got, golden["out/output_logit"]) < 1e-5
    assert command("shard", tmp_path / "in.pkl", tmp_path / "shards") == 0
    options = ("--split", "test", "--json", tmp_path / "test.json")
    assert command("evaluate", run, "--data", tmp_path / "shards", *options) == 0
    mae = json.loads((tmp_path / "test.json").read_text())["metrics"]["fused"]["mae"]
    assert mae == pytest.approx(float(golden["out/output_logit"].abs().mean()), rel=1e-5)


def test_a_published_checkpoint_with_a_text_encoder(tmp_path, capsys):
    settings = BertConfig(
        vocab_size=30, hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    settings.save_pretrained(tmp_path / "encoder")
    encoder = build_text_encoder(settings.to_dict(), frozen=False)
    model = DMD(
        ModelConfig(task="regression", dim=8, heads=2, levels=1),
        {"text": 0, "audio": 3, "vision": 4},
        dict.fromkeys(("text", "audio", "vision"), 9),
        encoder,
    ).eval()
    state = to_published(model.state_dict(), slots(1))
    extra = {"text_model.model.pooler.dense.weight": torch.zeros(12, 12)}
    torch.save({**state, **extra, **OLD_BUFFERS}, tmp_path / "dmd.pth")
    where = f"text.encoder={tmp_path / 'encoder'}"
    small = ["model.dim=8", "model.heads=2", "model.levels=1", where]
    assert command("import", tmp_path / "dmd.pth", tmp_path / "run", "--preset", "mosi-aligned", *small) == 0
    assert "pooler" in capsys.readouterr().out
    loaded = dmd.load(tmp_path / "run")
    samples = example(loaded.card, 4)
    with torch.no_grad():
        want = model(*samples.values()).predictions["fused"]
    assert loaded.predict(**samples).sentiment == pytest.approx(want.numpy(), abs=1e-6)


def test_import_rejects(tmp_path, capsys):
    golden, overrides = published("aligned", tmp_path / "dmd.pth")
    state = golden.under("state/dmd/")

    def attempt(content: object, *changed: str) -> str:
        torch.save(content, tmp_path / "bad.pth")
        return rejected(
            capsys, "import", tmp_path / "bad.pth", tmp_path / "run", "--preset", "mosi-aligned", *overrides, *changed
        )

    assert "choose the preset" in attempt(state, "model.dim=12")
    assert "choose the preset" in attempt(state | {"weight_c.bias": torch.zeros(3)})
    assert "lacks 1 weights" in attempt({name: t for name, t in state.items() if name != "weight_c.bias"})
    assert "no state dict" in attempt([1, 2])
    assert "'multilabel' and data.classes is 'sentiment', but published" in attempt(state, "model.task=multilabel")
    assert "published files predict a sentiment" in attempt(state, "data.classes=stored")
    (tmp_path / "code.pth").write_bytes(pickle.dumps(Path("/tmp/made")))
    error = rejected(capsys, "import", tmp_path / "code.pth", tmp_path / "run", "--preset", "mosi-aligned")
    assert "nothing in it was run" in error
    gone = ("import", tmp_path / "gone", tmp_path / "run", "--preset", "mosi-aligned")
    assert "there is no file" in rejected(capsys, *gone)
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    assert "is there already" in attempt(state)


def test_presets_are_listed_and_printed(capsys, tmp_path):
    assert command("presets") == 0
    listed = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in listed} == set(preset_names())
    assert all(len(line.split()) > 4 for line in listed), "each says where its values come from"
    assert command("presets", "mosei-aligned") == 0
    (tmp_path / "again.yaml").write_text(capsys.readouterr().out)
    assert load_config(file=tmp_path / "again.yaml") == load_config("mosei-aligned")
    assert "unknown preset 'mosy'" in rejected(capsys, "presets", "mosy")


def test_ids_and_labels_of_a_pickle_are_what_they_should_be(run, tmp_path, capsys):
    """One sample may have plain ones; gaps, other shapes and numbers that are none are named, not shown as they are."""
    model, out = dmd.load(run), tmp_path / "out.parquet"
    for name, said in ((5, "5"), (np.array("x"), "x"), (b"y", "y")):
        single = {m: array[0].numpy() for m, array in example(model.card, 1).items()} | {"id": name, "label": 1.5}
        (tmp_path / "single.pkl").write_bytes(pickle.dumps(single))
        assert command("predict", run, tmp_path / "single.pkl", "--out", out) == 0
        row = pq.read_table(out).to_pylist()[0]
        assert (row["id"], row["label"]) == (said, 1.5)
    for more, words in (
        ({"id": ["a", None]}, "sample 1 has no id (None)"),
        ({"id": ["a", float("nan")]}, "sample 1 has no id (nan)"),
        (
            {"label": [1.0, np.inf]},
            "label of sample 1 is inf, which is not a sentiment of the model's data, which are",
        ),
        ({"label": [1.0, -3.01]}, "label of sample 1 is -3.01, which is not a sentiment"),
        ({"label": [1.0, 0.0], "audio_lengths": [3, -1]}, "audio_lengths of sample 1 is -1, but the array has "),
        ({"vision_lengths": [999, 1]}, "vision_lengths of sample 0 is 999, but the array has "),
        ({"text_lengths": [1]}, "text_lengths needs one number per sample, 2 in all"),
        ({"text_lengths": [1.5, np.nan]}, "text_lengths of sample 0 is 1.5"),
        ({"label": ["good", "bad"]}, "label are not numbers: that of sample 0 'good' is not a number"),
        ({"label": {"a": 1}}, "label are not numbers"),
        ({"label": np.array([1j, 1])}, "label are complex128"),
        ({"audio": [[[1.0]], [[1.0], [2.0]]]}, "audio has 1 features per step, the model was trained on 5"),
        ({"audio": [[[1.0]], [[1.0], [2.0, 3.0]]]}, "audio is ragged in its features; give"),
    ):
        path = features(tmp_path / "x.pkl", model, 2, **more)
        error = rejected(capsys, "predict", run, path, "--out", tmp_path / "no.parquet")
        assert f"{path}: " in error
        assert words in error
    path = features(tmp_path / "x.pkl", model, 2, raw_text=["yes", None], label=[1.0, None])
    assert command("predict", run, path, "--out", out) == 0
    assert [(row["text"], row["label"]) for row in pq.read_table(out).to_pylist()] == [("yes", 1.0), ("", None)]


@pytest.mark.parametrize("name", ["classification_labels", "labels"])
def test_class_numbers_are_found_where_dmd_shard_finds_them(name):
    config = load_config("mosi-aligned", ["model.task=3", "data.classes=stored"])
    sizes = dict.fromkeys(MODALITIES, 4)
    data = {"name": "x", "generation": "x", "text_kind": "features", "dims": sizes, "lengths": sizes}
    card = ModelCard(config=config_to_dict(config), data=data, text_encoder=None, source={})
    assert pickle_labels(Fields({name: [0, 2]}), 2, card, "x: ").tolist() == [0, 2]
    assert pickle_labels(Fields({name: np.eye(3)[[1, 2]]}), 2, card, "x: ").tolist() == [1, 2]
    for wrong in (3, 0.5, -1):
        with pytest.raises(ValueError, match=rf"x: {name} of sample 1 is {wrong}, which is not a class of .* 0 to 2"):
            pickle_labels(Fields({name: [0, wrong]}), 2, card, "x: ")


EMOTIONS = ("happy", "sad", "angry")


def emotion_card() -> ModelCard:
    config = load_config("mosi-aligned", ["model.task=multilabel", "model.emotions=3", "data.classes=emotions"])
    sizes = dict.fromkeys(MODALITIES, 4)
    data = {"name": "x", "generation": "x", "text_kind": "features", "dims": sizes, "lengths": sizes}
    data |= {"emotions": list(EMOTIONS), "protocol": "emotions"}
    return ModelCard(config=config_to_dict(config), data=data, text_encoder=None, source={})


@pytest.mark.parametrize(
    "fields",
    [
        {"classification_labels": np.array([0, 2]), "regression_labels": np.array([0.5, -1.0])},
        {"labels": np.zeros((2, 1, 1))},
        {"labels": ["happy", "sad"]},
        {"emotions": [[None, None, None], [None, None, None]]},
        {"emotions": np.full((2, 3), np.nan)},
    ],
)
def test_labels_that_are_no_emotions_are_none_of_a_model_of_emotions(fields):
    read = Fields(fields)
    assert np.isnan(pickle_labels(read, 2, emotion_card(), "x: ")).all()
    assert set(read.unused()) == set(fields) - {"emotions"}


@pytest.mark.parametrize("shape", [(3,), (1, 3), (3, 1), (1, 3, 1)])
@pytest.mark.parametrize("name", ["emotions", "labels", "classification_labels"])
def test_emotions_of_one_sample(name, shape):
    given = np.array([0, 2.0, 1]).reshape(shape)
    fields = Fields({"classification_labels": np.array([4]), name: given})
    assert pickle_labels(fields, 1, emotion_card(), "x: ").tolist() == [[0, 1, 1]]


def test_emotions_of_samples():
    present = np.array([[0, 1, 1], [1, 0, 0]])
    for given in (present, present.tolist(), np.stack([1 - present, present], axis=2), present[..., None]):
        fields = Fields({"labels": given, "classification_labels": np.array([1, 2])})
        assert pickle_labels(fields, 2, emotion_card(), "x: ").tolist() == present.tolist()
        assert set(fields.unused()) == {"classification_labels"}
    with pytest.raises(ValueError, match=r"x: emotions has shape \(2, 2\), but --emotions has 3 names"):
        pickle_labels(Fields({"emotions": present[:, :2]}), 2, emotion_card(), "x: ")
    with pytest.raises(ValueError, match="x: 2 labels for 3 samples"):
        pickle_labels(Fields({"emotions": present}), 3, emotion_card(), "x: ")


@pytest.mark.parametrize(("ends", "loads"), [("write_file", True), ("os.replace", False)])
def test_an_export_that_ends_over_another_is_that_one_or_none(run, tmp_path, ends, loads):
    """While the new one is written the earlier one is whole; while it takes its place, there is none."""
    assert command("export", run, tmp_path / "out", "--no-program") == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"dmd.inference.export.{ends}", lambda *arguments: sys.exit(1))
        with pytest.raises(SystemExit):
            command("export", run, tmp_path / "out", "--no-program")
    if loads:
        dmd.load(tmp_path / "out")
    else:
        with pytest.raises(ValueError, match="no checkpoint"):  # never new weights under the card of others
            dmd.load(tmp_path / "out")
    assert command("export", run, tmp_path / "out", "--no-program") == 0
    dmd.load(tmp_path / "out")
