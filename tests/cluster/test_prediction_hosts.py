"""A prediction over two hosts, one of which loses its network in the middle: nothing is lost, nothing is there twice.

Head and worker are Ray nodes of one CPU in network namespaces of their own. The worker's actor hangs in its second
part, so its host goes while it holds two. There is no room for another actor until that of the head has no more to do.
"""

import json
from pathlib import Path

import pytest

from dmd.inference.part_files import MANIFEST
from tests.support.clusters import WATCHFUL, Node, dmd, finish, wait_for
from tests.support.commands import command
from tests.support.hosts import can_make_hosts, hosts
from tests.support.small_data import files
from tests.support.trained import make_shards, train

pytestmark = [
    pytest.mark.ray,
    pytest.mark.hosts,
    pytest.mark.multiproc,
    pytest.mark.slow,
    pytest.mark.skipif(not can_make_hosts, reason="needs root and iproute2"),
]

PORT = 6379


def test_a_host_that_is_lost_in_a_prediction(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("h")
    shards = make_shards(folder / "shards", 500)
    (run,) = train(shards, {folder / "run": ["train.epochs=1"]})
    order = ("predict", run, shards, "--split", "train", "--samples-per-part", 64)
    assert command(*order, "--out", folder / "here") == 0
    temp, log, out = folder / "r", folder / "log", folder / "out"
    with hosts(2) as (head, worker):
        where = f"{head.address}:{PORT}"
        own = ["--node-ip-address", head.address, "--include-dashboard", "false", "--temp-dir", str(temp)]
        one = ["--num-cpus", "1"]
        nodes = [Node(temp, "--head", "--port", str(PORT), *own, *one, inside=head.inside, **WATCHFUL)]
        started = lambda: (folder / "r.log").read_text().count("Ray runtime started")  # noqa: E731
        try:
            wait_for(lambda: started() == 1, "the head node", 120)
            joins = ["--address", where, "--node-ip-address", worker.address, *one]
            fault = {"RAY_AUTH_MODE": "token", "DMD_FAULT": "hang:part@2"}
            nodes.append(Node(temp, *joins, inside=worker.inside, **fault, **WATCHFUL))
            wait_for(lambda: started() == 2, "the worker node", 120)
            driver = dmd(*order, "--out", out, "--address", where, "--patience", 120, host=head, log=log)
            try:
                wait_for(lambda: driver.poll() is not None or works_on(nodes[1], out), "parts on both hosts")
                assert driver.poll() is None, log.read_text()
                worker.link("down")
                said = finish(driver, log)
            finally:
                driver.kill()
        finally:
            for node in nodes:
                node.kill()
    assert f"{out}: 350 predictions (train 350) in 6 parts\n" in said
    assert json.loads((out / MANIFEST).read_text())["rows"] == 350
    assert files(out) == files(folder / "here")


def works_on(node: Node, out: Path) -> bool:
    """Whether a node has an actor, and all parts are there but those two that it holds."""
    return bool(node.named("MapWorker")) and len(list(out.glob("part-*"))) == 4
