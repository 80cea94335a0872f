"""Statistics, tables, trial sizes, the request: what needs no Ray."""

import csv
import json
import math
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest
import yaml
from ray._private.thirdparty.pathspec import PathSpec
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams.metadata import (
    EXPERIMENT_TAG,
    SESSION_START_INFO_TAG,
    parse_experiment_plugin_data,
)

from cluster.experiments.results import markdown, seed_rows, write_best, write_table, write_trials
from cluster.experiments.seed_runs import are_of_runs, make_cells
from cluster.jobs.submit import excludes
from cluster.parsers import parse_experiment, parse_tune
from cluster.ray_runtime.resources import TrialSize, concurrent_trials, parse_ranks, rank_slots
from cluster.request import experiment_request, parse_ablation, parse_seeds, tune_request
from cluster.search.live_table import LiveTable
from cluster.search.space import load_space
from cluster.search.tensorboard_hparams import describe_search
from cluster.search.trial_records import TrialRecord, TrialRecords, keep_request
from data_shards.places import to_place
from dmd.config import Config
from dmd.config.loading import config_to_dict, load_config
from dmd.metrics import METRICS, Scoring
from dmd.training.logging.hyperparameters import BEST
from dmd.training.logging.recorder import Recorder


def test_seed_rows():
    def result(name: str, seed: int, mae: float) -> dict:
        return {"name": name, "seed": seed, "metrics": {**dict.fromkeys(METRICS, 0.5), "mae": mae}}

    rows = seed_rows([result("a", 1, 0.8), result("a", 2, 1.0), result("b", 1, 2.0)])
    assert [(row["name"], row["seed"]) for row in rows] == [
        ("a", 1),
        ("a", 2),
        ("a", "mean"),
        ("a", "std"),
        ("a", "95 % +-"),
        ("b", 1),
        ("b", "mean"),
        ("b", "std"),
        ("b", "95 % +-"),
    ]
    assert rows[2]["MAE"] == pytest.approx(0.9)
    assert rows[3]["MAE"] == pytest.approx(math.sqrt(0.02))
    assert rows[4]["MAE"] == pytest.approx(12.7062 * math.sqrt(0.02 / 2), rel=1e-6), "Student's t at one degree"
    assert (rows[0]["Acc7 %"], rows[0]["F1 Non0 %"], rows[0]["Corr"], rows[0]["split"]) == (50, 50, 0.5, "test")
    assert "nan" not in markdown(rows)


def test_the_result_of_an_ensemble_is_of_certain_checkpoints(tmp_path):
    runs = [tmp_path / "seed_1", tmp_path / "seed_2"]

    def trained(*steps: int, generation: str = "g") -> None:
        for run, step in zip(runs, steps, strict=True):
            run.mkdir(exist_ok=True)
            (run / "test.json").write_text(json.dumps({"step": step, "generation": generation}))

    members = [{"run": str(run), "step": step} for run, step in zip(runs, (10, 20), strict=True)]
    found = {split: {"members": members, "generation": "g"} for split in ("valid", "test")}
    trained(10, 20)
    assert are_of_runs(found, runs)
    assert not are_of_runs({"test": found["test"]}, runs), "one of the splits is missing"
    assert not are_of_runs(found, runs[:1]), "other seeds"
    trained(10, 30)
    assert not are_of_runs(found, runs), "a seed was trained again"
    trained(10, 20, generation="other")
    assert not are_of_runs(found, runs)


