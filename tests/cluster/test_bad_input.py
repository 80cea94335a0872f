"""Mistakes that are found before a trial starts, without a cluster: one line, exit code 2, nothing written."""

import os
import socket
from pathlib import Path

import pytest

from cluster.parsers import parse_experiment, parse_tune, train_parser
from cluster.request import experiment_request, train_request, tune_request
from data_shards.places import to_place
from data_shards.sole_writer import sole_writer
from dmd.cli import main
from launch.arguments import parse_train
from launch.network.ports import free_port
from tests.support.clusters import TINY, make_shards
from tests.support.commands import error_line

pytestmark = pytest.mark.ray

SEARCH = ["--space", "cluster/spaces/mosi.yaml"]
TRAINING = ["--data", "/nfs/s", "--run", "/nfs/r"]
JOB = ["--data", "/nfs/s", "--out", "/nfs/x"]


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
        (["--ranks-per-trial", "25"], "25 ranks for 6 ghost batches of 4 samples per step"),
        (["--final-seeds", "1,x"], "seeds are '1,x'; give whole numbers"),
        (["--final-seeds", "1,1"], "none twice"),
        (["--grace", "9"], "--grace is 9; it must lie between 1 and train.epochs, which is 2"),
        (["--reduction", "1"], "--reduction is 1.0; it must be above 1"),
        (["--address", "ray://127.0.0.1:10001"], "a Ray Client server, through which trainings cannot be driven"),
        (["--search", "grid"], "train.learning_rate is uniform: a grid needs choice or int"),
        (["--space", "none.yaml"], "the space none.yaml cannot be read"),
        (["--data", "none"], "not a set of shards"),
        (["--preset", "mosii"], "unknown preset 'mosii'"),
        (["train.epoch=3"], "unknown config key 'train.epoch'"),
    ],
)
def test_tune(options, message, shards, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "space.yaml").write_text("train.learning_rate: {uniform: [0.001, 0.002]}\n")
    options = [option.replace("PORT", str(free_port())) for option in options]
    common = ["--space", "space.yaml", "--data", str(shards), "--out", "out", *TINY, "train.epochs=2"]
    assert main(["tune", *common, *options]) == 2
    error = error_line(capsys)
    assert message in error
    assert not (tmp_path / "out").exists()


def test_options_of_asha_are_not_checked_without_it(tmp_path):
    (tmp_path / "space.yaml").write_text("train.learning_rate: {uniform: [0.001, 0.002]}\n")
    unused = ["--scheduler", "none", "--grace", "9", "--reduction", "1"]
    command = ["--space", str(tmp_path / "space.yaml"), "--data", "shards", "--out", str(tmp_path / "out")]
    search = tune_request(parse_tune([*command, *TINY, "train.epochs=2", *unused])).search
    assert (search.scheduler, search.grace, search.reduction) == ("none", 9, 1)


@pytest.mark.parametrize("command", ["tune", "experiment"])
def test_a_second_writer_learns_who_works_on_the_experiment(command, shards, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "space.yaml").write_text("train.learning_rate: {uniform: [0.001, 0.002]}\n")
    own = ["--space", "space.yaml"] if command == "tune" else ["--seeds", "1"]
    with sole_writer(tmp_path / "out"):
        assert main([command, *own, "--data", str(shards), "--out", str(tmp_path / "out"), *TINY]) == 2
    error = error_line(capsys)
    assert f"out is being written by process {os.getpid()} on {socket.gethostname()} (since" in error


@pytest.mark.parametrize(
    "options, message",
    [
        (["--address", "127.0.0.1:PORT"], "no Ray cluster at 127.0.0.1:"),
        (["--address", "ray://127.0.0.1:10001"], "--address is ray://127.0.0.1:10001, a Ray Client server"),
        (["--address", "x:1", "--memory-per-task", "much"], "--memory-per-task 'much' is no size; write for example"),
        (["--address", "x:1", "--max-failures", "-1"], "--max-failures is -1; it must be at least 0"),
        (["--patience", "0"], "--patience is 0; it must be at least 1"),
        (["--tasks", "2"], "--tasks is for tasks on a Ray cluster; name one with --address"),
        (["--memory-per-task", "2G"], "--memory-per-task is for tasks on a Ray cluster; name one with --address"),
        (["--max-failures", "0"], "--max-failures is for tasks on a Ray cluster; name one with --address"),
        (["--patience", "600"], "--patience is for tasks on a Ray cluster; name one with --address"),
        (["--verbose"], "--verbose is for tasks on a Ray cluster; name one with --address"),
    ],
)
def test_shard(options, message, tmp_path, capsys):
    options = [option.replace("PORT", str(free_port())) for option in options]
    assert main(["shard", "--synthetic", str(tmp_path / "out"), *options]) == 2
    error = error_line(capsys)
    assert message in error
    assert not (tmp_path / "out").exists()


