"""One writer per directory: real processes that hold, die, stall, and hosts that no lock of the kernel's reaches."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from data_shards import sole_writer as module
from data_shards.sole_writer import LEASE_FILE, DirectoryInUse, acquire, read_token, sole_writer
from tests.support.waiting import until

HOLD = """
import sys, time
from pathlib import Path
from data_shards.sole_writer import acquire
lease = acquire(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""
RENEW = """
import os, sys, time
while True:
    os.utime(sys.argv[1])
    time.sleep(0.2)
"""


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_DYING_SECONDS", 0.5)
    monkeypatch.setattr(module, "LEASE_SECONDS", 2.0)


@contextmanager
def running(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def lease_of_another_host(directory: Path) -> Path:
    """The lease of a holder on another host."""
    directory.mkdir()
    claim = {"host": "node7", "process": "41", "boot": "another", "token": "t", "started": "then", "group": ""}
    (directory / LEASE_FILE).write_text(json.dumps(claim))
    return directory / LEASE_FILE


@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_holder_is_named_and_its_death_releases(tmp_path, capsys, death):
    with running(HOLD, tmp_path / "run") as process:
        assert process.stdout.readline() == "held\n"
        if death == signal.SIGSTOP:  # a stopped process still holds its lock
            process.send_signal(death)
        message = (
            rf"run is being written by process {process.pid} on {socket.gethostname()} \(since 20.*; wait for it or"
        )
        with pytest.raises(DirectoryInUse, match=message):
            acquire(tmp_path / "run")
        process.kill()
        process.wait()
        with sole_writer(tmp_path / "run") as lease:
            assert lease.check() is None
    assert "waiting" not in capsys.readouterr().err, "the kernel's lock is free, so the lease is not watched"
    assert not (tmp_path / "run").exists() or list((tmp_path / "run").iterdir()) == []


def test_directories_that_were_made_for_nothing_go_away(tmp_path):
    with sole_writer(tmp_path / "a" / "b") as lease:
        assert read_token(tmp_path / "a" / "b") == lease.token
    assert not (tmp_path / "a").exists()
    with sole_writer(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "file").touch()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["file"]


def test_a_group_takes_over_from_itself_alone(tmp_path):
    first = acquire(tmp_path, group="trial")
    with pytest.raises(DirectoryInUse):
        acquire(tmp_path)
    with pytest.raises(DirectoryInUse):
        acquire(tmp_path, group="other")
    second = acquire(tmp_path, group="trial")
    assert second.check() is None
    assert f"was taken over by process {os.getpid()} on {socket.gethostname()}" in (first.check() or "")
    first.release()
    assert read_token(tmp_path) == second.token, "who has lost the directory removes nothing of its successor's"
    second.release()
    assert not (tmp_path / LEASE_FILE).exists()


def test_a_user_takes_over_by_removing_the_lease(tmp_path):
    first = acquire(tmp_path)
    (tmp_path / LEASE_FILE).unlink()
    assert first.check() is None, "there is no other holder yet"
    with sole_writer(tmp_path):
        assert "was taken over by" in (first.check() or "")
    first.release()


def test_a_holder_that_no_lock_reaches_is_watched(tmp_path, capsys):
    """Network storage may keep locks to each host: the lease of one that lives moves, that of a dead one does not."""
    lease = lease_of_another_host(tmp_path / "run")
    message = rf"written by process 41 on node7 \(since then\).*gone for good, remove .*{LEASE_FILE}"
    with running(RENEW, lease), pytest.raises(DirectoryInUse, match=message):
        acquire(tmp_path / "run")
    assert "waiting 2 s to see whether process 41 on node7" in capsys.readouterr().err
    begin = time.monotonic()
    with sole_writer(tmp_path / "run"):
        assert time.monotonic() - begin > 2
        assert json.loads(lease.read_text())["process"] == str(os.getpid())


def test_a_living_holder_renews_its_lease(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "RENEW_SECONDS", 0.1)
    with sole_writer(tmp_path):
        os.utime(tmp_path / LEASE_FILE, (1, 1))
        until(lambda: time.time() - (tmp_path / LEASE_FILE).stat().st_mtime < 60, lambda: "the lease is as old")


@pytest.mark.parametrize("content", ["", "{", "[1]", "{}"])
def test_an_incomplete_lease_has_no_holder(tmp_path, content):
    (tmp_path / LEASE_FILE).write_text(content)
    with sole_writer(tmp_path) as lease:
        assert read_token(tmp_path) == lease.token


def test_storage_without_locks(tmp_path, monkeypatch):
    """The lease alone decides, also between two processes of one host."""

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    monkeypatch.setattr(module, "RENEW_SECONDS", 0.2)
    first = acquire(tmp_path)
    with pytest.raises(DirectoryInUse, match=f"process {os.getpid()}"):
        acquire(tmp_path)
    first.release()
    with sole_writer(tmp_path) as lease:
        assert lease.check() is None


def test_a_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Not a directory"):
        acquire(tmp_path / "file" / "run")


@pytest.mark.parametrize("kind", ["link", "dangling", "pipe", "directory", "device"])
def test_what_stands_in_the_place_of_a_lease_is_not_written_to(tmp_path, kind):
    """A directory from elsewhere may hold a link to a file of its victim's."""
    victim, path = tmp_path / "victim", tmp_path / "run" / LEASE_FILE
    victim.write_text("precious")
    path.parent.mkdir()
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"link": victim, "dangling": tmp_path / "new", "device": Path("/dev/null")}[kind])
    with pytest.raises(ValueError, match=f"{path} is not a regular file, so nothing was written; remove it"):
        acquire(path.parent)
    assert victim.read_text() == "precious"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["run", "victim"]