def test_the_ensemble_of_seeds_has_rows_on_both_splits():
    def metrics(mae: float) -> dict:
        return {**dict.fromkeys(METRICS, 0.5), "mae": mae}

    def ensemble(mae: float, *of_members: float) -> dict:
        members = [{"metrics": {"fused": metrics(one)}} for one in of_members]
        return {"metrics": {"fused": {**metrics(mae), "corr": None}}, "members": members}

    results = [{"name": "a", "seed": seed, "metrics": metrics(mae)} for seed, mae in ((1, 0.8), (2, 1.0))]
    results.append({"name": "b", "seed": 1, "metrics": metrics(0.7)})
    rows = seed_rows(results, {"a": {"test": ensemble(0.75, 0.8, 1.0), "valid": ensemble(0.6, 0.7, 0.9)}})
    assert [(row["name"], row["split"], row["seed"], row["MAE"]) for row in rows if row["seed"] in (1, 2)] == [
        ("a", "test", 1, 0.8),
        ("a", "test", 2, 1.0),
        ("a", "valid", 1, 0.7),
        ("a", "valid", 2, 0.9),
        ("b", "test", 1, 0.7),
    ]
    whole = [row for row in rows if row["seed"] == "ensemble of 2 seeds"]
    assert [(row["split"], row["MAE"]) for row in whole] == [("test", 0.75), ("valid", 0.6)]
    assert math.isnan(whole[0]["Corr"])
    assert [row["MAE"] for row in rows if row["seed"] == "mean"] == pytest.approx([0.9, 0.8, 0.7])


def test_tables(tmp_path):
    trials = TrialRecords(tmp_path)
    for number, (state, loss) in enumerate([("stopped", 0.9), ("finished", 0.7), ("diverged", math.inf)]):
        record = TrialRecord(number=number, values={"train.learning_rate": 10.0**-number}, state=state)
        if math.isfinite(loss):
            record.note(2, loss, {"acc7": math.nan, "acc2_non0": 0.625})
        trials.write(record)
    trials = TrialRecords(tmp_path)
    assert trials.best() is trials.records[1]
    write_trials(trials, tmp_path, Config())
    assert not (tmp_path / "best.yaml").exists(), "only a search that has ended has a best trial"
    write_best(trials.records[1], 3, tmp_path, Config())
    rows = list(csv.DictReader((tmp_path / "trials.csv").read_text().splitlines()))
    assert [row["trial"] for row in rows] == ["1", "0", "2"]
    assert [row["valid Acc2 Non0 %"] for row in rows] == ["62.5", "62.5", ""]
    page = (tmp_path / "trials.md").read_text()
    assert page.splitlines()[4].startswith("| 2 | diverged | 0 | – | – | – |")
    assert "on the valid split. Acc in per cent. Protocol mosi: " in page
    assert not {"inf", "nan"} & set(page.split())
    assert load_config(file=tmp_path / "best.yaml").train.learning_rate == 0.1
    assert yaml.safe_load((tmp_path / "best.yaml").read_text())["train"]["seed"] == 1111
    write_table(tmp_path / "x.csv", [{"a": 1, "b": 0.12345}])
    assert (tmp_path / "x.md").read_text().splitlines()[2] == "| 1 | 0.1235 |"


def test_trial_sizes():
    nodes = [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 7.0}, {"CPU": 1.0, "GPU": 2.0}]
    assert rank_slots(TrialSize(min_ranks=1, max_ranks=1, cpus_per_rank=2), nodes) == 5
    assert rank_slots(TrialSize(min_ranks=1, max_ranks=1, gpus_per_rank=1), nodes) == 2
    assert concurrent_trials(TrialSize(min_ranks=2, max_ranks=2, cpus_per_rank=2), nodes) == 2
    assert concurrent_trials(TrialSize(min_ranks=5, max_ranks=5, cpus_per_rank=2), nodes) == 1
    assert concurrent_trials(TrialSize(min_ranks=2, max_ranks=8, cpus_per_rank=2), nodes) == 1
    assert rank_slots(TrialSize(min_ranks=1, max_ranks=1, cpus_per_rank=0.1), [{"CPU": 1.0}]) == 10
    with pytest.raises(ValueError, match=r"a trial wants 6 ranks of 2 CPU.*room for 5: it could never start"):
        concurrent_trials(TrialSize(min_ranks=6, max_ranks=6, cpus_per_rank=2), nodes)


