"""The README's commands, as they stand there, in an empty directory; only the model of the trainings is smaller."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.support.small_data import mmsa, save

pytestmark = [pytest.mark.slow, pytest.mark.multiproc]
ROOT = Path(__file__).parents[1]
SMALLER = ["model.dim=8", "model.heads=2", "model.levels=1", "train.epochs=1"]
SHORT = ["model.kernel_text=3", "model.kernel_audio=3", "model.kernel_vision=3"]
PATIENCE = 300


def blocks() -> list[list[list[str]]]:
    """The commands of each block of the README."""
    text = (ROOT / "README.md").read_text()
    found = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = [[line for line in block.splitlines() if line] for block in found]
    return [[shlex.split(line, comments=True) for line in block] for block in lines]


def environment() -> dict[str, str]:
    beside_python = str(Path(sys.executable).parent)
    return {**os.environ, "PATH": f"{beside_python}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}


def run(command: list[str], folder: Path) -> str:
    result = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 0, f"{command}:\n{result.stdout}{result.stderr}"
    return result.stdout


def assert_tensorboard_shows(command: list[str], folder: Path, runs: set[str]) -> None:
    """Start it as the README says, on a free port, and ask it for its runs and for their curves."""
    log = folder / "tensorboard.log"
    with log.open("wb") as file:
        server = subprocess.Popen(
            [*command, "--port", "0", "--reload_interval", "1"], cwd=folder, env=environment(), stdout=file, stderr=file
        )
    try:
        deadline = time.monotonic() + PATIENCE
        tags: dict[str, object] = {}
        while not runs <= set(tags):
            assert time.monotonic() < deadline, log.read_text()
            assert server.poll() is None, log.read_text()
            time.sleep(0.5)
            address = re.search(r"http://\S+?:\d+", log.read_text())
            if address:
                page = f"http://127.0.0.1:{address.group().rpartition(':')[2]}/data/plugin/scalars/tags"
                tags = json.load(urllib.request.urlopen(page, timeout=PATIENCE))
        assert all("train/total" in str(tags[run]) for run in runs)
    finally:
        server.terminate()
        server.wait(PATIENCE)


def test_the_first_ten_minutes_are_what_make_says():
    made = {target for block in blocks() for command in block if command[0] == "make" for target in command[1:]}
    assert made == {"demo", "test"}
    makefile = (ROOT / "Makefile").read_text()
    for target in made:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    assert "dmd demo" in makefile


def test_the_commands_for_your_own_data_run(tmp_path):
    save(mmsa({"train": 60, "valid": 20, "test": 20}), tmp_path / "unaligned_50.pkl")
    (tmp_path / "launch").symlink_to(ROOT / "launch")
    commands = [command for block in blocks() for command in block if command[0] in ("dmd", "deepspeed", "tensorboard")]
    names = [command[1] if command[0] == "dmd" else command[0] for command in commands]
    assert names[:4] == ["shard", "verify", "train", "evaluate"]
    assert {"deepspeed", "tensorboard"} <= set(names)
    for command in commands:
        if command[0] == "tensorboard":
            assert_tensorboard_shows(command, tmp_path, {"first"})
        else:
            run(command + (SMALLER + SHORT) * ("--preset" in command), tmp_path)
    assert (tmp_path / "runs" / "second" / "run.json").exists()
