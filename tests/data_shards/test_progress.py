"""What is said of work that is counted, and of waits."""

import re
import time
from itertools import islice

from data_shards import progress as module
from data_shards.progress import Progress, duration
from data_shards.waiting import moments, waiting


def test_work_that_takes_long_says_a_line_now_and_then(capsys, monkeypatch):
    with Progress(640, "samples") as progress:
        progress.advance(64)
        assert capsys.readouterr().err == ""
        monkeypatch.setattr(module, "LINE_SECONDS", -1.0)
        progress.advance(64, "9 MiB/s")
        line = capsys.readouterr().err
        assert re.fullmatch(r"128 of 640 samples, \S+ a second, 9 MiB/s, \d:\d\d left\n", line), line
    with Progress(None, "samples") as progress:
        progress.set(7)
    assert re.fullmatch(r"7 samples, \S+ a second\n", capsys.readouterr().err)


def test_a_time_is_hours_minutes_and_seconds():
    assert [duration(seconds) for seconds in (0.4, 59.6, 61, 3725)] == ["0:00", "1:00", "1:01", "1:02:05"]
    assert [duration(seconds, fine=True) for seconds in (0.0123, 9.87, 61)] == ["12 ms", "9.9 s", "1:01"]


def test_a_wait_is_told_at_intervals_that_double_and_a_short_one_is_not(capsys):
    assert list(islice(moments(5.0), 4)) == [5, 10, 20, 40]
    told = ""
    with waiting("a friend", after=0.01):
        while told.count("\n") < 2:
            time.sleep(0.01)
            told += capsys.readouterr().err
    assert set((told + capsys.readouterr().err).splitlines()) == {"waiting for a friend (0 s)"}
    with waiting("a friend"):
        pass
    with waiting("a friend", shown=False, after=0.0):
        time.sleep(0.05)
    assert capsys.readouterr().err == ""