@pytest.mark.parametrize("text", ["", "two", "1:", ":2", "1:2:3", "-1", "1.5"])
def test_bad_ranks(text):
    with pytest.raises(ValueError, match=r"give a number, or MIN:MAX"):
        parse_ranks(text)


@pytest.mark.parametrize(
    "size, message",
    [
        ((0, 1, 1, 0), r"^ranks per trial: 0; at least 1$"),
        ((2, 1, 1, 0), r"^ranks per trial: 2:1 has min above max; swap them$"),
        ((1, 1, 0, 0), r"^CPUs per rank: 0; more than 0$"),
        ((1, 1, 1, -1), r"^GPUs per rank: -1; at least 0$"),
        ((1, 1, 1, 1.5), r"^GPUs per rank: 1\.5; a part of one, or a whole number$"),
        ((1, 2, 1, 0.5), r"^GPUs per rank: 0\.5 with up to 2 ranks per trial; ranks of one trial cannot share a GPU"),
    ],
)
def test_bad_sizes(size, message):
    with pytest.raises(ValueError, match=message):
        TrialSize(min_ranks=size[0], max_ranks=size[1], cpus_per_rank=size[2], gpus_per_rank=size[3])


def test_request(tmp_path):
    path = tmp_path / "out" / "experiment.json"
    keep_request(path, {"a": 1, "b": ("x",)})
    keep_request(path, {"a": 1, "b": ("x",)})
    with pytest.raises(ValueError, match=r"was started with a 1, not 2; give that again to continue it, or another"):
        keep_request(path, {"a": 2, "b": ("x",)})
    path.write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        keep_request(path, {"a": 1})


def test_the_request_of_an_older_program_continues(tmp_path):
    path, config = tmp_path / "experiment.json", load_config("demo", ["model.task=regression"])
    older = config_to_dict(config)
    for name in ("task", "emotions", "masked_padding"):
        del older["model"][name]
    path.write_text(json.dumps({"config": older, "generation": "x"}))
    keep_request(path, {"config": config_to_dict(config), "generation": "x"})
    other = load_config("demo", ["model.task=regression", "model.levels=3"])
    before = f"was started with model.levels {config.model.levels}, not 3; give that again"
    with pytest.raises(ValueError, match=before):
        keep_request(path, {"config": config_to_dict(other), "generation": "x"})
    with pytest.raises(ValueError, match='was started with generation "x", not "y"'):
        keep_request(path, {"config": config_to_dict(config), "generation": "y"})
    path.write_text(json.dumps({"config": {**older, "nets": {}}, "generation": "x"}))
    with pytest.raises(ValueError, match="its config cannot be read: unknown config key 'nets'"):
        keep_request(path, {"config": config_to_dict(config), "generation": "x"})


def test_seeds_and_ablations(tmp_path):
    assert parse_seeds("1,2, 3") == (1, 2, 3)
    with pytest.raises(ValueError, match="give whole numbers"):
        parse_seeds("1;2")
    with pytest.raises(ValueError, match="none twice"):
        parse_seeds("1,2,1")
    cells = make_cells({"preset": Config(), "other": Config()}, [1, 2], tmp_path)
    assert [(cell.name, cell.config.train.seed) for cell in cells] == [
        ("preset", 1),
        ("preset", 2),
        ("other", 1),
        ("other", 2),
    ]
    assert len({cell.run for cell in cells}) == 4
    name, config = parse_ablation("no-graph:objective.distillation_weight=0,model.levels=2", load_config("demo"))
    assert (name, config.objective.distillation_weight, config.model.levels, config.model.dim) == ("no-graph", 0, 2, 20)
    for text in ("no-graph", "a/b:model.levels=2", "x:"):
        with pytest.raises(ValueError, match="give NAME:section"):
            parse_ablation(text, Config())
    with pytest.raises(ValueError, match=r"unknown config key 'model\.level'"):
        parse_ablation("x:model.level=2", Config())


