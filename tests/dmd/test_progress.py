"""What a training shows while it runs, on a terminal and in a file."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TextIO

import pytest

import data_shards.progress
from data_shards.progress import Progress
from data_shards.terminal import CLEAR, DrawnLines, drawing_stream
from dmd.checkpoint.state import Cursor
from dmd.training.logging import progress as module
from dmd.training.logging.progress import TrainingProgress
from dmd.training.pace import Pace, Throughput
from tests.support.progress import made_progress, report_of

VALUES = {"total": 7.9612, "task_fused": 1.0213, "reconstruction": 0.4121, "margin": 0.31, "cycle": 5.0}
METRICS = {"mae": 0.9, "corr": 0.61, "acc2_non0": 0.8123, "acc7": 0.341}


@dataclass
class Terminal:
    """A pseudoterminal; a test puts it in the place of stdout, where pytest has its own until then."""

    stream: TextIO
    reader: int

    def shown(self) -> str:
        """What has been written to it."""
        self.stream.flush()
        text = b""
        while select.select([self.reader], [], [], 0.05)[0]:
            text += os.read(self.reader, 1 << 16)
        return text.decode()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    reader, writer = pty.openpty()
    with open(writer, "w", encoding="utf-8") as stream:
        monkeypatch.setenv("TERM", "xterm")
        fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        yield Terminal(stream, reader)
    os.close(reader)


def plain(text: str) -> str:
    """A text without what moves the cursor or colours."""
    return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text).replace("\r", "")


def trained(progress: TrainingProgress, steps: int) -> None:
    """Make so many steps of the first epoch."""
    progress.begin_epoch()
    for step in range(1, steps + 1):
        progress.step(step, Cursor(epoch=0, step=step), VALUES, 812.0)


def test_the_drawn_lines_say_where_it_stands(terminal, monkeypatch):
    monkeypatch.setattr(sys, "stdout", terminal.stream)
    progress = made_progress()
    with progress:
        trained(progress, 3)
        drawn = progress._drawn
        assert drawn is not None
        drawn.draw()
        shown = plain(terminal.shown())
    assert "training on 1 rank (cpu): 1280 samples in 8 steps an epoch, 40 epochs at most\n" in shown
    assert re.search(r"epoch 1 of 40  ━+.*  step 3 of 8", shown)
    assert "loss 7.961  task fused 1.021  reconstruction 0.412  margin 0.310" in shown
    assert re.search(r"lr 1\.0e-03  812 samples/s  \d:\d\d left in the epoch, \d:\d\d at most in all", shown)
    progress.begin_validation(640.0)
    progress.validated()
    progress._schedule.update(0.9, epoch=0, step=8)
    progress.end_epoch(report_of(1, METRICS), Cursor(epoch=1), best=True)
    assert progress.facts()[2] == ["valid MAE (mosi) 0.9000", "best 0.9000 in epoch 1"]


def test_what_is_printed_stays_above_the_drawn_lines_whoever_prints_it(terminal, monkeypatch):
    """The cursor stays at the beginning of what is drawn, which each line takes away."""
    monkeypatch.setattr(sys, "stdout", terminal.stream)
    with DrawnLines(terminal.stream, lambda: "drawn\nlines", ticks=False) as drawn:
        drawn.draw()
        assert terminal.shown().replace("\r\n", "\n") == f"{CLEAR}drawn\nlines\x1b[1A\r"
        print("a", "line", end="")
        assert sys.stdout.isatty()
        print(" and its end\nanother")
        assert terminal.shown().replace("\r\n", "\n") == f"{CLEAR}a line and its end\n{CLEAR}another\n"
        print("unfinished", end="")
    assert sys.stdout is terminal.stream
    assert terminal.shown().replace("\r\n", "\n") == f"{CLEAR}unfinished\n{CLEAR}"


def test_work_within_work_that_is_drawn_draws_nothing_of_its_own(terminal, monkeypatch):
    """Its lines are printed above those that are drawn."""
    monkeypatch.setattr(sys, "stdout", terminal.stream)
    monkeypatch.setattr(sys, "stderr", terminal.stream)
    with Progress(2, "clips") as outer:
        assert outer._lines is not None
        with Progress(2, "samples") as inner:
            assert inner._lines is None
            monkeypatch.setattr(data_shards.progress, "LINE_SECONDS", -1.0)
            inner.advance()
            assert re.fullmatch(r"1 of 2 samples, .* left\r?\n", plain(terminal.shown()))
        with pytest.raises(AssertionError):
            DrawnLines(sys.stdout, lambda: "", ticks=False)
    assert sys.stdout is sys.stderr is terminal.stream
    assert drawing_stream() is terminal.stream


RANK = """
import fcntl, os, signal, subprocess, sys, termios
from data_shards.terminal import WRAPPER_PID, DrawnLines
def rank():
    if not (child := os.fork()):
        os.setsid()
        with DrawnLines(sys.stdout, lambda: "drawn", ticks=False) as lines:
            lines.draw()
            print("a line")
        sys.stdout.flush()
        os._exit(0)
    os.waitpid(child, 0)
