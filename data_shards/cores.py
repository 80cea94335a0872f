"""How many cores this process may use; all code asks here."""

import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Cores that this process may use: those of its affinity, or fewer where a cgroup has a quota."""
    cores = float(len(os.sched_getaffinity(0)))
    try:
        groups = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:  # some sandboxes have no such file
        groups = []
    for line in groups:
        number, controllers, path = line.split(":", 2)
        if number == "0" or "cpu" in controllers.split(","):
            cores = min(cores, *(_quota(folder) for folder in _folders(path, v2=number == "0")))
    return max(1, int(cores))


def _folders(path: str, *, v2: bool) -> list[Path]:
    """The folder of a cgroup and of all above it; in a container the topmost one alone is there."""
    root = _CGROUP if v2 else _CGROUP / "cpu"
    own = root / path.lstrip("/")
    return [folder for folder in (own, *own.parents) if folder.is_relative_to(root)]


def _quota(folder: Path) -> float:
    """Cores that a cgroup may use."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        return int(quota) / int(period) if quota != "max" and int(quota) > 0 else float("inf")
    except (OSError, ValueError):
        return float("inf")
