"""Folders of results: a directory and a bucket, listed, read and written alike."""

import os

import pytest

from data_shards.durable import Unreadable
from data_shards.storage.folder import open_folder
from data_shards.storage.remote import RemoteOptions
from tests.support.servers import QUICK


@pytest.fixture(params=["directory", "bucket"])
def place(request, tmp_path):
    if request.param == "directory":
        (tmp_path / "out").mkdir()
        return tmp_path / "out"
    return f"s3://{request.getfixturevalue('s3').bucket}/out"


def test_files_are_written_listed_read_and_removed(place):
    folder = open_folder(place, remote=QUICK)
    assert folder.place == str(place)
    assert folder.names() == []
    for name, content in (("b", b"two"), ("a", b"one"), ("b", b"three"), (".hidden", b"")):
        folder.write(name, content)
    assert folder.names() == ["a", "b"]
    assert folder.read("b") == b"three"
    with pytest.raises(ValueError, match=r"out/c is not there"):
        folder.read("c")
    folder.remove("a")
    assert folder.names() == ["b"]


def test_a_bucket_that_fails_for_a_while(s3):
    folder = open_folder(f"s3://{s3.bucket}/out", remote=QUICK)
    s3.method, s3.part, s3.faults = "PUT", "/out/a", ["500", "stall", "503"]
    folder.write("a", b"one")
    s3.method, s3.faults = "GET", ["stall", "truncate"]
    assert folder.read("a") == b"one"
    assert not s3.faults
    assert len([path for method, path, _ in s3.log if method == "PUT" and "/out/a" in path]) == 3


def test_a_bucket_that_fails_for_long_is_no_missing_file(s3):
    folder = open_folder(f"s3://{s3.bucket}/out", remote=RemoteOptions(timeout=2, attempts=2, pause=0.01))
    s3.method, s3.part, s3.faults = "PUT", "/out/a", ["500"] * 100
    with pytest.raises(Unreadable, match=r"out/a: .*gave up after 2 attempts"):
        folder.write("a", b"one")


def test_a_directory_that_is_not_there_is_not_made(tmp_path):
    """A node that does not see the shared one says so."""
    folder = open_folder(tmp_path / "out")
    assert folder.names() == []
    with pytest.raises(FileNotFoundError):
        folder.write("a", b"one")
    assert not (tmp_path / "out").exists()


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    folder = open_folder(tmp_path)
    folder.write("a", b"one")

    def fail(*paths):
        raise OSError("full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="full"):
        folder.write("a", b"two")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"one"]


def test_what_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is a file; give a directory"):
        open_folder(tmp_path / "file")
    with pytest.raises(ValueError, match="https://h/x cannot be written to; give a directory or a bucket"):
        open_folder("https://h/x?token=y")
