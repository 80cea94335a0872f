"""Shards that cannot be looked at, on a server or a disk that fails: exit code 74, never "damaged" or "not there"."""

import os
import shutil
import socket
from pathlib import Path

import pytest

from data_shards.durable import Unreadable
from data_shards.reading.reader import ShardReader
from tests.support.commands import command

STORAGE = 74


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", "URL"),
        ("verify", "URL"),
        ("train", "--data", "URL", "--run", "TMP/new"),
        ("evaluate", "RUN", "--data", "URL"),
        ("predict", "RUN", "URL", "--out", "TMP/p.csv"),
        ("missing", "RUN", "--data", "URL", "--out", "TMP/m"),
        ("report", "RUN", "--data", "URL", "--out", "TMP/r"),
    ],
)
def test_every_command_tells_a_server_that_is_away(run, tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.setenv("DMD_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("data_shards.storage.remote.time.sleep", lambda seconds: None)
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        url = f"http://u:pa55@127.0.0.1:{taken.getsockname()[1]}/set"
        words = [word.replace("URL", url).replace("RUN", str(run)).replace("TMP", str(tmp_path)) for word in arguments]
        assert command(*words) == STORAGE
    error = capsys.readouterr().err
    assert "Cannot connect to host 127.0.0.1" in error
    assert "pa55" not in error
    assert error.count("\n") == 1
    assert not (tmp_path / "new").exists()


@pytest.fixture
def broken_disk(shards, tmp_path) -> Path:
    """A copy of the shards whose first one gives EIO: this process's memory has no page at 0."""
    shutil.copytree(shards, tmp_path / "set")
    path = min((tmp_path / "set").glob("valid-*.tar"))
    path.unlink()
    path.symlink_to("/proc/self/mem")
    return tmp_path / "set"


def test_a_shard_on_a_failing_disk_is_not_called_damaged(run, broken_disk, capsys):
    with ShardReader(broken_disk) as reader, pytest.raises(Unreadable, match=r"valid-.*tar cannot be read: Input"):
        reader.read("valid", [0])
    assert command("evaluate", run, "--data", broken_disk) == STORAGE
    error = capsys.readouterr().err
    assert "Input/output error" in error
    assert error.count("\n") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to become another user")
def test_a_shard_that_may_not_be_read_is_not_called_damaged(broken_disk):
    broken_disk.chmod(0)
    os.seteuid(65534)
    try:
        with pytest.raises(Unreadable, match="Permission denied"):
            ShardReader(broken_disk)
    finally:
        os.seteuid(0)
        broken_disk.chmod(0o755)
