"""The wheel and the sdist: what is in them, and the whole way of `dmd demo` from a wheel, far from the sources."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.imports import FLOORS, ROOT

pytestmark = [pytest.mark.slow, pytest.mark.multiproc]
PATIENCE = 300
UNPACKED_BESIDE = {"setup.cfg", "pyproject.toml", "README.md", "LICENSE", "PKG-INFO", "MANIFEST.in"}


def done(*command: object, folder: Path, **environment: str) -> str:
    """What a command prints that must succeed. `environment` is all that it gets beside PATH and HOME."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    result = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env={**kept, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert result.returncode == 0, f"{command}:\n{result.stdout}{result.stderr}"
    return result.stdout


def files_in_git() -> set[str]:
    """Of the four packages, and what is new there and not ignored."""
    listed = done("git", "ls-files", "--cached", "--others", "--exclude-standard", *FLOORS, folder=ROOT)
    return {name for name in listed.splitlines() if (ROOT / name).exists()}


@dataclass(frozen=True)
class Built:
    """The two files that `python -m build` writes."""

    wheel: Path
    sdist: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Built:
    """Built from a copy, since a build writes beside the sources; with tests and benchmarks, as a checkout has them."""
    sources = tmp_path_factory.mktemp("sources") / "checkout"
    for name in (*FLOORS, "tests", "benchmarks"):
        shutil.copytree(ROOT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in UNPACKED_BESIDE - {"PKG-INFO"}:
        shutil.copy(ROOT / name, sources)
    out = sources.parent / "dist"
    done(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, sources, folder=sources.parent)
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return Built(wheel=wheel, sdist=sdist)


@pytest.fixture(scope="module")
def fresh(built, tmp_path_factory) -> Path:
    """A new virtual environment with the wheel, and the libraries of this one without its editable install."""
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    done(sys.executable, "-m", "venv", "--without-pip", folder, folder=folder.parent)
    install = ("install", "--no-deps", "--no-index", "--no-compile", "--quiet", built.wheel)
    done(sys.executable, "-m", "pip", "--python", folder / "bin" / "python", *install, folder=folder.parent)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def test_the_wheel_has_the_packages_and_nothing_else(built):
    with zipfile.ZipFile(built.wheel) as wheel:
        inside = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert inside == files_in_git()


def test_the_sdist_has_the_packages_and_what_builds_them(built):
    with tarfile.open(built.sdist) as sdist:
        files = {member.name.partition("/")[2] for member in sdist if member.isfile()}
    inside = {name for name in files if not name.startswith("dmd_cluster.egg-info/")}
    assert inside == files_in_git() | UNPACKED_BESIDE


def test_the_demo_runs_from_the_wheel_in_an_empty_directory(fresh, tmp_path):
    """From synthetic data over a training on two ranks to a test result: what `make demo` runs."""
    where = done(fresh / "python", "-c", "import dmd, launch; print(dmd.__file__, launch.__file__)", folder=tmp_path)
    assert all(Path(file).is_relative_to(fresh.parent) for file in where.split())
    assert "demo" in done(fresh / "dmd", "--help", folder=tmp_path)
    output = done(fresh / "dmd", "demo", "demo", folder=tmp_path)
    assert "vision_hetero" in output
    assert "tensorboard.main --logdir demo/run" in output
    assert {path.name for path in tmp_path.iterdir()} == {"demo"}
    run = tmp_path / "demo" / "run"
    assert list(run.glob("events.out.tfevents.*"))
    assert {"run.json", "metrics.jsonl"} <= {path.name for path in run.iterdir()}
    assert (tmp_path / "demo" / "shards" / "index.parquet").exists()
