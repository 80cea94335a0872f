"""Externally created tars, indexed in place; and other programs reading ours."""

import io
import json
import tarfile

import numpy as np
import pytest
import webdataset as wds

from data_shards.external.index_tars import index_tars
from data_shards.labels import Labels
from data_shards.reading.index import ShardIndex
from data_shards.reading.reader import ShardReader
from data_shards.tools.verify import verify
from tests.support.small_data import build_from, files, mmsa

MAP = {
    "text": "emb.npy",
    "audio": "feats.npz:sound",
    "vision": "feats.npz:face",
    "label": "json:ratings.sentiment",
    "id": "json:clip",
    "raw_text": "txt",
}


def _arrays(i):
    draw = np.random.RandomState(i)
    steps = 1 + i % 4
    return {
        "text": np.asfortranarray(draw.randn(steps, 5)),
        "sound": draw.randn(steps + 2, 3).astype(">f4"),
        "face": draw.randint(0, 9, (3, 2)),
    }


def _npz(compressed, **arrays):
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **arrays)
    return file.getvalue()


def _write(path, numbers, *, change=None):
    """A tar as `wds.TarWriter` makes it, with members that we do not need among the others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wds.TarWriter(str(path)) as tar:
        for i in numbers:
            arrays = _arrays(i)
            sample = {
                "__key__": f"clips/{i:03d}",
                "emb.npy": arrays["text"],
                "feats.npz": _npz(i % 2, sound=arrays["sound"], face=arrays["face"]),
                "json": {"clip": f"vid.{i}/a", "ratings": {"sentiment": i % 7 - 3}},
                "txt": f"spoken {i} ü",
                "jpg": b"no picture",
            }
            tar.write(change(sample) if change else sample)


def _write_all(root):
    _write(root / "train" / "a.tar", range(9))
    _write(root / "train" / "b.tar", range(9, 12))
    _write(root / "dev-0.tar", range(12, 14))


def test_tars_are_indexed_in_place(tmp_path):
    _write_all(tmp_path)
    before = files(tmp_path)
    info = index_tars(tmp_path, mapping=MAP, name="external", processes=2)
    assert {name: raw for name, raw in files(tmp_path).items() if name != "index.parquet"} == before
    assert info.counts == {"train": 12, "valid": 2}
    assert [shard.name for shard in info.shards] == ["train/a.tar", "train/b.tar", "dev-0.tar"]
    assert (info.lengths, info.dims) == ({"text": 4, "audio": 6, "vision": 3}, {"text": 5, "audio": 3, "vision": 2})
    with ShardReader(tmp_path) as reader:
        for split, numbers in (("train", range(12)), ("valid", range(12, 14))):
            batch = reader.read(split, range(len(numbers)))
            assert reader.index.ids(split, range(len(numbers))) == [f"vid.{i}/a" for i in numbers]
            assert reader.raw_texts(split, range(len(numbers))) == [f"spoken {i} ü" for i in numbers]
            assert batch["label"].tolist() == [i % 7 - 3 for i in numbers]
            for row, i in enumerate(numbers):
                arrays = _arrays(i)
                assert batch["lengths"][row].tolist() == [len(array) for array in arrays.values()]
                for modality, array in zip(("text", "audio", "vision"), arrays.values(), strict=True):
                    assert np.array_equal(batch[modality][row, : len(array)], array.astype(np.float32))
                    assert not batch[modality][row, len(array) :].any()
    assert not verify(tmp_path, threads=2).damage


def test_damage_in_external_tars_is_named(tmp_path):
    _write_all(tmp_path)
    index_tars(tmp_path, mapping=MAP)
    offset = int(ShardIndex.load(tmp_path).records("train", [10])["offset"][0, 1])
    path = tmp_path / "train" / "b.tar"
    raw = bytearray(path.read_bytes())
    raw[offset + 60] ^= 8
    path.write_bytes(raw)
    with ShardReader(tmp_path) as reader:
        reader.read("train", [9, 11])
        with pytest.raises(ValueError, match=rf"train/b\.tar is damaged: audio of sample clips/010 at offset {offset}"):
            reader.read("train", [10])
    (damage,) = verify(tmp_path).damage
    assert (damage.shard, damage.key) == ("train/b.tar", "clips/010")
    assert damage.what == "audio does not match its crc32, vision does not match its crc32"  # they share a member


def test_tokens_and_split_patterns(tmp_path):
    tokens = np.array([[5, 6, 7, 0], [1, 1, 1, 0], [0, 0, 0, 0]])
    _write(tmp_path / "x1.tar", range(3), change=lambda sample: {**sample, "emb.npy": tokens})
    with pytest.raises(ValueError, match=r"x1\.tar belongs to no split"):
        index_tars(tmp_path, mapping=MAP)
    info = index_tars(tmp_path, mapping=MAP, splits={"test": "x*.tar"})
    assert (info.text_kind, info.vocab_size, info.counts) == ("tokens", 8, {"test": 3})
    batch = ShardReader(tmp_path).read("test", [1])
    assert batch["text"].tolist() == [tokens.tolist()]
    assert batch["lengths"][0, 0] == 3


def test_our_own_tars_without_their_index(tmp_path):
    build_from(mmsa(), tmp_path)
    root = tmp_path / "shards"
    with ShardReader(root) as reader:
        before = reader.read("test", range(7))
        ids = reader.index.ids("test", range(7))
    (root / "index.parquet").unlink()
    info = index_tars(root)
    assert sum(info.counts.values()) == 35
    with ShardReader(root) as reader:
        after = reader.read("test", range(7))
        assert reader.index.ids("test", range(7)) == ids
        assert reader.raw_texts("test", [3]) == mmsa()["test"]["raw_text"][3:4]
    assert all(np.array_equal(before[name], after[name]) for name in before)


class _Opens:
    """What a malicious pickle would do."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def _without(name):
    return lambda sample: {key: value for key, value in sample.items() if key != name}


