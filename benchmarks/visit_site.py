"""A folder for PYTHONPATH with the wheels that a visit carries, and the entry points of this checkout.

    python3 -m benchmarks.visit_site .whl /tmp/site

The `dmd` command finds its subcommands by entry points, which an installation would write; a checkout that was copied
has none, so they are written here from its setup.cfg. Nothing is fetched.
"""

import configparser
import subprocess
import sys
import zipfile
from pathlib import Path


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


def main() -> None:
    """Make the folder and say what is in it."""
    wheels, site = Path(sys.argv[1]), Path(sys.argv[2])
    installed = install_wheels(wheels, site)
    points = write_entry_points(Path(__file__).parents[1] / "setup.cfg", site)
    print(f"{points} entry points; wheels: {', '.join(installed) or f'none in {wheels}, only what is installed'}")


if __name__ == "__main__":
    main()
