"""A rank that lost its peers is distinguished from one that failed by itself: by exceptions, under NCCL by stderr.

There is no NCCL here. What its watchdog writes is quoted from logs of trainings, and a rank that writes it and aborts,
as torch does, is a real process under a real supervisor.
"""

import errno
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from dmd.config import Config, TrainConfig
from dmd.distributed.errors import Diverged, OnEveryRank, StorageFailed
from launch.network.ports import free_port
from launch.network.rank_environment import rank_environment
from launch.supervision.channels import Channels
from launch.supervision.failures import ending_of
from launch.supervision.lost import lost_peers, nccl_abort_reason
from launch.supervision.supervise import StopRequest, supervise
from launch.supervision.watchdog import Watchdog
from launch.trainer.engine import join_process_group
from tests.support.ranks import PATIENCE, forks

LOST, ABORTED, KILLED = 69, 134, 137
TIMEOUT = (
    "[rank1]:[E1003 18:37:01.838 ProcessGroupNCCL.cpp:1515] [PG 0 (default_pg) Rank 1] Process group watchdog thread "
    "terminated with exception: [Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=6463, "
    "OpType=ALLREDUCE, NumelIn=1, NumelOut=1, Timeout(ms)=1800000) ran for 1800017 milliseconds before timing out."
)
GONE = (
    "[rank9]:[E ProcessGroupNCCL.cpp:1414] [PG 0 Rank 9] Process group watchdog thread terminated with exception: NCCL "
    "error: remote process exited or there was a network error, NCCL version 2.20.5"
)
SIGNALLED = (
    "[rank2]:[F1003 18:45:01.1 ProcessGroupNCCL.cpp:1500] [PG ID 0 PG GUID 0(default_pg) Rank 2] Terminating the "
    "process after attempting to dump debug info, due to collective timeout or exception."
)
ASSERT = (
    "[rank0]:[E1003 18:37:01.8 ProcessGroupNCCL.cpp:1895] [PG ID 0 PG GUID 0 Rank 0] Process group watchdog thread "
    "terminated with exception: CUDA error: device-side assert triggered"
)
UNHANDLED = (
    "  what():  [PG ID 0 PG GUID 0(default_pg) Rank 1] Process group watchdog thread terminated with exception: NCCL "
    "error: unhandled cuda error (run with NCCL_DEBUG=INFO for details), NCCL version 2.26.2"
)


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:9711"), False),
        (RuntimeError("connection timed out"), False),
        (dist.DistBackendError("NCCL communicator was aborted on rank 1."), True),
        (dist.DistNetworkError("The client socket has failed to connect to any network address"), True),
        (dist.DistBackendError("NCCL error in: x.cpp:1, remote process exited or there was a network error"), True),
        (dist.DistBackendError("NCCL error in: x.cpp:1, unhandled cuda error\nCuda failure 2 'out of memory'"), False),
        (dist.DistBackendError("x.cpp:1, invalid usage\nDuplicate GPU detected : rank 0 and rank 1"), False),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), False),
        (torch.AcceleratorError("CUDA error: the launch timed out and was terminated", 702), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling cublasGemmEx"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_which_errors_say_that_others_are_lost(error, lost):
    """gloo's plain RuntimeErrors count where a collective raises them; here none did (`test_kill.py`: real ones)."""
    assert lost_peers(error) is lost


def test_what_the_nccl_watchdog_says():
    assert nccl_abort_reason(TIMEOUT).startswith("Watchdog caught collective operation timeout: WorkNCCL(SeqNum=6463")
    assert nccl_abort_reason(GONE) == (
        "NCCL error: remote process exited or there was a network error, NCCL version 2.20.5"
    )
    assert "due to collective timeout or exception" in nccl_abort_reason(SIGNALLED)
    for line in (ASSERT, UNHANDLED, "epoch 3: 100%", "terminate called after throwing an instance of 'std::bad_alloc'"):
        assert nccl_abort_reason(line) is None


def _end(environment: dict[str, str], log: str, hands_over: bool, last_words: str, aborts: bool) -> None:
    """A rank of two: number 1 is killed, number 0 says something and ends as torch's watchdog makes it end."""
    os.environ.update(environment)
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)

    def train(stop: StopRequest, channels: Channels) -> int:
        watchdog = Watchdog(2, channels)
        join_process_group(timedelta(seconds=PATIENCE))
        assert dist.get_world_size() == 2
        dist.barrier()
        if dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if hands_over:
            channels.stderr.redirect_stderr()
        print("before", file=sys.stderr)
        os.write(2, last_words.encode())
        if aborts:
            os.abort()
        watchdog()
        time.sleep(PATIENCE)
        return 0

    sys.exit(supervise(train))


def end(folder: Path, *arguments: object) -> tuple[list[int | None], str]:
    """The exit codes of both ranks and what they printed."""
    log, port = tempfile.mkstemp(dir=folder)[1], free_port()
    processes = []
    for rank in range(2):
        environment = rank_environment(rank=rank, ranks=2, port=port)
        processes.append(forks.Process(target=_end, args=(environment, log, *arguments)))
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
    return [process.exitcode for process in processes], Path(log).read_text(errors="replace")


