"""Searches on clusters of their own, as on a workstation: nothing is started, named or set before `dmd tune`."""

import contextlib
import os
import signal
from pathlib import Path

import psutil
import pytest

from launch.exit_codes import STOPPED
from tests.cluster.making import TINY, assert_stopped, dmd, finish, lines, make_shards, records, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.multiproc, pytest.mark.slow]


RANK = "ray::RayTrainWo"
"""A rank's process, as the kernel shortens its name."""


def listening(process: psutil.Process) -> list[str]:
    """The address and port of each TCP socket on which a process listens."""
    with contextlib.suppress(psutil.NoSuchProcess):
        sockets = [entry.laddr for entry in process.net_connections("tcp") if entry.status == psutil.CONN_LISTEN]
        return [f"{address.ip.removeprefix('::ffff:')}:{address.port}" for address in sockets]
    return []


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("own") / "shards")


def test_an_interrupted_search_is_no_finished_one(shards, tmp_path):
    """Ctrl-C reaches all of Ray's processes, too. Nothing is called the best; no final seed opens the test split."""
    log, out, space = tmp_path / "log", tmp_path / "out", tmp_path / "space.yaml"
    space.write_text("train.learning_rate: {choice: [3.0e-3, 1.0e-3]}\n")
    search = dmd(
        "tune", "--data", shards, "--out", out, "--space", space, "--search", "grid", "--scheduler", "none", "--cpus",
        "1", "--final-seeds", "1", *TINY, "train.epochs=5000", log=log,
    )  # fmt: skip
    wait_for(lambda: search.poll() is not None or lines(out / "trials" / "0000", "valid"), "an epoch")
    family = [psutil.Process(search.pid), *psutil.Process(search.pid).children(recursive=True)]
    heard = {(process.name(), address) for process in family for address in listening(process)}
    for _ in range(2):  # one request, delivered twice
        os.killpg(search.pid, signal.SIGINT)
    text = finish(search, log, code=STOPPED)
    assert len(heard) > 10, "head, raylet, dashboard, agents, trials"
    beyond = {entry for entry in heard if not entry[1].startswith("127.0.0.1:") and entry[0] != RANK}
    assert not beyond, "of a host's own cluster nothing is heard outside; of a rank it is torch's store"
    assert_stopped(text, f"trials ended: 0, begun: 1 ({out}/trials.md); the same command continues")
    assert [record["state"] for record in records(out)] == ["running"]
    assert "| running |" in (out / "trials.md").read_text()
    assert not (out / "best.yaml").exists()
    assert not list((out / "final").glob("trial_*"))