fcntl.ioctl(1, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
os.environ[WRAPPER_PID] = str(os.getpid())
rank()
other = subprocess.Popen(["sleep", "60"], preexec_fn=os.setpgrp)
os.tcsetpgrp(1, other.pid)
rank()
other.kill()
os.tcsetpgrp(1, os.getpgrp())
rank()
"""


def test_nothing_is_drawn_while_another_command_has_the_terminal(terminal):
    """As after `&` and Ctrl-Z; of ranks, which are in a session of their own."""
    ran = subprocess.run([sys.executable, "-c", RANK], stdout=terminal.stream, start_new_session=True, timeout=60)
    assert ran.returncode == 0
    drawn = f"{CLEAR}drawn\r{CLEAR}a line\n{CLEAR}"
    assert terminal.shown().replace("\r\n", "\n") == f"{drawn}a line\n{drawn}"


def test_nothing_is_drawn_on_a_dumb_terminal_or_beside_a_pipe(terminal, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "stdout", terminal.stream)
    assert drawing_stream() is terminal.stream
    monkeypatch.setenv("TERM", "dumb")
    assert drawing_stream() is None
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal.stream)
    reader, writer = os.pipe()
    with open(writer, "w") as pipe, open(tmp_path / "file", "w") as file, open(reader):
        monkeypatch.setattr(sys, "stdout", pipe)  # as of `dmd train | tee`
        assert drawing_stream() is None
        monkeypatch.setattr(sys, "stdout", file)
        assert drawing_stream() is terminal.stream


def test_a_file_gets_a_line_per_epoch_and_in_a_long_epoch_one_now_and_then(capsys, monkeypatch):
    progress = made_progress()
    with progress:
        trained(progress, 8)
        assert capsys.readouterr().out.count("\n") == 1, "only that it begins"
        monkeypatch.setattr(module, "LINE_SECONDS", -1.0)
        progress.step(3, Cursor(epoch=0, step=3), VALUES, 812.0)
        line = capsys.readouterr().out
        assert re.fullmatch(
            r"  epoch 1 of 40, step 3 of 8, loss 7\.961, task fused 1\.021, lr 1\.0e-03, 812 samples/s, "
            r"\d:\d\d left in the epoch, \d:\d\d at most in all\n",
            line,
        )
        progress.begin_validation(640.0)
        progress.validated()
        assert "epoch 1 of 40, validation 1 of 4, loss" in capsys.readouterr().out
        progress.end_epoch(report_of(1, METRICS), Cursor(epoch=1), best=True)
        assert re.fullmatch(
            r"epoch   1/40  step     8  loss 7\.961  valid \(mosi\) MAE 0\.9000  Corr 0\.6100  Acc2 Non0 81\.23 %  "
            r"Acc7 34\.10 %  lr 1\.0e-03  640 samples/s  \d:\d\d  best\n",
            capsys.readouterr().out,
        )


def test_the_time_that_is_left_counts_steps_validations_and_max_steps(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("dmd.training.pace.time.perf_counter", lambda: now[0])

    def pace(max_steps: int | None) -> Pace:
        made = Pace(steps_per_epoch=10, epochs=4, max_steps=max_steps)
        made.begin()
        for seconds, count in ((100.0, made.first_step), (2.0, made.step), (2.0, made.step), (6.0, made.validation)):
            now[0] += seconds
            count()
        return made

    assert Pace(steps_per_epoch=10, epochs=4, max_steps=None).left(0, 0, 0) is None
    assert pace(None).left_in_epoch(3) == pytest.approx(14)
    assert pace(None).left(3, 0, 3) == pytest.approx(37 * 2 + 4 * 6)
    assert pace(12).left(3, 0, 3) == pytest.approx(9 * 2 + 2 * 6)
    assert pace(12).left(12, 1, 2) == pytest.approx(6), "its validation"


def test_a_step_that_ends_an_epoch_with_few_samples_is_measured_with_the_one_before_it(monkeypatch):
    """CMU-MOSI's epoch of 1,284 samples ends with a step of 4, which takes nearly as long as one of 160."""
    now = [0.0]
    monkeypatch.setattr("dmd.training.pace.time.perf_counter", lambda: now[0])
    throughput, laps = Throughput(), []
    for samples, seconds in [(160, 2.0), (160, 0.8), *[(160, 1.0)] * 6, (4, 0.5)]:
        now[0] += seconds
        throughput.step(samples)
        laps.append(throughput.lap())
    assert laps == pytest.approx([80, 200, *[160] * 6, 164 / 1.5])
    assert throughput.whole() == pytest.approx(1284 / 9.3)
    throughput.begin()
    laps = []
    for number in range(1, 6):  # a resume inside an epoch may cut the first lap short
        now[0] += 1
        throughput.step(160)
        laps += [throughput.lap()] if number in (1, 5) else []
    assert laps == pytest.approx([160, 160])
    assert throughput.whole() == pytest.approx(160)
