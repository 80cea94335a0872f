"""Prediction and evaluation on a real Ray cluster of two nodes: the numbers of one process to the last digit, through a
killed driver, actors that die and a bucket that stalls.

Every fourth part of an actor's life on the second node kills it. The bucket is moto's, behind a proxy that fails.
"""

import json
import os
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import fsspec
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer
from ray._private.services import find_gcs_addresses
from ray.data._internal.execution.streaming_executor import StreamingExecutor

from cluster.jobs.entrypoint import main as run_job
from cluster.prediction.pool import Actor, Pool, Task, answers
from cluster.ray_runtime.session import cluster
from cluster.ray_runtime.stopping import stop_requests
from dmd.exit_codes import LOST, STOPPED
from dmd.inference.part_files import MANIFEST, REQUEST
from launch.network.ports import free_port
from tests.support.clusters import PATIENCE, Node, assert_stopped, dmd, finish, wait_for
from tests.support.commands import command, rejected
from tests.support.servers import FaultyServer, proxy
from tests.support.small_data import files
from tests.support.trained import make_shards, train

pytestmark = [pytest.mark.ray, pytest.mark.multiproc, pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

SPLITS = ("--split", "train", "--split", "valid")
"""700 and 100 samples: 11 and 2 parts of 64."""
SIZE = ("--samples-per-part", 64)


def start_head(temp: Path, **environment: str) -> tuple[Node, str]:
    """A node of one CPU without a dashboard, and its address."""
    port = str(free_port())
    options = ["--head", "--port", port, "--include-dashboard", "false", "--temp-dir", str(temp)]
    node = Node(temp, *options, "--node-ip-address", "127.0.0.1", "--num-cpus", "1", **environment)
    log = temp.parent / f"{temp.name}.log"
    wait_for(lambda: "Ray runtime started" in log.read_text(), "the head node", 120)
    return node, f"127.0.0.1:{port}"


@pytest.fixture(scope="module")
def bucket() -> Iterator[FaultyServer]:
    """A bucket on a server that fails on command; this process and its children know where."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    with proxy(*server.get_host_and_port()) as faulty:
        settings = {"endpoint_url": faulty.url, "key": "user", "secret": "secret"}
        os.environ |= {f"FSSPEC_S3_{name.upper()}": value for name, value in settings.items()}
        os.environ["AWS_DEFAULT_REGION"] = "us-east-1"
        fsspec.config.conf["s3"] = settings
        faulty.bucket = f"bucket{uuid.uuid4().hex[:8]}"
        fsspec.filesystem("s3").mkdir(faulty.bucket)
        yield faulty
    del fsspec.config.conf["s3"]
    server.stop()


@pytest.fixture(scope="module")
def address(bucket: FaultyServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The cluster."""
    temp = tmp_path_factory.mktemp("r") / "r"  # short: Ray's sockets have long names
    head, where = start_head(temp)
    options = ["--address", where, "--node-ip-address", "127.0.0.1", "--num-cpus", "1"]
    worker = Node(temp, *options, RAY_AUTH_MODE="token", DMD_FAULT="part@4")
    try:
        log = temp.parent / "r.log"
        wait_for(lambda: log.read_text().count("Ray runtime started") == 2, "the worker node", 120)
        yield where
    finally:
        worker.kill()
        head.kill()


@dataclass(frozen=True)
class Told:
    """What one process says."""

    shards: Path
    run: Path
    parts: Path
    file: Path
    metrics: dict


@pytest.fixture(scope="module")
def told(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Told]:
    """A regression, another seed of it, and a classifier."""
    folder = tmp_path_factory.mktemp("told")
    shards = make_shards(folder / "shards", 1000)
    saved = ["train.max_steps=2", "train.save_every=1"]
    more = {"sentiment": saved, "other": ["train.seed=2", *saved], "classes": ["model.task=3"]}
    wanted = {name: ["train.epochs=1", *overrides] for name, overrides in more.items()}
    runs = train(shards, {folder / name: overrides for name, overrides in wanted.items()})
    found = {}
    found["other"] = Told(shards, runs.pop(1), folder, folder, {})
    for run in runs:
        about = Told(shards, run, folder / f"{run.name}-parts", folder / f"{run.name}.parquet", {})
        assert command("predict", run, shards, *SPLITS, "--out", about.parts, *SIZE) == 0
        assert command("predict", run, shards, *SPLITS, "--out", about.file) == 0
        assert command("evaluate", run, "--split", "train", "--json", folder / "train.json") == 0
        about.metrics.update(json.loads((folder / "train.json").read_text()))
        found[run.name] = about
    return found


def test_a_bucket_that_stalls_gets_every_sample_once(address, told, bucket, monkeypatch, capsys):
    """As a job runs it, which is told of its cluster by RAY_ADDRESS."""
    monkeypatch.setenv("RAY_ADDRESS", address)
    out, here = f"s3://{bucket.bucket}/out", told["sentiment"]
    bucket.method, bucket.part, bucket.faults = "PUT", "part-", ["stall", "500", "503", "stall"]
    assert run_job([*map(str, ("predict", here.run, here.shards, *SPLITS, "--out", out, *SIZE))]) == 0
    assert not bucket.faults
    assert "800 predictions (train 700, valid 100) in 13 parts" in capsys.readouterr().out
    puts = [path.partition("?")[0].rpartition("/")[2] for method, path, _ in bucket.log if method == "PUT"]
    assert puts[-1] == MANIFEST
    there = fsspec.filesystem("s3")
    there.invalidate_cache()
    assert {name.rpartition("/")[2]: there.cat_file(name) for name in there.ls(out)} == files(here.parts)


def test_a_killed_driver_is_continued_with_what_is_missing(address, told, tmp_path, capsys):
    out, log, here = tmp_path / "out", tmp_path / "log", told["classes"]
    order = ("predict", here.run, here.shards, *SPLITS, "--out", out, *SIZE, "--address", address)
    finish(dmd(*order, log=log, DMD_FAULT="answer@3"), log, code=-9)
    before = {path: path.stat().st_mtime_ns for path in out.glob("part-*")}
    assert 3 <= len(before) < 13
    assert not (out / MANIFEST).exists()
    assert command(*order) == 0
    assert f"{out}: 800 predictions (train 700, valid 100) in 13 parts, " in capsys.readouterr().out
    kept = [path for path, time in before.items() if path.stat().st_mtime_ns == time]
    assert len(kept) >= 3
    assert files(out) == files(here.parts)
    table = ds.dataset(out).to_table()
    assert table.replace_schema_metadata().equals(pq.read_table(here.file).replace_schema_metadata())
    assert command(*order[:-1], "127.0.0.1:1") == 0, "nothing is missing, so no cluster is wanted"


def test_an_evaluation_of_a_classifier_has_the_numbers_of_one_process(address, told, tmp_path):
    evaluate(told["classes"], address, tmp_path / "train.json")


def evaluate(here: Told, address: str, out: Path) -> None:
    """Evaluate on the cluster, compare with one process."""
    assert command("evaluate", here.run, "--split", "train", "--address", address, "--json", out) == 0
    assert json.loads(out.read_text()) == here.metrics


def test_an_ensemble_of_means_has_the_numbers_of_one_process(address, told, tmp_path):
    here = told["sentiment"]
    pair, shards = (here.run, told["other"].run), here.shards
    for name, more in {"here": (), "there": ("--address", address)}.items():
        more = ("--average", 2, *more)
        assert command("predict", *pair, shards, "--split", "valid", "--out", tmp_path / name, *more) == 0
        assert command("evaluate", *pair, "--json", tmp_path / f"{name}.json", *more) == 0
    assert files(tmp_path / "there") == files(tmp_path / "here")
    assert (tmp_path / "there.json").read_text() == (tmp_path / "here.json").read_text()
    assert [one["averaged"] for one in json.loads((tmp_path / "there.json").read_text())["members"]] == [[1, 2], [1, 2]]


def test_a_mistake_is_no_reason_to_try_again(address, told, tmp_path, capsys):
    """A damaged sample, which an actor finds."""
    shards = shutil.copytree(told["sentiment"].shards, tmp_path / "shards")
    shard = next(iter(sorted(shards.glob("train-*.tar"))))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    order = ("predict", told["sentiment"].run, shards, *SPLITS, "--out", tmp_path / "out", *SIZE)
    error = rejected(capsys, *order, "--address", address)
    assert f"{shard} is damaged: " in error
    assert not (tmp_path / "out" / MANIFEST).exists()


def test_after_a_mistake_nothing_asks_for_tasks(address):
    """An exception keeps Ray Data's iterator. Its thread, once the connection has ended, would start a cluster."""

    class Hasty(Actor):
        def prepare(self) -> None:
            pass

        def compute(self, task: Task) -> bytes:
            if task["number"] == 0:
                raise ValueError("the mistake")
            if task["number"] > 1:  # Ray Data shows an answer when it has the next
                time.sleep(20)
            return b""

    pool = Pool(claim={"CPU": 1}, actors=1, patience=PATIENCE, verbose=False)
    tasks = [{"number": number} for number in range(4)]
    with stop_requests() as stop, cluster(address, stop):
        with pytest.raises(ValueError, match="the mistake") as kept, answers(Hasty, {}, tasks, pool) as contents:
            next(contents)
        alive = [thread for thread in threading.enumerate() if isinstance(thread, StreamingExecutor)]
        assert all(thread._shutdown for thread in alive), kept


def test_two_clusters_on_one_host(address, told, tmp_path_factory, tmp_path, capsys, monkeypatch):
    """Which one is meant must be said; then the other one makes no difference, even where RAY_ADDRESS names it."""
    other, where = start_head(tmp_path_factory.mktemp("o") / "r")
    here = told["sentiment"]
    order = ("predict", here.run, here.shards, "--out", tmp_path / "out")
    find_gcs_addresses.cache_clear()  # as in a process of its own
    try:
        error = rejected(capsys, *order, "--address", "auto")
        assert "--address auto finds several Ray clusters here (" in error
        assert all(named.partition(":")[2] in error for named in (address, where))
        assert not (tmp_path / "out").exists()
        train = ("train", "--data", here.shards, "--run", tmp_path / "run", "train.epochs=1", "--address", "auto")
        assert "--address auto finds several Ray clusters here (" in rejected(capsys, *train)
        assert not (tmp_path / "run").exists()
        monkeypatch.setenv("RAY_ADDRESS", where)
        evaluate(here, address, tmp_path / "train.json")
    finally:
        other.kill()


def test_no_cluster_at_the_address(told, tmp_path, capsys):
    here, where = told["sentiment"], f"127.0.0.1:{free_port()}"
    order = ("predict", here.run, here.shards, "--out", tmp_path / "out")
    assert f"no Ray cluster at {where}: " in rejected(capsys, *order, "--address", where)
    assert not (tmp_path / "out").exists()
    assert f"no Ray cluster at {where}: " in rejected(capsys, "evaluate", here.run, "--address", where)


def test_an_actor_that_has_no_room(address, told, tmp_path, capsys):
    """A mistake where no node is large enough; a wait that ends where one may come."""
    here = told["sentiment"]
    order = ("predict", here.run, here.shards, "--out", tmp_path / "out", "--address", address, "--cpus-per-actor", 8)
    error = rejected(capsys, *order)
    assert "an actor wants 8 CPU; no node of the cluster has that (1 CPU, 0 GPU; 1 CPU, 0 GPU): it could never" in error
    assert not (tmp_path / "out").exists()
    log = tmp_path / "log"
    driver = dmd(*order, "--actors", 1, log=log)
    assert command(*order[:4], tmp_path / "other", *order[5:], "--actors", 1, "--patience", 3) == LOST
    said = capsys.readouterr().out
    assert "no actor has ended a task for 3 s (free: 2 of 2 CPU, 0 of 0 GPU)" in said
    assert said.endswith(f"parts written by this command: 0 ({tmp_path}/other); the same command continues\n")
    wait_for(lambda: driver.poll() is not None or (tmp_path / "out" / REQUEST).exists(), "the driver to wait")
    driver.terminate()
    assert_stopped(finish(driver, log, code=STOPPED), f"({tmp_path}/out); the same command continues")
