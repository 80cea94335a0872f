"""Streaming: what random access reads, in the same order, with two windows in memory, and nothing lost to damage."""

import gc
import io
import shutil
import tarfile
import threading
import tracemalloc

import fsspec
import numpy as np
import pytest
import webdataset as wds

from data_shards.external.index_tars import index_tars
from data_shards.reading.index import ShardIndex
from data_shards.reading.reader import ShardReader
from data_shards.reading.shuffle import epoch_order, epoch_windows
from data_shards.reading.stream import ANYWHERE, Request, SampleStream
from data_shards.sources.mmsa import MmsaSource
from data_shards.sources.synthetic import SyntheticSource
from data_shards.storage.remote import RemoteOptions, Unreachable
from data_shards.storage.store import open_store
from data_shards.writing.build import build
from tests.support.servers import QUICK
from tests.support.small_data import COUNTS, build_from, mmsa, save
from tests.support.waiting import until


def _requests(index, *, window, rank=0, ranks=1, start=0, size=5):
    """An epoch of the train split for one of several ranks, `size` samples at a time."""
    count = index.num_samples("train")
    key = {"seed": 3, "epoch": 1, "num_samples": count, "shard_size": index.shard_size("train"), "window": window}
    mine = np.arange(count)[rank::ranks][start:]
    for first in range(0, len(mine), size):
        positions = mine[first : first + size]
        yield Request(epoch_order(positions, **key), epoch_windows(positions, **key))


def _streamed(index, *, ahead=True, check=True, **order):
    return list(SampleStream(index, "train", _requests(index, **order), ahead=ahead, check=check))


def _assert_same(reader, batches, requests):
    for batch, request in zip(batches, requests, strict=True):
        expected = reader.read("train", request.positions)
        assert batch.keys() == expected.keys()
        for name, array in expected.items():
            assert batch[name].dtype == array.dtype
            assert np.array_equal(batch[name], array, equal_nan=True), name


@pytest.fixture
def shards(tmp_path):
    """A set of shards of four samples each, and what its index tells."""
    info = build_from(mmsa(), tmp_path)
    return tmp_path / "shards", info


@pytest.mark.parametrize("window", [1, 2, 4, 99])
@pytest.mark.parametrize("size", [1, 3, 23])
def test_a_stream_gives_what_random_access_reads(shards, window, size):
    """Batches within a window, across two and across all of them."""
    with ShardReader(shards[0]) as reader:
        for ahead in (False, True):
            batches = _streamed(reader.index, window=window, size=size, ahead=ahead)
            _assert_same(reader, batches, _requests(reader.index, window=window, size=size))


@pytest.mark.parametrize("kind", ["tokens", "float16", "classes"])
def test_every_kind_of_set_is_streamed(tmp_path, kind):
    data = mmsa(tokens=kind == "tokens")
    for split in data.values():
        split["classification_labels"] = np.arange(len(split["id"])) % 3
    options = {"class_labels": True} if kind == "classes" else {"text": "tokens"} if kind == "tokens" else {}
    source = MmsaSource(save(data, tmp_path / "x.pkl"), **options)
    build(source, tmp_path / "shards", samples_per_shard=4, storage="float16" if kind == "float16" else "float32")
    with ShardReader(tmp_path / "shards") as reader:
        batches = _streamed(reader.index, window=2)
        _assert_same(reader, batches, _requests(reader.index, window=2))
        assert batches[0]["text"].dtype == (np.int64 if kind == "tokens" else np.float32)
        assert ("class" in batches[0]) == (kind == "classes")


