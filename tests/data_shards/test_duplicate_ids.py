"""Duplicate ids: found in every source, named with both places, numbered on request."""

import multiprocessing
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset as wds

from data_shards.commands import index, shard
from data_shards.tools.verify import verify
from data_shards.writing.duplicate_ids import DuplicateIdCheck
from tests.support.small_data import COUNTS, mmsa, read_all, save


def _arguments(path, out, *more):
    return [str(path), str(out), "--processes", "1", *map(str, more)]


def _mmsa(path):
    data = mmsa()
    data["train"]["id"][7] = data["train"]["id"][2]
    return save(data, path / "x.pkl"), "'video2", "train sample 2 and train sample 7"


def _misa(path):
    one = ((np.arange(4, 6), np.ones((2, 4), np.float32), np.ones((3, 3))), np.array([[-1.5]]))
    two = (one[0], np.array([[2.0]]))
    entries = [(*(two if i else one), f"vid[{i % 5}]") for i in range(9)]
    return save({"train": entries}, path / "mosi.pkl"), r"'vid\[0\]'", "train sample 0 and train sample 5"


def _table(path):
    rows = [
        {
            "split": "train",
            "id": f"clip{i % 6}",
            "label": i / 4 - 1.5,
            "text": [[1.0]],
            "audio": [[1.0]],
            "vision": [[1.0]],
        }
        for i in range(9)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path / "t.parquet", row_group_size=2)
    return path / "t.parquet", "'clip0'", "train sample 0 and train sample 6"


@pytest.mark.parametrize("make", [_mmsa, _misa, _table])
def test_an_id_that_is_twice_in_a_split_is_rejected_by_dmd_shard(tmp_path, make):
    path, name, places = make(tmp_path)
    with pytest.raises(ValueError, match=rf"{path.name}: the id {name}.* is there twice: {places}; .*--ids number"):
        shard(_arguments(path, tmp_path / "shards", "--samples-per-shard", 3))
    assert not (tmp_path / "shards").exists()
    assert shard(_arguments(path, tmp_path / "shards", "--ids", "number", "--samples-per-shard", 3)) == 0
    found = read_all(tmp_path / "shards")["id"]
    assert len(set(found)) == len(found)
    assert all(name.endswith(f"#train{row}") for row, name in enumerate(found))
    assert not verify(tmp_path / "shards").damage


def test_numbers_keep_the_id_in_front_and_do_not_depend_on_shards_or_processes(tmp_path):
    path, *_ = _mmsa(tmp_path)
    for number, more in enumerate((("--samples-per-shard", 3), ("--samples-per-shard", 100), ("--processes", 2))):
        assert shard([str(path), str(tmp_path / str(number)), "--ids", "number", *map(str, more)]) == 0
        for split, fields in mmsa().items():
            ids = list(fields["id"])
            if split == "train":
                ids[7] = ids[2]
            assert read_all(tmp_path / str(number), split)["id"] == [f"{n}#{split}{i}" for i, n in enumerate(ids)]


def test_a_file_without_ids_can_be_numbered(tmp_path):
    data = mmsa()
    for fields in data.values():
        del fields["id"]
    path = save(data, tmp_path / "x.pkl")
    with pytest.raises(ValueError, match=r"lacks id; .*--ids number"):
        shard(_arguments(path, tmp_path / "shards"))
    assert shard(_arguments(path, tmp_path / "shards", "--ids", "number")) == 0
    assert read_all(tmp_path / "shards", "valid")["id"] == [f"valid{i}" for i in range(COUNTS["valid"])]


@pytest.mark.parametrize("side", ["main", "other"])
@pytest.mark.parametrize("more", [(), ("--ids", "number")])
def test_no_join_chooses_among_samples_of_one_id(tmp_path, side, more):
    data, other = mmsa(), mmsa(seed=1)
    changed = data if side == "main" else other
    changed["valid"]["id"][4] = changed["valid"]["id"][1]
    main, audio = save(data, tmp_path / "main.pkl"), save(other, tmp_path / "audio.pkl")
    named = main if side == "main" else audio
    with pytest.raises(ValueError, match=rf"{named.name}: valid: the id 'video1.* is there twice: samples 1 and 4"):
        shard(_arguments(main, tmp_path / "shards", "--feature-audio", audio, *more))


