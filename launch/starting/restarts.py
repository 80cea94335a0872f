"""Restarts a training whose ranks or hosts were lost, from its newest whole checkpoint: `dmd train --restarts N`.

Each attempt is one run of the launcher (`launch.starting.runner`). `dmd.exit_codes.restart_mends` says which endings
another one follows, at once. Over several hosts it takes those that ssh reaches, or waits for the others where these
hold too few ranks.
"""

import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from dmd.checkpoint.resume import Resume, checkpoint_marks, choose_checkpoint, parse_resume, resume_of_restart
from dmd.checkpoint.saver import CHECKPOINTS
from dmd.exit_codes import LOST, restart_mends
from dmd.training.logging.provenance import RESTART
from launch.starting.environment import WRITERS
from launch.starting.hosts import write_hosts
from launch.starting.rank_layout import RankLayout
from launch.starting.rank_processes import HostUnreachable, unreachable
from launch.starting.runner import LauncherEnd, remote_ranks, ssh_arguments
from launch.supervision.ending import CONTINUES, Ending, given_up, reason

LOOK_SECONDS = 5.0
"""Between two looks for hosts that are gone."""

Attempt = Callable[[RankLayout, list[str], Mapping[str, str]], LauncherEnd]
"""Runs the launcher for a layout, with the arguments of a rank and further environment variables."""


@dataclass(frozen=True, kw_only=True)
class RestartRule:
    """How often a training is started again, and with how many ranks."""

    restarts: int = 0
    """In total."""
    min_ranks: int
    """Ranks with which a restart goes on where hosts are gone."""
    patience: float
    """Seconds to wait for hosts that are gone."""


def run_with_restarts(layout: RankLayout, arguments: list[str], rule: RestartRule, attempt: Attempt) -> Ending:
    """Run a training to an ending that no restart follows.

    Args:
        layout: its ranks; a restart may have fewer hosts.
        arguments: of a rank, with `--run` and `--resume`.

    Raises:
        ValueError: as `runner.run_launcher`, or no checkpoint is whole. Unreadable: one cannot be read.
    """
    if rule.restarts == 0:
        return attempt(layout, arguments, {}).ending
    checkpoints = Path(_value(arguments, "--run")) / CHECKPOINTS
    asked = parse_resume(_value(arguments, "--resume"))
    before = checkpoint_marks(checkpoints)
    writers = {WRITERS: f"train-{uuid.uuid4().hex}"}
    end = attempt(layout, arguments, writers)
    restarts = 0
    while restart_mends(end.ending.code) and not end.stop_requested:
        if restarts == rule.restarts:
            return given_up(end.ending, restarts)
        restarts += 1
        with _layout_of_hosts_there(layout, arguments, rule) as there:
            if isinstance(there, str):
                return replace(end.ending, code=LOST, message=f"{reason(end.ending)}; {there}{CONTINUES}")
            resume = resume_of_restart(checkpoints, asked, before)
            why = f"{restarts} of {rule.restarts}: {reason(end.ending)}"
            print(f"dmd train: restart {why}; {_from(checkpoints, resume)}{_on(there)}", file=sys.stderr, flush=True)
            try:
                end = attempt(there, _with_resume(arguments, resume), {**writers, RESTART: why})
            except HostUnreachable as error:
                end = LauncherEnd(ending=Ending(code=LOST, message=str(error)), stop_requested=False)
    return end.ending


@contextmanager
def _layout_of_hosts_there(layout: RankLayout, arguments: list[str], rule: RestartRule) -> Iterator[RankLayout | str]:
    """The layout of a restart, on the hosts that are there; or why there is none, where they are too few for too long.

    Ranks of the former attempt that still run on them are killed: they would keep its port.
    """
    if not layout.by_ssh:
        yield layout
        return
    assert layout.hosts is not None
    gone = _wait_for_hosts(layout, rule)
    there = [host for host in layout.hosts.slots if host not in gone]
    with TemporaryDirectory(prefix="dmd-hosts-") as folder:
        hosts = write_hosts(layout.hosts, there, Path(folder) / "hosts")
        if hosts.num_ranks < rule.min_ranks:
            yield f"{', '.join(gone)} not reached by ssh within {rule.patience:g} s ({next(iter(gone.values()))})"
            return
        fewer = replace(layout, hosts=hosts)
        remote_ranks(fewer, arguments, os.environ).signal(0, signal.SIGKILL)
        yield fewer


def _wait_for_hosts(layout: RankLayout, rule: RestartRule) -> dict[str, str]:
    """Wait until enough hosts are there, not for ever; returns those that are gone, each with the reason."""
    assert layout.hosts is not None
    end = time.monotonic() + rule.patience
    told = False
    while True:
        gone = unreachable(layout.hosts.slots, ssh_arguments(layout))
        ranks = sum(ranks for host, ranks in layout.hosts.slots.items() if host not in gone)
        if ranks >= rule.min_ranks or time.monotonic() > end:
            return gone
        if not told:
            print(
                f"dmd train: waiting for {', '.join(gone)}: {ranks} of {layout.hosts.num_ranks} ranks have a host, "
                f"--min-ranks is {rule.min_ranks}",
                file=sys.stderr,
                flush=True,
            )
            told = True
        time.sleep(LOOK_SECONDS)


def _from(checkpoints: Path, resume: Resume) -> str:
    """Where a restart begins."""
    path, _ = choose_checkpoint(checkpoints, resume)
    return "from the start" if path is None else f"from {path.name}"


def _on(layout: RankLayout) -> str:
    if layout.hosts is None:
        return ""
    ranks = layout.num_ranks
    return f" on {ranks} rank{'s' * (ranks > 1)} ({', '.join(layout.hosts.slots)})"


def _value(arguments: list[str], option: str) -> str:
    return arguments[arguments.index(option) + 1]


def _with_resume(arguments: list[str], resume: Resume) -> list[str]:
    place = arguments.index("--resume") + 1
    return [*arguments[:place], str(resume), *arguments[place + 1 :]]
