"""Everything that waits for a GPU, in one call that ends in time and keeps what it found. `gpu_visit.sh` starts it.

    OUT=results BUDGET=450 STAGES="smoke step" DEVICE=cuda python3 -m benchmarks.visit

Each stage (`benchmarks.visit_stages`) is a process group of its own with a time limit; when it ends, or is cut off,
nothing of it is left running, and the next one starts in fresh processes. OUT holds two files: `summary.txt`, a line
per stage, and `visit.tar.gz`, logs and tables. Both are replaced at once, every ten seconds and after each stage, so
that whatever ends this program leaves them whole. Needs nothing but Python.

Environment: OUT, SCRATCH (shards and runs), SITE (wheels are unpacked there), WHEELS, DEVICE (cuda or cpu), STAGES,
BUDGET (seconds), LIMITS ("tests=90 step=60", in place of the table's).
"""

import io
import os
import shlex
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.visit_processes import adopt_orphans, end_all
from benchmarks.visit_site import CACHE
from benchmarks.visit_stages import FIRST, STAGES, Stage

ROOT = Path(__file__).resolve().parents[1]
LARGEST_FILE = 4 * 2**20
"""Bytes of a result above which it stays out of the tar."""
REFRESH_SECONDS = 10
SPARE_SECONDS = 5
"""Of the budget, for the end of the last stage."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the environment asks for."""

    out: Path
    scratch: Path
    site: Path
    wheels: Path
    device: str
    budget: float
    stages: tuple[Stage, ...]

    @property
    def results(self) -> Path:
        """Logs and tables."""
        return self.scratch / "results"

    def command(self, stage: Stage) -> str:
        """The shell line of a stage."""
        line = stage.cuda if self.device == "cuda" else stage.cpu
        places = {"results": self.results, "scratch": self.scratch, "site": self.site, "wheels": self.wheels}
        values = {name: shlex.quote(str(path)) for name, path in places.items()}
        return line.format(python=shlex.quote(sys.executable), device=self.device, **values)

    def environment(self) -> dict[str, str]:
        """Of every stage."""
        threads = {"OMP_NUM_THREADS": "1"} if self.device == "cpu" else {}
        paths = [str(ROOT), str(self.site), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONFAULTHANDLER": "1",
            "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # asking whether there is a GPU must not forbid a fork
            **threads,
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONUNBUFFERED": "1",
            "DS_ACCELERATOR": self.device,
            "MPLBACKEND": "Agg",
            "VISIT_COMMIT": version_of(self.wheels),
            "TRITON_CACHE_DIR": str(self.site / CACHE),
            "OUT": str(self.out),
            "SCRATCH": str(self.scratch),
        }


def settings_of(environment: Mapping[str, str]) -> Settings:
    """Read the environment.

    Raises:
        ValueError: a stage or device that is not known, or a limit without a number.
    """
    device = environment.get("DEVICE", "cuda")
    if device not in ("cuda", "cpu"):
        raise ValueError(f"DEVICE is {device!r}; it must be cuda or cpu")
    known = {stage.name: stage for stage in STAGES}
    names = environment.get("STAGES", "").split() or list(FIRST)
    for name in names:
        if name not in known:
            raise ValueError(f"STAGES has {name!r}; known: {' '.join(known)}")
    for entry in environment.get("LIMITS", "").split():
        name, _, seconds = entry.partition("=")
        if name not in known or not seconds.isdigit():
            raise ValueError(f"LIMITS has {entry!r}; write STAGE=SECONDS, with one of {' '.join(known)}")
        known[name] = replace(known[name], limit=int(seconds), least=min(known[name].least, int(seconds)))
    chosen = ["wheels", *(name for name in names if name != "wheels")]
    return Settings(
        out=Path(environment.get("OUT") or tempfile.mkdtemp(prefix="visit-")).resolve(),
        scratch=Path(environment.get("SCRATCH") or tempfile.mkdtemp(prefix="visit-scratch-")).resolve(),
        site=Path(environment.get("SITE", "/tmp/site")).resolve(),
        wheels=Path(environment.get("WHEELS", ROOT / ".whl")),
        device=device,
        budget=float(environment.get("BUDGET", "450")),
        stages=tuple(known[name] for name in chosen),
    )


