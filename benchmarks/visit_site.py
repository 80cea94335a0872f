"""A folder for PYTHONPATH with the wheels that a visit carries, the entry points of this checkout, compiled kernels.

    python3 -m benchmarks.visit_site .whl /tmp/site

The `dmd` command finds its subcommands by entry points, which an installation would write; a checkout that was copied
has none, so they are written here from its setup.cfg. Nothing is fetched.
"""

import configparser
import json
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

CACHE = "triton_cache"
"""Folder of the site for TRITON_CACHE_DIR."""
TEXTS = (".ptx", ".ttir", ".ttgir", ".llir", ".source")
"""What Triton keeps beside a kernel's binary, and reads back, but does not use: packed as empty files."""


def install_wheels(wheels: Path, site: Path) -> list[str]:
    """Unpack every wheel of a folder into `site`; returns their names."""
    found = sorted(str(path) for path in wheels.glob("*.whl"))
    if found:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
        offline = ["--no-index", "--no-deps", "--upgrade", "--target", str(site)]
        if subprocess.run([*pip, *offline, *found]).returncode:
            print("pip failed; the wheels are unpacked as they are", flush=True)
            for wheel in found:
                with zipfile.ZipFile(wheel) as archive:
                    archive.extractall(site)
    return [Path(name).name.split("-")[0] for name in found]


def write_entry_points(setup: Path, site: Path) -> int:
    """Metadata of the checkout's distribution with the entry points of its setup.cfg; returns how many."""
    config = configparser.ConfigParser()
    config.read(setup, encoding="utf-8")
    name, version = config["metadata"]["name"], config["metadata"]["version"]
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    points = config["options.entry_points"]
    lines = [f"[{group}]\n{points[group].strip()}\n" for group in points]
    (folder / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
    return sum(text.count("=") for text in lines)


def pack_cache(cache: Path, out: Path) -> int:
    """Write the cache as a tar, binaries and descriptions only; returns the number of kernels."""
    with tarfile.open(out, "w:xz", preset=2) as tar:
        for path in sorted(path for path in cache.rglob("*") if path.is_file()):
            info = tar.gettarinfo(str(path), str(path.relative_to(cache)))
            if path.suffix in TEXTS:
                info.size = 0
                tar.addfile(info)
            else:
                with path.open("rb") as stream:
                    tar.addfile(info, stream)
    return len(list(cache.rglob("*.cubin")))


def unpack_cache(carried: Path, folder: Path) -> int:
    """Unpack Triton's cache (`benchmarks.visit_cache`) into a folder; returns the number of kernels."""
    if not carried.exists():
        return 0
    with tarfile.open(carried) as tar:
        tar.extractall(folder, filter="data")
    for path in folder.rglob("__grp__*.json"):  # lists a kernel's files by their whole paths
        names = json.loads(path.read_text(encoding="utf-8"))["child_paths"]
        here = {name: str(path.parent / name) for name in names}
        path.write_text(json.dumps({"child_paths": here}), encoding="utf-8")
    return len(list(folder.rglob("*.cubin")))


def main() -> None:
    """Make the folder and say what is in it."""
    wheels, site = Path(sys.argv[1]), Path(sys.argv[2])
    installed = install_wheels(wheels, site)
    points = write_entry_points(Path(__file__).parents[1] / "setup.cfg", site)
    kernels = unpack_cache(wheels / "triton_cache.tar.xz", site / CACHE)
    carried = ", ".join(installed) or f"none in {wheels}, only what is installed"
    print(f"{points} entry points; {kernels} compiled kernels; wheels: {carried}")


if __name__ == "__main__":
    main()
