"""The node's cache of remote shards: shared, limited in size, self-repairing, and safe under kill -9."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import pytest

from data_shards.format.schema import ShardInfo
from data_shards.places import to_place
from data_shards.reading.reader import ShardReader
from data_shards.storage.cache import Cache, CacheOptions, parse_bytes
from data_shards.storage.store import RemoteStore
from tests.support.servers import QUICK
from tests.support.small_data import cached_names, reads_right_samples


def test_a_damaged_copy_is_downloaded_again(served, cache):
    url, _server, info = served
    with ShardReader(url, cache=cache, remote=QUICK) as reader:
        assert reads_right_samples(reader)
    for number, shard in enumerate(info.shards[:4]):
        path = cache.root / "shards" / f"{shard.sha256}.tar"
        raw = bytearray(path.read_bytes())
        raw[1100] ^= 1
        path.write_bytes(raw if number % 2 else raw[:2000])
    with ShardReader(url, cache=cache, remote=QUICK) as reader:
        assert reads_right_samples(reader)


def test_the_cache_stays_below_its_limit_and_drops_what_was_used_longest_ago(served, tmp_path):
    url, _server, info = served
    train = [shard for shard in info.shards if shard.split == "train"]
    limit = sum(shard.bytes for shard in train[:3])
    small = CacheOptions(root=tmp_path / "small", limit=limit)
    reader = ShardReader(url, cache=small, remote=QUICK)
    for positions in ([0], [4], [8], [0], [12]):  # shards 0 1 2 0 3
        reader.read("train", positions)
        reader.close()
        assert sum(path.stat().st_size for path in (tmp_path / "small" / "shards").iterdir()) <= limit
    assert cached_names(small.root) == sorted(f"{train[i].sha256}.tar" for i in (2, 0, 3))
    assert reads_right_samples(reader)
    tiny = CacheOptions(root=tmp_path / "tiny", limit=100)
    with pytest.raises(ValueError, match=r"does not fit into the cache .*raise DMD_CACHE_BYTES"):
        ShardReader(url, cache=tiny, remote=QUICK).read("train", [0])


RANK = """
import json, sys
import fsspec, numpy as np
from data_shards.storage.cache import CacheOptions
from data_shards.reading.reader import ShardReader
from data_shards.storage.remote import RemoteOptions
from pathlib import Path
url, root, limit, settings, patience = sys.argv[1:]
fsspec.config.conf["s3"] = json.loads(settings)
reader = ShardReader(url, cache=CacheOptions(root=Path(root), limit=int(limit)),
                     remote=RemoteOptions(timeout=float(patience), attempts=5, pause=0.02, chunk_bytes=4096))
for epoch in range(2):
    for position in range(23):
        batch = reader.read("train", [position])
        assert batch["lengths"][0, 1] == 1 + position % 9
