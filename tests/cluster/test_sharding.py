"""`dmd shard` and `dmd extract` with --address on a cluster of two nodes of one CPU, with losses and mistakes.

Both nodes and another cluster are on this host; two hosts are in `test_hosts`. The S3 server is behind a proxy that
fails on command.
"""

import json
import os
import shutil
import signal
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer

from data_shards.commands import shard
from data_shards.format.extraction_files import WORK_DIRECTORY
from data_shards.reading.index import ShardIndex
from dmd.cli import main
from dmd.exit_codes import STOPPED, USER_ERROR
from launch.network.ports import free_port
from tests.support.clips import Sound, tones, write_wav
from tests.support.clusters import WATCHFUL, Command, Node, assert_stopped, dmd, finish, wait_for
from tests.support.sequences import OPTIONS, data_set
from tests.support.servers import FaultyServer, proxy
from tests.support.small_data import files, mmsa, save
from tests.support.tokenizers import TEXTS, save_tokenizer

pytestmark = [pytest.mark.ray, pytest.mark.multiproc, pytest.mark.slow]

TASK = "ray::_run"
"""What Ray calls a worker process that runs a task of `cluster.ray_runtime.tasks`."""
BIG = ["--synthetic", "--samples", "3000", "--samples-per-shard", "10"]
"""300 shards: enough to be interrupted."""


@dataclass
class Cluster:
    """Two nodes and the server that both reach."""

    address: str
    other: str
    """The address of another cluster on this host."""
    worker: Node
    server: FaultyServer
    environment: dict[str, str]

    def shard(self, *arguments: object, log: Path) -> Command:
        """A `dmd shard` of this cluster under way."""
        return dmd("shard", "--address", self.address, *arguments, log=log, **self.environment)

    def s3(self) -> fsspec.AbstractFileSystem:
        """The server's files."""
        settings = json.loads(self.environment["FSSPEC_S3"])
        return fsspec.filesystem("s3", **settings, skip_instance_cache=True, use_listings_cache=False)


def start_head(temp: Path, port: int, *more: str, **environment: str) -> Node:
    """A head of one CPU, without a dashboard."""
    options = ["--head", "--port", str(port), "--temp-dir", str(temp), "--include-dashboard", "false"]
    return Node(temp, *options, "--num-cpus", "1", "--node-ip-address", "127.0.0.1", *more, **environment)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    temp = tmp_path_factory.mktemp("s") / "r"  # short: Ray's sockets have long names
    port, log = free_port(), temp.parent / "r.log"
    other, other_temp = free_port(), tmp_path_factory.mktemp("o") / "r"
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    nodes: list[Node] = []
    try:
        with proxy(*moto.get_host_and_port()) as server:
            settings = {"endpoint_url": server.url, "key": "user", "secret": "secret"}
            settings["config_kwargs"] = {"retries": {"max_attempts": 1, "mode": "standard"}}
            environment = {"FSSPEC_S3": json.dumps(settings), "AWS_DEFAULT_REGION": "us-east-1"}
            nodes.append(start_head(temp, port, **WATCHFUL, **environment))
            nodes.append(start_head(other_temp, other, "--memory", "200000000"))
            wait_for(lambda: log.read_text().count("Ray runtime started") == 1, "the head node", 120)
            address = f"127.0.0.1:{port}"
            join = ["--address", address, "--num-cpus", "1", "--node-ip-address", "127.0.0.1"]
            nodes.append(Node(temp, *join, RAY_AUTH_MODE="token", **WATCHFUL, **environment))
            wait_for(lambda: log.read_text().count("Ray runtime started") == 2, "the worker node", 120)
            wait_for(lambda: "Ray runtime started" in (other_temp.parent / "r.log").read_text(), "the other head", 120)
            found = Cluster(address, f"127.0.0.1:{other}", nodes[2], server, environment)
            server.bucket = f"bucket{uuid.uuid4().hex[:8]}"
            os.environ["AWS_DEFAULT_REGION"] = "us-east-1"
            found.s3().mkdir(server.bucket)
            yield found
    finally:
        for node in reversed(nodes):
            node.kill()
        moto.stop()


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of Parquet files."""
    folder = tmp_path_factory.mktemp("features") / "mosi"
    folder.mkdir()
    for number in range(6):
        rows = [
            {
                "split": "train" if number < 5 else "valid",
                "id": f"clip{number}.{i}",
                "label": i % 7 - 3.0,
                "raw_text": TEXTS[i % len(TEXTS)],
                "text": [[1.0 + i] * 4] * (1 + i % 3),
                "audio": [[0.5, number]] * 2,
                "vision": [[float(i)]],
            }
            for i in range(20)
        ]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{number}.parquet", row_group_size=8)
    return folder


@pytest.fixture(scope="module")
def here(tables: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of the tables, as one process makes them."""
    out = tmp_path_factory.mktemp("here") / "out"
    assert shard([str(tables), str(out), "--samples-per-shard", "7", "--processes", "1"]) == 0
    return out