def test_ids_that_are_in_two_splits_are_reported(tmp_path, caplog):
    assert shard(_arguments(save(mmsa(), tmp_path / "x.pkl"), tmp_path / "one")) == 0
    first = mmsa()["train"]["id"][0]
    assert f"the first is {first!r}: train sample 0 and valid sample 0" in caplog.text
    caplog.clear()
    data = mmsa()
    for split, fields in data.items():
        fields["id"] = [f"{split}/{name}" for name in fields["id"]]
    assert shard(_arguments(save(data, tmp_path / "x.pkl"), tmp_path / "two")) == 0
    assert not caplog.text


def _tars(folder):
    for split, names in (("train-a", "abc"), ("train-b", "dbe"), ("test", "fg")):
        with wds.TarWriter(str(folder / f"{split}.tar")) as tar:
            for number, name in enumerate(names):
                arrays = {f"{m}.npy": np.ones((2, 3), np.float32) for m in ("text", "audio", "vision")}
                facts = {"id": name, "label": number - 1.5, "raw_text": ""}
                tar.write({"__key__": f"{number:03d}", **arrays, "json": facts})
    return ["--map", "text=text.npy,audio=audio.npy,vision=vision.npy,label=json:label,id=json:id"]


def test_externally_created_tars(tmp_path):
    options = _tars(tmp_path)
    message = r"the id 'b' is there twice: train-a\.tar sample 1 and train-b\.tar sample 1; .*--ids number"
    with pytest.raises(ValueError, match=message):
        index([str(tmp_path), *options])
    assert not (tmp_path / "index.parquet").exists()
    assert index([str(tmp_path), *options, "--ids", "number"]) == 0
    assert read_all(tmp_path)["id"] == [f"{name}#train{i}" for i, name in enumerate("abcdbe")]
    assert read_all(tmp_path, "test")["id"] == ["f#test0", "g#test1"]