def test_externally_created_tars_are_streamed(tmp_path):
    """Of different sizes, with members that nobody reads, capitals, and one key for two samples."""
    for number, keys in enumerate((("a/x", "b", "A/x"), ("c", "d", "c"), tuple("efghi"))):
        with wds.TarWriter(str(tmp_path / f"train-{number}.tar")) as tar:
            for place, key in enumerate(keys):
                draw = np.random.RandomState(10 * number + place)
                steps = 2 + place
                arrays = {"T.npy": draw.randn(steps, 3), "both.npz": {"a": draw.randn(3, 2), "v": draw.randn(steps, 2)}}
                facts = {"id": f"{number}-{place}", "label": place - 1.5}
                tar.write({"__key__": key, **arrays, "json": facts, "jpg": b"no picture"})
    arrays = {"text": "T.npy", "audio": "both.npz:a", "vision": "both.npz:v"}
    index_tars(tmp_path, mapping={**arrays, "label": "json:label", "id": "json:id"})
    with ShardReader(tmp_path) as reader:
        for rank in range(3):
            batches = _streamed(reader.index, window=2, rank=rank, ranks=3, size=2)
            _assert_same(reader, batches, _requests(reader.index, window=2, rank=rank, ranks=3, size=2))


@pytest.mark.parametrize("start", [0, 1, 4, 7])
def test_ranks_give_every_sample_once_from_any_position_on(shards, start):
    with ShardReader(shards[0]) as reader:
        seen = []
        for rank in range(3):
            order = {"window": 2, "rank": rank, "ranks": 3, "size": 2}
            _assert_same(
                reader, _streamed(reader.index, **order, start=start), _requests(reader.index, **order, start=start)
            )
            seen += [row for request in _requests(reader.index, **order, start=start) for row in request.positions]
        assert len(set(seen)) == len(seen) == COUNTS["train"] - 3 * start


def test_samples_from_outside_of_the_window(shards):
    """As a batch without a sample of its own asks for one: at the start, in an epoch and at its end."""
    with ShardReader(shards[0]) as reader:
        anywhere = Request(np.array([22, 0]), np.array([ANYWHERE, ANYWHERE]))
        requests = [anywhere, *_requests(reader.index, window=2, size=9), anywhere]
        requests.insert(2, anywhere)
        _assert_same(reader, SampleStream(reader.index, "train", requests), requests)
        assert list(SampleStream(reader.index, "train", [])) == []


def test_memory_is_that_of_two_windows(tmp_path):
    """And of one for a stream that does not read ahead; of a rank, of its share."""
    build(SyntheticSource(samples=400, steps=50, text_dim=256), tmp_path, samples_per_shard=10)
    index = ShardIndex.load(tmp_path)
    info = index.info
    sample = sum(int(np.prod(info.shape(m))) * 4 for m in ("text", "audio", "vision"))
    whole, slack = info.counts["train"] * sample, 4 * 7 * sample + (3 << 19)  # batches, a block of a file, the index
    for ahead, ranks in ((True, 1), (False, 1), (True, 4)):
        window = (1 + ahead) * 4 * 10 * sample // ranks
        assert window + slack < whole / 2
        tracemalloc.start()
        count = 0
        for batch in SampleStream(index, "train", _requests(index, window=4, ranks=ranks, size=7), ahead=ahead):
            count += len(batch["label"])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count == info.counts["train"] // ranks
        assert peak < window + slack, (ahead, ranks, peak / sample)


def test_a_stream_that_is_dropped_stops(shards):
    def threads():
        return [thread for thread in threading.enumerate() if thread.name.startswith("stream")]

    index = ShardIndex.load(shards[0])
    for close in (False, True):
        stream = SampleStream(index, "train", _requests(index, window=1, size=1))
        next(stream)
        assert threads()
        if close:
            stream.close()
        else:
            del stream
            gc.collect()
        until(lambda: not threads(), lambda: f"{threads()} are still there")


def _flip(path, position):
    raw = bytearray(path.read_bytes())
    raw[position] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize("modality, place", [("text", 130), ("audio", 0), ("vision", 140)])
def test_a_flipped_bit_is_named(shards, modality, place):
    root, info = shards
    index = ShardIndex.load(root)
    offset = int(index.records("train", [5])[0]["offset"][("text", "audio", "vision").index(modality)])
    _flip(root / info.shards[1].name, offset + place)
    expected = rf"{info.shards[1].name} is damaged: {modality} of sample 000000005 at offset {offset}; .*dmd verify"
    with pytest.raises(ValueError, match=expected):
        _streamed(index, window=2)
    if place > 128:  # not in the header of an array
        _streamed(index, window=2, check=False)


