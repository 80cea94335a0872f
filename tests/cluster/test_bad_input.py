"""Mistakes that are found before a trial starts, without a cluster: one line, exit code 2, nothing written."""

import pytest

from dmd.cli import main
from tests.cluster.making import TINY, free_port, make_shards

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("bad") / "shards")


@pytest.mark.parametrize(
    "options, message",
    [
        (["--address", "127.0.0.1:PORT"], "no Ray cluster at 127.0.0.1:"),
        (["--trials", "0"], "--trials is 0; it must be at least 1"),
        (["--ranks-per-trial", "two"], "--ranks-per-trial is 'two'; give a number, or MIN:MAX"),
        (["--concurrent", "0"], "--concurrent is 0; it must be at least 1"),
        (["--max-failures", "-1"], "--max-failures is -1; it must be at least 0"),
        (["--ranks-per-trial", "7"], "7 ranks for 6 ghost batches per step"),
        (["--final-seeds", "1,x"], "seeds are '1,x'; give whole numbers"),
        (["--final-seeds", "1,1"], "none twice"),
        (["--grace", "9"], "--grace is 9; it must lie between 1 and train.epochs, which is 2"),
        (["--reduction", "1"], "--reduction is 1.0; it must be above 1"),
        (["--search", "grid"], "train.learning_rate is uniform: a grid needs choice or int"),
        (["--space", "none.yaml"], "the space none.yaml cannot be read"),
        (["--data", "none"], "not a set of shards"),
        (["--preset", "mosii"], "unknown preset 'mosii'"),
        (["train.epoch=3"], "unknown config key 'train.epoch'"),
    ],
)  # fmt: skip
def test_tune(options, message, shards, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "space.yaml").write_text("train.learning_rate: {uniform: [0.001, 0.002]}\n")
    options = [option.replace("PORT", str(free_port())) for option in options]
    common = ["--space", "space.yaml", "--data", str(shards), "--out", "out", *TINY, "train.epochs=2"]
    assert main(["tune", *common, *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        (["--seeds", ""], "give whole numbers"),
        (["--ablation", "x"], "--ablation is 'x'; give NAME:section.key=value"),
        (["--ablation", "a:model.levels=2", "--ablation", "a:model.levels=3"], "two configs are called 'a'"),
        (["--ablation", "a:model.heads=3"], "model.heads is 3; it must divide"),
    ],
)
def test_experiment(options, message, shards, tmp_path, capsys):
    common = ["--data", str(shards), "--out", str(tmp_path / "out"), *TINY]
    assert main(["experiment", *common, *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["tune", "--data", "shards", "--out", "/nfs/x"], "--data is shards; a job runs elsewhere, give the absolute"),
        (["--working-dir", "/tmp", "tune"], "/tmp is not the project's directory"),
        (["stop"], "wants one job id"),
        (["tune", "--data", "/nfs/s"], "no Ray dashboard for jobs at http://127.0.0.1:"),
        (["status", "x"], "no Ray dashboard for jobs at http://127.0.0.1:"),
    ],
)  # fmt: skip
def test_submit(arguments, message, capsys):
    assert main(["submit", "--address", f"http://127.0.0.1:{free_port()}", *arguments]) == 2
    assert message in capsys.readouterr().err
