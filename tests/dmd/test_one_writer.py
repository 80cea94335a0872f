"""Commands that write a directory: a second writer ends with exit code 2 and learns who holds it."""

import os
import socket

import pytest

from data_shards.sole_writer import LEASE_FILE, sole_writer
from tests.support.commands import command


@pytest.mark.parametrize("name", ["report", "missing", "export"])
def test_a_second_writer_learns_who_holds_the_directory(run, tmp_path, capsys, name):
    out = tmp_path / "out"
    arguments = {
        "report": ("report", run, "--out", out, "--projection", "pca"),
        "missing": ("missing", run, "--out", out, "--rates", "1", "--unit", "sample"),
        "export": ("export", run, out, "--no-program"),
    }[name]
    with sole_writer(out):
        assert command(*arguments) == 2
    error = capsys.readouterr().err
    who = f"{out} is being written by process {os.getpid()} on {socket.gethostname()} (since"
    assert error.startswith(f"dmd {name}: error: {who}")
    assert len(error.splitlines()) == 1
    assert not out.exists()
    out.mkdir()
    (out / LEASE_FILE).touch()  # what a killed one leaves
    assert command(*arguments) == 0
    assert len(list(out.iterdir())) > 1
    assert not (out / LEASE_FILE).exists()
