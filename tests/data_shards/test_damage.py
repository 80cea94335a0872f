"""Flipped bits and truncated files: each one is detected and named."""

import numpy as np
import pytest

from data_shards.reading.index import ShardIndex
from data_shards.reading.reader import ShardReader
from data_shards.tools.verify import verify
from tests.support.small_data import build_from, mmsa


@pytest.fixture
def shards(tmp_path):
    info = build_from(mmsa(), tmp_path)
    return tmp_path / "shards", info


def _flip(path, position, bit=1):
    raw = bytearray(path.read_bytes())
    raw[position] ^= bit
    path.write_bytes(raw)


def test_an_intact_set_verifies(shards):
    root, info = shards
    report = verify(root)
    assert not report.damage
    assert (
        report.bytes == sum(shard.bytes for shard in info.shards) == sum(p.stat().st_size for p in root.glob("*.tar"))
    )


def test_verify_notices_every_flipped_byte_of_a_shard(shards):
    root, info = shards
    path = root / info.shards[7].name  # one sample
    size = path.stat().st_size
    for position in [*range(0, size, 37), size - 1]:
        _flip(path, position)
        (damage,) = verify(root).damage
        assert damage.shard == path.name
        _flip(path, position)
    assert not verify(root).damage


@pytest.mark.parametrize("modality, position", [("text", 130), ("audio", 0), ("vision", 140)])
def test_the_reader_names_shard_key_offset_and_repair(shards, modality, position):
    root, info = shards
    record = ShardIndex.load(root).records("train", [5])[0]
    offset = int(record["offset"][("text", "audio", "vision").index(modality)])
    path = root / info.shards[1].name
    _flip(path, offset + position)
    expected = rf"{path.name} is damaged: {modality} of sample 000000005 at offset {offset}; .*dmd verify"
    with ShardReader(root) as reader, pytest.raises(ValueError, match=expected):
        reader.read("train", [4, 5, 6])
    with ShardReader(root) as reader:
        reader.read("train", [4, 6])
    with ShardReader(root, check=False) as reader:
        reader.read("train", [4, 5, 6])
    (damage,) = verify(root).damage
    assert (damage.shard, damage.key, damage.what) == (path.name, "000000005", f"{modality} does not match its crc32")


def test_a_failed_check_is_repeated(shards):
    root, info = shards
    offset = int(ShardIndex.load(root).records("train", [0])[0]["offset"][0])
    _flip(root / info.shards[0].name, offset + 200)
    with ShardReader(root) as reader:
        for _ in range(2):
            with pytest.raises(ValueError, match="is damaged"):
                reader.read("train", [0])


def test_a_truncated_or_missing_shard(shards):
    root, info = shards
    path = root / info.shards[0].name
    raw = path.read_bytes()
    path.write_bytes(raw[:3000])
    with ShardReader(root, check=False) as reader, pytest.raises(ValueError, match=f"{path.name} is cut short: sample"):
        reader.read("train", [3])
    assert any("bytes instead of" in damage.what for damage in verify(root).damage)
    path.unlink()
    with ShardReader(root) as reader, pytest.raises(ValueError, match=f"cannot read .*{path.name}: No such file"):
        reader.read("train", [3])
    (damage,) = verify(root).damage
    assert damage.what == "the shard is missing"


def test_the_index_notices_every_flipped_byte(shards):
    root, _ = shards
    path = root / "index.parquet"
    for position in range(4, path.stat().st_size, 11):  # the leading magic word holds nothing
        _flip(path, position, bit=1 << position % 8)
        with pytest.raises(ValueError, match=r"index\.parquet"):
            ShardIndex.load(root).records("train", [0])
        _flip(path, position, bit=1 << position % 8)
    assert ShardIndex.load(root).records("train", [0])["shard"].tolist() == [0]


@pytest.mark.parametrize("size", [0, 3, 40, 100, 4000, -1])
def test_a_truncated_index(shards, size):
    path = shards[0] / "index.parquet"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"index\.parquet is (truncated|damaged)"):
        ShardIndex.load(shards[0])


def test_no_index(tmp_path):
    with pytest.raises(ValueError, match=r"holds no index\.parquet.*dmd shard"):
        ShardIndex.load(tmp_path)
    with pytest.raises(ValueError, match="is no directory"):
        ShardIndex.load(tmp_path / "absent")
    (tmp_path / "index.parquet").write_bytes(np.random.RandomState(0).bytes(5000))
    with pytest.raises(ValueError, match="truncated or not an index"):
        ShardIndex.load(tmp_path)
