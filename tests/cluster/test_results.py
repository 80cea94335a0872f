"""Statistics, tables, trial sizes, the fence, the request: what needs no Ray."""

import csv
import math

import pytest
import yaml
from ray._private.thirdparty.pathspec import PathSpec

from cluster.experiment import make_cells, parse_seeds
from cluster.fence import Fence
from cluster.ledger import Ledger, TrialRecord, keep_request
from cluster.resources import TrialSize, concurrent_trials, parse_ranks, rank_slots
from cluster.results import seed_rows, student_t, summary, write_table, write_trials
from cluster.run import parse_ablation
from cluster.submit import excludes
from cluster.table import LiveTable
from dmd.config import Config
from dmd.metrics import METRIC_TITLES
from dmd.presets import load_config


def test_student_t():
    stats = pytest.importorskip("scipy.stats")
    for degrees in (*range(1, 40), 100, 10_000):
        assert student_t(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), abs=1e-3)


def test_summary():
    mean, deviation, half = summary([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (mean, deviation) == pytest.approx((3.0, math.sqrt(2.5)))
    assert half == pytest.approx(2.7764 * math.sqrt(2.5 / 5))
    assert math.isnan(summary([1.0])[1])


def test_seed_rows():
    def result(name: str, seed: int, mae: float) -> dict:
        return {"name": name, "seed": seed, "metrics": {**dict.fromkeys(METRIC_TITLES, 0.5), "mae": mae}}

    rows = seed_rows([result("a", 1, 0.8), result("a", 2, 1.0), result("b", 1, 2.0)])
    assert [(row["name"], row["seed"]) for row in rows] == [
        ("a", 1), ("a", 2), ("a", "mean"), ("a", "std"), ("a", "95 % +-"),
        ("b", 1), ("b", "mean"), ("b", "std"), ("b", "95 % +-"),
    ]  # fmt: skip
    assert rows[2]["MAE"] == pytest.approx(0.9)


def test_tables(tmp_path):
    ledger = Ledger(tmp_path)
    for number, (state, loss) in enumerate([("stopped", 0.9), ("finished", 0.7), ("diverged", math.inf)]):
        record = TrialRecord(number=number, values={"train.learning_rate": 10.0**-number}, state=state)
        if math.isfinite(loss):
            record.note(2, loss, {"acc7": math.nan})
        ledger.write(record)
    ledger = Ledger(tmp_path)
    assert ledger.best() is ledger.records[1]
    write_trials(ledger, tmp_path, Config())
    rows = list(csv.DictReader((tmp_path / "trials.csv").read_text().splitlines()))
    assert [row["trial"] for row in rows] == ["1", "0", "2"]
    assert (tmp_path / "trials.md").read_text().count("\n") == 5
    assert load_config(str(tmp_path / "best.yaml")).train.learning_rate == 0.1
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
    [((0, 1, 1, 0), "at least 1"), ((2, 1, 1, 0), "min above max"), ((1, 1, 0, 0), "above|more than 0"),
     ((1, 1, 1, -1), "at least 0")],
)  # fmt: skip
def test_bad_sizes(size, message):
    with pytest.raises(ValueError, match=message):
        TrialSize(min_ranks=size[0], max_ranks=size[1], cpus_per_rank=size[2], gpus_per_rank=size[3])


def test_fence(tmp_path):
    first = Fence(tmp_path / "run")
    first.check()
    second = Fence(tmp_path / "run")
    second.check()
    with pytest.raises(RuntimeError, match="a later attempt has taken over"):
        first.check()


def test_request(tmp_path):
    path = tmp_path / "out" / "experiment.json"
    keep_request(path, {"a": 1, "b": ("x",)})
    keep_request(path, {"a": 1, "b": ("x",)})
    with pytest.raises(ValueError, match=r"was started with a 1, not 2; give that again to continue it, or another"):
        keep_request(path, {"a": 2, "b": ("x",)})
    path.write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        keep_request(path, {"a": 1})


def test_seeds_and_ablations(tmp_path):
    assert parse_seeds("1,2, 3") == [1, 2, 3]
    with pytest.raises(ValueError, match="give whole numbers"):
        parse_seeds("1;2")
    with pytest.raises(ValueError, match="none twice"):
        parse_seeds("1,2,1")
    cells = make_cells({"preset": Config(), "other": Config()}, [1, 2], tmp_path)
    assert [(cell.name, cell.config.train.seed) for cell in cells] == [
        ("preset", 1), ("preset", 2), ("other", 1), ("other", 2),
    ]  # fmt: skip
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
    for path in ("data/x", ".venv/bin/python", ".git/HEAD", "my/data/x", "my/spaces/b.yaml", "dmd/x.tar",
                 "dmd/__pycache__/cli.pyc", "runs/1/run.json", "dmdx"):  # fmt: skip
        assert not uploaded(path), path


def test_live_table():
    table = LiveTable(num_trials=3, epochs=6)
    records = [TrialRecord(number=number, values={"train.learning_rate": 0.001}) for number in range(2)]
    records[0].state = "stopped"
    records[0].note(2, 0.75, {})
    lines = table.lines(records)
    assert lines[0].startswith("1 of 3 trials ended, 1 running")
    assert [line.split()[:2] for line in lines[2:]] == [["1", "running"], ["0", "stopped"]]
    assert lines[3].split()[2:] == ["2/6", "0.7500", "learning_rate=0.001"]
