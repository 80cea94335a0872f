"""Shards behind S3 and HTTP: real servers on loopback that fail, stall, and send incomplete or wrong bytes."""

import json
import logging
import os
import socket
import subprocess
import sys
import time

import fsspec
import numpy as np
import pytest

from data_shards.commands import inspect, verify
from data_shards.reading.index import ShardIndex
from data_shards.reading.reader import ShardReader
from data_shards.sources.mmsa import MmsaSource
from data_shards.storage.cache import CacheOptions
from data_shards.storage.remote import Remote, RemoteOptions, Unreachable
from data_shards.writing.build import build
from tests.support.servers import QUICK, serve_files
from tests.support.small_data import COUNTS, cached_names, mmsa, reads_right_samples, save


def test_a_remote_set_is_the_local_one(served, cache):
    url, _server, info = served
    with ShardReader(url, cache=cache, remote=QUICK) as reader:
        assert reader.index.info == info
        assert reader.index.root == url
        assert reads_right_samples(reader)
        assert reader.raw_texts("test", [2]) == mmsa()["test"]["raw_text"][2:3]
    wanted = [shard for shard in info.shards if shard.split == "train" or shard is info.shards[-2]]
    assert cached_names(cache.root) == sorted(f"{shard.sha256}.tar" for shard in wanted)


def test_every_shard_is_fetched_once(served, cache):
    url, server, info = served
    for _ in range(3):
        with ShardReader(url, cache=cache, remote=QUICK) as reader:
            assert reads_right_samples(reader)
    assert server.served(".tar") == sum(shard.bytes for shard in info.shards if shard.split == "train")


@pytest.mark.parametrize("fault", ["500", "stall", "truncate", "flip"])
def test_faults_are_survived(served, cache, fault, caplog):
    url, server, _ = served
    server.faults = [fault] * 3
    with caplog.at_level(logging.INFO), ShardReader(url, cache=cache, remote=QUICK) as reader:
        assert reads_right_samples(reader)
    assert not server.faults
    assert ("wrong bytes" in caplog.text) == (fault == "flip")


@pytest.mark.parametrize("fault", ["500", "truncate", "flip"])
def test_faults_in_the_index_are_survived(served, cache, fault):
    url, server, _ = served
    server.part, server.faults = "index.parquet", [fault] * 2
    with ShardReader(url, cache=cache, remote=QUICK) as reader:
        assert reads_right_samples(reader)
    assert not server.faults


@pytest.mark.parametrize(
    "fault, message",
    [
        ("500", "gave up after 3 attempts"),
        ("flip", r"does not match its sha256: restore it|did not match calculated checksum"),
    ],
)
def test_lasting_faults_are_one_line_errors(served, cache, fault, message):
    url, server, info = served
    patience = RemoteOptions(timeout=2, attempts=3, pause=0.01, chunk_bytes=1 << 20)
    with ShardReader(url, cache=cache, remote=patience) as reader:
        server.faults = [fault] * 1000
        with pytest.raises((ValueError, Unreachable), match=message) as caught:
            reader.read("train", [0])
        assert f"{url}/{info.shards[0].name}" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert cached_names(cache.root) == []
        server.faults = []
        assert reads_right_samples(reader)


def test_offline_after_the_first_epoch(served, cache, caplog):
    url, server, _ = served
    with ShardReader(url, cache=cache, remote=QUICK) as reader:
        assert reads_right_samples(reader)
        server.part, server.faults = "", ["500"] * 10_000
        server.method = "GET"
        requests = len(server.log)
        assert reads_right_samples(reader)
        assert len(server.log) == requests
    impatient = RemoteOptions(timeout=1, attempts=2, pause=0.01)
    with ShardReader(url, cache=cache, remote=impatient) as reader:
        assert "using the index that was fetched before" in caplog.text
        assert reads_right_samples(reader)
        with pytest.raises(Unreachable, match="gave up"):
            reader.read("valid", [0])
    with pytest.raises(Unreachable, match="gave up"):
        ShardReader(url, cache=CacheOptions(root=cache.root / "other", limit=1 << 30), remote=impatient)


