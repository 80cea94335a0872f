"""A run that was trained from a URL: every command reads it by every place, and no file of it tells a password."""

import json
import os
from pathlib import Path

import pytest

from data_shards.places import to_place
from dmd.evaluation.trained_run import training_data
from tests.support.commands import command, rejected
from tests.support.ranks import forks
from tests.support.servers import serve_files
from tests.support.trained import train

SECRET = "PASSWORDxyz"
USER_ERROR, STORAGE = 2, 74


def holding(folder: Path, secret: str) -> list[str]:
    """The files below a directory that hold a text."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [str(path) for path in files if secret.encode() in path.read_bytes()]


@pytest.fixture(scope="module")
def remote(shards, tmp_path_factory):
    """(run, URL with a password): trained from it, with a cache of its own."""
    folder = tmp_path_factory.mktemp("remote")
    patch = pytest.MonkeyPatch()
    patch.setenv("DMD_CACHE_DIR", str(folder / "cache"))
    with serve_files(shards) as server:
        url = server.url.replace("://", f"://bob:{SECRET}@")
        run = train(url, {folder / "run": ["train.epochs=1"]})[0]
        yield run, url
    patch.undo()


@pytest.mark.slow
def test_every_command_reads_a_run_of_a_url(remote, shards, tmp_path, capsys):
    run, url = remote
    split = ("--split", "valid")
    local = ("--data", f"file://{shards}")
    for place in ((), ("--data", url), local):  # a plain path is what all other tests give
        assert command("evaluate", run, *split, *place, "--json", tmp_path / "x.json") == 0
    assert command("report", run, "--out", tmp_path / "report", "--projection", "pca") == 0
    assert command("missing", run, *local, "--out", tmp_path / "missing", "--rates", 0, "--unit", "sample") == 0
    for number, place in enumerate((url, shards, f"file://{shards}")):
        assert command("predict", run, place, "--out", tmp_path / f"{number}.csv") == 0
        assert command("inspect", place) == 0
        assert command("verify", place) == 0
    assert (tmp_path / "0.csv").read_bytes() == (tmp_path / "1.csv").read_bytes() == (tmp_path / "2.csv").read_bytes()
    output = capsys.readouterr()
    assert SECRET not in output.out + output.err
    assert command("export", run, tmp_path / "export", "--no-program") == 0
    assert holding(run, SECRET) + holding(tmp_path, SECRET) == []
    assert json.loads((run / "run.json").read_text())["info"]["data"] == str(to_place(url))


def test_a_url_of_a_run_directory_is_opened_only_where_it_was_asked_for(remote, tmp_path, monkeypatch, capsys):
    run, url = remote
    assert training_data(run) == to_place(str(to_place(url)))
    monkeypatch.setenv("DMD_CACHE_DIR", str(tmp_path / "other"))
    out = ("--out", tmp_path / "out")
    for name, more in (("evaluate", ()), ("report", out), ("missing", out)):
        error = rejected(capsys, name, run, *more)
        assert f"which were never read here; to fetch them: --data {to_place(url)}" in error
    assert not (tmp_path / "other").exists()
    assert command("evaluate", run, "--data", url) == 0
    assert command("evaluate", run) == 0


def test_errors_about_a_url_tell_no_password(remote, tmp_path, monkeypatch, capsys):
    run, _ = remote
    monkeypatch.setenv("DMD_CACHE_DIR", str(tmp_path))
    gone = f"http://bob:{SECRET}@127.0.0.1:9/set?sig={SECRET}"
    monkeypatch.setattr("data_shards.storage.remote._MAX_PAUSE", 0.0)
    for arguments in (
        ("evaluate", run, "--data", gone),
        ("predict", run, gone, "--out", tmp_path / "x.csv"),
        ("inspect", gone),
        ("train", "--data", gone, "--run", tmp_path / "run"),
        ("shard", "--synthetic", gone),
        ("experiment", "--data", gone, "--out", tmp_path / "out"),
        ("submit", "experiment", "--data", gone, "--out", "/x"),
    ):
        assert command(*arguments) in (USER_ERROR, STORAGE)
        error = capsys.readouterr().err
        assert len(error.splitlines()) == 1
        assert SECRET not in error


def test_a_text_encoder_is_no_url(shards, tmp_path, capsys):
    """Else its password would stand in the config that every record of a run holds."""
    encoder = f"https://bob:{SECRET}@host/bert?token={SECRET}"
    error = rejected(capsys, "train", "--data", shards, "--run", tmp_path / "run", f"text.encoder={encoder}")
    assert "text.encoder is https://host/bert; give a directory or a name on the hub" in error
    assert SECRET not in error
    assert not (tmp_path / "run").exists()


def write_everything(run: Path, shards: Path, out: Path) -> None:
    os.umask(0o027)
    for words in (
        ("export", run, out / "export"),
        ("evaluate", run, "--json", out / "e.json"),
        ("predict", run, shards, "--out", out / "p.csv"),
        ("predict", run, shards, "--out", out / "p.parquet"),
        ("report", run, "--out", out / "report", "--projection", "pca"),
        ("shard", "--synthetic", "--samples", 40, out / "s"),
    ):
        assert command(*words) == 0, words


def test_files_get_the_mode_of_the_umask(run, shards, tmp_path):
    process = forks.Process(target=write_everything, args=(run, shards, tmp_path))
    process.start()
    process.join()
    assert process.exitcode == 0
    modes = {str(path.relative_to(tmp_path)): path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert len(modes) > 12
    wrong = {name: oct(mode) for name, mode in modes.items() if mode not in (0o640, 0o750)}
    assert wrong == {}


def test_a_collapsed_url_is_named(run, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        command("predict", run, "http:/127.0.0.1/s", "--out", tmp_path / "x.csv")
    assert ended.value.code == 2
    assert "was given with one slash after its scheme; write two" in capsys.readouterr().err
