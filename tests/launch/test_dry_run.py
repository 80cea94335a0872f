"""`dmd train --dry-run`, and run directories that get their name here."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dmd.checkpoint.format import MODEL, OPTIMIZER
from dmd.cli import main
from launch.arguments import parse_rank, parse_train, train_parser
from launch.made_runs import has_begun, leave_no_log_alone, made_run
from launch.supervision.ending import CONTINUES, MADE_RUN, Ending, Reporter, continued
from launch.supervision.launcher_log import log_path
from tests.support.commands import command, rejected
from tests.support.ranks import TINY


def facts(printed: str) -> dict[str, str]:
    """The lines of a dry run by their names."""
    return dict(re.findall(r"^(\w+) {2,}(.*)$", printed, re.MULTILINE))


def tree(folder: Path) -> dict[Path, int]:
    """What is below a directory, and when it was changed."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.multiproc
@pytest.mark.slow
def test_a_dry_run_times_steps_and_writes_nothing(shards, half_done, tmp_path, capsys):
    """Eight ranks, which share six ghost batches, from a checkpoint of one rank."""
    run = half_done(tmp_path)
    before = tree(tmp_path)
    line = ["--data", shards, "--run", run, *TINY, "train.epochs", "=", "3"]
    assert command("train", *line, "--resume", "6", "--ranks", "8", "--dry-run") == 0
    assert tree(tmp_path) == before
    said = facts(capsys.readouterr().out)
    assert said["ranks"] == "8 on this machine; 6 ghost batches of 4 samples a step, each shared by up to 2 ranks"
    assert said["steps"].startswith("5 an epoch, 15 at most (3 epochs)")
    assert said["starts"] == f"at step 6 of {run} (epoch 1, step 1 in it)"
    assert "task regression; " in said["config"]
    assert "words model.dim=8 " in said["config"]
    assert re.match(r"[\d.]+ m?s \(5 timed, .* 1 pass of 1 ghost batches on cpu with 1 threads", said["step"])
    assert said["training"].endswith(" at most, for 9 steps")
    assert said["measured"].startswith("one of 8 ranks, alone on this machine")
    parts = [run / "checkpoints" / "step_00000006" / name for name in (MODEL, OPTIMIZER)]
    real = sum(path.stat().st_size for path in parts) / 2**20
    told = float(re.findall(r"checkpoints of ([\d.]+) MiB", said["writes"])[0])
    assert told == pytest.approx(real, rel=0.1)


@pytest.mark.slow
def test_of_a_finished_run_nothing_is_timed(shards, half_done, tmp_path, capsys):
    run = half_done(tmp_path)
    before = tree(tmp_path)
    line = ["--data", shards, "--run", run, *TINY, "train.save_every=2", "train.max_steps=8"]
    assert command("train", *line, "--dry-run") == 0
    said = facts(capsys.readouterr().out)
    assert said["starts"] == f"nothing: {run} is finished, at step 8"
    assert said["steps"].startswith("5 an epoch, 8 at most (2 epochs, train.max_steps=8)")
    assert "step" not in said
    assert tree(tmp_path) == before


