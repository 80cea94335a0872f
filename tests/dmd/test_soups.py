"""The mean of checkpoints: of which weights, which of them a greedy soup takes, and the commands that take it."""

import json
import shutil

import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import torch

import dmd
from dmd.checkpoint.averaging import greedy_soup, mean_weights
from dmd.checkpoint.format import Snapshot, list_checkpoints, read_weights
from dmd.checkpoint.select import AVERAGED, chosen_checkpoint, newest_in_a_row
from dmd.checkpoint.writer import write_checkpoint
from dmd.inference.export import example, read_card
from dmd.inference.part_files import MANIFEST
from tests.support.commands import command, rejected
from tests.support.trained import SMALL, small_for, train

BEYOND = [
    "train.epochs=3",
    "train.ema_decay=0.9",
    "train.keep_checkpoints=3",
    "train.ghost_batches_per_step=2",
    "model.normalise=train",
    "model.text_dropout=0.3",
    "objective.consistency=2",
    "objective.label_density_smoothing=0.5",
]
ALL_ON = [*SMALL, *BEYOND]


@pytest.fixture(scope="module")
def averaging(shards, tmp_path_factory):
    """A run with averaged weights, normalisation, two passes and weighted labels; one that was continued; and another
    seed and model."""
    folder = tmp_path_factory.mktemp("soups")
    whole, continued, other = folder / "whole", folder / "continued", folder / "other"
    train(
        shards,
        {
            whole: ALL_ON,
            continued: [*ALL_ON, "train.epochs=1"],
            other: [*small_for("late_fusion"), *BEYOND, "train.seed=2"],
        },
        base=(),
    )
    train(shards, {continued: ALL_ON}, base=())
    return whole, continued, other


def weights(*values: float) -> dict[str, torch.Tensor]:
    return {"weight": torch.tensor(values), "positions": torch.arange(3)}


def test_a_mean_is_taken_in_float64_and_integers_stay():
    generator = torch.Generator().manual_seed(0)
    many = [{"weight": torch.randn(1000, generator=generator), "positions": torch.arange(3)} for _ in range(7)]
    mean = mean_weights(many)
    assert mean["weight"].equal(torch.stack([one["weight"] for one in many]).double().mean(0).float())
    assert mean["weight"].dtype == torch.float32
    assert mean["positions"].equal(torch.arange(3))
    halves = [{"weight": one["weight"].bfloat16()} for one in many]
    wanted = torch.stack([one["weight"] for one in halves]).double().mean(0).bfloat16()
    assert mean_weights(halves)["weight"].equal(wanted)
    same = mean_weights([many[0]] * 3)
    assert same["weight"].equal(many[0]["weight"]), "as statistics of normalisation are, which all checkpoints share"


def test_weights_without_a_mean_are_rejected():
    with pytest.raises(ValueError, match=r"differ in positions, whose torch\.int64 numbers have no mean"):
        mean_weights([weights(1.0), {**weights(1.0), "positions": torch.zeros(3, dtype=torch.int64)}])
    for other in (weights(1.0, 2.0), {"weight": torch.ones(1)}):
        with pytest.raises(ValueError, match="of different models, which have no mean"):
            mean_weights([weights(1.0), other])


def test_a_greedy_soup_takes_what_does_not_harm():
    kept = {10: 4.0, 20: -1.0, 30: 2.0, 40: 9.0, 50: -2.0}
    asked = []

    def loss(given: dict[str, torch.Tensor]) -> float:
        asked.append(float(given["weight"]))
        return abs(asked[-1])

    assert greedy_soup(list(kept), lambda step: weights(kept[step]), loss) == [20, 30]
    assert asked[:5] == list(kept.values())
    # -1 is the best; -2 (the later of two equal ones) makes it worse, 2 better; with 4 and with 9 it is worse
    assert asked[5:] == pytest.approx([-1.5, 0.5, 5 / 3, 10 / 3])


