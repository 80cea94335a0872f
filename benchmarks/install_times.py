"""What an installation costs, by extra: packages, bytes to fetch, bytes on disk, and seconds from files to a Python.

    python -m benchmarks.install_times benchmarks/results/install.csv
    python -m benchmarks.install_times --table        # what docs/install.md shows of that file

Builds the wheel, collects the wheels of everything that it needs at the versions of constraints.txt, and installs them
from those files alone into a fresh virtual environment. So the seconds are those of the disk and of compiling `.pyc`
files; how long it takes to fetch the bytes depends on the network. Close other programs first: `load` is the machine's
load average at the start of an installation.
"""

import argparse
import csv
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

from benchmarks.tables import Table, commit, processor

ROOT = Path(__file__).resolve().parents[1]
MEASURED = ROOT / "benchmarks" / "results" / "install.csv"
MIB = 2**20
EXTRAS = ("", "train", "train,ray", "extract", "track")
BUILT_OF = ("setup.cfg", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
PACKAGES = ("cluster", "data_shards", "dmd", "launch")


def size(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def build_package(folder: Path) -> tuple[Path, Path]:
    """Wheel and sdist of this checkout, built in a copy of its sources."""
    sources = folder / "sources"
    sources.mkdir()
    for name in BUILT_OF:
        shutil.copy(ROOT / name, sources)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), str(sources)]
    subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = (folder / "dist").glob("*.whl")
    (sdist,) = (folder / "dist").glob("*.tar.gz")
    return wheel, sdist


def install(wheel: Path, extras: str, folder: Path) -> dict[str, str | int | float]:
    """Collect and install the wheel with extras; `folder` is used and emptied again."""
    python, files = folder / "venv" / "bin" / "python", folder / "files"
    wanted = f"{wheel}[{extras}]" if extras else str(wheel)
    constraints = str(ROOT / "constraints.txt")
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    empty = size(folder / "venv")
    pip = [str(python), "-m", "pip", "--quiet"]
    subprocess.run([*pip, "wheel", "--constraint", constraints, "--wheel-dir", str(files), wanted], check=True)
    load, begin = os.getloadavg()[0], time.perf_counter()
    subprocess.run([*pip, "install", "--no-index", "--find-links", str(files), wanted], check=True)
    seconds = time.perf_counter() - begin
    subprocess.run([folder / "venv" / "bin" / "dmd", "--help"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    row: dict[str, str | int | float] = {
        "extras": extras or "base",
        "packages": len(list(files.iterdir())),
        "fetched_mib": round(size(files) / MIB, 1),
        "torch_mib": round(sum(path.stat().st_size for path in files.glob("torch-*.whl")) / MIB, 1),
        "on_disk_mib": round((size(folder / "venv") - empty) / MIB, 1),
        "install_s": round(seconds, 1),
        "load": round(load, 1),
    }
    shutil.rmtree(folder)
    return row


def table() -> str:
    """The rows of the results, as docs/install.md has them."""
    titles = ("extras", "packages", "to fetch", "of it torch", "on disk", "seconds (load)")
    lines = [titles, ("---",) * len(titles)]
    with MEASURED.open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            extras = row["extras"] if row["extras"] == "base" else f"`[{row['extras']}]`"
            sizes = [f"{float(row[name]):,.0f} MiB" for name in ("fetched_mib", "torch_mib", "on_disk_mib")]
            lines.append((extras, row["packages"], *sizes, f"{float(row['install_s']):.0f} ({row['load']})"))
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def main() -> None:
    """Measure each set of extras; a row is in the file as soon as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", help="CSV")
    parser.add_argument("--table", action="store_true", help="print the table of docs/install.md instead")
    parser.add_argument("--extras", nargs="+", default=list(EXTRAS), help="'' is the base; joined by commas")
    options = parser.parse_args()
    if options.table:
        print(table(), end="")
        return
    if options.out is None:
        parser.error("name the CSV file, or give --table")
    about = {
        "torch": version("torch"),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "processor": processor(),
        "date": date.today().isoformat(),
        "commit": commit(),
    }
    rows = Table(options.out)
    with tempfile.TemporaryDirectory(prefix="dmd-install-") as temporary:
        wheel, sdist = build_package(Path(temporary))
        print(f"{wheel.name}: {wheel.stat().st_size} bytes; {sdist.name}: {sdist.stat().st_size} bytes", flush=True)
        for extras in options.extras:
            folder = Path(temporary) / "installation"
            folder.mkdir()
            row = {**install(wheel, extras, folder), **about}
            rows.add(row)
            print(row, flush=True)


if __name__ == "__main__":
    main()
