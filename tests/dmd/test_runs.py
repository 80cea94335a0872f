"""`dmd runs`: what it says of runs is what their directories hold; damaged ones are named; torch is not loaded."""

import csv
import io
import json
import os
import pty
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from data_shards.sole_writer import LEASE_FILE, is_held, sole_writer
from dmd.checkpoint.standing import standing
from dmd.documents import DOCUMENT, LINES, NONFINITE, TRIAL
from dmd.runs import log_end
from dmd.runs.log_end import read_end
from dmd.runs.summary import read_summary
from dmd.runs.tags import TAGS, change_tags, read_tags
from dmd.text_tables import table_text
from dmd.training.logging.recorder import Recorder
from tests.support.commands import command, rejected

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(runs, tmp_path, monkeypatch) -> Path:
    """Copies of two seeds and of another config, the last as a trial of a search, in `runs` where the test is."""
    for run, name in zip(runs, ("one", "two", "search/trials/0000"), strict=True):
        shutil.copytree(run, tmp_path / "runs" / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def listed(capsys, *arguments: object) -> list[dict]:
    capsys.readouterr()
    assert command("runs", *arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


def printed(capsys, *arguments: object) -> str:
    capsys.readouterr()
    assert command("runs", *arguments) == 0
    return capsys.readouterr().out


def edit(run: Path, **session: object) -> None:
    """Change the last session of a run; None takes a key away."""
    document = json.loads((run / DOCUMENT).read_text())
    last = document["sessions"][-1] | session
    document["sessions"][-1] = {key: value for key, value in last.items() if value is not None}
    (run / DOCUMENT).write_text(json.dumps(document))


def test_runs_are_listed_with_what_their_checkpoints_stand_for(folder, capsys):
    (folder / "one" / "test.json").write_text('{"split": "test", "metrics": {"fused": {"mae": 0.123454321}}}')
    found = {one["run"]: one for one in listed(capsys)}
    assert list(found) == ["runs/one", "runs/two", "runs/search/trials/0000"]
    for path, one in found.items():
        stands = standing(Path(path))
        assert stands is not None
        assert stands.best is not None
        assert one["best"]["metrics"] == {name: stands.best.metrics[name] for name in one["best"]["metrics"]}
        assert (one["best"]["step"], one["best"]["loss"]) == (stands.best.step, stands.best.loss)
        assert (one["best"]["split"], one["best"]["protocol"]) == ("valid", "mosi")
        assert (one["state"], one["epochs"], one["steps"]) == ("finished", 2, stands.step)
    assert [one["seed"] for one in found.values()] == [1, 2, 1]
    text = printed(capsys)
    header, *rows = text.splitlines()
    assert "valid MAE" in header
    assert "valid Acc2 Non0 %" in header
    assert "prior" in header
    assert "gamma" not in header, "the same in all"
    assert "on the valid split" in text
    assert "Protocol mosi" in text
    assert rows[0].split()[:3] == ["runs/one", "finished", "published"]
    assert rows[2].split()[:3] == ["runs/search/trials/0000", "finished", "uniform"]
    table = list(csv.DictReader(io.StringIO(printed(capsys, "--csv"))))
    assert {row["split"] for row in table} == {"valid"}
    assert float(table[0]["valid Acc7 %"]) == 100 * found["runs/one"]["best"]["metrics"]["acc7"]
    for output in (text, printed(capsys, "--csv"), printed(capsys, "--json")):
        assert "0.1234" not in output, "the test split is never shown"


def test_the_preset_of_a_run_is_that_of_its_command_or_its_file(folder):
    for words, told in {
        "python launch/train.py --preset mosi-aligned": "mosi-aligned",
        "dmd train --preset=demo --config a/mine.yaml": "demo",
        "dmd train --config a/mine.yaml": "mine.yaml",
        "dmd train --config": "",
        "mine.py": "",
    }.items():
        edit(folder / "one", command=words)
        assert read_summary(folder / "one").preset == told


def test_states_are_what_directories_tell(folder, capsys):
    run = folder / "one"
    last = json.loads((run / DOCUMENT).read_text())["sessions"][-1]["last_step"]

    def state() -> str:
        return read_summary(run).state

    edit(run, finished=False)
    assert state() == "stopped"
    edit(run, finished=None, ended=None)
    assert state() == "crashed"
    with sole_writer(run):
        assert state() == "running"
    assert state() == "crashed"
    (run / NONFINITE).mkdir()
    (run / NONFINITE / f"step_{last:08d}.json").write_text("{}")
    assert state() == "crashed", "a step of which the log says more was not its end"
    (run / NONFINITE / f"step_{last + 1:08d}.json").write_text("{}")
    assert state() == "diverged"
    for said, meant in (("stopped", "stopped"), ("failed", "crashed"), ("diverged", "diverged")):
        (folder / "two" / TRIAL).write_text(json.dumps({"state": said}))
        edit(folder / "two", finished=False)
        assert read_summary(folder / "two").state == meant
    edit(folder / "search/trials/0000", started=None)
    assert read_summary(folder / "search/trials/0000").state == "imported"


def test_the_holder_of_another_host_lives_as_long_as_it_renews(tmp_path):
    lease = tmp_path / LEASE_FILE
    assert not is_held(tmp_path)
    lease.write_text(json.dumps({"host": "elsewhere", "process": "1", "boot": "another", "token": "a"}))
    assert is_held(tmp_path)
    os.utime(lease, (0, 0))
    assert not is_held(tmp_path)


def test_sorting_and_filtering(folder, capsys):
    maes = {one["run"]: one["best"]["metrics"]["mae"] for one in listed(capsys)}
    best_first = sorted(maes, key=lambda run: maes[run])
    assert [one["run"] for one in listed(capsys, "--sort", "mae")] == best_first
    assert [one["run"] for one in listed(capsys, "--sort", "valid MAE", "--reverse")] == best_first[::-1]
    corrs = [one["best"]["metrics"]["corr"] for one in listed(capsys, "--sort", "corr")]
    assert corrs == sorted(corrs, reverse=True), "higher is better"
    shutil.rmtree(folder / "two" / "checkpoints")
    (folder / "two" / LINES).write_text("")
    for order in ((), ("--reverse",)):
        assert listed(capsys, "--sort", "loss", *order)[-1]["run"] == "runs/two", "without a validation"
    assert [one["run"] for one in listed(capsys, "--where", "prior=uniform")] == ["runs/search/trials/0000"]
    assert [one["run"] for one in listed(capsys, "--where", "seed=1", "--where", "objective.prior=published")] == [
        "runs/one"
    ]
    assert len(listed(capsys, "--where", "train.learning_rate=1e-3", "--where", "state=finished")) == 3
    assert listed(capsys, "--where", "seed=7") == []
    assert "did you mean corr?" in rejected(capsys, "runs", "--sort", "core")
    assert "may be text.learning_rate or train.learning_rate" not in printed(capsys, "--sort", "learning_rate")
    assert "give KEY=VALUE" in rejected(capsys, "runs", "--where", "seed")


def test_the_best_run_is_one_that_can_be_evaluated(folder, capsys):
    by_loss = sorted(listed(capsys), key=lambda one: one["best"]["loss"])
    assert printed(capsys, "--best") == f"{by_loss[0]['run']}\n"
    shutil.rmtree(Path(by_loss[0]["run"]) / "checkpoints")
    path = printed(capsys, "--best").strip()
    assert path == by_loss[1]["run"]
    assert command("evaluate", path) == 0
    document = json.loads((folder / "two" / DOCUMENT).read_text())
    document["info"]["data_name"] = "other"
    (folder / "two" / DOCUMENT).write_text(json.dumps(document))
    assert "different data or tasks" in rejected(capsys, "runs", "--best")
    assert printed(capsys, "--best", "--where", "data=other") == "runs/two\n"


def test_what_cannot_be_read_is_named_and_the_rest_is_listed(folder, capsys):
    (folder / "two" / DOCUMENT).write_text('{"config": ')
    (folder / "notes").mkdir()
    (folder / "foreign").mkdir()
    (folder / "foreign" / DOCUMENT).write_text('{"experiment": 3}')
    (folder / "lost").mkdir()
    (folder / "lost" / LINES).write_text("")
    trial = folder / "search/trials/0000"
    text = (trial / LINES).read_text()
    (trial / LINES).write_text(text + '{"step": 3, "tra')
    (folder / "again").symlink_to(folder / "search")
    capsys.readouterr()
    assert command("runs") == 0
    output, errors = capsys.readouterr()
    assert sum("finished" in line for line in output.splitlines()) == 2, "a torn last line is what a kill leaves"
    for name in ("two", "foreign", "lost"):
        assert f"runs/{name}" in errors
        assert f"runs/{name} " not in output
    assert len(errors.splitlines()) == 3
    (trial / LINES).write_text(text.replace('"kind": "valid", ', '"kind": "valid", "half'))
    assert command("runs", trial) == 0
    assert "has a damaged line" in capsys.readouterr().err
    assert "there is no directory gone" in rejected(capsys, "runs", "gone")


def test_control_characters_of_names_are_escaped_in_tables_alone(folder, capsys):
    name = "red\x1b[31m\nnext\u2028\udcff"
    (folder / "one").rename(folder / name)
    text = printed(capsys)
    assert r"runs/red\x1b[31m\nnext\u2028\udcff  " in text
    assert "\x1b" not in text
    assert f"runs/{name}" in [one["run"] for one in listed(capsys)], "programs read names as they are"
    (folder / name / DOCUMENT).write_text("[]")
    assert command("runs") == 0
    assert r"red\x1b[31m\nnext" in capsys.readouterr().err


@pytest.mark.parametrize("name", [DOCUMENT, LINES, TAGS, TRIAL])
def test_what_is_no_regular_file_is_named_and_neither_waited_for_nor_read(folder, capsys, name):
    edit(folder / "two", finished=None, last_step=None)  # then what its search knows of it counts
    place = folder / "two" / name
    for make in (os.mkfifo, os.mkdir):
        if place.is_fifo() or place.exists():
            place.unlink()
        make(place)
        assert command("runs") == 0
        said = capsys.readouterr()
        assert "runs/one" in said.out
        assert "runs/two" not in said.out
        if name != DOCUMENT or make is os.mkfifo:
            assert f"runs/two/{name} is not a regular file; remove it, or restore the file" in said.err
        assert "Errno" not in said.err


def test_tags_stay_with_a_run(folder, capsys):
    run = folder / "one"
    assert printed(capsys, "--tag", "baseline", "--tag", "v2", "runs/one") == "runs/one: baseline, v2\n"
    assert printed(capsys, "--untag", "v2", "runs/one") == "runs/one: baseline\n"
    assert listed(capsys, "--where", "tags=baseline")[0]["run"] == "runs/one"
    assert "baseline" in printed(capsys)
    document = json.loads((run / DOCUMENT).read_text())
    recorder = Recorder(run, config=document["config"], info=document["info"], resume_step=None)
    recorder.close({"valid/loss": 1.0})
    assert json.loads((run / TAGS).read_text()) == ["baseline"], "a training that begins anew leaves it"
    for name, message in (("a b", "no spaces"), ("", "no spaces")):
        assert message in rejected(capsys, "runs", "--tag", name, "runs/one")
    assert "need the runs" in rejected(capsys, "runs", "--tag", "all")
    for option in ("--json", "--csv", "--reverse"):
        assert "change the runs that are named" in rejected(capsys, "runs", "--tag", "x", "runs/one", option)
    assert "has no tag 'v2'" in rejected(capsys, "runs", "--untag", "v2", "runs/one")
    assert "no readable run.json" in rejected(capsys, "runs", "--tag", "x", "runs")


def test_commands_that_tag_a_run_at_once_lose_no_tag(folder):
    names = [f"tag{number}" for number in range(40)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda name: change_tags(folder / "one", add=[name], remove=[]), names))
    assert sorted(read_tags(folder / "one")) == sorted(names)
    assert not list((folder / "one").glob(".tags*")), "no lock is left"


def test_two_runs_side_by_side(folder, capsys):
    rows = {
        line.split("  ")[0]: line.split()
        for line in printed(capsys, "--compare", "runs/one", "runs/search/trials/0000").splitlines()
    }
    assert rows["objective.prior"] == ["objective.prior", "published", "uniform"]
    assert "objective.gamma" not in rows
    assert rows["seed"] == ["seed", "1", "1"]
    assert len(rows["valid MAE"]) == 4
    capsys.readouterr()
    assert command("runs", "--compare", "runs/one", "runs/two", "--json") == 0
    compared = json.loads(capsys.readouterr().out)
    assert compared["differing"] == {"train.seed": [1, 2]}
    assert "nor --reverse" in rejected(capsys, "runs", "--compare", "runs/one", "runs/two", "--reverse")


def test_a_log_is_read_from_its_end(runs, monkeypatch):
    whole = (runs[0] / LINES).read_bytes()
    stands = standing(runs[0])
    assert stands is not None
    for step in [validation.step for validation in stands.validations]:
        ends = []
        for size in (1, 7, 4096, len(whole)):
            monkeypatch.setattr(log_end, "_BLOCK", size)
            ends.append(read_end(runs[0], step))
        assert all(end == ends[0] for end in ends)
        assert ends[0].best is not None
        assert ends[0].best["valid/loss"] == next(v.loss for v in stands.validations if v.step == step)
        assert (ends[0].step, ends[0].epochs) == (stands.step, 2)


def test_without_a_checkpoint_the_last_validation_that_was_the_best_is_found_and_epochs_are_counted(tmp_path):
    of_epochs = [[{"step": 5 * number, "kind": "valid", "valid/epoch": number - 1}] for number in (1, 2, 3)]
    for best in (1, 2):
        of_epochs[best - 1].append({"step": 5 * best, "kind": "best_valid", "best_valid/loss": 1 / best})
        for epochs in range(best, 4):
            lines = [json.dumps(line) + "\n" for epoch in of_epochs[:epochs] for line in epoch]
            (tmp_path / LINES).write_text("".join(lines))
            end = read_end(tmp_path, None)
            assert (end.step, end.epochs) == (5 * epochs, epochs)
            assert end.best is not None
            assert end.best["best_valid/loss"] == 1 / best


def test_a_terminal_gets_what_fits_and_the_names_of_the_rest(folder, monkeypatch):
    leader, follower = pty.openpty()
    monkeypatch.setenv("COLUMNS", "60")
    with os.fdopen(follower, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert command("runs") == 0
        stdout.flush()
        text = os.read(leader, 1 << 16).decode()
        wide = table_text(["run", "what"], [["a" * 20, "words " * 20]])
    os.close(leader)
    assert max(len(line) for line in text.replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines()) <= 60
    assert "runs/search/trials/0000" in text
    assert "Not shown, for the width of the terminal: " in text
    assert wide.count("words") == 20


def test_runs_are_listed_without_torch(folder):
    code = (
        "import sys; from dmd.cli import main; code = main(['runs']); assert 'torch' not in sys.modules; sys.exit(code)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "runs/one" in result.stdout