def test_the_bytes_are_those_of_one_process(cluster, tables, here, tmp_path):
    log = tmp_path / "log"
    text = finish(cluster.shard(tables, tmp_path / "out", "--samples-per-shard", 7, log=log), log)
    assert files(tmp_path / "out") == files(here)
    info = ShardIndex.load(here).info
    assert f"mosi, train 100, valid 20; {len(info.shards)} shards, generation {info.generation}" in text


def test_tokens_are_those_of_one_process(cluster, tables, tmp_path):
    log, bert = tmp_path / "log", save_tokenizer("bert", tmp_path / "bert")
    options = ["--samples-per-shard", "7", "--tokenizer", str(bert), "--text-length", "9"]
    assert shard([str(tables), str(tmp_path / "here"), *options, "--processes", "1"]) == 0
    text = finish(cluster.shard(tables, tmp_path / "out", *options, log=log), log)
    assert files(tmp_path / "out") == files(tmp_path / "here")
    assert f"text: 9 tokens a sample by the tokenizer {bert}; the longest transcript has " in text
    assert "transcripts are cut after 9 tokens" in text


def test_s3_stalls_and_fails_and_has_the_same_bytes(cluster, tables, here, tmp_path):
    """A shard whose upload fails at six requests is written again, by a task that Ray starts anew."""
    url, log, server = f"s3://{cluster.server.bucket}/set", tmp_path / "log", cluster.server
    server.method, server.part, server.faults = "PUT", "valid-000002", ["stall", *["500"] * 6]
    finish(cluster.shard(tables, url, "--samples-per-shard", 7, log=log), log)
    assert not server.faults
    puts = [path.partition("?")[0] for method, path, _ in server.log if method == "PUT"]
    assert puts[-1].endswith("/set/index.parquet")
    there = cluster.s3()
    assert {path.rsplit("/", 1)[-1]: there.cat(path) for path in there.ls(url)} == files(here)


def test_a_bad_sample_is_the_same_error_and_its_build_withdraws(cluster, tmp_path, capsys):
    url, log, server = f"s3://{cluster.server.bucket}/bad", tmp_path / "log", cluster.server
    data = mmsa()
    data["test"]["regression_labels"][6] = 9
    options = [str(save(data, tmp_path / "bad.pkl")), "--samples-per-shard", "2"]
    assert main(["shard", *options, str(tmp_path / "out"), "--processes", "1"]) == USER_ERROR
    in_one_process = capsys.readouterr().err
    server.log.clear()
    text = finish(cluster.shard(*options, url, log=log), log, code=USER_ERROR)
    assert "label 9.0 is outside" in in_one_process
    assert text.endswith(in_one_process)
    assert len([1 for method, path, _ in server.log if method == "PUT" and "/train-" in path]) >= 10
    assert not cluster.s3().exists(url)


def test_computational_sequences_are_read_by_the_nodes(cluster, tmp_path):
    """Their splits are named by a path of the driver's directory."""
    (tmp_path / "in").mkdir()
    data_set(tmp_path / "in", [f"v{i:02d}" for i in range(20)])
    splits, log = os.path.relpath(tmp_path / "in" / "splits.json"), tmp_path / "log"
    options = [str(tmp_path / "in"), *OPTIONS, "--splits", splits, "--samples-per-shard", "7"]
    text = finish(cluster.shard(*options, tmp_path / "out", log=log), log)
    assert shard([*options, str(tmp_path / "one"), "--processes", "1"]) == 0
    assert files(tmp_path / "out") == files(tmp_path / "one")
    assert "train 54, valid 3, test 3; 10 shards" in text


