"""What trainings cost: parameters, step time, hours, memory, energy; and the command of each, to repeat it.

All of it is what runs recorded (`dmd.training.logging.costs`, run.json, metrics.jsonl). What a run did not record is a
dash, with the reason below the table. Costs of a process are those of the rank that wrote the record.
"""

import math
import shlex
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from data_shards.places import redact
from dmd.config import Config
from dmd.config.loading import config_to_dict
from dmd.report.groups import Group
from dmd.report.identity import flatten, is_same, value_text
from dmd.report.runs import RunRecord
from dmd.report.tables import Table
from dmd.runs.state import state_of
from dmd.runs.summary import session_seconds

DASH = "–"
_HOUR = 3600.0
_MIB = 1 << 20
_SCRIPT = "launch/train.py"
"""How the path of the script ends that the launcher runs on every rank."""
_ENDED = "an older program did not record it"
_KILLED = "a session was killed, which records no costs"
_RUNNING = "the run is still running, and records the costs of a session at its end"


def typed_command(run: RunRecord) -> str:
    """What a user types to train a run: the command that was recorded, or one that the launcher's says; for a training
    from Python or on a cluster, a command that gives the same config."""
    last = run.sessions[-1]
    if last.get("user_command"):
        return redact(str(last["user_command"]))
    ranks = ["--ranks", str(run.info.get("ranks", 1))]
    try:
        words = shlex.split(str(last.get("command", "")))
    except ValueError:
        words = []
    for place, word in enumerate(words):
        if word.endswith(_SCRIPT):
            kept = [word for word in words[place + 1 :] if not word.startswith("--local_rank")]
            return redact(shlex.join(["dmd", "train", *ranks, *_without_resume(kept)]))
    default = flatten(config_to_dict(Config()))
    config = flatten(run.config)
    changed = [f"{key}={value_text(v)}" for key, v in config.items() if key in default and not is_same(v, default[key])]
    places = ["--data", str(run.info.get("data")), "--run", str(run.path)]
    return redact(shlex.join(["dmd", "train", *places, *ranks, *changed]))


def _without_resume(words: list[str]) -> list[str]:
    """Arguments without the way of resuming that `dmd train` takes by itself."""
    for place in range(len(words) - 1):
        if words[place : place + 2] == ["--resume", "auto"]:
            return words[:place] + words[place + 2 :]
    return words


def step_seconds(run: RunRecord) -> float:
    """Median seconds of a step, of all ranks together; NaN where the log does not say."""
    rate, counts = run.curves.get("train/samples_per_second"), run.info.get("counts") or {}
    steps = run.info.get("steps_per_epoch")
    if rate is None or not steps or "train" not in counts:
        return math.nan
    known = rate.values[np.isfinite(rate.values) & (rate.values > 0)]
    return float(counts["train"]) / float(steps) / float(np.median(known)) if len(known) else math.nan


def cost_table(groups: Sequence[Group]) -> Table:
    """A row per run."""
    missing: Counter[str] = Counter()
    rows = [_row(member.run, group.name, missing) for group in groups for member in group.members]
    reasons = "".join(f" {reason} ({count} of {len(rows)} runs)." for reason, count in missing.items())
    return Table(
        name="costs",
        title="What each run cost",
        note="Hours are those of all sessions, ≥ where one was killed; device hours are hours times ranks. CPU hours, "
        "memory and energy are of the process that wrote the record, one rank of them. Peak MiB is that of the process "
        "since it began; energy of processors is that of the whole host. Step: the median, of all ranks together."
        f"{reasons}",
        header=[
            "run",
            "config",
            "parameters",
            "trained",
            "ranks",
            "device",
            "steps",
            "step ms",
            "hours",
            "device hours",
            "CPU hours",
            "peak MiB",
            "peak GPU MiB",
            "energy Wh",
        ],
        rows=rows,
    )


def _row(run: RunRecord, config: str, missing: Counter[str]) -> list[str]:
    info = run.info
    is_running = state_of(run.path, flatten(run.config), run.sessions, run.last_step) == "running"
    seconds, are_all = session_seconds(run.sessions, end=time.time() if is_running else None)
    step, ranks = step_seconds(run), int(info.get("ranks") or 1)
    bound = "" if are_all else "≥ "
    costs: list[dict[str, Any]] = [session["costs"] for session in run.sessions if session.get("costs")]
    without = [session for session in run.sessions if not session.get("costs")]
    bound_of_costs = "≥ " if without else ""
    for reason in {_why_no_costs(session, goes_on=is_running and session is run.sessions[-1]) for session in without}:
        missing[f"CPU hours, memory, energy: {reason}"] += 1
    for reason in {str(one["no_energy"]) for one in costs if "no_energy" in one}:
        missing[f"No energy: {reason}"] += 1
    return [
        run.name,
        config,
        _count(info.get("parameters")),
        _count(info.get("trained_parameters")),
        str(ranks),
        str(info.get("device", DASH)),
        str(run.last_step),
        DASH if math.isnan(step) else f"{1000 * step:.3g}",
        f"{bound}{seconds / _HOUR:.3g}",
        f"{bound}{ranks * seconds / _HOUR:.3g}",
        _sum(costs, "cpu_seconds", 1 / _HOUR, bound_of_costs),
        _largest(costs, "peak_memory"),
        _largest(costs, "peak_device_memory"),
        _sum(costs, "joules", 1 / _HOUR, bound_of_costs),
    ]


def _why_no_costs(session: dict[str, Any], *, goes_on: bool) -> str:
    if "ended" in session:
        return _ENDED
    return _RUNNING if goes_on else _KILLED


def command_table(groups: Sequence[Group]) -> Table:
    """The command of every run."""
    rows = [[member.run.name, group.name, typed_command(member.run)] for group in groups for member in group.members]
    return Table(name="commands", title="Command of each run", header=["run", "config", "command"], rows=rows)


def _count(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else DASH


def _sum(costs: list[dict[str, Any]], name: str, unit: float, bound: str) -> str:
    values = [float(one[name]) for one in costs if name in one]
    return f"{bound}{sum(values) * unit:.3g}" if values else DASH


def _largest(costs: list[dict[str, Any]], name: str) -> str:
    values = [float(one[name]) for one in costs if name in one]
    return f"{max(values) / _MIB:,.0f}" if values else DASH