def test_every_pair_is_found_in_any_order_and_blocks(tmp_path):
    draw = np.random.RandomState(0)
    for _ in range(60):
        count = draw.randint(2, 400)
        ids = [f"id{i}" for i in range(count)]
        here, there = sorted(draw.choice(count, 2, replace=False).tolist())
        ids[there] = ids[here]
        check, size = DuplicateIdCheck("x"), draw.randint(1, 50)
        blocks = [(at, ids[at : at + size]) for at in range(0, count, size)]
        for at, block in blocks[: there // size]:
            check.add(block, split="train", where="train", start=at)
        at, block = blocks[there // size]
        message = f"'id{here}' is there twice: train sample {here} and train sample {there};"
        with pytest.raises(ValueError, match=message):
            check.add(block, split="train", where="train", start=at)


@pytest.mark.slow
def test_a_million_ids_take_little_memory():
    tracemalloc.start()
    check = DuplicateIdCheck("x")
    for start in range(0, 1_000_000, 50_000):
        check.add([f"video{n}" for n in range(start, start + 50_000)], split="train", where="train", start=start)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 17 << 20
    assert peak < 80 << 20
    with pytest.raises(ValueError, match="'video123456' is there twice: train sample 123456 and train sample 1000001"):
        check.add(["new", "video123456"], split="train", where="train", start=1_000_000)


def test_a_build_that_is_rejected_leaves_no_writer_process(tmp_path):
    """The parent finds the id in the second of many shards, while other processes still write."""
    data = mmsa({"train": 2000})
    data["train"]["id"][4] = data["train"]["id"][2]
    path = save(data, tmp_path / "x.pkl")
    others = set(multiprocessing.active_children())
    for _ in range(3):
        with pytest.raises(ValueError, match="is there twice: train sample 2 and train sample 4"):
            shard([str(path), str(tmp_path / "shards"), "--processes", "4", "--samples-per-shard", "3"])
        assert set(multiprocessing.active_children()) <= others
        assert not (tmp_path / "shards").exists()


def test_a_missing_id_is_no_id(tmp_path):
    """pandas writes a gap as NaN, which is no id."""
    for gap in (None, float("nan"), np.float32("nan")):
        data = mmsa()
        data["valid"]["id"][3] = gap
        path = save(data, tmp_path / "x.pkl")
        with pytest.raises(ValueError, match=r"x\.pkl: valid sample 3 has no id \((None|nan)\); .*--ids number"):
            shard(_arguments(path, tmp_path / "shards"))
        assert shard(_arguments(path, tmp_path / "shards", "--ids", "number")) == 0
        assert read_all(tmp_path / "shards", "valid")["id"][3] == "valid3"
        rows = [
            {
                "split": "train",
                "id": i if i != 5 else gap,
                "label": i / 4 - 1.5,
                "text": [[1.0]],
                "audio": [[1.0]],
                "vision": [[1.0]],
            }
            for i in range(9)
        ]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet", row_group_size=4)
        with pytest.raises(ValueError, match=r"t\.parquet: row 5 has no id .*--ids number"):
            shard(_arguments(tmp_path / "t.parquet", tmp_path / "table"))
        features = (np.arange(4, 6), np.ones((2, 4)), np.ones((3, 3)))
        path = save({"train": [(features, 1.5, "a"), (features, -1.0, gap)]}, tmp_path / "misa.pkl")
        with pytest.raises(ValueError, match=r"misa\.pkl: train sample 1 has no id"):
            shard(_arguments(path, tmp_path / "misa"))
    data["valid"]["id"][3] = {"clip": 3}
    with pytest.raises(ValueError, match=r"valid sample 3: the id \{'clip': 3\} is neither a text nor a number; give"):
        shard(_arguments(save(data, tmp_path / "x.pkl"), tmp_path / "shards"))


def test_bytes_of_another_encoding_stay_distinct(tmp_path):
    data = mmsa()
    data["valid"]["id"][:2] = ["视频一".encode("gbk"), "视频二".encode("gbk")]
    assert shard(_arguments(save(data, tmp_path / "x.pkl"), tmp_path / "shards")) == 0
    first, second = read_all(tmp_path / "shards", "valid")["id"][:2]
    assert first != second


def test_ids_and_arrays_of_a_feature_file_must_be_equally_many(tmp_path):
    main = save(mmsa(), tmp_path / "main.pkl")
    for change in (lambda fields: fields["id"].append("more"), lambda fields: fields.update(audio=fields["audio"][1:])):
        other = mmsa(seed=1)
        change(other["valid"])
        audio = save(other, tmp_path / "audio.pkl")
        with pytest.raises(ValueError, match=r"audio\.pkl: valid: fields disagree on the number of samples: .*'audio'"):
            shard(_arguments(main, tmp_path / "shards", "--feature-audio", audio))


def test_samples_that_are_not_joined_are_not_looked_at(tmp_path, capsys):
    other = mmsa(seed=1)
    other["valid"]["id"] = ["nobody", *other["valid"]["id"]]
    other["valid"]["audio"] = np.concatenate([np.full((1, 9, 3), np.nan, np.float32), other["valid"]["audio"]])
    other["valid"]["audio_lengths"] = [9, *other["valid"]["audio_lengths"]]
    main, audio = save(mmsa(), tmp_path / "main.pkl"), save(other, tmp_path / "audio.pkl")
    assert shard(_arguments(main, tmp_path / "shards", "--feature-audio", audio)) == 0
    assert np.array_equal(read_all(tmp_path / "shards", "valid")["audio"], mmsa(seed=1)["valid"]["audio"])
    assert "audio.pkl: valid: samples (1)" in capsys.readouterr().out


def test_what_a_join_lacks_is_named_with_what_is_there(tmp_path):
    other = mmsa(seed=1)
    other["valid"]["id"][2] += " "
    main, audio = save(mmsa(), tmp_path / "main.pkl"), save(other, tmp_path / "audio.pkl")
    with pytest.raises(ValueError, match=r"the first is 'video2.* \(ids there look like 'video0.*same ids"):
        shard(_arguments(main, tmp_path / "shards", "--feature-audio", audio))
    del other["valid"]["id"]
    with pytest.raises(ValueError, match=r"audio\.pkl: valid lacks id; .*joined by id$"):
        shard(_arguments(main, tmp_path / "shards", "--feature-audio", save(other, audio)))
