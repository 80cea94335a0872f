"""Two trainings on one run directory, and a log or run directory that goes away under a training."""

import json
import os
import re
import signal
import socket

import pytest

from data_shards.sole_writer import LEASE_FILE
from tests.support.ranks import (
    ENDLESS,
    Session,
    assert_bitwise,
    errors,
    finish,
    last,
    losses,
    newest_step,
)
from tests.support.waiting import until

pytestmark = pytest.mark.multiproc
USER_ERROR, STOPPED = 2, 75
SAVES = "train.save_every=1"


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_second_training_is_rejected_and_harms_nothing(shards, reference, tmp_path, ranks):
    run = tmp_path / "run"
    first = Session(shards, run, SAVES, *ENDLESS, ranks=ranks)
    until(lambda: newest_step(run) >= 4, lambda: first.output)
    holder = json.loads((run / LEASE_FILE).read_text())
    second = Session(shards, run, "train.seed=2", ranks=ranks).wait()
    os.kill(first.supervisor(0), signal.SIGTERM)
    ended = first.wait()
    assert second.codes == [USER_ERROR] * ranks, second.output
    (line,) = errors(second.output)
    assert f"{run} is being written by process {holder['process']} on {socket.gethostname()} (since" in line
    assert ended.codes == [STOPPED] * ranks, ended.output
    assert not (run / LEASE_FILE).exists()
    finish(shards, run, SAVES, ranks=ranks, resume="4")
    assert_bitwise(run, reference(SAVES, ranks=ranks))


def test_a_training_ends_where_another_one_has_taken_its_directory_over(shards, tmp_path):
    run = tmp_path / "run"
    first = Session(shards, run, SAVES, *ENDLESS, ranks=2)
    until(lambda: newest_step(run) >= 3, lambda: first.output)
    (run / LEASE_FILE).unlink()  # as the message suggests
    second = Session(shards, run, SAVES, *ENDLESS, ranks=2)
    ended = first.wait()
    assert ended.codes == [USER_ERROR, USER_ERROR], ended.output
    holder = json.loads((run / LEASE_FILE).read_text())
    (line,) = errors(ended.output)
    assert f"{run} was taken over by process {holder['process']} on {socket.gethostname()}" in line
    noticed = newest_step(run)
    until(lambda: newest_step(run) >= noticed + 3, lambda: second.output)
    os.kill(second.supervisor(1), signal.SIGTERM)
    assert second.wait().codes == [STOPPED, STOPPED], second.output
    assert [step for step, _ in losses(run)] == list(range(1, last(run).step + 1))


@pytest.mark.parametrize("what", ["log", "events", "directory"])
def test_what_is_replaced_under_a_training_is_reported_at_the_next_epoch(shards, tmp_path, what):
    run, away = tmp_path / "run", tmp_path / "away"
    session = Session(shards, run, *ENDLESS)
    try:
        until(lambda: newest_step(run) >= 5, lambda: session.output)
        name = run if what == "directory" else next(run.glob("metrics.jsonl" if what == "log" else "events.out.*"))
        if what == "directory":
            run.rename(away)
            run.mkdir()
        else:
            name.unlink()  # TensorBoard's writer makes a new file of this name at its next flush
        message = re.compile(
            rf"{re.escape(str(name))} was (removed|replaced by another) while this training writes to it"
        )
        until(lambda: message.search(session.output), lambda: session.output)
        noticed = newest_step(run)
        until(lambda: newest_step(run) >= noticed + 10, lambda: session.output)
    finally:
        os.kill(session.supervisor(0), signal.SIGTERM)
        ended = session.wait()
    assert ended.codes == [STOPPED], ended.output
    assert len(message.findall(ended.output)) == 1
    steps = [step for step, _ in losses(run)]
    assert steps == list(range(steps[0], last(run).step + 1)), "no hole and no double from there on"
    assert (steps[0] == 1) == (what == "events"), "what was in the file that is gone is gone"
    assert list(run.glob("events.out.tfevents.*"))
