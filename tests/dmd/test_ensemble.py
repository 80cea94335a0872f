"""Ensembles: mean and spread by their formulas, in any order; the same digits in every command; what is rejected."""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import torch

import dmd
from data_shards.reading.reader import ShardReader
from dmd.evaluation.ensemble import calibrate
from dmd.inference.ensemble import Calibration, Ensemble, check_members, ensemble_prediction
from dmd.inference.export import CARD, WEIGHTS, example
from dmd.inference.inputs import Samples
from dmd.inference.model_files import ENSEMBLE, read_document
from dmd.inference.outputs import to_table
from dmd.inference.part_files import MANIFEST, REQUEST
from dmd.metrics import Scoring
from dmd.metrics.calibration import (
    LARGEST,
    coverage_curve,
    coverage_error,
    expected_calibration_error,
    fit_scale,
    fit_temperature,
    reliability_curve,
)
from dmd.model.dmd import HEADS
from dmd.system.input_arrays import Inputs
from dmd.system.trained_model import Prediction
from tests.support.commands import command, rejected
from tests.support.hub import WRITER, serve_hub
from tests.support.trained import train

KINDS = {
    "regression": Scoring(),
    "scaled": Scoring(scale=3.0),
    "classes": Scoring(kind="classes", outputs=3),
    "multilabel": Scoring(kind="multilabel", outputs=4, protocol="mosei-emotions"),
}