def test_a_rebuilt_remote_set_is_noticed(s3, tmp_path, cache):
    for seed in (0, 1):
        build(MmsaSource(save(mmsa(seed=seed), tmp_path / "x.pkl")), f"s3://{s3.bucket}/set", samples_per_shard=4)
        reader = ShardReader(f"s3://{s3.bucket}/set", cache=cache, remote=QUICK)
        assert np.array_equal(reader.read("train", range(COUNTS["train"]))["audio"], mmsa(seed=seed)["train"]["audio"])
    names = [path.rsplit("/", 1)[-1] for path in fsspec.filesystem("s3").ls(f"{s3.bucket}/set")]
    assert len(names) == 1 + 2 * 10


def test_the_index_is_uploaded_last_and_a_failed_build_withdraws(s3, tmp_path):
    source = MmsaSource(save(mmsa(), tmp_path / "x.pkl"))
    info = build(source, f"s3://{s3.bucket}/set", samples_per_shard=4)
    puts = [path.partition("?")[0] for method, path, _ in s3.log if method == "PUT"]
    assert puts[-1].endswith("/set/index.parquet")
    assert len(puts) == 11
    before = sorted(fsspec.filesystem("s3").ls(f"{s3.bucket}/set"))
    bad = mmsa(seed=1)
    bad["test"]["regression_labels"][6] = 9
    with pytest.raises(ValueError, match="outside"):
        build(MmsaSource(save(bad, tmp_path / "bad.pkl")), f"s3://{s3.bucket}/set", samples_per_shard=4)
    s3.method, s3.part, s3.faults = "PUT", "index.parquet", ["500"] * 1000
    with pytest.raises(Unreachable, match=r"index\.parquet: .*gave up after 2"):
        build(
            MmsaSource(save(mmsa(seed=2), tmp_path / "y.pkl")),
            f"s3://{s3.bucket}/set",
            remote=RemoteOptions(timeout=20, attempts=2, pause=0.01),
        )
    fs = fsspec.filesystem("s3")
    fs.invalidate_cache()
    assert sorted(fs.ls(f"{s3.bucket}/set")) == before
    assert ShardIndex.load(f"s3://{s3.bucket}/set").info == info


def test_uploads_survive_faults(s3, tmp_path, cache):
    s3.method, s3.faults = "PUT", ["500", "500", "stall", "500"]
    build(MmsaSource(save(mmsa(), tmp_path / "x.pkl")), f"s3://{s3.bucket}/set", samples_per_shard=4, remote=QUICK)
    assert not s3.faults
    with ShardReader(f"s3://{s3.bucket}/set", cache=cache, remote=QUICK) as reader:
        assert reads_right_samples(reader)


def test_http_cannot_be_written_to(tmp_path):
    (tmp_path / "empty").mkdir()
    with serve_files(tmp_path / "empty") as server, pytest.raises(ValueError, match="cannot be written to"):
        build(MmsaSource(save(mmsa(), tmp_path / "x.pkl")), server.url, remote=QUICK)


def test_places_that_are_not_there(s3, tmp_path, cache):
    with pytest.raises(ValueError, match=r"s3://bucket.*/absent/index\.parquet is not there"):
        ShardReader(f"s3://{s3.bucket}/absent", cache=cache, remote=QUICK)
    with pytest.raises(ValueError, match="nosuch"):
        ShardReader("nosuch://bucket/set", cache=cache, remote=QUICK)


