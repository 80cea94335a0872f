"""One rank of several ends alone: all end with its exit code, on every host, and one line says why.

The table of docs/multi-node.md: each code from each rank of two and four. The ranks are real processes that have joined
a process group and wait for each other in it; `test_launcher.py` and `test_hosts.py` go through `dmd train`.
"""

import os
import signal
import socket
import sys
import tempfile
import threading
from datetime import timedelta
from functools import partial
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from data_shards.terminal import WRAPPER_PID
from dmd.exit_codes import severity
from dmd.testing.fault_points import fault_point
from dmd.training.outcome import Outcome
from launch.network.ports import free_port
from launch.network.rank_environment import rank_environment
from launch.starting.ending_collectors import MemoryCollector
from launch.starting.launcher import Launcher
from launch.starting.rank_processes import LocalRanks
from launch.supervision.channels import Channels
from launch.supervision.ending import REPORTS, Ending, cause, read_report, report_line
from launch.supervision.peers import Peers
from launch.supervision.supervise import StopRequest, supervise
from launch.trainer.engine import join_process_group
from launch.trainer.main import RankState, run_rank
from tests.support.ranks import PATIENCE, forks

ENDS = {"mistake": 2, "storage": 74, "memory": 71, "bug": 1, "kill": 137}
WORDS = {
    "mistake": "a mistake of the user's",
    "storage": "No space left on device",
    "memory": "has no memory left",
    "bug": "failed over RuntimeError: a socket of our own timed out",
    "kill": "was killed by SIGKILL (signal 9)",
}
LOST, STOPPED = 69, 75
TIMEOUT = timedelta(seconds=60)


def _work(met: Barrier, peers: Peers, state: RankState) -> Outcome:
    torch.set_num_threads(1)
    peers.connect(TIMEOUT)
    met.wait(TIMEOUT.total_seconds())  # a rank that leaves before others have joined publishes nothing to them
    fault_point("connected")
    if os.environ["DMD_FAULT"].endswith(f"connected@1@{os.environ['RANK']}"):
        threading.Event().wait()  # as in a wait for hosts that are not there
    join_process_group(TIMEOUT)
    dist.barrier()
    fault_point("joined")
    dist.barrier()
    state.training = True
    peers.begin()
    fault_point("trains")
    dist.all_reduce(torch.ones(8))
    return Outcome(step=0, epoch=0, first_step=0, best_step=-1, best_loss=0, stopped=False, finished_before=False)


def _rank(environment: dict[str, str], log: str, met: Barrier) -> None:
    os.environ.update(environment)
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)

    def train(stop: StopRequest, channels: Channels) -> int:
        run_rank(partial(_work, met), channels)
        return 0

    sys.exit(supervise(train))


def end(folder: Path, ranks: int, fault: str) -> tuple[list[int | None], dict[int, Ending], str]:
    """Exit codes and endings of ranks that a fault ends, and what they printed."""
    log, port, collector, processes = tempfile.mkstemp(dir=folder)[1], free_port(), MemoryCollector(), []
    met = forks.Barrier(ranks)
    for rank in range(ranks):
        environment = {
            **rank_environment(rank=rank, ranks=ranks, port=port),
            "GLOO_SOCKET_IFNAME": "lo",
            "DMD_FAULT": fault,
            REPORTS: collector.address,
            WRAPPER_PID: str(os.getpid()),
        }
        processes.append(forks.Process(target=_rank, args=(environment, log, met)))
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
    return [process.exitcode for process in processes], collector.endings(), Path(log).read_text(errors="replace")


@pytest.mark.multiproc
@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("action", ENDS)
def test_each_code_from_each_rank(tmp_path, action, ranks):
    for rank in range(ranks):
        codes, endings, output = end(tmp_path, ranks, f"{action}:trains@1@{rank}")
        others = LOST if action == "kill" else ENDS[action]
        assert codes == [ENDS[action] if number == rank else others for number in range(ranks)], output
        ending = cause(endings)
        assert ending.code == ENDS[action]
        assert ending.origin == rank
        assert WORDS[action] in ending.message, ending
        assert f"rank {rank} on " in ending.message or (action == "mistake" and rank == 0)
        assert "dmd train: " not in output, "only the process that reads the endings prints them"
        assert ("Traceback" in output) == (action == "bug")


