"""The visit to a GPU machine, run without one: stages that hang or do not fit, a visit that is killed, what is kept."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from importlib.metadata import distributions
from pathlib import Path

import pytest

from benchmarks.visit import SPARE_SECONDS, Visit, settings_of
from benchmarks.visit_site import install_wheels, pack_cache, unpack_cache, write_entry_points
from benchmarks.visit_stages import AGAIN, FIRST, STAGES
from tests.support.waiting import until

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


def start(folder: Path, **environment: str) -> subprocess.Popen[str]:
    """A visit on the CPU, with the Python of this test as `python3`."""
    programs = folder / "bin"
    programs.mkdir()
    (programs / "python3").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (programs / "python3").chmod(0o755)
    given = {
        **os.environ,
        "DEVICE": "cpu",
        "OUT": str(folder / "out"),
        "SCRATCH": str(folder / "scratch"),
        "SITE": str(folder / "site"),
        "WHEELS": str(folder / "no wheels"),
        "PATH": f"{programs}:{os.environ['PATH']}",
        "VISIT_OF": str(folder),
        "OMP_NUM_THREADS": "1",
        **environment,
    }
    command = ["sh", str(ROOT / "benchmarks" / "gpu_visit.sh")]
    return subprocess.Popen(command, env=given, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def left_over(folder: Path) -> list[int]:
    """Processes that a visit has left."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            environment = (entry / "environ").read_bytes() if entry.name.isdigit() else b""
        except OSError:
            continue
        if f"VISIT_OF={folder}".encode() in environment.split(b"\0"):
            found.append(int(entry.name))
    return found


def rows(summary: str) -> dict[str, str]:
    """{stage: the rest of its line} of a summary."""
    return {line.split()[0]: line.split(maxsplit=1)[1] for line in summary.splitlines()[2:]}


def kept(folder: Path) -> set[str]:
    with tarfile.open(folder / "out" / "visit.tar.gz") as tar:
        return set(tar.getnames())


def test_a_stage_that_hangs_costs_its_limit_and_nothing_else(tmp_path):
    """It ignores signals and has started a process in another session; the stages before and after it count."""
    visit = start(tmp_path, STAGES="device hang smoke", LIMITS="hang=2 smoke=500", BUDGET="600")
    told, _ = visit.communicate(timeout=600)
    assert visit.returncode == 1, told
    assert left_over(tmp_path) == []
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["summary.txt", "visit.tar.gz"]
    summary = (tmp_path / "out" / "summary.txt").read_text()
    assert told.endswith(summary)
    found = rows(summary)
    assert list(found) == ["wheels", "device", "hang", "smoke"]
    assert found["hang"].startswith("cut off at 2 s")
    assert found["hang"].endswith("this stage hangs")
    assert found["device"].startswith("0 ")
    assert found["smoke"].startswith("0 ")
    assert "within bounds" in found["smoke"]
    assert {"device.csv", "device.txt", "hang.txt", "smoke.csv", "smoke.txt", "summary.txt"} <= kept(tmp_path)
    with tarfile.open(tmp_path / "out" / "visit.tar.gz") as tar:
        smoke = tar.extractfile("smoke.csv").read().decode()
    assert "gradient,dmd.memory_encoders" in smoke


def test_stages_together_each_have_their_limit_and_log(tmp_path, monkeypatch):
    settings = settings_of({"DEVICE": "cpu", "OUT": str(tmp_path / "out"), "SCRATCH": str(tmp_path / "scratch")})
    settings.results.mkdir(parents=True)
    environment = {**os.environ, **settings.environment(), "DEVICE": "cpu", "LIMITS": "hang=2"}
    command = [sys.executable, "-m", "benchmarks.visit_together", "device", "hang"]
    told = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert told.returncode == 1, told.stderr
    lines = told.stdout.splitlines()
    assert {line.split(":")[0] for line in lines[:2]} == {"device", "hang"}
    assert lines[-1].startswith("device 0; hang ")
    assert not lines[-1].endswith(" 0"), "it was cut off"
    assert (settings.results / "hang.txt").read_text() == "this stage hangs\n"
    assert (settings.results / "device.csv").exists()


def test_a_visit_that_is_killed_leaves_what_it_had(tmp_path):
    visit = start(tmp_path, STAGES="device hang", BUDGET="100")
    summary = tmp_path / "out" / "summary.txt"
    try:
        until(
            lambda: summary.exists() and rows(summary.read_text()).get("device", "").startswith("0 "),
            lambda: f"the visit: {visit.poll()}",
        )
        visit.kill()
        visit.wait()
        assert rows(summary.read_text())["device"].startswith("0 ")
        assert {"device.csv", "device.txt"} <= kept(tmp_path)
    finally:
        for process in left_over(tmp_path):
            with contextlib.suppress(ProcessLookupError):  # it has ended since
                os.kill(process, signal.SIGKILL)


