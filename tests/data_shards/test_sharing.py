"""One reader for many threads, and memory that is reused without changing a batch in use."""

import os
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from data_shards.reading import shard_files
from data_shards.reading.buffer_pool import BufferPool
from data_shards.reading.reader import ShardReader
from data_shards.sources.synthetic import SyntheticSource
from data_shards.writing.build import build


def test_memory_is_reused_only_when_no_batch_uses_it():
    pool = BufferPool()
    shape, dtype = (64, 512), np.dtype(np.float32)
    first = pool.empty(shape, dtype)
    first[:] = 1
    address = first.ctypes.data
    part = first[3:5, 7:]
    second = pool.empty(shape, dtype)
    assert second.ctypes.data != address
    del first
    assert pool.empty(shape, dtype).ctypes.data != address  # a slice of it lives
    assert (part == 1).all()
    del part
    seen = [pool.empty(shape, dtype) for _ in range(4)]
    assert address in [array.ctypes.data for array in seen]
    assert len({array.ctypes.data for array in seen}) == 4
    assert pickle.loads(pickle.dumps(pool)).empty((2, 2), dtype).shape == (2, 2)


def test_batches_keep_their_values_while_others_are_read(tmp_path):
    build(SyntheticSource(samples=200, text_dim=64), tmp_path, samples_per_shard=20)
    with ShardReader(tmp_path) as reader:
        held = [reader.read("train", range(start, start + 16)) for start in range(0, 112, 16)]
        fresh = ShardReader(tmp_path)
        for number, batch in enumerate(held):
            again = fresh.read("train", range(16 * number, 16 * number + 16))
            assert all(np.array_equal(batch[name], again[name]) for name in batch)


def test_threads_share_a_reader(tmp_path, monkeypatch):
    """More shards than stay open, and every thread reads all of them: first in step, then in an order of its own."""
    build(SyntheticSource(samples=400, steps=20, text_dim=64), tmp_path, samples_per_shard=2)
    monkeypatch.setattr(shard_files, "_MAX_OPEN_SHARDS", 2)
    reader = ShardReader(tmp_path)
    expected = {position: ShardReader(tmp_path).read("train", [position]) for position in range(0, 280, 7)}
    together = threading.Barrier(4, timeout=60)
    close = os.close
    monkeypatch.setattr(os, "close", lambda handle: (time.sleep(0.0002), close(handle)))  # lets another thread in

    def run(seed: int) -> list[int]:
        wrong = []
        for turn, position in enumerate([*range(280), *np.random.RandomState(seed).permutation(280).tolist()]):
            if turn < 280:
                together.wait()
            batch = reader.read("train", [position])
            known = expected.get(position)
            if known and not all(np.array_equal(batch[name], known[name]) for name in known):
                wrong.append(position)
        wrong.extend(i for i, name in enumerate(reader.index.ids("train", range(280))) if f"train{i % 20}" not in name)
        return wrong

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(run, range(4))) == [[], [], [], []]


def _drop(path):
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    try:
        os.preadv(handle, [bytearray(1)], os.path.getsize(path) // 2, os.RWF_NOWAIT)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    finally:
        os.close(handle)
    return False


def test_shards_that_are_not_in_memory_are_streamed_beside_reading(tmp_path):
    info = build(SyntheticSource(samples=100, text_dim=64), tmp_path, samples_per_shard=50)
    path = tmp_path / info.shards[0].name
    if not _drop(path):
        pytest.skip("this file system keeps files in memory, or has no RWF_NOWAIT")
    with ShardReader(tmp_path) as reader:
        reader.read("train", [0])
        handle = os.open(path, os.O_RDONLY)
        deadline = time.monotonic() + 60
        present = False
        while not present and time.monotonic() < deadline:
            try:
                present = os.preadv(handle, [bytearray(1)], path.stat().st_size - 1, os.RWF_NOWAIT) == 1
            except BlockingIOError:
                time.sleep(0.01)
        os.close(handle)
    assert present
