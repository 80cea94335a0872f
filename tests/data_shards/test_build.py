"""Sets of shards as files: bitwise reproducible, standard tars, complete or absent, and one builder at a time."""

import io
import os
import pickle
import signal
import socket
import subprocess
import sys
import tarfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset as wds

from data_shards.reading.index import ShardIndex
from data_shards.reading.reader import ShardReader
from data_shards.sources.mmsa import MmsaSource
from data_shards.sources.synthetic import SyntheticSource
from data_shards.tools.verify import verify
from data_shards.writing.build import build
from data_shards.writing.process_pool import ForkedProcesses
from tests.support.small_data import COUNTS, build_from, files, mmsa, save
from tests.support.waiting import until


def test_two_builds_are_bitwise_identical(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = build_from(mmsa(), tmp_path / "a")
    an_hour_later = time.time() + 3600
    monkeypatch.setattr(time, "time", lambda: an_hour_later)  # a clock that reached the files would show
    assert build_from(mmsa(), tmp_path / "b") == first
    assert files(tmp_path / "a" / "shards") == files(tmp_path / "b" / "shards")


def test_the_generation_follows_the_content(tmp_path):
    generations = set()
    for number, change in enumerate(["none", "label", "value", "name"]):
        data = mmsa()
        if change == "label":
            data["test"]["regression_labels"][3] += 0.1 if data["test"]["regression_labels"][3] < 0 else -0.1
        if change == "value":
            data["test"]["vision"][6, 6, 1] += 1e-3
        (tmp_path / str(number)).mkdir()
        info = build_from(data, tmp_path / str(number), name="other" if change == "name" else "tiny")
        generations.add(info.generation)
    assert len(generations) == 4


def test_tars_are_standard(tmp_path):
    info = build_from(mmsa(), tmp_path)
    assert [shard.samples for shard in info.shards] == [4] * 5 + [3] + [4, 1] + [4, 3]
    with tarfile.open(tmp_path / "shards" / info.shards[6].name) as tar:
        members = tar.getmembers()
        assert [member.name for member in members][:4] == [
            f"{23:09d}.{suffix}" for suffix in ("text.npy", "audio.npy", "vision.npy", "json")
        ]
        assert {(member.mtime, member.uid, member.gid, member.mode) for member in members} == {(0, 0, 0, 0o644)}
        array = np.load(io.BytesIO(tar.extractfile(members[1]).read()), allow_pickle=False)
    assert np.array_equal(array, mmsa()["valid"]["audio"][0])


def test_webdataset_reads_the_same_samples(tmp_path):
    info = build_from(mmsa(), tmp_path)
    data = mmsa()["train"]
    urls = [str(tmp_path / "shards" / shard.name) for shard in info.shards if shard.split == "train"]
    samples = list(wds.WebDataset(urls, shardshuffle=False).decode())
    assert [sample["json"]["id"] for sample in samples] == data["id"]
    assert [sample["json"]["raw_text"] for sample in samples] == data["raw_text"]
    for name in ("text", "audio", "vision"):
        assert np.array_equal(np.stack([sample[f"{name}.npy"] for sample in samples]), data[name])
    assert np.allclose([sample["json"]["label"] for sample in samples], data["regression_labels"], atol=0)


def test_the_index_is_a_plain_parquet_table(tmp_path):
    info = build_from(mmsa(), tmp_path)
    table = pq.read_table(tmp_path / "shards" / "index.parquet").to_pydict()
    data = mmsa()
    assert table["id"] == [name for fields in data.values() for name in fields["id"]]
    assert table["split"] == [split for split, n in COUNTS.items() for _ in range(n)]
    row = 25
    shard = tmp_path / "shards" / info.shards[table["shard"][row]].name
    content = shard.read_bytes()[table["audio_offset"][row] :][: table["audio_size"][row]]
    assert content.endswith(data["valid"]["audio"][2].tobytes())


def test_a_reader_survives_pickling_and_forking(tmp_path):
    build_from(mmsa(), tmp_path)
    reader = ShardReader(tmp_path / "shards")
    before = reader.read("train", [22, 0, 7])
    copy = pickle.loads(pickle.dumps(reader)).read("train", [22, 0, 7])
    assert all(np.array_equal(before[name], copy[name]) for name in before)
    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            same = all(
                np.array_equal(before["text"], reader.read("train", [22, 0, 7])["text"])
                and np.array_equal(mmsa()["test"]["audio"], reader.read("test", range(7))["audio"])
                for _ in range(50)
            )
            os._exit(0 if same else 1)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4


def test_positions_and_splits_that_are_not_there(tmp_path):
    build_from(mmsa({"train": 6}), tmp_path)
    reader = ShardReader(tmp_path / "shards")
    with pytest.raises(ValueError, match="outside the 6 samples of train"):
        reader.read("train", [6])
    with pytest.raises(ValueError, match="outside the 6 samples of train"):
        reader.read("train", [-1])
    with pytest.raises(ValueError, match="has no test split; it has train"):
        reader.read("test", [0])
    assert reader.index.num_samples("test") == 0
    assert reader.read("train", [])["text"].shape == (0, 6, 8)


def test_rebuilding_keeps_one_generation_back_and_no_more(tmp_path):
    infos = [build_from(mmsa(seed=seed), tmp_path) for seed in range(3)]
    found = {path.name for path in (tmp_path / "shards").iterdir()}
    assert found == {"index.parquet", *(shard.name for info in infos[1:] for shard in info.shards)}


def test_an_open_reader_keeps_its_generation_and_says_when_the_index_changed(tmp_path):
    build_from(mmsa(), tmp_path)
    reader = ShardReader(tmp_path / "shards")
    reader.read("train", [0])
    sent = pickle.dumps(reader)
    build_from(mmsa(seed=1), tmp_path)
    assert np.array_equal(reader.read("train", range(23))["audio"], mmsa()["train"]["audio"])
    with pytest.raises(ValueError, match="was rebuilt since its index was read"):
        pickle.loads(sent).read("train", [0])


HELD_BUILD = """
import os, sys
from data_shards.sources.synthetic import SyntheticSource
from data_shards.writing.build import build
from data_shards.writing.process_pool import ForkedProcesses
class PausingSource(SyntheticSource):
    def read(self, split, start, stop):
        if start >= 40:
            os.read(int(sys.argv[2]), 1)
        return super().read(split, start, stop)
source = PausingSource(samples=200, steps=20, text_dim=4, seed=1)
build(source, sys.argv[1], samples_per_shard=8, executor=ForkedProcesses(int(sys.argv[3])))
"""


@contextmanager
def _paused_build(out, processes=1):
    """A build in another process that waits after five shards, and what lets it go on when it is closed."""
    gate, held = os.pipe()
    command = [sys.executable, "-c", HELD_BUILD, str(out), str(gate), str(processes)]
    process = subprocess.Popen(command, pass_fds=[gate])
    os.close(gate)
    shard = ".staging-*/train-000003-*.tar"
    with os.fdopen(held, "wb") as opener:
        try:
            until(lambda: list(out.glob(shard)), lambda: f"exit code {process.poll()}", seconds=60)
            yield process, opener
        finally:
            process.kill()
            process.wait()


def _tiny(seed):
    return SyntheticSource(samples=40, steps=20, text_dim=4, seed=seed)


def test_kill_9_leaves_the_old_generation_and_removable_leftovers(tmp_path):
    out = tmp_path / "shards"
    old = build(_tiny(0), out)
    before = files(out)
    with _paused_build(out) as (process, _):
        process.kill()
    assert list(out.glob(".staging-*"))
    assert ShardIndex.load(out).info == old
    assert not verify(out).damage
    assert before.items() <= files(out).items()
    new = build(_tiny(2), out)
    assert {path.name for path in out.iterdir()} == {
        "index.parquet",
        *(shard.name for info in (old, new) for shard in info.shards),
    }


def test_of_two_builds_at_once_the_second_is_rejected(tmp_path):
    out = tmp_path / "shards"
    with _paused_build(out) as (process, opener):
        writer = f"process {process.pid} on {socket.gethostname()}"
        with pytest.raises(ValueError, match=f"shards is being written by {writer}"):
            build(_tiny(0), out)
        opener.close()
        assert process.wait(timeout=60) == 0
    assert ShardIndex.load(out).num_samples("train") == 140
    assert not verify(out).damage


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "shards").write_text("mine")
    with pytest.raises(ValueError, match="shards is a file"):
        build(_tiny(0), tmp_path / "shards")