def test_no_flipped_byte_of_a_shard_loses_a_sample(shards):
    """Either the same samples or an error that names the shard, whichever byte it is."""
    root, info = shards
    path = root / info.shards[7].name
    reader = ShardReader(root)
    request = Request(np.arange(4, 5), np.zeros(1, np.int64))
    right, errors = reader.read("valid", [4]), []
    for position in range(0, path.stat().st_size, 23):
        _flip(path, position)
        try:
            (batch,) = SampleStream(reader.index, "valid", [request], ahead=False)
        except ValueError as error:
            errors.append(str(error))
        else:
            assert all(np.array_equal(batch[name], right[name]) for name in right)
        _flip(path, position)
    assert len(errors) > 50
    assert all(f"{path.name} " in error and "sample 000000027" in error for error in errors)


def test_a_damaged_header_ends_no_shard_in_silence(shards):
    """tarfile takes it for the end of the archive, and so does a plain WebDataset pipeline."""
    root, info = shards
    path, index = root / info.shards[1].name, ShardIndex.load(root)
    offset = int(index.records("train", [6])[0]["offset"][0])
    _flip(path, offset - 512)
    plain = wds.WebDataset([str(path)], shardshuffle=False)
    assert [sample["__key__"] for sample in plain] == ["000000004", "000000005"]
    with pytest.raises(
        ValueError, match=rf"{path.name} lacks sample 000000006, which was at offset {offset}: it is cut"
    ):
        _streamed(index, window=2)


@pytest.mark.parametrize("size", [0, 100, 512, 3000, -5000])
def test_a_shard_that_is_cut_short(shards, size):
    root, info = shards
    path, index = root / info.shards[1].name, ShardIndex.load(root)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(
        ValueError, match=rf"{path.name} (lacks|is damaged: \w+ of) sample 00000000\d.*restore the shard"
    ):
        _streamed(index, window=2)
    path.unlink()
    with pytest.raises(ValueError, match=rf"cannot read .*{path.name}: No such file.*restore the shard"):
        _streamed(index, window=2)


@pytest.mark.parametrize("other", ["values", "names", "pickle"])
def test_a_shard_that_is_replaced(shards, tmp_path, other):
    """By one of other values, by one of other samples, and by no tar at all."""
    root, info = shards
    (tmp_path / "other").mkdir()
    another = build_from(mmsa(seed=1), tmp_path / "other")
    number = {"values": 1, "names": 2, "pickle": 0}[other]
    replacement = tmp_path / "other" / "shards" / another.shards[number].name
    index = ShardIndex.load(root)
    shutil.copy(tmp_path / "features.pkl" if other == "pickle" else replacement, root / info.shards[1].name)
    with pytest.raises(ValueError, match=rf"{info.shards[1].name} .*sample 000000004"):
        _streamed(index, window=2)


def test_a_shard_that_changes_while_it_is_read(shards, tmp_path):
    """In its place: an error. Replaced by a rename: the file that is open stays whole. Nothing is lost or mixed."""
    root, info = shards
    reader = ShardReader(root)
    requests = list(_requests(reader.index, window=99, size=1))
    opened = reader.index.store.stream

    class Changing(io.BufferedReader):
        """A local shard to which something happens once its first block was read."""

        def read(self, size=-1):
            block = super().read(size)
            if happening:
                happening.pop()()
            return block

    def stream(shard):
        file = opened(shard)
        return Changing(file.detach(), 512) if shard == info.shards[2] else file

    reader.index.store.stream = stream
    path = root / info.shards[2].name
    (tmp_path / "new").write_bytes(bytes(path.stat().st_size))
    happening = [lambda: (tmp_path / "new").replace(path)]
    kept = path.read_bytes()
    batches = list(SampleStream(reader.index, "train", requests, ahead=False))
    assert not happening
    path.write_bytes(kept)
    _assert_same(reader, batches, requests)

    happening = [lambda: path.write_bytes(bytes(path.stat().st_size))]
    with pytest.raises(ValueError, match=rf"{path.name} (lacks|is damaged: \w+ of) sample 0000000\d\d"):
        list(SampleStream(reader.index, "train", requests, ahead=False))
    assert not happening