@pytest.mark.multiproc
@pytest.mark.slow
@pytest.mark.parametrize(
    ("hands_over", "last_words", "aborts", "code"),
    [
        (True, f"{TIMEOUT}\nException raised from checkTimeout at ProcessGroupNCCL.cpp:609\n", True, LOST),
        (True, f"x\n{GONE}", True, LOST),
        (True, f"{ASSERT}\n", True, ABORTED),
        (True, "terminate called without an active exception\n", True, ABORTED),
        (False, f"{TIMEOUT}\n", True, ABORTED),
        (True, f"{TIMEOUT}\n", False, LOST),
        (True, "a step that hangs\n", False, KILLED),
    ],
    ids=["timeout", "peer-gone", "assert", "terminate", "one-rank-or-gloo", "timeout-seen-then-hangs", "hangs"],
)
def test_a_rank_that_torch_aborts_over_lost_peers_ends_as_lost(tmp_path, hands_over, last_words, aborts, code):
    codes, output = end(tmp_path, hands_over, last_words, aborts)
    assert codes == [code, KILLED], output
    assert "rank 1 on" in output
    assert "was killed by SIGKILL (signal 9)" in output
    assert "before\n" in output
    assert last_words.strip() in output, "what a rank writes is passed on"
    lost = [line for line in output.splitlines() if "lost the other ranks" in line]
    assert len(lost) == (code == LOST)
    if lost:
        assert lost[0].startswith("dmd train: error: rank 0 on")
        assert lost[0].endswith("; the same command continues")
    if code == ABORTED:
        assert "was killed by SIGABRT (signal 6)" in output
        assert "stack of rank 0 on" in output


def _be_slow(log: str, patience: float, goes_on: bool) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 2)

    def train(stop: StopRequest, channels: Channels) -> int:
        watchdog = Watchdog(1, channels)
        channels.patience_seconds = patience
        watchdog()
        time.sleep(2)
        if goes_on:
            watchdog()
            watchdog.close()
        time.sleep(2 * patience if goes_on else PATIENCE)
        return 0

    sys.exit(supervise(train))


@pytest.mark.multiproc
@pytest.mark.parametrize(("patience", "goes_on", "code"), [(3, True, 0), (6, False, KILLED)])
def test_a_rank_without_heartbeats_shows_its_stacks_first(tmp_path, patience, goes_on, code):
    """It is killed when a collective that began just before would have ended by itself, unless it goes on."""
    log, begin = tmp_path / "log", time.monotonic()
    log.touch()
    process = forks.Process(target=_be_slow, args=(str(log), patience, goes_on))
    process.start()
    process.join(PATIENCE)
    assert process.exitcode == code, log.read_text()
    assert "in _be_slow" in log.read_text() or "in train" in log.read_text()
    assert time.monotonic() - begin > patience


FULL = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "4294967296 bytes. Error code 12 (Cannot allocate memory)"
)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1 GiB free.\nmore"),
            71,
            "rank 3 on HOST has no memory left on its device (CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 "
            "has 1 GiB free.); lower train.ghost_batches_per_forward (now auto), which changes memory and speed only",
        ),
        (FULL, 71, "rank 3 on HOST has no memory left on its host (4.00 GiB were asked for; "),
        (MemoryError(), 71, "has no memory left on its host (MemoryError; "),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 71, "GiB are free"),
        (torch.AcceleratorError("CUDA error: device-side assert", 710), 1, "the device of rank 3 on HOST failed"),
        (dist.DistBackendError("NCCL communicator was aborted."), LOST, "rank 3 on HOST lost the other ranks (NCCL"),
        (RuntimeError("a bug: timed out on a socket"), 1, "rank 3 on HOST failed over RuntimeError: a bug"),
        (KeyError("x"), 1, "rank 3 on HOST failed over KeyError: 'x'; its traceback is above"),
        (ValueError("damaged"), 2, "rank 3 on HOST: damaged"),
        (Diverged("diverged"), 2, "diverged"),
        (OnEveryRank("rank 1 on X: damaged"), 2, "rank 1 on X: damaged"),
        (OSError(errno.ENOSPC, "full"), 74, "rank 3 on HOST: [Errno 28] full; the same command continues when"),
        (StorageFailed("rank 0 cannot write"), 74, "rank 0 cannot write; the same command continues when"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_how_a_rank_ends_over_an_error(monkeypatch, capsys, error, code, message):
    monkeypatch.setenv("RANK", "3")
    ending = ending_of(error, 3, Config(), alone=True)
    message = message.replace("HOST", socket.gethostname())
    assert (ending.code, ending.origin) == (code, 3)
    assert message in ending.message
    assert ending.message.startswith(message) or "GiB" in message or "MemoryError" in message
    assert "\n" not in ending.message
    assert ("Error: " in capsys.readouterr().err) == (code == 1), "a bug or a device has a traceback"


def test_which_key_lowers_what_a_rank_needs():
    config = Config(train=TrainConfig(ghost_batches_per_forward=1))
    assert (
        "is 1 already: with several ranks raise train.zero_stage (now 0)"
        in ending_of(MemoryError(), 0, config, alone=True).message
    )


LIMITED = """
import resource, sys
from dmd.config import Config, TrainConfig
from dmd.distributed.errors import Diverged, StorageFailed
from launch.supervision.channels import Channels
from launch.trainer.main import run_rank
def work(peers, progress):
    import torch
    resource.setrlimit(resource.RLIMIT_AS, (1 << 33, 1 << 33))
    torch.zeros(1 << 33)
run_rank(work, Channels())
"""


def test_a_memory_limit_is_exit_code_71():
    ended = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True)
    assert ended.returncode == 71, ended.stderr
    assert "Traceback" not in ended.stderr