def test_what_does_not_fit_is_skipped_and_said(tmp_path):
    visit = start(tmp_path, STAGES="smoke tests", BUDGET="20")
    told, _ = visit.communicate(timeout=60)
    assert visit.returncode == 0, told
    found = rows((tmp_path / "out" / "summary.txt").read_text())
    assert found["wheels"].startswith("0 ")
    assert found["smoke"].startswith("skipped")
    assert "needs 30 s" in found["smoke"]
    assert "needs 40 s" in found["tests"]


def test_a_file_that_goes_away_while_it_is_packed_costs_no_other(tmp_path, monkeypatch):
    """As pytest's cache does, in the middle of a stage."""
    settings = settings_of({"OUT": str(tmp_path / "out"), "SCRATCH": str(tmp_path)})
    settings.out.mkdir()
    settings.results.mkdir()
    for name in ("gone.txt", "kept.txt"):
        (settings.results / name).write_text(name)
    read = Path.read_bytes

    def read_late(path: Path) -> bytes:
        (settings.results / "gone.txt").unlink(missing_ok=True)
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", read_late)
    Visit(settings, time.monotonic(), "a commit").refresh()
    assert kept(tmp_path) == {"kept.txt", "summary.txt"}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"STAGES": "smoke tets"}, "STAGES has 'tets'"),
        ({"DEVICE": "gpu"}, "DEVICE is 'gpu'"),
        ({"LIMITS": "smoke"}, "LIMITS has 'smoke'"),
        ({"LIMITS": "smok=3"}, "LIMITS has 'smok=3'"),
    ],
)
def test_settings_that_make_no_sense(given, told):
    with pytest.raises(ValueError, match=told):
        settings_of(given)


def test_every_stage_has_a_command_on_both_devices():
    names = [stage.name for stage in STAGES]
    assert len(set(names)) == len(names)
    assert set(FIRST) | set(AGAIN) <= set(names)
    for device in ("cuda", "cpu"):
        settings = settings_of({"DEVICE": device, "STAGES": " ".join(names), "OUT": "/o", "SCRATCH": "/s"})
        for stage in settings.stages:
            command = settings.command(stage)
            assert "{" not in command
            for word in command.split():
                if word.startswith("benchmarks."):
                    assert (ROOT / f"{word.replace('.', '/')}.py").exists(), command


def test_the_least_times_of_a_first_visits_stages_fit_its_budget():
    settings = settings_of({"OUT": "/o", "SCRATCH": "/s"})
    assert [stage.name for stage in settings.stages] == ["wheels", *FIRST]
    assert sum(stage.least for stage in settings.stages) <= settings.budget - SPARE_SECONDS
    assert all(stage.least <= stage.limit for stage in STAGES)


def test_the_site_has_the_entry_points_of_this_checkout(tmp_path):
    number = write_entry_points(ROOT / "setup.cfg", tmp_path)
    (distribution,) = distributions(path=[str(tmp_path)])
    points = {(point.group, point.name): point for point in distribution.entry_points}
    assert len(points) == number
    assert points["dmd.commands", "evaluate"].load().__name__ == "evaluate"
    assert points["dmd.api", "train"].load().__name__ == "train_in_process"


def test_a_carried_cache_is_found_where_it_is_unpacked(tmp_path):
    """Triton lists the files of a kernel by their whole paths."""
    kernel = tmp_path / "there" / "HASH"
    kernel.mkdir(parents=True)
    names = ("add.cubin", "add.json", "add.ptx")
    for name in names:
        (kernel / name).write_text(f"{name} of the kernel")
    group = {"child_paths": {name: str(kernel / name) for name in names}}
    (kernel / "__grp__add.json").write_text(json.dumps(group))
    carried, here = tmp_path / "cache.tar.xz", tmp_path / "here"
    assert pack_cache(tmp_path / "there", carried) == 1
    assert unpack_cache(carried, here) == 1
    found = json.loads((here / "HASH" / "__grp__add.json").read_text())["child_paths"]
    assert {name: Path(path).read_text() for name, path in found.items()} == {
        "add.cubin": "add.cubin of the kernel",
        "add.json": "add.json of the kernel",
        "add.ptx": "",
    }
    assert all(Path(path).is_relative_to(here) for path in found.values())
    assert unpack_cache(tmp_path / "none.tar.xz", here / "none") == 0


def test_wheels_that_pip_refuses_are_unpacked_all_the_same(tmp_path):
    """Such as one that says it is for another Python: what it holds may still be found."""
    wheels, site = tmp_path / "wheels", tmp_path / "site"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "carried-1.0-cp27-cp27m-win32.whl", "w") as archive:
        archive.writestr("carried/__init__.py", "NAME = 'carried'\n")
    assert install_wheels(wheels, site) == ["carried"]
    assert (site / "carried" / "__init__.py").read_text() == "NAME = 'carried'\n"