@dataclass
class Visit:
    """Runs the stages, one after the other.

    Args:
        settings: what to run, and where.
        began: when the budget began, by `time.monotonic`.
        version: what is measured.
    """

    settings: Settings
    began: float
    version: str
    rows: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    """{stage: (how it ended, seconds, one line of result)}."""

    def run(self) -> bool:
        """Every stage; whether all that ran ended well."""
        self.settings.results.mkdir(parents=True, exist_ok=True)
        self.settings.out.mkdir(parents=True, exist_ok=True)
        for stage in self.settings.stages:
            left = self.settings.budget - (time.monotonic() - self.began) - SPARE_SECONDS
            if left < stage.least:
                self.rows[stage.name] = ("skipped", "", f"needs {stage.least} s, {max(left, 0):.0f} s are left")
            else:
                self._stage(stage, min(stage.limit, left))
            self.refresh()
        print(f"\n{self.summary()}", flush=True)
        return all(ended in ("0", "skipped") for ended, _, _ in self.rows.values())

    def _stage(self, stage: Stage, limit: float) -> None:
        print(f"== {stage.name} (at most {limit:.0f} s)", flush=True)
        log = self.settings.results / f"{stage.name}.txt"
        began = refreshed = time.monotonic()
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["sh", "-c", self.settings.command(stage)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=ROOT,
                env=self.settings.environment(),
                start_new_session=True,
            )
            while process.poll() is None and time.monotonic() - began < limit:
                time.sleep(0.1)
                if time.monotonic() - refreshed > REFRESH_SECONDS:
                    refreshed = time.monotonic()
                    self.rows[stage.name] = ("running", f"{refreshed - began:.1f}", last_line(log))
                    self.refresh()
            cut_off = process.poll() is None
            end_all(process)
        code = process.poll()
        ended = f"cut off at {limit:.0f} s" if cut_off else str(code)
        self.rows[stage.name] = (ended, f"{time.monotonic() - began:.1f}", last_line(log))
        if ended != "0":
            print(_tail(log), flush=True)
        print(f"== {stage.name}: {ended}: {self.rows[stage.name][2]}", flush=True)

    def summary(self) -> str:
        """The table."""
        spent = time.monotonic() - self.began
        lines = [f"visit of {self.version} on {self.settings.device}, {spent:.0f} of {self.settings.budget:.0f} s"]
        lines += [f"{'stage':<12} {'ended':<16} {'seconds':>7}  result"]
        for name, (ended, seconds, result) in self.rows.items():
            lines.append(f"{name:<12} {ended:<16} {seconds:>7}  {result}")
        return "\n".join(lines)

    def refresh(self) -> None:
        """Replace the files in OUT."""
        summary = self.settings.results / "summary.txt"
        summary.write_text(f"{self.summary()}\n", encoding="utf-8")
        packed = self.settings.out / "visit.tar.gz.part"
        with tarfile.open(packed, "w:gz", compresslevel=6) as tar:
            for path in sorted(self.settings.results.rglob("*")):
                _pack(tar, path, str(path.relative_to(self.settings.results)))
        packed.replace(self.settings.out / "visit.tar.gz")
        text = self.settings.out / "summary.txt.part"
        text.write_text(f"{self.summary()}\n", encoding="utf-8")
        text.replace(self.settings.out / "summary.txt")


def version_of(wheels: Path) -> str:
    """The commit, as `visit_wheels.sh` wrote it down, since .git may stay behind or be an older one; else git's."""
    carried = wheels / "commit.txt"
    if carried.exists():
        return carried.read_text(encoding="utf-8").strip()
    describe = "git describe --always --abbrev=40 --exclude='*' --dirty"
    description = subprocess.run(["sh", "-c", describe], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return description or "an unknown commit"


def _pack(tar: tarfile.TarFile, path: Path, name: str) -> None:
    """Add a file as it is now: the stage that runs may write to it, shorten it or take it away (pytest's cache)."""
    try:
        if not path.is_file() or path.stat().st_size > LARGEST_FILE:
            return
        content = path.read_bytes()
    except OSError:
        return
    entry = tarfile.TarInfo(name)
    entry.size, entry.mtime = len(content), int(time.time())
    tar.addfile(entry, io.BytesIO(content))


def last_line(log: Path) -> str:
    """What a stage says of itself: its last line."""
    lines = [line.strip() for line in _tail(log).splitlines() if line.strip()]
    return lines[-1][:200] if lines else "no output"


def _tail(log: Path, lines: int = 15) -> str:
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - 8000))
        return "\n".join(stream.read().decode(errors="replace").splitlines()[-lines:])


def main() -> int:
    """Run the chosen stages; 1: one of them failed, 2: the environment asks for what there is not."""
    began = time.monotonic()
    try:
        settings = settings_of(os.environ)
    except ValueError as error:
        print(f"visit: error: {error}", file=sys.stderr)
        return 2
    adopt_orphans()
    print(f"results in {settings.out}, scratch in {settings.scratch}", flush=True)
    return 0 if Visit(settings, began, version_of(settings.wheels)).run() else 1


if __name__ == "__main__":
    sys.exit(main())