def test_float16_halves_features_and_is_read_as_float32(tmp_path):
    data = mmsa(tokens=True)
    path = save(data, tmp_path / "x.pkl")
    wide = build(MmsaSource(path), tmp_path / "wide")
    narrow = build(MmsaSource(path), tmp_path / "narrow", storage="float16", executor=ForkedProcesses(2))
    assert narrow.generation != wide.generation
    with ShardReader(tmp_path / "narrow") as reader:
        batch = reader.read("train", range(23))
    assert batch["audio"].dtype == np.float32
    assert np.array_equal(batch["audio"], data["train"]["audio"].astype(np.float16).astype(np.float32))
    assert np.array_equal(batch["text"], data["train"]["text_bert"])
    assert set(narrow.rounding) == {"audio", "vision"}
    assert 0 < narrow.rounding["audio"] < 2e-3
    data["valid"]["vision"][1, 0, 0] = 1e5
    with pytest.raises(ValueError, match=r"valid sample 'video1.*vision has values beyond float16"):
        build(MmsaSource(save(data, tmp_path / "big.pkl")), tmp_path / "big", storage="float16")


def test_a_dead_writer_process_is_an_error_and_leaves_nothing(tmp_path):
    class Dies(SyntheticSource):
        def read(self, split, start, stop):
            if split == "valid":
                os.kill(os.getpid(), signal.SIGKILL)
            return super().read(split, start, stop)

    with pytest.raises(ValueError, match=r"a writer process died \(exit code -9\)"):
        build(
            Dies(samples=40, steps=20, text_dim=4),
            tmp_path / "shards",
            samples_per_shard=8,
            executor=ForkedProcesses(2),
        )
    assert not (tmp_path / "shards").exists()


def test_writer_processes_die_with_a_killed_build_and_leave_no_lock(tmp_path):
    out = tmp_path / "shards"
    with _paused_build(out, processes=3) as (process, opener):
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert len(children) == 3
        process.kill()
        process.wait()
        build(_tiny(2), out)
        opener.close()
        until(lambda: not any(Path(f"/proc/{child}").exists() for child in children), lambda: f"{children} live")
    assert not verify(out).damage
    assert not list(out.glob(".*"))