@pytest.mark.multiproc
@pytest.mark.slow
def test_rank_0_stays_until_all_know_why_another_one_leaves(tmp_path):
    """Before the training begins they leave at once, and the store with the cause is rank 0's."""
    codes, endings, output = end(tmp_path, 4, "bug:joined@1@3")
    assert codes == [1, 1, 1, 1], output
    assert {ending.origin for ending in endings.values()} == {3}


@pytest.mark.multiproc
@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_stopped_while_others_wait_for_it(tmp_path, rank):
    codes, endings, output = end(tmp_path, 2, f"stop:connected@1@{rank}")
    assert codes == [STOPPED, STOPPED], output
    message = (
        f"rank {rank} on {socket.gethostname()} was asked to stop before its first step; the same command continues"
    )
    assert {ending.message for ending in endings.values()} == {message}


def test_which_of_several_endings_is_the_cause():
    by_severity = [2, 74, 71, 1, 137, 143, 69, 75, 0]
    assert sorted(by_severity, key=severity, reverse=True) == by_severity
    assert severity(255) == severity(143)
    assert severity(13) == severity(1), "an unknown code is a bug"
    lost = Ending(code=69, message="lost", origin=0)
    assert cause({0: lost, 1: Ending(code=137, message="killed", origin=1)}).message == "killed"
    follows, own = Ending(code=2, message="b", origin=1), Ending(code=2, message="b", origin=1)
    assert cause({0: follows, 1: own}) is own
    assert cause({0: Ending(code=74), 1: Ending(code=74, message="x", origin=0)}).message == "x"


def test_a_report_among_lines_of_several_hosts():
    ending = Ending(code=74, message="disk: full\n é", origin=3)
    line = report_line(3, ending)
    assert "\n" not in line
    assert read_report(f"node-1: {line}\n") == (3, ending)
    for other in ("step 3: loss 2", line.replace("3", "x", 1), line[:-1], "dmd rank ended: 3 []"):
        assert read_report(other) is None


@pytest.mark.parametrize(("end", "expected"), [("exit 0", 69), ("kill -9 $$", 69), ("exit 75", 75)])
def test_ranks_that_have_stopped_before_the_wrapper_looks(end, expected):
    """A launcher that was killed, or DeepSpeed's runner above it, which then ends with 0; else the ranks' exit code."""
    collector = MemoryCollector()
    line = report_line(0, Ending(code=75, message="stopped", origin=0))
    command = ["sh", "-c", f'echo "$1" > "$2"; {end}', "sh", line, collector.address]
    assert Launcher(LocalRanks(), collector, range(1), patience=1).run(command, os.environ).code == expected


@pytest.mark.parametrize(("asked", "code"), [(True, 75), (False, 69)])
def test_a_stop_request_may_kill_a_supervisor_that_has_just_started(asked, code):
    collector = MemoryCollector()
    line = report_line(1, Ending(code=75, message="rank 1 was asked to stop", origin=1))
    ends = f"kill -TERM {os.getpid()}; sleep 2" if asked else "sleep 2"
    command = ["sh", "-c", f'echo "$1" > "$2"; {ends}; exit 241', "sh", line, collector.address]
    ending = Launcher(LocalRanks(), collector, range(2), patience=1).run(command, os.environ)
    assert ending.code == code
    assert ("rank 1 was asked to stop" if asked else "rank 0 ended without a report") in ending.message


def test_ranks_that_a_second_request_killed_are_no_stopped_ones():
    """Though another rank had stopped before it."""
    collector = MemoryCollector()
    Path(collector.address).write_text(report_line(1, Ending(code=75, message="stopped", origin=1)) + "\n")
    launcher = Launcher(LocalRanks(), collector, range(2), patience=1)
    launcher._requested_at[signal.SIGTERM] = 0.0
    launcher._kill_requested = True
    assert launcher._overall_ending(-9, abandoned=False).code == 137
