"""Searches on clusters of their own, as on a workstation: nothing is started, named or set before `dmd tune`."""

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from cluster.search.trial_records import TrialRecord, TrialRecords
from dmd.exit_codes import STOPPED
from tests.support import ranks
from tests.support.clusters import TINY, assert_stopped, dmd_anew, finish, lines, make_shards, records, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.multiproc, pytest.mark.slow]


def listening(root: int) -> set[tuple[str, str]]:
    """Name and address of each TCP socket on which a process or a descendant of it listens."""
    found = set()
    for process in [psutil.Process(root), *psutil.Process(root).children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            for entry in process.net_connections("tcp"):
                if entry.status == psutil.CONN_LISTEN:
                    found.add((process.name(), f"{entry.laddr.ip.removeprefix('::ffff:')}:{entry.laddr.port}"))
    return found


@dataclass(frozen=True)
class Pair:
    """Two searches side by side, each on a cluster of its own, that continue where another session has ended their
    first trial; in both ASHA stops the second one, and then the third starts."""

    whole: Path
    """The experiment of the one that runs to its end."""
    output: str
    interrupted: Path
    """That of the one that is asked to stop, in its third trial."""
    last_words: str
    heard: set[tuple[str, str]]
    """What its processes listened on."""


def end_first_trial(run: Path, *experiments: Path) -> None:
    """Give experiments a first trial that has ended, of which this is the run, as the session before left it."""
    for experiment in experiments:
        trials = TrialRecords(experiment)
        shutil.copytree(run, trials.run(0))
        trials.write(TrialRecord(number=0, values={"train.learning_rate": 1e-3}, state="finished"))
        trials.reconcile()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("own")
    shards, space = make_shards(folder / "shards"), folder / "space.yaml"
    # One after the other: a trial that reaches each rung first is never stopped. The third is the best: it goes on.
    space.write_text("train.learning_rate: {choice: [1.0e-3, 1.0e-6, 1.0e-2]}\n")
    common = ["tune", "--data", shards, "--space", space, "--search", "grid", "--reduction", "2", *TINY]
    one, other = folder / "one", folder / "other"
    common += ["--cpus", "1", "train.early_stop=2000"]
    ranks.finish(shards, folder / "run", *TINY, "train.epochs=2", "train.learning_rate=1e-3")
    end_first_trial(folder / "run", one, other)
    first = dmd_anew(*common, "--out", one, "train.epochs=2", log=folder / "first")
    second = dmd_anew(*common, "--out", other, "--final-seeds", "1", "train.epochs=2000", log=folder / "second")
    try:
        wait_for(lambda: second.poll() is not None or lines(other / "trials" / "0002", "valid"), "the third trial")
        heard = listening(second.pid)
        for _ in range(2):  # one request, delivered twice
            os.killpg(second.pid, signal.SIGINT)
        last_words = finish(second, folder / "second", code=STOPPED)
        yield Pair(one, finish(first, folder / "first"), other, last_words, heard)
    finally:
        for search in (first, second):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(search.pid, signal.SIGKILL)


def test_each_search_takes_back_what_its_stopped_trials_held(pair):
    """Ray Train asks a cluster for that, and there are two on the host."""
    assert [record["state"] for record in records(pair.whole)] == ["finished", "stopped", "finished"]
    assert "best: trial 2" in pair.output
    assert [record["state"] for record in records(pair.interrupted)] == ["finished", "stopped", "running"]


def test_an_interrupted_search_is_no_finished_one(pair):
    """Ctrl-C reaches all of Ray's processes, too. Nothing is called the best; no final seed opens the test split."""
    out = pair.interrupted
    assert_stopped(pair.last_words, f"trials ended: 2, begun: 1 ({out}/trials.md); the same command continues")
    assert "| running |" in (out / "trials.md").read_text()
    assert not (out / "best.yaml").exists()
    assert not list((out / "final").glob("trial_*"))


def test_a_hosts_own_cluster_is_heard_on_loopback_alone(pair):
    assert len(pair.heard) > 10, "head, raylet, dashboard, agents, trials"
    assert any(name.startswith("ray::RayTrainWo") for name, _ in pair.heard), "a rank, which holds a store"
    assert {(name, address) for name, address in pair.heard if not address.startswith("127.0.0.1:")} == set()


def test_no_process_looks_out_for_the_end_of_this_machine(pair):
    assert not any(name.startswith("ray::Preemption") for name, _ in pair.heard)