def members(kind: str, count: int = 5, samples: int = 50) -> list[Prediction]:
    scoring = KINDS[kind]
    generator = torch.Generator().manual_seed(count)
    shape = (samples,) if scoring.kind == "regression" else (samples, scoring.outputs)
    return [
        Prediction(
            heads={"fused": scoring.in_units(torch.randn(shape, generator=generator)), "text": torch.zeros(shape)},
            edges={"homo": torch.rand(samples, 6, generator=generator)},
            scoring=scoring,
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_mean_and_spread_are_those_of_the_members_in_any_order(kind):
    parts = members(kind)
    whole = ensemble_prediction(parts)
    if KINDS[kind].kind == "regression":
        values = torch.stack([part.sentiment for part in parts]).double()
        assert torch.allclose(whole.sentiment.double(), values.mean(0), rtol=1e-6)
    else:
        values = torch.stack([part.probabilities for part in parts]).double()
        assert torch.allclose(whole.probabilities.double(), values.mean(0), atol=1e-6)
    assert torch.allclose(whole.spread.double(), values.std(0), atol=1e-6)
    assert torch.allclose(whole.edges["homo"], torch.stack([part.edges["homo"] for part in parts]).mean(0))
    other = ensemble_prediction([parts[number] for number in (3, 0, 4, 1, 2)])
    assert other.heads["fused"].equal(whole.heads["fused"])
    assert other.spread.equal(whole.spread)
    assert whole.heads["fused"].dtype == parts[0].heads["fused"].dtype
    same = ensemble_prediction([parts[0]] * 3)
    assert not same.spread.any()
    calibration = Calibration(value=2.0, data="x", generation="y", samples=1)
    for uncertainty in map(calibration.uncertainty, (same, whole)):
        assert uncertainty.isfinite().all()
        assert uncertainty.shape == whole.answers("fused").shape


def test_members_of_other_answers_or_samples_are_rejected():
    with pytest.raises(ValueError, match="an ensemble of 1 members; give at least 2"):
        ensemble_prediction(members("classes", 1))
    with pytest.raises(ValueError, match="give models of one task and one set of labels"):
        ensemble_prediction([*members("classes", 1), *members("regression", 1)])
    with pytest.raises(ValueError, match="members predict 3 and 4 samples"):
        ensemble_prediction([*members("classes", 1, 3), *members("classes", 1, 4)])


def test_a_scale_calibrates_the_intervals():
    generator = torch.Generator().manual_seed(1)
    spread = torch.rand(4000, generator=generator) + 0.1
    error = 3 * spread * torch.randn(4000, generator=generator)
    scale = fit_scale(error, spread)
    assert scale == pytest.approx(3, rel=0.05)
    assert coverage_error(error, scale * spread) < 0.02 < 0.2 < coverage_error(error, spread)
    nominal, observed = coverage_curve(error, spread)
    assert nominal[9] == 0.5
    inside = (error.abs() <= 0.6744897501960817 * spread).double().mean()
    assert observed[9] == inside, "half of a normal distribution lies within .674 standard deviations"
    spread[:3] = torch.tensor([1e-12, 0.0, 0.0])
    assert fit_scale(error, spread) == pytest.approx(scale, rel=0.01), "samples on which members happen to agree"
    assert fit_scale(error, torch.zeros(4000)) == 1
    assert fit_scale(torch.zeros(5), torch.ones(5)) == pytest.approx(1 / LARGEST)
    with pytest.raises(ValueError, match="negative or not finite"):
        fit_scale(error, -spread)


def test_a_temperature_calibrates_probabilities():
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(4000, 3, generator=generator)
    classes = torch.multinomial((logits / 2.5).softmax(1), 1, generator=generator).squeeze(1)
    emotions = torch.bernoulli((logits / 2.5).sigmoid(), generator=generator)
    for labels, probabilities in (
        (classes, lambda values: values.softmax(1)),
        (emotions, lambda values: values.sigmoid()),
    ):
        temperature = fit_temperature(logits, labels)
        assert temperature == pytest.approx(2.5, rel=0.1)
        before, after = (expected_calibration_error(probabilities(logits / t), labels) for t in (1.0, temperature))
        assert after < 0.03 < 0.1 < before
        confidence, accuracy, count = reliability_curve(probabilities(logits), labels)
        assert int(count.sum()) == labels.numel()
        assert float((accuracy * count).sum() / count.sum()) == pytest.approx(
            float((logits.argmax(1) == classes).double().mean())
            if labels is classes
            else float(((logits > 0) == emotions.bool()).double().mean())
        )
        assert (confidence[1:] > confidence[:-1]).all()
    assert fit_temperature(torch.zeros(4, 1), torch.zeros(4)) == 1, "one class"
    assert fit_temperature(logits, logits.argmax(1)) == pytest.approx(1 / LARGEST), "all answers are right"
    assert fit_temperature(-logits, logits.argmax(1)) == pytest.approx(LARGEST), "worse than chance"


@pytest.fixture(scope="module")
def exported(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("ensembles") / "both"
    assert command("export", *runs[:2], out, "--no-program") == 0
    return out


def test_every_command_has_the_digits_of_the_mean(runs, shards, exported, tmp_path, capsys):
    one, two, _ = runs
    orders = ((one, two), (two, one), (exported,))
    for number, order in enumerate(orders):
        assert command("predict", *order, shards, "--split", "test", "--out", tmp_path / f"{number}.parquet") == 0
    tables = [pq.read_table(tmp_path / f"{number}.parquet") for number in range(3)]
    assert tables[0].equals(tables[1])
    assert tables[0].equals(tables[2])
    assert "ensemble of checkpoints of steps " in capsys.readouterr().out
    parts = tmp_path / "parts"
    assert command("predict", two, one, shards, "--split", "test", "--out", parts) == 0
    (part,) = parts.glob("part-*")
    part.unlink()
    assert command("predict", one, two, shards, "--split", "test", "--out", parts) == 0, "continues in any order"
    assert ds.dataset(parts).to_table().replace_schema_metadata().equals(tables[0].replace_schema_metadata())
    members = json.loads((parts / MANIFEST).read_text())["members"]
    assert [(member["run"], member["step"]) for member in members] == [(str(one), 1), (str(two), 1)]
    error = rejected(capsys, "predict", *runs, shards, "--split", "test", "--out", parts)
    assert "with another model: " in error
    assert "or the runs, and the checkpoint of each, that it was begun with" in error
    error = rejected(capsys, "predict", one, two, shards, "--split", "test", "--out", parts, "--calibration", "none")
    assert 'with another calibration: {"data": "of the trainings"}, not null; ' in error
    request = json.loads((parts / REQUEST).read_text())
    request["fitted"]["value"] *= 2
    (parts / REQUEST).write_text(json.dumps(request))
    part.unlink()
    assert command("predict", one, two, shards, "--split", "test", "--out", parts) == 0
    again = ds.dataset(parts).to_table()["uncertainty"].to_numpy()
    assert again == pytest.approx(2 * tables[0]["uncertainty"].to_numpy()), "as it was begun, whatever a device fits"
    request["fitted"]["value"] = -1
    (parts / REQUEST).write_text(json.dumps(request))
    part.unlink()
    error = rejected(capsys, "predict", one, two, shards, "--split", "test", "--out", parts)
    assert f"{REQUEST} is damaged; give a new directory" in error

    model = dmd.load([one, two])
    with ShardReader(shards) as reader:
        arrays = {m: torch.from_numpy(reader.read("test", range(20))[m]) for m in ("text", "audio", "vision")}
    answer = model.predict(**arrays)
    assert answer.uncertainty is None
    assert np.array_equal(answer.sentiment.numpy(), tables[0]["prediction"].to_numpy())
    assert np.array_equal(answer.spread.numpy(), tables[0]["spread"].to_numpy())
    found = calibrate(model, shards).predict(**arrays)
    assert np.array_equal(found.uncertainty.numpy(), tables[0]["uncertainty"].to_numpy())
    loaded = dmd.from_pretrained(exported).predict(**arrays)
    assert loaded.uncertainty.equal(found.uncertainty)
    alone = [dmd.load(run).predict(**arrays).sentiment for run in (one, two)]
    assert torch.allclose(answer.sentiment, (alone[0] + alone[1]) / 2, atol=1e-6)


def test_an_evaluation_has_the_members_beside_it(runs, shards, tmp_path, capsys):
    out = tmp_path / "test.json"
    assert command("evaluate", *runs, "--split", "test", "--json", out) == 0
    said, result = capsys.readouterr().out, json.loads(out.read_text())
    assert "mean of 3 members" in said
    assert f"uncertainty: the spread times {result['calibration']['scale']:.3g}, fitted on 10 valid samples" in said
    alone = [dmd.evaluate(run, split="test") for run in runs]
    assert [member["metrics"] for member in result["members"]] == alone
    mean = math.fsum(metrics["fused"]["mae"] for metrics in alone) / 3
    assert result["members_mean"]["fused"]["mae"] == mean
    assert result["gain"]["fused"]["mae"] == result["metrics"]["fused"]["mae"] - mean <= 0, "MAE is convex"
    assert dmd.evaluate(list(reversed(runs)), split="test") == result["metrics"]
    of_models = dmd.evaluate(dmd.load(runs), shards, "test")["fused"]
    assert of_models == pytest.approx(result["metrics"]["fused"], rel=1e-4, abs=1e-6)
    assert len(result["calibration"]["after"]["observed"]) == 19


def test_classes_by_two_models(shards, tmp_path):
    """Which have the fused head in common, and no GD-Unit."""
    wanted = {
        tmp_path / name: ["train.epochs=1", "model.task=3", f"model.name={name}"] for name in ("dmd", "text_only")
    }
    pair = train(shards, wanted)
    assert command("predict", *pair, shards, "--out", tmp_path / "out.parquet") == 0
    table = pq.read_table(tmp_path / "out.parquet")
    assert [name for name in table.column_names if name.startswith("spread")] == ["spread_0", "spread_1", "spread_2"]
    assert not [name for name in table.column_names if name.startswith(("edge", "text_homo"))]
    probability = np.stack([table[f"probability_{number}"].to_numpy() for number in range(3)])
    assert command("evaluate", *pair, "--json", tmp_path / "valid.json") == 0
    temperature = json.loads((tmp_path / "valid.json").read_text())["calibration"]["temperature"]
    scaled = probability ** (1 / temperature)
    wrong = 1 - (scaled / scaled.sum(0)).max(0)
    assert table["uncertainty"].to_numpy() == pytest.approx(wrong, abs=1e-4)


def test_columns_of_emotions():
    """One of each for each emotion."""
    found = ensemble_prediction(
        [replace(part, heads=dict.fromkeys(HEADS, part.heads["fused"])) for part in members("multilabel", 2, 3)]
    )
    found = replace(found, edges={space: torch.zeros(3, 6) for space in ("homo", "hetero")})
    samples = Samples(split="", ids=["a", "b", "c"], texts=[""] * 3, labels=np.zeros((3, 4)), inputs=Inputs(arrays={}))
    calibration = Calibration(value=1.0, data="x", generation="y", samples=1)
    table = to_table(samples, replace(found, uncertainty=calibration.uncertainty(found)))
    for number in range(4):
        probability = table[f"probability_{number}"].to_numpy()
        assert table[f"uncertainty_{number}"].to_numpy() == pytest.approx(np.minimum(probability, 1 - probability))
        assert np.array_equal(table[f"spread_{number}"].to_numpy(), found.spread[:, number].numpy())
    assert to_table(samples, found)["uncertainty_0"].null_count == 3, "it is not calibrated"


def test_an_exported_ensemble(runs, exported, shards, tmp_path, capsys):
    assert {path.name for path in exported.iterdir()} == {ENSEMBLE, "README.md", "member-01", "member-02"} | (
        {path.name for path in exported.iterdir() if path.name == ".writer"}
    )
    assert {CARD, WEIGHTS, "README.md"} <= {path.name for path in (exported / "member-01").iterdir()}
    text = (exported / "README.md").read_text()
    assert "ensemble of 2 trainings" in text
    assert "| member-02 | 2 | step " in text
    assert "it is `result.uncertainty`" in text
    again = tmp_path / "again"
    assert dmd.save(exported, again, program=False) == "not asked for", "members that are exports"
    assert read_document(again) == read_document(exported)
    assert dmd.save(dmd.load(exported), again, program=False) == "not asked for", "replaced by one in memory"
    assert read_document(again).calibration == read_document(exported).calibration
    model = dmd.load(again)
    given = example(model.card, 3)
    assert model.predict(**given).sentiment.equal(dmd.load(exported).predict(**given).sentiment)
    with pytest.raises(ValueError, match="no one representation; ask a member"):
        model.features(**given)
    assert model.members[0].features(**given).fused.shape[0] == 3
    assert "holds other files than an exported ensemble" in rejected(capsys, "export", *runs[:2], again / "member-01")
    assert "holds other files than an export" in rejected(capsys, "export", runs[0], again)
    document = json.loads((again / ENSEMBLE).read_text())
    for broken in (
        {"members": ["../both/member-01", "member-02"]},
        {"members": ["", "member-02"]},
        {"members": ["member-01\n", "member-02"]},
        {"members": ["member-01", "member-01"]},
        {"members": ["member-01"]},
        {"members": [f"member-{number}" for number in range(100)]},
        {"calibration": 3},
        {"metrics": {"x": {}}},
    ):
        (again / ENSEMBLE).write_text(json.dumps(document | broken))
        with pytest.raises(ValueError, match=f"{ENSEMBLE} (is damaged|names the member)"):
            dmd.load(again)
    (again / ENSEMBLE).write_text(json.dumps(document))
    shutil.rmtree(again / "member-02")
    (again / "member-02").symlink_to(exported / "member-02")
    with pytest.raises(ValueError, match="member-02 is no export in the directory of its ensemble"):
        dmd.load(again)
    assert "an export, which `dmd predict` reads" in rejected(capsys, "evaluate", exported, "--data", shards)


def test_an_ensemble_on_the_hub(runs, exported, tmp_path, monkeypatch):
    with serve_hub(str(tmp_path / "hub"), monkeypatch) as hub:
        dmd.push_to_hub(runs[0], "me/both", token=WRITER, program=False)
        dmd.push_to_hub(exported, "me/both", token=WRITER)
        repository = hub.repositories["me/both"]
        there = repository.commits[repository.branches["main"]]
        parts = {f"member-0{number}/{name}" for number in (1, 2) for name in (CARD, WEIGHTS, "README.md")}
        assert set(there) == {ENSEMBLE, "README.md", *parts}
        for stray in ("stray/deep/model.safetensors", "member-03/model.safetensors"):
            there[stray] = b"what nothing names"
        assert 'dmd.from_pretrained("me/both")' in there["README.md"].decode()
        model = dmd.from_pretrained("me/both", device="cpu")
        given = example(model.card, 3)
        assert model.predict(**given).uncertainty.equal(dmd.load(exported, "cpu").predict(**given).uncertainty)
        weights = {path.parent.name for path in (tmp_path / "hub" / "cache").rglob(WEIGHTS)}
        assert weights == {"member-01", "member-02"}, "what the document names is fetched"
        dmd.push_to_hub(runs[0], "me/both", token=WRITER, program=False)
        assert ENSEMBLE not in repository.commits[repository.branches["main"]]
        assert not isinstance(dmd.from_pretrained("me/both", device="cpu"), Ensemble)


def test_what_is_no_ensemble(runs, shards, tmp_path, capsys, caplog):
    one, two, _ = runs
    assert f"{one} is named twice" in rejected(capsys, "evaluate", one, two, one)
    assert f"{one} is named twice" in rejected(capsys, "predict", one, one, shards)
    with pytest.raises(ValueError, match="is named twice"):
        dmd.load([one, one])
    models = [dmd.load(one), dmd.load(one)]
    with pytest.raises(ValueError, match="have the same weights"):
        Ensemble(models)
    copy = tmp_path / "copy"
    shutil.copytree(one, copy)
    for order in (
        ("evaluate", one, copy),
        ("predict", one, copy, shards),
        ("export", one, copy, tmp_path / "both", "--no-program"),
    ):
        assert "have the same weights; name each model once" in rejected(capsys, *order)
    assert not (tmp_path / "both").exists()
    card = models[0].card
    for key, value in (("lengths", {**card.data["lengths"], "audio": 7}), ("class_names", ["a"]), ("label_scale", 3.0)):
        with pytest.raises(ValueError, match=r"members of an ensemble read the same features"):
            check_members([card, replace(card, data={**card.data, key: value})])
    assert "--calibration" in rejected(capsys, "predict", one, shards, "--calibration", shards)
    for order in (("predict", one, two, shards), ("evaluate", one, two), ("export", one, two, tmp_path / "both")):
        assert "was named, but the members hold all" in rejected(capsys, *order, "--text-encoder", "x")
    with pytest.raises(ValueError, match="an ensemble of 100 members; give at most 99"):
        check_members([card] * 100)
    with pytest.raises(ValueError, match=r"give an ensemble: dmd\.load"):
        calibrate(models[0], shards)
    export = tmp_path / "one"
    dmd.save(one, export, program=False)
    caplog.clear()
    assert command("predict", export, two, shards, "--out", tmp_path / "out.parquet") == 0
    assert "the ensemble is not calibrated" in caplog.text
    assert pq.read_table(tmp_path / "out.parquet")["uncertainty"].null_count == 10
    caplog.clear()
    for out in (tmp_path / "out.parquet", f"{tmp_path}/parts/"):
        rejected(capsys, "predict", export, two, tmp_path / "typo.pkl", "--out", out)
    assert not caplog.text, "the input is looked at before the ensemble is calibrated"
    assert command("predict", export, two, shards, "--calibration", "none", "--out", tmp_path / "out.parquet") == 0
    assert not caplog.text
    assert pq.read_table(tmp_path / "out.parquet")["uncertainty"].null_count == 10
    assert command("predict", export, two, shards, "--calibration", shards, "--out", tmp_path / "out.parquet") == 0
    assert pq.read_table(tmp_path / "out.parquet")["uncertainty"].null_count == 0


def test_what_stands_among_the_runs(runs, shards, tmp_path, capsys):
    one, two, _ = runs
    assert f"{two} is a model; name what it predicts behind it" in rejected(capsys, "predict", one, two)
    (tmp_path / "test.json").write_text("{}")
    error = rejected(capsys, "predict", one, tmp_path / "test.json", two, shards)
    assert f"{tmp_path / 'test.json'} is named as a RUN, and holds none" in error
