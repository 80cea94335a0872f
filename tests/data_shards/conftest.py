"""Remote sets of shards on real servers."""

import uuid

import fsspec
import pytest
from moto.server import ThreadedMotoServer

from data_shards.sources.mmsa import MmsaSource
from data_shards.storage.cache import CacheOptions
from data_shards.writing.build import build
from tests.support.servers import proxy, serve_files
from tests.support.small_data import build_from, mmsa, save


@pytest.fixture(scope="session")
def moto():
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server.get_host_and_port()
    server.stop()


@pytest.fixture
def s3(moto, monkeypatch):
    """An S3 server behind a proxy that can fail; `bucket` is a name of the test's own."""
    with proxy(*moto) as server:
        settings = {"endpoint_url": server.url, "key": "user", "secret": "secret"}
        settings["config_kwargs"] = {"retries": {"max_attempts": 1, "mode": "standard"}}
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.setitem(fsspec.config.conf, "s3", settings)
        server.bucket = f"bucket{uuid.uuid4().hex[:8]}"
        fsspec.filesystem("s3").mkdir(server.bucket)
        server.log.clear()
        yield server


@pytest.fixture
def cache(tmp_path):
    return CacheOptions(root=tmp_path / "cache", limit=1 << 30)


@pytest.fixture(params=["s3", "http"])
def served(request, tmp_path):
    """A set of shards behind a server: its URL, the server, and what is in it."""
    if request.param == "http":
        info = build_from(mmsa(), tmp_path)
        with serve_files(tmp_path / "shards") as server:
            yield server.url, server, info
    else:
        server = request.getfixturevalue("s3")
        url = f"s3://{server.bucket}/set"
        info = build(MmsaSource(save(mmsa(), tmp_path / "x.pkl"), name="tiny"), url, samples_per_shard=4)
        server.log.clear()
        yield url, server, info
