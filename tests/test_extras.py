"""The base installation, without the libraries of extras: loading, predicting, reporting; what the rest says."""

import configparser
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from cluster.jobs.submit import requirements
from dmd.extras import EXTRA_OF
from tests.support.imports import ROOT
from tests.support.trained import make_shards, train

ABSENT = ("aiohttp", "av", "deepspeed", "h5py", "mediapipe", "opensmile", "peft", "ray", "tensorboard", "webdataset")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A directory of packages that lacks those of extras."""
    folder = tmp_path_factory.mktemp("base")
    for package in Path(sysconfig.get_path("purelib")).iterdir():
        if package.name.partition("-")[0].partition(".")[0].lower() not in ABSENT and package.suffix != ".pth":
            (folder / package.name).symlink_to(package)
    return folder


def dmd(base: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A command of the base installation, in its directory."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{base}", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-S", "-m", "dmd.cli", *map(str, arguments)]
    return subprocess.run(command, env=environment, cwd=base, capture_output=True, text=True)


def test_the_page_lists_every_extra():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = set(setup["options.extras_require"])
    assert set(re.findall(r"^\| `\[(\w+)\]` \| .* \| .* \|$", (ROOT / "docs/install.md").read_text(), re.M)) == extras
    assert set(EXTRA_OF.values()) <= extras


@pytest.mark.slow
def test_what_the_base_installation_does(base, tmp_path):
    shards = make_shards(tmp_path / "shards", 40)
    (run,) = train(shards, {tmp_path / "run": []})
    for arguments in (
        ("--help",),
        ("evaluate", run),
        ("predict", run, shards, "--out", tmp_path / "p.csv"),
        ("report", run, "--out", tmp_path / "report"),
        ("verify", shards),
    ):
        ended = dmd(base, *arguments)
        assert ended.returncode == 0, (arguments, ended.stderr)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "library", "extra"),
    [
        (("shard", "SHARDS", "--synthetic", "--samples", "10"), "webdataset", "train"),
        (("train", "--preset", "demo", "--data", "x", "--run", "y"), "deepspeed", "train"),
        (("submit", "status", "x"), "ray", "ray"),
        (("experiment", "--preset", "demo", "--data", "x", "--out", "y"), "ray", "ray"),
    ],
)
def test_what_needs_an_extra_says_so(base, arguments, library, extra):
    ended = dmd(base, *arguments)
    message = f"this needs {library}, which is not installed: pip install 'dmd-cluster[{extra}]'"
    assert (ended.returncode, ended.stderr) == (2, f"dmd {arguments[0]}: error: {message}\n")


@pytest.mark.slow
def test_training_from_python_says_what_it_needs(base):
    code = """
import dmd
for call in (lambda: dmd.train("demo", "x", "y"), lambda: dmd.Dataset.from_pickle("x.pkl")):
    try: call()
    except ValueError as error: print(error)
"""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{base}"}
    command = [sys.executable, "-S", "-c", code]
    ended = subprocess.run(command, env=environment, cwd=base, capture_output=True, text=True, check=True)
    message = "this needs {}, which is not installed: pip install 'dmd-cluster[train]'"
    assert ended.stdout.splitlines() == [message.format("deepspeed"), message.format("webdataset")]


def test_jobs_have_what_commands_need():
    """All but Ray, which is the cluster's."""
    lines = requirements(ROOT / "setup.cfg")
    for library in EXTRA_OF.keys() - {"ray"}:
        assert any(line.startswith(library) for line in lines), library
    assert not any(line.startswith(("ray", "dmd-cluster")) for line in lines)