print("done")
"""


def _start_rank(url, cache, *, limit=1 << 30, patience=20.0):
    settings = json.dumps(fsspec.config.conf.get("s3", {}))
    command = [sys.executable, "-c", RANK, url, str(cache.root), str(limit), settings, str(patience)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _finish(process):
    output, _ = process.communicate(timeout=120)
    return process.returncode, output


def test_ranks_share_one_cache(served, cache):
    url, server, info = served
    ranks = [_start_rank(url, cache) for _ in range(3)]
    assert [_finish(rank) for rank in ranks] == [(0, "done\n")] * 3
    assert server.served(".tar") == sum(shard.bytes for shard in info.shards if shard.split == "train")


def test_ranks_share_a_cache_that_is_too_small(served, cache):
    url, _server, info = served
    limit = 2 * max(shard.bytes for shard in info.shards)
    ranks = [_start_rank(url, cache, limit=limit) for _ in range(2)]
    assert [_finish(rank) for rank in ranks] == [(0, "done\n")] * 2
    assert sum(path.stat().st_size for path in (cache.root / "shards").iterdir()) <= limit


class Evicting(RemoteStore):
    """Another process makes room each time before the copy is open."""

    times = 0

    def _cached_copy(self, shard: ShardInfo) -> Path:
        path = super()._cached_copy(shard)
        if self.times:
            self.times -= 1
            path.unlink()
        return path


def test_a_copy_that_is_dropped_before_it_is_open_is_fetched_again(served, cache):
    url, _, info = served
    store = Evicting(to_place(url), cache, QUICK)
    store.times = 3
    handle = store.open(info.shards[0])
    assert os.fstat(handle).st_size == info.shards[0].bytes
    os.close(handle)
    assert store.times == 0
    store.times = 100
    with pytest.raises(ValueError, match="before it was read; the cache is too small for them, raise DMD_CACHE_BYTES"):
        store.open(info.shards[0])


def test_kill_9_in_a_download_harms_nobody(served, cache):
    url, server, _ = served
    server.faults = ["stall"]
    victim, waiting = _start_rank(url, cache), None
    deadline = time.monotonic() + 60
    while not list((cache.root / "shards").glob("*.part")):
        assert time.monotonic() < deadline
        assert victim.poll() is None
        time.sleep(0.01)
    waiting = _start_rank(url, cache)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    assert _finish(waiting) == (0, "done\n")
    with ShardReader(url, cache=cache, remote=QUICK) as reader:
        assert reads_right_samples(reader)
        reader.prefetch("valid", range(5))
    assert {name.rsplit(".", 1)[1] for name in cached_names(cache.root)} == {"tar"}


def test_abandoned_downloads_make_room(tmp_path):
    cache = Cache(CacheOptions(root=tmp_path, limit=1000))
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "dead.part").write_bytes(bytes(900))
    path = cache.shard("ab", 500, lambda part: part.write_bytes(bytes(500)))
    assert [file.name for file in (tmp_path / "shards").iterdir()] == ["ab.tar"]
    assert path.stat().st_size == 500

    def fail(part):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        cache.shard("cd", 500, fail)
    assert [file.name for file in (tmp_path / "shards").iterdir()] == ["ab.tar"]


@pytest.mark.parametrize(
    "text, size", [("1", 1), ("500M", 500 << 20), ("1.5g", 3 << 29), ("2TB", 2 << 40), ("7k", 7168)]
)
def test_sizes(text, size):
    assert parse_bytes(text, "DMD_CACHE_BYTES") == size


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming a user without an entry in the password file needs root")
def test_without_a_home_directory_a_fix_is_suggested(tmp_path, monkeypatch):
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("DMD_CACHE_DIR", raising=False)
    os.setreuid(54321, -1)
    try:
        with pytest.raises(ValueError, match=r"there is no home directory to keep remote shards in; set DMD_CACHE_DIR"):
            CacheOptions.from_environment()
        monkeypatch.setenv("DMD_CACHE_DIR", str(tmp_path))
        assert CacheOptions.from_environment().root == tmp_path
    finally:
        os.setreuid(0, -1)


def test_a_cache_that_cannot_be_made_suggests_a_fix(monkeypatch):
    monkeypatch.delenv("DMD_CACHE_DIR", raising=False)
    monkeypatch.setenv("HOME", "/proc/nobody")
    cache = Cache(CacheOptions.from_environment())
    message = "remote shards cannot be kept in /proc/nobody/.cache/dmd-shards/.*; set DMD_CACHE_DIR to a directory"
    with pytest.raises(ValueError, match=message):
        cache.index_directory("x")
    with pytest.raises(ValueError, match=message):
        cache.shard("ab", 1, lambda path: path.write_bytes(b"x"))


@pytest.mark.parametrize("text", ["", "x", "0", "-1G", "1E", "nan", "inf"])
def test_sizes_that_are_none(text, monkeypatch):
    with pytest.raises(ValueError, match=r"DMD_CACHE_BYTES .* is no size"):
        parse_bytes(text, "DMD_CACHE_BYTES")
