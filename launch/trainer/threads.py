"""How many threads a rank computes with, chosen from the cores that it may use and what else runs on them.

Threads of one operation wait for each other by spinning. With more of them than free cores a step takes many times
longer, so the load of other processes counts. The number is the same on every rank and in every session of a run, as
another one changes the rounding of sums.
"""

import os
import re
import time
from pathlib import Path

import psutil
import torch
import torch.distributed as dist

from data_shards.cores import usable_cores
from dmd.documents import parse_object

VARIABLE = "OMP_NUM_THREADS"
"""Environment variable by which the user chooses."""
SAMPLE_SECONDS = 1.0


def set_threads(run: Path, device: torch.device) -> None:
    """Set the number of threads of this rank. A collective: all ranks take the smallest choice.

    Rank 0 prints the choice; run.json records it.

    Raises:
        ValueError: the user's choice is no number of threads.
    """
    if is_set_by_user(os.environ.get(VARIABLE, "")):
        return
    ranks = int(os.environ.get("LOCAL_SIZE", "1"))
    cores, busy = usable_cores(), busy_cores()
    previous = previous_threads(run, int(os.environ.get("WORLD_SIZE", "1")))
    choice = choose_threads(cores, busy, ranks, previous)
    chosen = torch.tensor([choice], dtype=torch.float32, device=device)
    if dist.get_world_size() > 1:
        dist.all_reduce(chosen, op=dist.ReduceOp.MIN)
    torch.set_num_threads(int(chosen.item()))
    if os.environ.get("RANK", "0") == "0":
        why = "as this run had before" if previous == int(chosen.item()) else f"{busy:.1f} of {cores} cores were busy"
        print(f"threads: {int(chosen.item())} per rank ({why}); {VARIABLE} overrides", flush=True)


def is_set_by_user(text: str) -> bool:
    """Whether the user has chosen, by what OMP_NUM_THREADS holds: one number, or one per level of nesting.

    Raises:
        ValueError: anything else. OpenMP would warn and take every core.
    """
    if text.strip() and not re.fullmatch(r"\s*\+?0*[1-9]\d{0,3}\s*(,\s*\+?0*[1-9]\d{0,3}\s*)*", text, re.ASCII):
        raise ValueError(f"{VARIABLE} is {text!r}; give a number of threads such as 4, or unset it")
    return bool(text.strip())


def choose_threads(cores: int, busy: float, ranks: int, previous: int | None) -> int:
    """Threads per rank.

    Args:
        cores: that the ranks of this host may use.
        busy: how many of them other processes use.
        ranks: of this host.
        previous: threads of the run's earlier sessions.
    """
    if previous is not None and previous * ranks <= max(cores, ranks):
        return previous
    return max(1, (cores - round(busy)) // ranks)


def busy_cores() -> float:
    """Cores of this process's affinity that others keep busy: in the next second, and by the load of the last minute.

    The smaller one counts. The load includes the imports of these ranks, and a training that ended before; one second
    may be no typical one. The ranks of a host do nothing else meanwhile.
    """
    before = psutil.cpu_times(percpu=True)
    time.sleep(SAMPLE_SECONDS)
    own = os.sched_getaffinity(0)
    shares = [
        min(1.0, max(0.0, 1 - (now.idle + now.iowait - then.idle - then.iowait) / max(sum(now) - sum(then), 1e-9)))
        for number, (then, now) in enumerate(zip(before, psutil.cpu_times(percpu=True), strict=True))
        if number in own
    ]
    return min(sum(shares), os.getloadavg()[0])


def previous_threads(run: Path, ranks: int) -> int | None:
    """Threads per rank of a run that was trained on as many ranks before; None where it was not."""
    try:
        info = (parse_object((run / "run.json").read_bytes()) or {}).get("info")
    except OSError:
        return None
    if not isinstance(info, dict) or info.get("ranks") != ranks:
        return None
    threads = info.get("threads")
    return threads if isinstance(threads, int) and threads > 0 else None