def test_excludes():
    """As Ray reads them: the patterns of a .gitignore, asked of a directory before what is in it."""
    spec = PathSpec.from_lines("gitwildmatch", excludes(["dmd", "my/spaces/a.yaml"]))

    def uploaded(path: str) -> bool:
        parts = path.split("/")
        return not any(spec.match_file("/".join(parts[:end])) for end in range(1, len(parts) + 1))

    assert uploaded("."), "Ray asks of the directory itself, too"
    for path in ("dmd/cli.py", "dmd/model/dmd.py", "my/spaces/a.yaml"):
        assert uploaded(path), path
    for path in (
        "data/x",
        ".venv/bin/python",
        ".git/HEAD",
        "my/data/x",
        "my/spaces/b.yaml",
        "dmd/x.tar",
        "dmd/__pycache__/cli.pyc",
        "runs/1/run.json",
        "dmdx",
    ):
        assert not uploaded(path), path


def test_live_table():
    table = LiveTable(num_trials=3, epochs=6)
    records = [
        TrialRecord(number=number, values={"train.learning_rate": 0.00123456, "model.levels": number, **more})
        for number, more in enumerate(({"train.clip_at": 0.1}, {}))
    ]
    records[0].state = "stopped"
    records[0].note(2, 0.75, {})
    lines = table.lines(records, 80)
    assert lines[0].startswith("1 of 3 trials ended, 1 running")
    assert lines[1].split() == ["valid", "learning", "clip"]
    assert lines[2].split() == ["trial", "state", "epoch", "loss", "rate", "levels", "at"]
    assert [line.split() for line in lines[3:]] == [
        ["1", "running", "0/6", "-", "0.00123", "1"],
        ["0", "stopped", "2/6", "0.7500", "0.00123", "0", "0.1"],
    ]
    ends = [line.index(text) + len(text) for line, text in zip(lines[2:], ("rate", "0.00123", "0.00123"), strict=True)]
    assert len(set(ends)) == 1, "numbers stand under their names"


def test_a_table_that_is_too_wide_leaves_out_whole_columns():
    keys = ("train.learning_rate", "model.levels", "train.clip_at", "model.text_dropout")
    records = [TrialRecord(number=0, values=dict.fromkeys(keys, 0.25))]
    wide = LiveTable(1, 6).lines(records, 200)
    assert len(wide) == 4
    for width in range(30, 70):
        lines = LiveTable(1, 6).lines(records, width)
        assert all(len(line) <= width for line in lines[1:4])
        left_out = [key.partition(".")[2] for key in keys[len(lines[3].split()) - 4 :]]
        assert lines[4:] == ([f"not shown: {', '.join(left_out)}"] if left_out else [])


