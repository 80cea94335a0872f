"""The record of a run as TensorBoard's own reader and a strict JSON parser see it, across stops, kills and resumes."""

import json
import math
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from dmd.training.logging.costs import CostMeter
from dmd.training.logging.provenance import git_commit, versions
from tests.support.records import CONFIG, recorder, train

ROOT = Path(__file__).parents[2]


def event_files(run: Path) -> EventMultiplexer:
    multiplexer = EventMultiplexer(size_guidance={"scalars": 0, "tensors": 0}).AddRunsFromDirectory(str(run))
    multiplexer.Reload()
    assert list(multiplexer.Runs()) == ["."], "one run, none beside it for the hyperparameters"
    return multiplexer


def curve(run: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in event_files(run).Scalars(".", tag)]


def reject(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def lines(run: Path) -> list[dict]:
    text = (run / "metrics.jsonl").read_text()
    return [json.loads(line, parse_constant=reject) for line in text.splitlines()]


def assert_complete(run: Path, last: int) -> None:
    """Both logs hold every step up to `last` once, with the same numbers."""
    for tag, numerator, every in (("train/loss", 1, 1), ("valid/mae", 2, 10)):
        expected = [(step, pytest.approx(numerator / step)) for step in range(every, last + 1, every)]
        assert curve(run, tag) == expected
        assert [(line["step"], line[tag]) for line in lines(run) if tag in line] == expected


def test_scalars_come_back(tmp_path):
    record = recorder(tmp_path)
    train(record, 1, 25)
    record.close({"mae": 0.9})
    assert_complete(tmp_path, 25)
    assert curve(tmp_path, "final/mae") == [(25, pytest.approx(0.9))]
    assert lines(tmp_path)[-1].keys() == {"step", "time", "kind", "final/mae"}
    assert len(list(tmp_path.glob("events.*"))) == 1


def test_hyperparameters_are_in_the_same_run_from_the_start(tmp_path):
    record = recorder(tmp_path)
    tags = event_files(tmp_path).PluginRunToTagToContent(metadata.PLUGIN_NAME)["."]
    assert set(tags) == {metadata.EXPERIMENT_TAG, metadata.SESSION_START_INFO_TAG}
    experiment = HParamsPluginData.FromString(tags[metadata.EXPERIMENT_TAG]).experiment
    assert [metric.name.tag for metric in experiment.metric_infos] == ["valid/mae", "final/mae"]
    started = HParamsPluginData.FromString(tags[metadata.SESSION_START_INFO_TAG]).session_start_info.hparams
    assert {name: value.number_value or value.string_value for name, value in started.items()} == {
        "model.dim": 50,
        "model.kernels": "[5, 5, 5]",
        "model.bert": "null",
        "optimizer.lr": 1e-4,
        "optimizer.name": "adam",
        "ok": 1.0,
    }
    record.close({"mae": 0.9})
    assert metadata.SESSION_END_INFO_TAG in event_files(tmp_path).PluginRunToTagToContent(metadata.PLUGIN_NAME)["."]


@pytest.mark.parametrize("resume", [20, 17, 0])
def test_a_resume_leaves_no_step_double_or_missing(tmp_path, resume):
    record = recorder(tmp_path)
    train(record, 1, 25)
    record.close(None)
    record = recorder(tmp_path, resume)
    if resume == 20:
        record.scalars(20, {"mae": 99.0}, kind="valid")  # a validation that the log has already
    train(record, resume + 1, 40)
    record.close({"mae": 0.9})
    assert_complete(tmp_path, 40)


def test_numbers_that_the_log_lacks_at_the_resume_step_are_added(tmp_path):
    record = recorder(tmp_path)
    train(record, 1, 9)
    record.scalars(10, {"loss": 1 / 10, "lr": 1e-4}, kind="train")
    record.close(None)
    record = recorder(tmp_path, 10)
    record.scalars(10, {"mae": 2 / 10}, kind="valid")
    train(record, 11, 12)
    record.close(None)
    assert_complete(tmp_path, 12)


def test_a_finished_run_that_is_resumed_and_closed_again_has_one_end(tmp_path):
    for resume in (None, 10, 10):
        record = recorder(tmp_path, resume)
        train(record, 1 if resume is None else 11, 10)
        record.close({"mae": 0.9})
    assert_complete(tmp_path, 10)
    assert curve(tmp_path, "final/mae") == [(10, pytest.approx(0.9))]


def test_a_fresh_start_forgets_an_earlier_one(tmp_path):
    record = recorder(tmp_path)
    train(record, 1, 12)
    record.close(None)
    record = recorder(tmp_path, config={"other": 1})
    train(record, 1, 3)
    record.close(None)
    assert set(event_files(tmp_path).Runs()["."]["scalars"]) == {"train/loss", "train/lr"}
    assert [step for step, _ in curve(tmp_path, "train/loss")] == [1, 2, 3]
    assert len(lines(tmp_path)) == 3
    tags = event_files(tmp_path).PluginRunToTagToContent(metadata.PLUGIN_NAME)["."]
    started = HParamsPluginData.FromString(tags[metadata.SESSION_START_INFO_TAG]).session_start_info
    assert list(started.hparams) == ["other"]


CHILD = """
import os, signal, sys
from pathlib import Path
from tests.support.records import recorder, train
record = recorder(Path(sys.argv[1]))
train(record, 1, 25)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_kill_9_loses_nothing_and_torn_ends_are_tolerated(tmp_path):
    child = subprocess.run([sys.executable, "-c", CHILD, str(tmp_path)], cwd=ROOT, timeout=120)
    assert child.returncode == -signal.SIGKILL
    assert_complete(tmp_path, 25)
    (events,) = tmp_path.glob("events.*")
    os.truncate(events, events.stat().st_size - 7)
    os.truncate(tmp_path / "metrics.jsonl", (tmp_path / "metrics.jsonl").stat().st_size - 7)
    record = recorder(tmp_path, 20)
    train(record, 21, 33)
    record.close(None)
    assert_complete(tmp_path, 33)


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    record = recorder(tmp_path)
    train(record, 1, 5)
    record.close(None)
    content = (tmp_path / "metrics.jsonl").read_bytes()
    (tmp_path / "metrics.jsonl").write_bytes(content.replace(b'{"step": 3,', b'{"step": 3'))
    with pytest.raises(ValueError, match=r"metrics.jsonl: line 3 is damaged"):
        recorder(tmp_path, 4)


def test_json_is_strict(tmp_path):
    record = recorder(tmp_path, config={"bound": math.inf, "betas": (0.9, math.nan)})
    record.scalars(1, {"loss": math.nan, "grad": math.inf, "count": 3}, kind="train")
    record.close({"corr": math.nan})
    first, final = lines(tmp_path)
    assert first["train/loss"] is first["train/grad"] is final["final/corr"] is None
    assert first["train/count"] == 3
    document = json.loads((tmp_path / "run.json").read_text(), parse_constant=reject)
    assert document["config"] == {"bound": None, "betas": [0.9, None]}
    assert document["metrics"] == {"corr": None}
    record = recorder(tmp_path, 1)
    record.close(None)
    assert math.isnan(curve(tmp_path, "train/loss")[0][1])


def test_run_json_tells_every_session(tmp_path):
    record = recorder(tmp_path)
    train(record, 1, 4)
    opened = json.loads((tmp_path / "run.json").read_text())
    assert "ended" not in opened["sessions"][0]
    record = recorder(tmp_path, 3)
    train(record, 4, 6)
    record.close({"mae": 0.5})
    document = json.loads((tmp_path / "run.json").read_text())
    assert document["config"] == CONFIG
    assert document["info"] == {"generation": "abc"}
    assert document["metrics"] == {"mae": 0.5}
    killed, finished = document["sessions"]
    assert "ended" not in killed
    assert (killed["resume_step"], finished["resume_step"]) == (None, 3)
    assert (finished["last_step"], finished["finished"]) == (6, True)
    assert finished["versions"] == versions()
    assert finished["host"]
    assert finished["command"].startswith(sys.executable)
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(ValueError, match=r"run.json is not a JSON object; name .* move it away"):
        recorder(tmp_path, 6)


def test_the_commit_is_the_one_that_git_names():
    head = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True)
    if head.returncode:
        pytest.skip("this copy of the code is not a git checkout")
    assert (git_commit() or "").removesuffix("-dirty") == head.stdout.strip()


def test_a_write_that_does_not_fit_leaves_no_half_line(tmp_path):
    record = recorder(tmp_path)
    train(record, 1, 3)
    size = (tmp_path / "metrics.jsonl").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, hard))
    try:
        with pytest.raises(OSError, match=f"cannot append to {tmp_path / 'metrics.jsonl'}"):
            train(record, 4, 4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "metrics.jsonl").stat().st_size == size
    train(record, 4, 9)
    record.close(None)
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 10))


def test_an_end_that_fails_halfway_closes_no_file_twice(tmp_path):
    record = recorder(tmp_path)
    (tmp_path / "run.json").unlink()
    (tmp_path / "run.json").mkdir()
    with pytest.raises(IsADirectoryError):
        record.close(None)
    others = [os.open(tmp_path, os.O_RDONLY) for _ in range(4)]  # which take the numbers that are free again
    record.abandon()
    for other in others:
        os.close(other)


@pytest.mark.parametrize("resume", [None, 20])
def test_files_that_are_named_almost_like_events_stay(tmp_path, resume):
    train(recorder(tmp_path), 1, 20)
    (tmp_path / "events.out.tfevents.backup").write_text("mine")
    (tmp_path / "events.out.tfevents.1x.host").write_text("mine")
    (tmp_path / "events.out.tfevents.77.d").mkdir()
    train(recorder(tmp_path, resume_step=resume), 21, 30)
    kept = {path.name for path in tmp_path.glob("events.out.tfevents.*")}
    assert kept > {"events.out.tfevents.backup", "events.out.tfevents.1x.host", "events.out.tfevents.77.d"}


def test_a_session_says_what_it_cost(tmp_path):
    record = recorder(tmp_path)
    train(record, 1, 100)
    record.close({"mae": 0.9})
    costs = json.loads((tmp_path / "run.json").read_text())["sessions"][-1]["costs"]
    assert 0 < costs["cpu_seconds"] < 600
    assert costs["peak_memory"] > 10_000_000
    assert ("joules" in costs) != ("no_energy" in costs)


def test_energy_is_counted_over_a_counter_that_begins_anew(tmp_path):
    """Files as Linux shows them: a package, a part of it that counts once alone, and the platform, which has both."""
    zones = {"intel-rapl:0": "package-0", "intel-rapl:0:0": "core", "intel-rapl:1": "psys"}
    package, part, platform = (tmp_path / zone for zone in zones)
    for zone in (package, part, platform):
        zone.mkdir()
        (zone / "name").write_text(f"{zones[zone.name]}\n")
        (zone / "max_energy_range_uj").write_text("1000000000")
        (zone / "energy_uj").write_text("990000000")
    meter = CostMeter("cpu", powercap=tmp_path)
    for zone in (package, platform):
        (zone / "energy_uj").write_text("25000000")
    facts = meter.facts()
    assert facts["joules"] == 35
    assert "no_energy" not in facts
    (package / "energy_uj").write_text("no number")
    assert "energy_uj cannot be read (ValueError)" in meter.facts()["no_energy"]
    none = CostMeter("cpu", powercap=tmp_path / "none").facts()
    assert "shows no counter of energy" in none["no_energy"]
    assert "joules" not in none
