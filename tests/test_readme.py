"""The README's commands, as they stand there, in an empty directory; only the model of the trainings is smaller.

Beside them DeepSpeed's own launcher and TensorBoard, as other pages say them.
"""

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


def commands(page: str) -> list[list[str]]:
    """The commands in the blocks of a page."""
    found = re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    return [shlex.split(line, comments=True) for block in found for line in block.splitlines() if line]


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
    made = {target for command in commands("README.md") if command[0] == "make" for target in command[1:]}
    assert made == {"demo", "test"}
    makefile = (ROOT / "Makefile").read_text()
    for target in made:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    assert "dmd demo" in makefile


def test_the_commands_for_your_own_data_run(tmp_path):
    save(mmsa({"train": 60, "valid": 20, "test": 20}), tmp_path / "unaligned_50.pkl")
    (tmp_path / "launch").symlink_to(ROOT / "launch")
    own = [command for command in commands("README.md") if command[0] == "dmd"]
    assert [command[1] for command in own] == ["shard", "train", "evaluate", "report"]
    (launcher,) = (command for command in commands("docs/multi-node.md") if command[0] == "deepspeed")
    (tensorboard,) = (command for command in commands("docs/tutorial.md") if command[0] == "tensorboard")
    for command in (*own, launcher):
        run(command + (SMALLER + SHORT) * ("--preset" in command), tmp_path)
    assert_tensorboard_shows(tensorboard, tmp_path, {"first", "second"})
    assert (tmp_path / "runs" / "first" / "report" / "index.html").exists()
    assert (tmp_path / "runs" / "second" / "run.json").exists()