def test_runs_get_the_next_number(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command("train", "--preset", "demo", "--data", "none") == 2
    assert not Path("runs").exists(), "a mistake makes no directory"
    for number in (1, 2):
        options = parse_train(train_parser(), ["--preset", "demo", "--data", "none"])
        other = parse_train(train_parser(), ["--preset", "demo", "--data", "none"])
        assert options.run == other.run == Path(f"runs/demo-00{number}")
        capsys.readouterr()
        with made_run(options) as run:
            assert capsys.readouterr().out == f"run: {run} (--run {run} continues it)\n"
            assert run.is_dir()
            with made_run(other) as second:
                assert second == Path(f"runs/demo-00{number + 1}"), "another command was quicker"
            assert not second.exists(), "nothing was written there"
            assert not has_begun(options), "so the same command begins it"
            (run / "run.json").touch()
            assert has_begun(options)
    assert parse_train(train_parser(), ["--data", "x", "--config", "a/mine.yaml"]).run == Path("runs/mine-001")
    assert parse_train(train_parser(), ["--data", "x"]).run == Path("runs/run-001")


def test_where_runs_is_a_file_the_run_needs_a_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("runs").touch()
    assert "runs is not a directory, so no run gets a name in it; name one with --run DIR" in rejected(
        capsys, "train", "--data", "x"
    )


@pytest.mark.slow
def test_a_dry_run_that_is_asked_to_stop_does_not_say_that_it_continues(shards, tmp_path):
    line = [sys.executable, "-m", "dmd.cli", "train", "--data", shards, "--run", tmp_path / "run", *TINY, "--dry-run"]
    environment = {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"}
    with subprocess.Popen(
        [*map(str, line)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment | {"CUDA_VISIBLE_DEVICES": ""},
    ) as process:
        assert process.stdout is not None
        said = ""
        for printed in process.stdout:
            said += printed
            if printed.startswith("  step 1: "):
                break
        process.send_signal(signal.SIGTERM)
        more, errors = process.communicate()
    assert process.returncode == 75
    assert errors.splitlines()[-1] == "dmd train: asked to stop; a dry run writes nothing"
    assert "accelerator" not in said + more + errors
    assert not (tmp_path / "run").exists()


def test_a_run_that_was_named_is_left_as_it_is(tmp_path, capsys):
    options = parse_train(train_parser(), ["--data", "x", "--run", str(tmp_path / "run")])
    with made_run(options) as run:
        assert run == tmp_path / "run"
        assert not run.exists()
    assert capsys.readouterr() == ("", "")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").touch()
    assert not has_begun(options), "by the same command it goes on"


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (f"lost{CONTINUES}", "lost; the command with --run runs/x-001 continues"),
        ("a bug", "a bug; the command with --run runs/x-001 continues"),
        ("", ""),
    ],
)
def test_the_ending_of_a_run_whose_name_was_made_names_it(message, told):
    """Once, and never that the same command continues, which would begin another run."""
    assert continued(Ending(code=1, message=message), Path("runs/x-001")).message == told


def test_the_last_words_of_a_supervisor_name_a_run_whose_name_was_made(monkeypatch, capsys):
    """`dmd train` has died, which would have told."""
    monkeypatch.setenv(MADE_RUN, "runs/x-001")
    for message in (f"lost{CONTINUES}", "a mistake"):
        Reporter().report(Ending(code=1, message=message), wrapper_alive=False)
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "dmd train: error: lost; the command with --run runs/x-001 continues",
        "dmd train: error: a mistake",
    ]


@pytest.mark.parametrize("of_the_user", [None, "run", "run/notes"])
def test_logs_alone_keep_no_new_directory(tmp_path, of_the_user):
    run = tmp_path / "run"
    options = parse_train(train_parser(), ["--data", "x", "--run", str(run)])
    if of_the_user is not None:
        (tmp_path / of_the_user).mkdir(parents=True)
    with made_run(options):
        run.mkdir(exist_ok=True)
        log_path(run, 0).write_text("--- start\n")
        leave_no_log_alone(options)
    assert log_path(run, 0).exists() == run.exists() == (of_the_user is not None)
    again = tmp_path / "again"
    options.run = again
    with made_run(options):
        again.mkdir()
        for name in (log_path(again, 1).name, "run.json"):
            (again / name).touch()
        leave_no_log_alone(options)
    assert len(list(again.iterdir())) == 2


@pytest.mark.parametrize(
    ("parse", "message"),
    [
        (lambda: main(["train", "--data", "x", "--hosts", "h", "--host-rank", "0"]), "the commands of all hosts need"),
        (lambda: parse_rank(["--data", "x"]), "every rank needs the same directory, and none can make up its name"),
        (lambda: parse_rank(["--run", "x"]), "the following arguments are required: --data"),
        (lambda: main(["train", "--data", "x", "train.seed", "="]), "train.seed= has no value"),
        (
            lambda: main(["train", "--data", "x", "--learning-rate", "3"]),
            "config values have no dashes: text.learning_",
        ),
    ],
)
def test_what_must_be_named(parse, message, capsys):
    with pytest.raises(SystemExit) as ended:
        parse()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_ranks_get_the_file_and_the_words(tmp_path, monkeypatch):
    from launch.arguments import rank_arguments

    monkeypatch.chdir(tmp_path)
    line = ["--preset", "demo", "--config", "mine.yaml", "--data", "s", "--run", "r", "train.seed", "=", "3"]
    arguments = rank_arguments(parse_train(train_parser(), line))
    options = parse_rank(["--local_rank=1", *arguments])
    assert (options.preset, options.config) == ("demo", str(tmp_path / "mine.yaml"))
    assert (options.overrides, options.run) == (["train.seed=3"], tmp_path / "r")