def test_commands_take_urls(served, monkeypatch, tmp_path, capsys):
    url, _server, info = served
    monkeypatch.setenv("DMD_CACHE_DIR", str(tmp_path / "mine"))
    assert verify([url]) == 0
    assert "all intact" in capsys.readouterr().out
    assert inspect([url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["generation"] == info.generation
    assert len(list((tmp_path / "mine" / "shards").glob("*.tar"))) == len(info.shards)


@pytest.mark.parametrize(
    "address, kind, words",
    [
        ("http://127.0.0.1:{closed}/set", Unreachable, "http://127.0.0.1:{closed}/set/index.parquet: Cannot connect"),
        ("https://127.0.0.1:{closed}/set", Unreachable, "Cannot connect to host 127.0.0.1:{closed}"),
        ("ftp://127.0.0.1:{closed}/set", Unreachable, "Connection refused"),
        ("http://u:pa55@127.0.0.1:{closed}/set?sig=pa55", Unreachable, "http://127.0.0.1:{closed}/set/index.parquet: "),
        ("http://nosuch.invalid/set", Unreachable, "Cannot connect to host nosuch.invalid"),
        ("http://127.0.0.1:99999/set", ValueError, "set/index.parquet: Port out of range"),
        ("http://[::1/set", ValueError, "Invalid IPv6 URL"),
    ],
)
def test_a_server_that_cannot_be_reached_is_no_missing_file(monkeypatch, tmp_path, address, kind, words):
    monkeypatch.setenv("DMD_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("data_shards.storage.remote.time.sleep", lambda seconds: None)
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        closed = str(taken.getsockname()[1])
        with pytest.raises(kind) as caught:
            inspect([address.replace("{closed}", closed)])
    message = str(caught.value)
    assert words.replace("{closed}", closed) in message
    assert "is not there" not in message
    assert "pa55" not in message
    assert "\n" not in message


def test_a_server_that_denies_access_is_no_missing_file(tmp_path):
    for fault, words in (("401", "access denied"), ("403", "access denied"), ("404", "is not there")):
        with serve_files(tmp_path) as server:
            server.part, server.faults = "", [fault] * 100
            with pytest.raises(ValueError, match=words):
                ShardReader(server.url, cache=CacheOptions(root=tmp_path / "cache", limit=1 << 30), remote=QUICK)


def test_a_server_that_goes_while_shards_are_verified_is_not_called_damage(monkeypatch, tmp_path, capsys):
    build(MmsaSource(save(mmsa(), tmp_path / "x.pkl")), tmp_path / "set", samples_per_shard=4)
    monkeypatch.setenv("DMD_CACHE_DIR", str(tmp_path / "mine"))
    monkeypatch.setattr("data_shards.storage.remote.time.sleep", lambda seconds: None)
    with serve_files(tmp_path / "set") as server:
        server.faults = ["500"] * 10_000
        with pytest.raises(Unreachable, match="gave up after 6 attempts"):
            verify([server.url])
    assert "broken" not in capsys.readouterr().out


def test_a_server_without_ranges(tmp_path):
    (tmp_path / "a.tar").write_bytes(os.urandom(10_000))
    with serve_files(tmp_path) as server:
        whole = Remote(server.url, QUICK)
        assert whole.size("a.tar") == 10_000
        assert whole.read("a.tar", 100, 200) == (tmp_path / "a.tar").read_bytes()[100:200]
        assert whole.exists("a.tar")
        assert not whole.exists("b.tar")


def test_the_query_of_a_signed_url_goes_with_every_file(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"signed")
    with serve_files(tmp_path) as server:
        remote = Remote(f"{server.url}/?sig=a/b", QUICK)
        assert remote.size("a.tar") == 6
        assert remote.read("a.tar", 0, 6) == b"signed"
        assert {path for _, path, _ in server.log} == {"/a.tar?sig=a/b"}


KILLED = """
import json, sys
import fsspec
fsspec.config.conf["s3"] = json.loads(sys.argv[2])
from data_shards.sources.mmsa import MmsaSource
from data_shards.writing.build import build
build(MmsaSource(sys.argv[3]), sys.argv[1], samples_per_shard=4)
"""


def test_kill_9_in_an_upload_leaves_the_old_set(s3, tmp_path, cache):
    url = f"s3://{s3.bucket}/set"
    old = build(MmsaSource(save(mmsa(), tmp_path / "x.pkl")), url, samples_per_shard=4)
    s3.log.clear()
    s3.method, s3.part, s3.faults = "PUT", "train-000003", ["stall"]
    settings = json.dumps(fsspec.config.conf["s3"])
    path = str(save(mmsa(seed=1), tmp_path / "y.pkl"))
    process = subprocess.Popen([sys.executable, "-c", KILLED, url, settings, path])
    deadline = time.monotonic() + 60
    while s3.faults:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert len([1 for method, name, _ in s3.log if method == "PUT" and ".tar" in name]) >= 3
    with ShardReader(url, cache=cache, remote=QUICK) as reader:
        assert reader.index.info == old
        assert reads_right_samples(reader)
    new = build(MmsaSource(save(mmsa(seed=2), tmp_path / "z.pkl")), url, samples_per_shard=4, remote=QUICK)
    assert ShardIndex.load(url).info == new
