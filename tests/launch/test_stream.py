"""Training from a stream: bitwise the run that reads at random, through kills, faults of the server and damage."""

import json
from collections import Counter

import fsspec
import pytest
from moto.server import ThreadedMotoServer

from data_shards.reading.reader import ShardReader
from data_shards.reading.stream import stream_bytes
from dmd.config.loading import load_config
from dmd.evaluation.trained_run import evaluate_run
from launch.trainer import preflight
from tests.support.ranks import TINY, assert_bitwise, committed_samples, errors, finish, train
from tests.support.servers import proxy, serve_files
from tests.support.small_data import files

pytestmark = [pytest.mark.multiproc, pytest.mark.slow]
SAVES = ("train.save_every=2", "data.window=2")
STREAM = "data.reader=stream"


def test_killed_within_an_epoch_and_bitwise_the_run_that_reads_at_random(shards, reference, tmp_path):
    """Each session goes on with the other reader; no sample is lost, none comes twice."""
    run, audit = tmp_path / "run", tmp_path / "audit"
    audit.mkdir()
    killed = train(shards, run, *SAVES, STREAM, ranks=2, DMD_FAULT="step@3@1", DMD_AUDIT=str(audit))
    assert killed.codes == [69, 137], killed.output
    finish(shards, run, *SAVES, "train.max_steps=5", ranks=2, DMD_AUDIT=str(audit))
    finish(shards, run, *SAVES, STREAM, ranks=2, DMD_AUDIT=str(audit))
    assert_bitwise(run, reference(*SAVES, ranks=2))
    with ShardReader(shards) as reader:
        split = Counter(reader.index.ids("train", range(reader.index.num_samples("train"))))
    steps = committed_samples(audit)
    assert sorted(steps) == [(step // 5, step + 1) for step in range(10)]
    for epoch in (0, 1):
        assert sum((ids for (of, _), ids in steps.items() if of == epoch), Counter()) == split


def test_from_a_server_that_fails(shards, reference, tmp_path):
    """No shard stays on the disk. The evaluation streams, too."""
    run, cache = tmp_path / "run", tmp_path / "cache"
    with serve_files(shards) as server:
        server.faults = ["500", "flip", "500", "truncate", "flip"]
        finish(server.url, run, *SAVES, STREAM, ranks=2, DMD_CACHE_DIR=str(cache))
        assert not server.faults
        assert not (cache / "shards").exists()
    assert json.loads((run / "run.json").read_text())["config"]["data"]["reader"] == "stream"
    assert_bitwise(run, reference(*SAVES, ranks=2))
    results = [evaluate_run(of, data=shards, split="valid") for of in (run, reference(*SAVES, ranks=2))]
    assert results[0]["metrics"] == results[1]["metrics"]


def test_from_a_bucket_that_fails_through_a_kill(shards, reference, tmp_path, monkeypatch):
    run, moto = tmp_path / "run", ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    moto.start()
    try:
        with proxy(*moto.get_host_and_port()) as server:
            settings = {"endpoint_url": server.url, "key": "user", "secret": "secret"}
            there = fsspec.filesystem("s3", **settings, skip_instance_cache=True)
            url, bucket = "s3://launch/set", "launch"
            there.mkdir(bucket)
            for name, content in files(shards).items():
                there.pipe(f"{url}/{name}", content)
            server.log.clear()
            environment = {"FSSPEC_S3": json.dumps(settings), "DMD_CACHE_DIR": str(tmp_path / "cache")}
            killed = train(url, run, *SAVES, STREAM, ranks=2, DMD_FAULT="step@3@1", **environment)
            assert killed.codes == [69, 137], killed.output
            server.faults = ["500", "flip", "503", "truncate"]
            finish(url, run, *SAVES, STREAM, ranks=2, **environment)
            assert not server.faults
            assert server.served(".tar") > 0
            assert not (tmp_path / "cache" / "shards").exists()
    finally:
        moto.stop()
    assert_bitwise(run, reference(*SAVES, ranks=2))


def test_a_damaged_shard_ends_the_training_and_the_next_start_goes_on(shards, reference, tmp_path):
    run, copy = tmp_path / "run", tmp_path / "shards"
    copy.mkdir()
    for name, content in files(shards).items():
        (copy / name).write_bytes(content)
    path = next(copy.glob("train-000001-*.tar"))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    ended = train(copy, run, *SAVES, STREAM)
    assert ended.codes == [2], ended.output
    (error,) = errors(ended.output)
    assert f"{path.name} " in error
    assert "sample 0000000" in error
    path.write_bytes(whole)
    finish(copy, run, *SAVES, STREAM)
    assert_bitwise(run, reference(*SAVES))


def test_a_stream_that_no_memory_holds_is_rejected(shards, tmp_path, monkeypatch):
    with ShardReader(shards) as reader:
        needed = stream_bytes(reader.index.info, "train", window=1, ranks=1)
        monkeypatch.setattr(preflight, "free_memory", lambda: needed)
        config = load_config(None, [STREAM, "data.window=1", *TINY])
        preflight.check_training(config, reader, tmp_path / "run", 1)
        monkeypatch.setattr(preflight, "free_memory", lambda: needed - 1)
        with pytest.raises(
            ValueError, match=r"data\.reader=stream holds two windows of 1 shards, .*lower data\.window"
        ):
            preflight.check_training(config, reader, tmp_path / "run", 1)
        preflight.check_training(config, reader, tmp_path / "run", 2)