def test_processes_are_not_those_of_a_cluster(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["shard", "--synthetic", str(tmp_path / "out"), "--address", "auto", "--processes", "2"])
    assert "--processes are this machine's; with --address give --tasks" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, message",
    [
        (["--seeds", ""], "give whole numbers"),
        (["--ablation", "x"], "--ablation is 'x'; give NAME:section.key=value"),
        (["--ablation", "a:model.levels=2", "--ablation", "a:model.levels=3"], "two configs are called 'a'"),
        (
            ["--ablation", "often:train.log_every=5"],
            "preset and often are one config: they differ in train.log_every alone, which changes no result; leave one",
        ),
        (["--ablation", "a:model.heads=3"], "model.heads is 3; it must divide"),
    ],
)
def test_experiment(options, message, shards, tmp_path, capsys):
    common = ["--data", str(shards), "--out", str(tmp_path / "out"), *TINY]
    assert main(["experiment", *common, *options]) == 2
    error = error_line(capsys)
    assert message in error


@pytest.mark.parametrize(
    "options, message",
    [
        (["--address", "127.0.0.1:PORT"], "no Ray cluster at 127.0.0.1:"),
        (["--hosts", "file"], "--hosts file and --address; Ray places the ranks, leave --hosts out"),
        (["--ranks", "0"], "--ranks is 0; it must be at least 1"),
        (["--restarts", "-1"], "--restarts is -1; it must be at least 0"),
        (["--min-ranks", "1"], "--min-ranks is 1 without --restarts"),
        (["--resume", "yes"], "--resume is 'yes'"),
        (["train.epoch=3"], "unknown config key 'train.epoch'"),
    ],
)
def test_train(options, message, shards, tmp_path, capsys):
    options = [option.replace("PORT", str(free_port())) for option in options]
    common = ["--address", "127.0.0.1:1", "--data", str(shards), "--run", str(tmp_path / "run"), *TINY]
    assert main(["train", *common, *options]) == 2
    error = error_line(capsys)
    assert message in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("option", ["--cpus-per-rank", "--gpus-per-rank"])
def test_train_without_a_cluster(option, shards, tmp_path, capsys):
    common = ["--data", str(shards), "--run", str(tmp_path / "run"), *TINY]
    assert main(["train", *common, option, "1"]) == 2
    error = error_line(capsys)
    assert f"{option} is for ranks on a Ray cluster; name one with --address" in error
    assert not (tmp_path / "run").exists()