def test_commands_and_python_take_the_mean_of_the_newest_checkpoints(averaging, shards, tmp_path, capsys):
    run, _, _ = averaging
    steps = [info.step for info in list_checkpoints(run / "checkpoints")]
    assert len(steps) == 3
    newest = [read_weights(run / "checkpoints" / f"step_{step:08d}") for step in steps[1:]]
    model = dmd.load(run, "cpu", step="average:2")
    for name, tensor in model.modules.state_dict().items():
        assert tensor.equal(((newest[0][name].double() + newest[1][name]) / 2).to(tensor.dtype)), name
        assert tensor.equal(newest[0][name]) or "normalisation" not in name
    assert (model.card.source["step"], model.card.averaged) == (steps[2], steps[1:])
    said = f"mean of the checkpoints of steps {steps[1]}, {steps[2]}"
    assert command("evaluate", run, "--average", 2, "--json", tmp_path / "valid.json") == 0
    assert f", {said}\n" in capsys.readouterr().out
    assert json.loads((tmp_path / "valid.json").read_text())["averaged"] == steps[1:]
    assert command("predict", run, shards, "--average", 2, "--out", f"{tmp_path}/parts/") == 0
    assert f"; {said}\n" in capsys.readouterr().out
    assert command("export", run, tmp_path / "out", "--average", 2, "--no-program") == 0
    assert f": {said}, " in capsys.readouterr().out
    assert read_card(tmp_path / "out").averaged == steps[1:]
    dmd.save(model, tmp_path / "again", program=False)
    dmd.save(run, tmp_path / "best", program=False)
    assert "\nmetrics:\n" in (tmp_path / "best" / "README.md").read_text()
    for folder in ("out", "again"):
        text = (tmp_path / folder / "README.md").read_text()
        assert f"steps {steps[1]}, {steps[2]}, the mean of their weights" in text
        assert "\nmetrics:\n" not in text, "the run has measured other weights"


def test_a_best_checkpoint_that_retention_spared_is_no_part_of_an_average(run, tmp_path):
    """Steps 40 (the best), 99 and 100 are not the three newest of a training."""
    saved = chosen_checkpoint(run, "last")
    root = tmp_path / "checkpoints"

    def write(*steps: int, keep: int) -> None:
        train = {**saved.state["config"]["train"], "keep_checkpoints": keep}
        state = {**saved.state, "best_step": 10, "config": {**saved.state["config"], "train": train}}
        for step in steps:
            write_checkpoint(root, Snapshot(step=step, model=saved.model, optimizer={}, state=state), keep=keep)

    write(10, 20, 30, 40, 50, keep=3)
    assert [info.step for info in list_checkpoints(root)] == [10, 30, 40, 50]
    assert chosen_checkpoint(tmp_path, "average:3").state[AVERAGED] == [30, 40, 50]
    with pytest.raises(ValueError, match=r"keeps 3 \(of steps 30, 40, 50\), apart from 10, spared as the best; "):
        chosen_checkpoint(tmp_path, "average:4")
    write(60, keep=5)  # continued with a longer memory, which brings nothing back
    assert list(newest_in_a_row(tmp_path, 4)) == [30, 40, 50, 60]
    with pytest.raises(ValueError, match=r"apart from 10.*, spared as the best"):
        newest_in_a_row(tmp_path, 5)
    # Of the one that is damaged last nobody knows how many its training kept: as few as the one before it.
    for damaged, left in ((40, [30, 50, 60]), (60, [50])):
        (root / f"step_{damaged:08d}" / "model.safetensors").unlink()
        assert list(newest_in_a_row(tmp_path, len(left))) == left
        with pytest.raises(ValueError, match=r"apart from 10.*, spared as the best"):
            newest_in_a_row(tmp_path, len(left) + 1)


def test_a_soup_of_a_run_whose_shards_are_elsewhere(averaging, shards, tmp_path, capsys):
    run, moved = averaging[0], tmp_path / "moved"
    shutil.copytree(run, moved)
    document = json.loads((moved / "run.json").read_text())
    document["info"]["data"] = str(tmp_path / "gone")
    (moved / "run.json").write_text(json.dumps(document))
    assert "a soup is chosen by the shards of the run's training: " in rejected(
        capsys, "predict", moved, shards, "--soup"
    )
    assert dmd.evaluate(moved, shards, step="soup") == dmd.evaluate(run, step="soup")


