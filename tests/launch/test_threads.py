"""Threads of a rank: from cores, other work, and what the run had before."""

import json
import os

import pytest
import torch

from launch.trainer.threads import busy_cores, choose_threads, is_set_by_user, previous_threads, set_threads


@pytest.mark.parametrize(
    ("cores", "busy", "ranks", "previous", "threads"),
    [
        (2, 0.0, 1, None, 2),
        (2, 0.4, 1, None, 2),
        (2, 0.9, 1, None, 1),
        (2, 2.0, 1, None, 1),
        (64, 30.2, 2, None, 17),
        (2, 0.0, 4, None, 1),
        (8, 0.0, 3, None, 2),
        (8, 6.0, 2, 4, 4),
        (4, 0.0, 1, 8, 4),
        (2, 0.0, 1, 1, 1),
        (2, 0.0, 4, 1, 1),
    ],
)
def test_the_choice(cores, busy, ranks, previous, threads):
    assert choose_threads(cores, busy, ranks, previous) == threads


def test_busy_cores_are_some_of_this_process():
    assert 0 <= busy_cores() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("info", "previous"),
    [
        ({"ranks": 2, "threads": 3}, 3),
        ({"ranks": 1, "threads": 3}, None),
        ({"ranks": 2}, None),
        ([], None),
        ({"ranks": 2, "threads": "x"}, None),
    ],
)
def test_a_run_keeps_its_threads(tmp_path, info, previous):
    assert previous_threads(tmp_path, 2) is None
    (tmp_path / "run.json").write_text(json.dumps({"info": info}))
    assert previous_threads(tmp_path, 2) == previous


def test_the_users_choice_wins(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    before = torch.get_num_threads()
    set_threads(tmp_path, torch.device("cpu"))
    assert torch.get_num_threads() == before
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("text", ["abc", "0", "-1", "4x", "2.5", "1e3", "4,", ",4", "4,0", "9" * 11, "\u0664", "${N}"])
def test_a_number_of_threads_that_is_no_number_is_rejected(monkeypatch, tmp_path, text):
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    with pytest.raises(ValueError, match="; give a number of threads such as 4, or unset it"):
        set_threads(tmp_path, torch.device("cpu"))


def test_an_empty_choice_is_none():
    assert [is_set_by_user(text) for text in ("", " ", "7", " 7 ", "4,2", "+3", "08")] == [False] * 2 + [True] * 5