def test_a_rank_of_a_training_takes_a_cpu():
    command = ["--address", "x:1", "--data", "/s", "--run", "/r"]
    lines = ([], ["--cpus-per-rank", "2"])
    requests = [train_request(parse_train(train_parser(), [*command, *more])) for more in lines]
    assert [request.cpus_per_rank for request in requests] == [1, 2]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["train", "--data", "/nfs/s", "--run", "r"], "--run is r; a job runs elsewhere, give the absolute path"),
        (["train", "--data", "s", "--run", "/nfs/r"], "--data is s; a job runs elsewhere, give the absolute path"),
        (
            ["train", "--data", "/nfs/s"],
            "a job's own directory goes with it; give --run, an absolute path on the shared",
        ),
        (["train", *TRAINING, "--dry-run"], "--dry-run needs no cluster; leave `submit` out"),
        (["tune", "--print-config"], "--print-config needs no cluster; leave `submit` out"),
        (["train", *TRAINING, "--hosts", "x"], "--hosts x and --address; Ray places the ranks"),
        (["train", *TRAINING, "--address", "x"], "--address x in a job, which works on its own cluster; leave it out"),
        (["predict", "/nfs/r", "/nfs/s", "--out", "/nfs/x/", "--address", "local"], "--address local in a job, which"),
        (
            ["predict", "/nfs/r", "/nfs/s", "--out", "/nfs/x.parquet"],
            "--out /nfs/x.parquet is a file, which one process",
        ),
        (["predict", "/nfs/r", "/nfs/s", "--out", "/nfs/x/", "--actors", "0"], "--actors is 0; it must be at least 1"),
        (
            ["predict", "/nfs/r", "/nfs/s", "--out", "/nfs/x/", "--text-encoder", "tests"],
            "--text-encoder is tests; a job",
        ),
        (["evaluate", "/nfs/r", "--ranks", "2"], "--ranks is 2 beside --address; the cluster has actors"),
        (["train", *TRAINING, "--config", "my.yaml", "--ranks", "0"], "--ranks is 0; it must be at least 1"),
        (["train", *TRAINING, "--ranks", "0"], "--ranks is 0; it must be at least 1"),
        (["train", *TRAINING, "--config", "none.yaml"], "there is no none.yaml in "),
        (["train", *TRAINING, "train.epoch=3"], "unknown config key 'train.epoch'"),
        (["train", *TRAINING], "no Ray dashboard for jobs at http://127.0.0.1:"),
        (["report", "/nfs/a", "/nfs/b"], "a report of several runs needs --out"),
        (["report", "a"], "RUN is a; a job runs elsewhere"),
        (["report", "/nfs/a"], "no Ray dashboard for jobs at http://127.0.0.1:"),
        (["tune", *SEARCH, "--data", "shards", "--out", "/nfs/x"], "--data is shards; a job runs elsewhere, give the"),
        (["tune", *SEARCH, "--data=/nfs/s", "--out=x"], "--out is x; a job runs elsewhere, give the absolute"),
        (["tune", *JOB, "--space", "none.yaml"], "there is no none.yaml in "),
        (["experiment", *JOB, "--config", "none.yaml"], "there is no none.yaml in "),
        (["experiment", *JOB, "--preset", "demo", "train.epoch=3"], "unknown config key 'train.epoch'"),
        (["--working-dir", "/tmp", "experiment", *JOB], "/tmp is not the project's directory"),
        (["shard", "x.pkl", "/nfs/x"], "FEATURES is x.pkl; a job runs elsewhere, give the absolute"),
        (["shard", "/nfs/x.pkl", "/nfs/y.pkl", "x"], "SHARDS is x; a job runs elsewhere, give the absolute"),
        (["shard", "/nfs/x.pkl", "/nfs/x", "--word-vectors", "v.txt"], "--word-vectors is v.txt; a job runs elsewhere"),
        (["shard", "/nfs/x.pkl", "/nfs/x", "--tokenizer", "docs"], "--tokenizer is docs; a job runs elsewhere"),
        (
            ["shard", "/nfs/x.pkl", "/nfs/x", "--vocab", "v.txt"],
            "--vocab is --tokenizer, which gives the same",
        ),
        (["shard", "/nfs/x.pkl", "s3://k:s@bucket/x"], "SHARDS s3://bucket/x was given with a user or a query, which"),
        (["shard", "/nfs/x.pkl", "/nfs/x", "--tasks", "0"], "--tasks is 0; it must be at least 1"),
        (["shard", "/nfs/x.pkl", "/nfs/x", "--tasks", "9"], "no Ray dashboard for jobs at http://127.0.0.1:"),
        (["extract", "clips", "/nfs/x"], "CLIPS is clips; a job runs elsewhere, give the absolute"),
        (["extract", "/nfs/clips", "/nfs/x", "--labels", "l.csv"], "--labels is l.csv; a job runs elsewhere, give the"),
        (
            ["extract", "/nfs/clips", "/nfs/x", "--text", "states", "--text-encoder", "docs"],
            "--text-encoder is docs; a job runs elsewhere, give the absolute",
        ),
        (["extract", "/nfs/clips", "/nfs/x", "--patience", "0"], "--patience is 0; it must be at least 1"),
        (["extract", "/nfs/clips", "/nfs/x", "--tasks", "9"], "no Ray dashboard for jobs at http://127.0.0.1:"),
        (["shard", "/nfs/x.pkl", "/nfs/x"], "no Ray dashboard for jobs at http://127.0.0.1:"),
        (["predict", "run", "/nfs/s", "--out", "/nfs/x"], "RUN is run; a job runs elsewhere, give the absolute path"),
        (["predict", "/nfs/r", "s3://u:p@b/s", "--out", "/nfs/x"], "SHARDS s3://b/s was given with a user or a query"),
        (["evaluate", "/nfs/r", "--json", "x.json"], "--json is x.json; a job runs elsewhere, give the absolute path"),
        (["evaluate", "/nfs/r", "--data", "s3://b/s"], "no Ray dashboard for jobs at http://127.0.0.1:"),
        (["stop"], "wants one job id"),
        (["tune", *SEARCH, *JOB], "no Ray dashboard for jobs at http://127.0.0.1:"),
        (
            ["experiment", "--data", "s3://bucket/s", "--out", "/nfs/x"],
            "no Ray dashboard for jobs at http://127.0.0.1:",
        ),
        (["status", "x"], "no Ray dashboard for jobs at http://127.0.0.1:"),
    ],
)
def test_submit(arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    assert main(["submit", "--address", f"http://127.0.0.1:{free_port()}", *arguments]) == 2
    error = error_line(capsys)
    assert message in error


def test_a_mistyped_option_of_a_job_is_found_before_it_is_submitted(capsys, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    with pytest.raises(SystemExit):
        main(["submit", "experiment", *JOB, "--rank-per-trial", "2"])
    assert "unrecognized arguments: --rank-per-trial" in capsys.readouterr().err


@pytest.mark.parametrize("data, absolute", [("s3://b/x", "s3://b/x"), ("file:///d/x", "/d/x"), ("/d/x/", "/d/x")])
def test_data_may_be_a_url(data, absolute):
    line = ["train.epochs=1", "--data", data, "--out", "o", "train.seed=2"]
    request = experiment_request(parse_experiment(line))
    assert request.data == to_place(absolute)
    assert (request.config.train.epochs, request.config.train.seed) == (1, 2)