def test_a_soup_is_no_worse_on_valid_than_any_checkpoint(averaging):
    run, _, _ = averaging
    steps = [info.step for info in list_checkpoints(run / "checkpoints")]
    single = [dmd.evaluate(run, step=step)["fused"]["mae"] for step in steps]
    assert dmd.evaluate(run, step="soup")["fused"]["mae"] <= min(single) + 1e-6
    averaged = dmd.load(run, step="soup").card.averaged
    assert set(averaged) <= set(steps)
    assert steps[single.index(min(single))] in averaged


def test_an_ensemble_of_means(averaging, shards, tmp_path, capsys):
    """Each member is the mean of its own checkpoints, and so it is told, in every command."""
    one, _, two = averaging
    pair = [one, two]
    steps = {run: [info.step for info in list_checkpoints(run / "checkpoints")][-2:] for run in pair}
    means = [f"mean of the checkpoints of steps {first}, {last}" for first, last in steps.values()]
    said = f"ensemble of {means[0]}; {means[1]}"
    assert command("evaluate", *pair, "--average", 2, "--json", tmp_path / "valid.json") == 0
    assert f", {said}\n" in capsys.readouterr().out
    result = json.loads((tmp_path / "valid.json").read_text())
    assert [member["averaged"] for member in result["members"]] == list(steps.values())
    assert [member["metrics"] for member in result["members"]] == [dmd.evaluate(run, step="average:2") for run in pair]
    assert dmd.evaluate(pair, step="average:2") == result["metrics"]
    assert command("predict", *pair, shards, "--average", 2, "--out", f"{tmp_path}/parts/") == 0
    assert f"; {said}\n" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "parts" / MANIFEST).read_text())
    assert [member["averaged"] for member in manifest["members"]] == list(steps.values())
    assert command("predict", *pair, shards, "--average", 2, "--out", tmp_path / "out.parquet") == 0
    assert f"; {said}\n" in capsys.readouterr().out
    table = pq.read_table(tmp_path / "out.parquet")
    assert ds.dataset(tmp_path / "parts").to_table()["prediction"].equals(table["prediction"])
    assert command("export", *pair, tmp_path / "export", "--average", 2, "--no-program") == 0
    assert f": {said}, " in capsys.readouterr().out
    exported = dmd.load(tmp_path / "export")
    assert [member.card.averaged for member in exported.members] == list(steps.values())
    given = example(exported.card, 3)
    assert exported.predict(**given).sentiment.equal(dmd.load(pair, step="average:2").predict(**given).sentiment)
    readme = (tmp_path / "export" / "README.md").read_text()
    assert f"| steps {', '.join(map(str, steps[two]))}, the mean of their weights |" in readme
    soups = [member.card.averaged for member in dmd.load(pair, step="soup").members]
    assert soups == [dmd.load(run, step="soup").card.averaged for run in pair]


def test_what_a_run_keeps_is_said_where_it_is_too_little(run, shards, capsys):
    steps = ", ".join(str(info.step) for info in list_checkpoints(run / "checkpoints"))
    error = rejected(capsys, "evaluate", run, "--average", 5)
    assert f"the mean of 5 checkpoints takes 5 at least, but {run} keeps 2 (of steps {steps}); " in error
    assert "give average:2 (--average 2), or train with train.keep_checkpoints=5" in error
    for step in ("average:1", "average:", "average:x", "soups"):
        with pytest.raises(ValueError, match=r"it must be the step of a checkpoint, .* 'average:5' of the newest five"):
            dmd.load(run, step=step)
    with pytest.raises(SystemExit):
        command("predict", run, shards, "--average", 1)
    assert "'1' checkpoints have no mean; give 2 or more, or --last" in capsys.readouterr().err


def test_two_passes_and_weighted_labels_are_logged_and_resumed_bitwise(averaging):
    whole, continued, _ = averaging
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    terms = [line["train/consistency"] for line in lines if line["kind"] == "train"]
    assert terms
    assert min(terms) > 0
    one, other = (chosen_checkpoint(run, "last") for run in (whole, continued))
    assert one.step == other.step
    assert all(tensor.equal(other.model[name]) for name, tensor in one.model.items())
    assert not [name for name in one.model if "label_weights" in name]