def _with(name, value):
    return lambda sample: {**sample, name: value}


@pytest.mark.parametrize(
    "change, mapping, message",
    [
        (None, {**MAP, "text": "emb.pth"}, r"emb\.pth: \.pth files can run code"),
        (None, {**MAP, "audio": "a.pkl"}, r"\.pkl files can run code"),
        (None, {**MAP, "audio": "feats.npz"}, r"name the array in an \.npz"),
        (None, {**MAP, "label": "jpg"}, r"label=jpg: use a \.json field"),
        (None, {**MAP, "colour": "x.npy"}, "does not know 'colour'"),
        (None, {"text": "emb.npy"}, "lacks audio"),
        (None, {**MAP, "text": "other.npy"}, r"sample clips/000: it has no other\.npy, only"),
        (None, {**MAP, "audio": "feats.npz:voice"}, "feats.npz:voice is no array that can be read"),
        (None, {**MAP, "label": "json:ratings.anger"}, r"the JSON has no ratings\.anger"),
        (_with("json", {"clip": "x", "ratings": {"sentiment": 4}}), MAP, r"label 4\.0 is outside"),
        (_with("json", {"clip": "x", "ratings": {"sentiment": "good"}}), MAP, "'good' is not a number"),
        (_with("emb.npy", np.zeros((2, 2, 2))), MAP, r"features are float64 \(2, 2, 2\)"),
        (_with("emb.npy", np.full((2, 5), np.nan)), MAP, "10 non-finite values"),
        (_without("feats.npz"), MAP, r"it has no feats\.npz"),
    ],
)
def test_what_cannot_be_indexed_is_rejected_and_leaves_nothing(tmp_path, change, mapping, message):
    _write(tmp_path / "train.tar", range(2), change=change)
    before = files(tmp_path)
    with pytest.raises(ValueError, match=message):
        index_tars(tmp_path, mapping=mapping)
    assert files(tmp_path) == before


def test_a_pickle_inside_a_npy_is_rejected_and_not_run(tmp_path):
    file = io.BytesIO()
    np.save(file, np.array([_Opens(tmp_path / "PWNED")], dtype=object), allow_pickle=True)

    def add(tar, name, raw):
        info = tarfile.TarInfo(name)
        info.size = len(raw)
        tar.addfile(info, io.BytesIO(raw))

    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        add(tar, "1.emb.npy", file.getvalue())
        add(tar, "1.feats.npz", _npz(False, sound=np.ones((2, 2)), face=np.ones((2, 2))))
        add(tar, "1.json", json.dumps({"clip": "x", "ratings": {"sentiment": 1}}).encode())
        add(tar, "1.txt", b"x")
    with pytest.raises(ValueError, match=r"emb\.npy is no array that can be read: it holds object"):
        index_tars(tmp_path, mapping=MAP)
    assert not (tmp_path / "PWNED").exists()