def _remote_index(url, cache, options=QUICK):
    return ShardIndex(open_store(url, cache=cache, remote=options))


def test_a_remote_set_is_streamed_once_and_not_kept(served, cache):
    url, server, info = served
    with ShardReader(url, cache=cache, remote=QUICK) as reader:
        batches = _streamed(reader.index, window=2)
        assert server.served(".tar") == sum(shard.bytes for shard in info.shards if shard.split == "train")
        assert not (cache.root / "shards").exists()
        _assert_same(reader, batches, _requests(reader.index, window=2))


def test_faults_of_a_server_lose_nothing(served, cache):
    """Each of them fits the next requests for a shard; three of these are made at once."""
    url, server, _ = served
    index = _remote_index(url, cache)
    server.faults = ["500", "500", "truncate", "flip", "500", "stall", "truncate", "flip"]
    batches = _streamed(index, window=2)
    assert not server.faults
    with ShardReader(url, cache=cache, remote=QUICK) as reader:
        _assert_same(reader, batches, _requests(index, window=2))


def test_a_remote_shard_that_stays_damaged_or_away(served, cache, caplog):
    url, server, _info = served
    patience = RemoteOptions(timeout=2, attempts=3, pause=0.01, chunk_bytes=1 << 20)
    index = _remote_index(url, cache, patience)
    server.faults = ["flip"] * 1000
    if not url.startswith("s3"):  # S3's client compares checksums itself and takes it for a failed request
        with pytest.raises(ValueError, match=rf"{url}/train-\d+-\w+\.tar .*sample 0000000\d\d") as caught:
            _streamed(index, window=2)
        assert "\n" not in str(caught.value)
        assert caplog.text.count("came damaged") == 2
    server.faults = ["500"] * 1000
    with pytest.raises(Unreachable, match=rf"{url}/train-.*gave up after 3 attempts") as caught:
        _streamed(index, window=2)
    assert "\n" not in str(caught.value)
    server.faults = []
    assert len(_streamed(index, window=2)) == 5


def test_a_remote_shard_that_is_replaced_while_it_is_read(s3, tmp_path, cache):
    """Half of its bytes are the new ones: it is read again. The new ones stay: an error."""
    url = f"s3://{s3.bucket}/set"
    info = build(MmsaSource(save(mmsa(), tmp_path / "x.pkl"), name="tiny"), url, samples_per_shard=4)
    index = _remote_index(url, cache)
    files = fsspec.filesystem("s3")
    target = f"{s3.bucket}/set/{info.shards[2].name}"
    right = files.cat_file(target)
    files.pipe_file(target, right[: len(right) // 2] + bytes(len(right) - len(right) // 2))
    requests = list(_requests(index, window=99))
    with pytest.raises(ValueError, match=rf"{info.shards[2].name} (lacks|is damaged: \w+ of) sample 0000000\d\d"):
        list(SampleStream(index, "train", requests))
    timer = threading.Timer(0.05, files.pipe_file, (target, right))
    timer.start()
    with ShardReader(url, cache=cache, remote=QUICK) as reader:
        batches = list(SampleStream(_remote_index(url, cache, RemoteOptions(pause=0.3)), "train", requests))
        timer.join()
        _assert_same(reader, batches, requests)


def test_a_file_that_is_no_tar_is_no_end(tmp_path):
    """What tarfile takes for an empty archive."""
    build_from(mmsa(), tmp_path)
    index = ShardIndex.load(tmp_path / "shards")
    path = tmp_path / "shards" / index.info.shards[0].name
    with tarfile.open(path, "w"):
        pass
    with pytest.raises(ValueError, match="lacks sample 000000000"):
        _streamed(index, window=1)
