"""What libraries print in a rank goes to a log of the run, what this program prints stays on the screen."""

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from launch.starting.ending_collectors import LateLog, StderrCollector
from launch.starting.quiet_launch import LazyLog
from launch.supervision.ending import Ending, report_line
from launch.supervision.launcher_log import LOG, SSH_LOG, LogTail, log_path
from launch.supervision.lost import StderrRelay

RANK = """
import logging, os, sys, warnings
from launch.supervision.launcher_log import divert_libraries, library_output
divert_libraries(os.environ)
os.write(1, b"NCCL INFO\\n")
print("threads: 2")
print("an error of ours", file=sys.stderr)
with library_output():
    print("builds an operation")
    kept = logging.StreamHandler(sys.stdout)
kept.emit(logging.makeLogRecord({"msg": "DeepSpeed warns"}))
warnings.warn("torch warns")
logging.getLogger("transformers.loading").warning("a library warns")
logging.getLogger("data_shards.reading").warning("a damaged shard")
os.system("echo a compiler warns >&2")
"""
LIBRARIES = (
    "NCCL INFO",
    "builds an operation",
    "DeepSpeed warns",
    "torch warns",
    "a library warns",
    "a compiler warns",
)


def rank(run: Path, **env: str) -> tuple[str, str]:
    """What such a rank prints to stdout and stderr."""
    ended = subprocess.run(
        [sys.executable, "-c", RANK],
        env={**os.environ, LOG: str(run), **env},
        capture_output=True,
        text=True,
        check=True,
    )
    return ended.stdout, ended.stderr


def test_libraries_print_to_the_log_and_this_program_to_the_screen(tmp_path):
    run = tmp_path / "run"
    for start in range(2):
        tail = LogTail(run, range(1))
        assert rank(run) == ("threads: 2\n", "an error of ours\na damaged shard\n")
        log = log_path(run, 0).read_text()
        assert log.count(" start of 1 ranks on this host\n") == start + 1
        assert [line for line in LIBRARIES if log.count(line) == start + 1] == list(LIBRARIES)
    shown = tail.text().splitlines()
    assert shown[0] == f"what libraries said last, of {run}/launcher.log:"
    assert "NCCL INFO" in shown
    assert shown.count("NCCL INFO") == 1, "of this start alone"
    assert LogTail(run, range(2)).text() == "", "nothing since"


def test_another_host_has_a_log_of_its_own_where_it_has_the_run_directory(tmp_path):
    run = tmp_path / "run"
    assert "NCCL INFO" in rank(run, CROSS_RANK="1")[0]
    assert not run.exists()
    run.mkdir()
    assert rank(run, CROSS_RANK="1", LOCAL_RANK="1")[0] == "threads: 2\n"
    log = log_path(run, 1)
    assert log.name == "launcher-1.log"
    assert " start of " not in log.read_text(), "its first rank says that"


def test_a_run_directory_that_cannot_be_written_leaves_all_on_the_screen(tmp_path):
    (tmp_path / "run").write_text("a file")
    out, err = rank(tmp_path / "run")
    assert [line for line in LIBRARIES if line not in out + err] == []


def test_what_the_launcher_itself_says_goes_to_the_log(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv(LOG, str(tmp_path / "run"))
    stream = LazyLog(0)
    assert not (tmp_path / "run").exists(), "until it says something"
    print("Traceback", file=stream)
    assert log_path(tmp_path / "run", 0).read_text() == "Traceback\n"
    monkeypatch.delenv(LOG)
    print("Traceback", file=LazyLog(0))
    assert capfd.readouterr().err == "Traceback\n"


def test_launchers_behind_ssh_have_a_log_and_ranks_the_screen(tmp_path, capfdbinary):
    run = tmp_path / "run"
    lines = {
        1: ["node2: [2026-11-27 19:13:40,906] [INFO] [launch.py:152:main] WORLD INFO DICT", "node1: threads: 2"],
        2: [
            f"node2: {report_line(1, Ending(code=75))}",
            "pdsh@node0: node2: ssh exited with exit code 75",
            "node1: oh",
        ],
    }
    said = "; ".join(f"echo '{line}' >&{stream}" for stream, texts in lines.items() for line in texts)

    def ends() -> dict[int, Ending]:
        collector = StderrCollector(run / SSH_LOG)
        launcher = subprocess.Popen(["sh", "-c", said], stdout=collector.pipe, stderr=collector.pipe)
        collector.watch(launcher)
        launcher.wait()
        return collector.endings()

    assert ends() == {1: Ending(code=75)}
    shown = capfdbinary.readouterr()
    assert shown.out == b"node1: threads: 2\n"
    assert sorted(shown.err.decode().splitlines()) == sorted([lines[1][0], *lines[2][1:]]), "there is no run directory"
    run.mkdir()
    ends()
    shown = capfdbinary.readouterr()
    assert (shown.out, shown.err) == (b"node1: threads: 2\n", b"node1: oh\n")
    assert sorted((run / SSH_LOG).read_text().splitlines()) == sorted([lines[1][0], lines[2][1]])


def test_a_screen_that_is_full_lets_the_launcher_write_on(tmp_path, monkeypatch):
    """A pipe that nobody reads would stop pdsh, and with it all ranks."""
    said = f"yes a line of a rank | head -n 20000; echo '{report_line(1, Ending(code=75))}' >&2"
    with suppress(OSError), open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        collector = StderrCollector(tmp_path / SSH_LOG)
        launcher = subprocess.Popen(["sh", "-c", said], stdout=collector.pipe, stderr=collector.pipe)
        collector.watch(launcher)
        assert launcher.wait(timeout=20) == 0
        assert collector.endings() == {1: Ending(code=75)}


@contextmanager
def full_log(run: Path) -> Iterator[None]:
    """The log of a run cannot grow in this block."""
    run.mkdir()
    log_path(run, 0).touch()
    os.truncate(log_path(run, 0), 1 << 20)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_log_that_is_full_ends_no_supervisor_and_no_rank(tmp_path, monkeypatch, capfd):
    run = tmp_path / "run"
    monkeypatch.setenv(LOG, str(run))
    relay = StderrRelay()
    with full_log(run):
        os.write(relay._writer, b"NCCL INFO\n")
        relay.close_writer()
        relay.finish()
        print("Traceback", file=LazyLog(0))
        script = "import os; from launch.supervision.launcher_log import divert_libraries as divert; "
        subprocess.run([sys.executable, "-c", f"{script}divert(os.environ); print('trained')"], check=True)
    os.close(relay.reader)
    shown = capfd.readouterr()
    assert (shown.out, shown.err) == ("trained\n", "NCCL INFO\nTraceback\n")


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_log_that_is_no_file_is_neither_followed_nor_waited_for(tmp_path, monkeypatch, capfd, kind):
    run, other = tmp_path / "run", tmp_path / "other"
    run.mkdir()
    other.write_text("mine\n")
    for log in (log_path(run, 0), run / SSH_LOG):
        if kind == "link":
            log.symlink_to(other)
        else:
            os.mkfifo(log)
    monkeypatch.setenv(LOG, str(run))
    tail = LogTail(run, range(1))
    print("Traceback", file=LazyLog(0))
    late = LateLog(run / SSH_LOG)
    late.write("pdsh\n")
    late.close()
    assert capfd.readouterr().err == "Traceback\npdsh\n"
    assert tail.text() == ""
    assert other.read_text() == "mine\n"