def test_the_hparams_page_shows_what_varies(tmp_path):
    """TensorBoard takes one of the descriptions that it finds, in no certain order: the search's is the only one."""
    (tmp_path / "space.yaml").write_text(
        "train.clip: {choice: [value, none]}\nmodel.levels: {int: [2, 4]}\nmodel.heads: {choice: [5, 10]}\n"
    )
    space = load_space(tmp_path / "space.yaml", Config())
    trials = tmp_path / "trials"
    for _ in range(2):
        describe_search(space.parameters, load_config(None, ["model.task=regression"]), Scoring(), trials)
    assert len(list(trials.iterdir())) == 1
    config = {"train": {"clip": "none"}, "model": {"dim": 1}}
    for run in (trials / "0000", trials / "trial_0001" / "seed_1", tmp_path / "alone"):
        log = Recorder(run, config=config, info={}, resume_step=None)
        log.scalars(1, {"loss": 1.0}, kind=BEST)
        log.close({"valid/loss": 1.0})
    content = {
        run: tags
        for folder in (trials, tmp_path / "alone")
        for run, tags in EventMultiplexer()
        .AddRunsFromDirectory(str(folder), folder.name)
        .Reload()
        .PluginRunToTagToContent("hparams")
        .items()
    }
    assert {run for run, tags in content.items() if EXPERIMENT_TAG in tags} == {"trials/.", "alone/."}
    assert {run for run, tags in content.items() if SESSION_START_INFO_TAG in tags} == content.keys() - {"trials/."}
    found = parse_experiment_plugin_data(content["trials/."][EXPERIMENT_TAG])
    assert [(metric.name.tag, metric.display_name) for metric in found.metric_infos] == [
        ("best_valid/loss", "best valid MAE"),
        ("best_valid/acc2_non0", "valid Acc2 Non0 (share)"),
        ("best_valid/f1_non0", "valid F1 Non0 (share)"),
        ("best_valid/acc7", "valid Acc7 (share)"),
        ("best_valid/corr", "valid Corr"),
    ]
    kinds = {info.name: api_pb2.DataType.Name(info.type) for info in found.hparam_infos}
    assert kinds == {
        "train.clip": "DATA_TYPE_STRING",
        "model.levels": "DATA_TYPE_FLOAT64",
        "model.heads": "DATA_TYPE_FLOAT64",
    }


def test_a_cpu_that_was_asked_for_holds_on_this_machines_own_cluster(monkeypatch):
    """Ranks of a standing cluster have the environment of their nodes."""
    line, there = ["--data", "shards", "--out", "out"], ["--address", "10.0.0.1:6379"]
    one_gpu = ["--gpus-per-rank", "1"]
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    with pytest.raises(ValueError, match=r"--gpus-per-rank is 1, but DS_ACCELERATOR=cpu keeps ranks on the CPU"):
        experiment_request(parse_experiment([*line, *one_gpu]))

    def gpus(*options: str) -> float:
        return experiment_request(parse_experiment([*line, *options])).cluster.trial_size(has_gpus=True).gpus_per_rank

    assert gpus() == 0
    assert gpus(*there) == gpus(*there, *one_gpu) == 1
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert gpus() == 1
    monkeypatch.delenv("DS_ACCELERATOR")
    assert gpus("--address", "local") == 1
    assert (
        experiment_request(parse_experiment([*line, "--address", "local"]))
        .cluster.trial_size(has_gpus=False)
        .gpus_per_rank
        == 0
    )


def test_a_trial_of_an_impossible_size_is_rejected_before_any_cluster_starts():
    with pytest.raises(ValueError, match=r"^ranks per trial: 0; at least 1$"):
        experiment_request(parse_experiment(["--data", "shards", "--out", "out", "--ranks-per-trial", "0"]))


def test_a_search_request_is_whole_and_cannot_change(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    space = tmp_path / "space.yaml"
    space.write_text("train.learning_rate: {choice: [0.001, 0.002, 0.003]}\n")
    line = ["--data", "shards", "--out", "out", "--space", str(space), "train.epochs=4", "--grace", "2"]
    request = tune_request(parse_tune([*line, "--search", "grid", "--final-seeds", "1,2"]))
    assert request.data == to_place(str(Path("shards").absolute()))
    assert request.out == Path("out").absolute()
    assert request.config.train.epochs == 4
    assert (request.search.num_trials, request.search.grace, request.final_seeds) == (3, 2, (1, 2))
    assert (request.cluster.address, request.cluster.size.max_ranks) == (None, 1)
    assert tune_request(parse_tune(line)).search.num_trials == 20
    assert tune_request(parse_tune([*line, "--trials", "7"])).search.num_trials == 7
    for part in (request, request.search, request.cluster, request.cluster.size):
        with pytest.raises(FrozenInstanceError):
            setattr(part, fields(part)[0].name, None)
    identity = {key: request.search.identity()[key] for key in ("search", "search_seed", "scheduler", "grace")}
    assert identity == {"search": "grid", "search_seed": 0, "scheduler": "asha", "grace": 2}
