"""The missing-modality grid: what is dropped, that nothing else is, and that rate 0 is `dmd evaluate`."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import dmd
from dmd.config.loading import config_to_dict, load_config
from dmd.inference.export import example
from dmd.inference.inputs import _label_fields
from dmd.model.config import MODALITIES
from dmd.report.identity import check_seeds
from dmd.report.missing import TARGETS, _masks, _predict, check_one_config, dropped, evaluate_grid
from dmd.system.input_arrays import Inputs
from dmd.system.trained_model import ModelCard
from tests.support.commands import command, rejected
from tests.support.token_model import token_model


def test_higher_rates_drop_what_lower_ones_do_and_more():
    before = np.zeros((300, 20), dtype=bool)
    for rate in (0.0, 0.2, 0.5, 1.0):
        now = dropped("audio", 300, 20, unit="frame", rate=rate, seed=3)
        assert (now | ~before).all()
        assert now.mean() == pytest.approx(rate, abs=0.03)
        before = now
    whole = dropped("text", 300, 20, unit="sample", rate=0.5, seed=3)
    assert (whole == whole[:, :1]).all()
    assert whole.mean() == pytest.approx(0.5, abs=0.1)


def test_the_draw_depends_on_seed_modality_and_unit():
    base = dropped("text", 50, 8, unit="frame", rate=0.5, seed=0)
    assert (base == dropped("text", 50, 8, unit="frame", rate=0.5, seed=0)).all()
    for other in (
        dropped("text", 50, 8, unit="frame", rate=0.5, seed=1),
        dropped("audio", 50, 8, unit="frame", rate=0.5, seed=0),
    ):
        assert (base != other).any()


def test_seeds_of_older_and_newer_programs_are_of_one_config():
    config = config_to_dict(load_config(None, ["model.task=regression"]))
    older = {section: dict(values) for section, values in config.items()}
    for section, name in (("model", "task"), ("model", "emotions"), ("data", "classes")):
        del older[section][name]
    sizes = dict.fromkeys(MODALITIES, 4)
    data = {"name": "x", "generation": "x", "text_kind": "features", "dims": sizes, "lengths": sizes}
    first, second = (ModelCard(config=one, data=data, text_encoder=None, source={}) for one in (config, older))
    check_one_config(Path("a"), first, Path("b"), second)
    assert _label_fields({"class": [1], "label": [0.5]}, second) == {"class": [1], "label": [0.5]}
    check_seeds([(Path("a"), "", 1), (Path("b"), "", 2), (Path("c"), "another", 1)])
    with pytest.raises(ValueError, match="a and b are both seed 1 of one config, which counts once"):
        check_seeds([(Path("a"), "", 1), (Path("b"), "", 1)])
    changed = replace(second, config={**older, "model": {**older["model"], "dim": 20}})
    with pytest.raises(ValueError, match=r"a has model\.dim=50, b has 20: a mean over both says nothing"):
        check_one_config(Path("a"), first, Path("b"), changed)


def test_the_grid_starts_at_evaluate_and_all_missing_is_one_prediction(run, shards, tmp_path):
    assert command("evaluate", run, "--split", "test", "--json", tmp_path / "test.json") == 0
    whole = json.loads((tmp_path / "test.json").read_text())["metrics"]["fused"]
    cells = evaluate_grid(dmd.load(run), shards, "test", rates=[0, 1], units=["sample"])
    assert {(cell.target, cell.rate) for cell in cells} == {(target, rate) for target in TARGETS for rate in (0, 1)}
    for cell in cells:
        if cell.rate == 0:
            assert cell.metrics["mae"] == pytest.approx(whole["mae"], rel=1e-6)
    nothing = next(cell for cell in cells if (cell.target, cell.rate) == ("all", 1))
    assert np.isnan(nothing.metrics["corr"]), "without any input every prediction is the same"


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_dropped_modality_is_as_good_as_zero_and_the_others_stay(run, modality):
    model = dmd.load(run)
    arrays = example(model.card, 6)
    got = _predict(model, [Inputs(arrays=arrays)], _masks(model, 6, [modality], "sample", 1.0, 0))
    zeroed = arrays | {modality: torch.zeros_like(arrays[modality])}
    assert torch.equal(got, model.predict(**zeroed).sentiment)
    assert not torch.equal(got, model.predict(**arrays).sentiment)


def test_text_tokens_are_dropped_behind_the_encoder():
    model = token_model()
    card = model.card
    arrays, other = example(card, 4), example(card, 4)
    other["text"] = arrays["text"].clone()
    other["text"][:, 0] = torch.arange(9)
    masks = _masks(model, 4, ["text"], "sample", 1.0, 0)
    other |= {"audio": arrays["audio"], "vision": arrays["vision"]}
    assert not torch.equal(model.predict(**arrays).sentiment, model.predict(**other).sentiment)
    assert torch.equal(_predict(model, [Inputs(arrays=arrays)], masks), _predict(model, [Inputs(arrays=other)], masks))
    assert not torch.equal(_predict(model, [Inputs(arrays=arrays)], masks), model.predict(**arrays).sentiment)


def test_the_command_writes_table_and_plot(runs, tmp_path, capsys):
    out = tmp_path / "out"
    assert command("missing", *runs[:2], "--out", out, "--rates", 0, 0.5, "--unit", "frame") == 0
    with open(out / "one" / "missing.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["modality"], row["rate"]) for row in rows] == [(t, r) for t in TARGETS for r in ("0", "0.5")]
    assert (out / "grid" / "missing.svg").stat().st_size > 5000
    assert (out / "index.html").is_file()
    assert {row["split"] for row in rows} == {"valid"}
    capsys.readouterr()
    assert command("missing", runs[0], runs[2], "--out", tmp_path / "no") == 2
    assert "has objective.prior=uniform" in capsys.readouterr().err
    assert command("missing", runs[0], runs[0], "--out", tmp_path / "no") == 2
    assert "is named twice" in capsys.readouterr().err
    assert command("missing", runs[0], "--rates", 1.5, "--out", tmp_path / "no") == 2
    assert "1.5 is outside [0, 1]" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_shards_that_took_the_place_of_a_runs_own_are_not_taken_for_them(run, shards, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "run")
    document = json.loads((copy / "run.json").read_text())
    document["info"]["generation"] = "0" * 16
    (copy / "run.json").write_text(json.dumps(document))
    out = ("--out", tmp_path / "out")
    for name, more in (("evaluate", ()), ("report", out), ("missing", out)):
        error = rejected(capsys, name, copy, *more)
        assert f"was trained on data generation {'0' * 16}, and {shards} holds " in error
        assert f"to take that all the same: --data {shards}" in error
    assert command("evaluate", copy, "--data", shards) == 0