def test_directories_without_tars(tmp_path):
    with pytest.raises(ValueError, match=r"holds no \.tar files$"):
        index_tars(tmp_path)
    (tmp_path / "train.tar.gz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"uncompress train\.tar\.gz"):
        index_tars(tmp_path)
    with pytest.raises(ValueError, match="no local directory"):
        index_tars("s3://bucket/tars")
    (tmp_path / "train.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(ValueError, match=r"train\.tar is no tar that can be read"):
        index_tars(tmp_path)


def _add_members(path, *names):
    """A tar of members that hold what `MAP` asks for."""
    contents = {
        "emb.npy": io.BytesIO(),
        "feats.npz": io.BytesIO(_npz(False, sound=np.ones((2, 2)), face=np.ones((2, 2)))),
    }
    np.save(contents["emb.npy"], np.ones((2, 3)))
    with tarfile.open(path, "w") as tar:
        for number, name in enumerate(names):
            suffix = name.rpartition("/")[2].lstrip(".").partition(".")[2]
            facts = {"clip": str(number), "ratings": {"sentiment": 1 - number % 3}}
            raw = contents[suffix].getvalue() if suffix in contents else json.dumps(facts).encode()
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))


def _names(key):
    return [f"{key}.{suffix}" for suffix in ("emb.npy", "feats.npz", "json", "txt")]


def test_samples_are_those_of_webdataset(tmp_path):
    """Whatever the names: dots, folders, capitals, one key for two samples, files that belong to none."""
    keys = ("a", "./b", "x/y/a", "A", "x.d/c", "a", ".hidden")
    _add_members(tmp_path / "train.tar", *(name for key in keys for name in _names(key)))
    info = index_tars(tmp_path, mapping=MAP)
    with ShardReader(tmp_path) as reader:
        found = reader.index.strings("key", "train", range(info.counts["train"]))
    samples = wds.WebDataset([str(tmp_path / "train.tar")], shardshuffle=False)
    assert found == [sample["__key__"] for sample in samples] == list(keys[:-1])
    assert info.ignored == {f"file {name}": 1 for name in _names(keys[-1])}


def test_two_members_of_one_name(tmp_path):
    _add_members(tmp_path / "train.tar", *_names("a"), *_names("x/b"), "x/b.emb.npy")
    with pytest.raises(ValueError, match=r"train\.tar: two members of a sample have the name x/b\.emb\.npy; give each"):
        index_tars(tmp_path, mapping=MAP)


def test_webdataset_splits_our_shards_by_node_and_worker(tmp_path, monkeypatch):
    info = build_from(mmsa(), tmp_path)
    urls = [str(tmp_path / "shards" / shard.name) for shard in info.shards if shard.split == "train"]
    seen = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        samples = wds.WebDataset(urls, shardshuffle=False, nodesplitter=wds.split_by_node).decode()
        seen.append([sample["json"]["id"] for sample in samples])
    assert sorted(seen[0] + seen[1]) == sorted(mmsa()["train"]["id"])
    assert all(seen)


@pytest.mark.parametrize(
    "field, value, words",
    [
        ("clip", None, "it has no id: json:clip is None; give it one, or leave id out of --map"),
        ("kind", float("inf"), r"class \(json:kind\) inf is not a whole number"),
        ("kind", "happy", r"class \(json:kind\) 'happy' is not a number"),
        ("kind", None, r"class \(json:kind\) None is not a whole number"),
        ("heard", 1.7, "audio_length 1.7 is not a whole number"),
        ("mood", [1.0], r"label \(json:mood\) \[1.0\] is not a number"),
    ],
)
def test_fields_that_are_not_what_they_should_be(tmp_path, field, value, words):
    def change(sample):
        sample["json"] = {"clip": sample["__key__"], "kind": 1, "heard": 1, "mood": 1.0, field: value}
        return sample

    _write(tmp_path / "train.tar", range(2), change=change)
    mapping = {**MAP, "class": "json:kind", "audio_length": "json:heard", "label": "json:mood"}
    with pytest.raises(ValueError, match=rf"train\.tar: sample clips/000: {words}"):
        index_tars(tmp_path, mapping=mapping)


def test_a_scale_needs_a_label(tmp_path):
    _write(tmp_path / "train.tar", range(2))
    mapping = {name: member for name, member in MAP.items() if name != "label"} | {"class": "json:ratings.sentiment"}
    with pytest.raises(ValueError, match="--label-scale 3 is of sentiments, but --map names no label"):
        index_tars(tmp_path, mapping=mapping, labels=Labels(scale=3))