def test_a_server_that_denies_is_named_and_not_asked_again(cluster, tables, tmp_path):
    url, log, server = f"s3://{cluster.server.bucket}/denied", tmp_path / "log", cluster.server
    server.method, server.part, server.faults = "PUT", "valid-000001", ["403"] * 1000
    try:
        text = finish(cluster.shard(tables, url, "--samples-per-shard", 7, log=log), log, code=USER_ERROR)
        assert len(server.faults) == 999
    finally:
        server.faults = []
    assert "/denied/valid-000001-" in text
    assert "access denied" in text
    assert not cluster.s3().exists(url)


def test_of_two_clusters_the_address_decides(cluster, tables, tmp_path):
    """The other one has too little memory, which is an error at once."""
    log = tmp_path / "log"
    text = finish(dmd("shard", "--address", cluster.other, tables, tmp_path / "out", log=log), log, code=USER_ERROR)
    assert "a task takes up to 1.2 GiB of memory, and the largest node offers 0.2; write the features" in text
    assert not (tmp_path / "out").exists()


def staged(out: Path) -> int:
    """Shards that an unfinished build has taken."""
    return len(list(out.glob(".staging-*/train-*.tar")))


def test_ctrl_c_leaves_what_is_there_and_no_task(cluster, here, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    shutil.copytree(here, out)
    driver = cluster.shard(*BIG, out, log=log)
    wait_for(lambda: driver.poll() is not None or staged(out) > 5, "some shards")
    os.killpg(driver.pid, signal.SIGINT)
    assert_stopped(finish(driver, log, code=STOPPED), f"{out} is as it was; the same command begins again")
    assert files(out) == files(here)
    wait_for(lambda: not cluster.worker.named(TASK), "the end of the tasks", 30)


def test_a_lost_process_costs_its_clips_only(cluster, tmp_path):
    """Features of clips are those of one machine; a file that is none, and a lost worker process, stop nothing."""
    clips, out, log = tmp_path / "clips", tmp_path / "out", tmp_path / "log"
    clips.mkdir()
    for number in range(59):
        write_wav(clips / f"{number:03d}.wav", Sound(tones(0.4).samples[: -1 - number]))
    (clips / "broken.wav").write_bytes(b"RIFF")
    line = ["extract", clips, out, "--vision", "none", "--missing", "zeros"]
    driver = dmd(*line, "--address", cluster.address, log=log)

    def written() -> list[Path]:
        return list((out / WORK_DIRECTORY).glob("clips-*"))

    wait_for(lambda: driver.poll() is not None or (written() and cluster.worker.named(TASK)), "work on the worker")
    assert driver.poll() is None, log.read_text()
    for process in cluster.worker.named(TASK):
        process.kill()
    text = finish(driver, log)
    assert f"{out}: clips 59; 1 failed" in text
    assert "failed: broken: " in text
    one = tmp_path / "one"
    assert main([*map(str, ["extract", clips, one]), *line[3:], "--processes", "1"]) == 0
    assert {path.name: path.read_bytes() for path in out.glob("part-*")} == {
        path.name: path.read_bytes() for path in one.glob("part-*")
    }


def test_a_lost_node_costs_its_shards_only(cluster, tmp_path):
    """Its tasks run again on the node that is left. This test is the last one: the cluster is smaller afterwards."""
    out, log = tmp_path / "out", tmp_path / "log"
    driver = cluster.shard(*BIG, out, log=log)
    wait_for(
        lambda: driver.poll() is not None or (staged(out) > 20 and cluster.worker.named(TASK)), "work on the worker"
    )
    assert driver.poll() is None, log.read_text()
    cluster.worker.kill()
    finish(driver, log)
    assert shard([*BIG, str(tmp_path / "one")]) == 0
    assert files(out) == files(tmp_path / "one")
