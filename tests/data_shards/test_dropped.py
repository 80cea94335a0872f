"""Nothing is dropped silently: splits are found under any of their names, and what is ignored is named and counted."""

import io
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset as wds

from data_shards.commands import index, inspect, shard
from data_shards.reading.index import ShardIndex
from data_shards.sources.mmsa import MmsaSource
from data_shards.sources.splits import split_of
from data_shards.writing.build import build
from tests.support.small_data import COUNTS, mmsa, read_all, save

NAMES = ["val", "dev", "validation", "VALID", "Dev", b"val", "valid"]


def shards(path, folder, *more):
    assert shard([str(path), str(folder), "--processes", "1", *more]) == 0
    return ShardIndex.load(folder).info


def misa(count, value=1.0):
    features = (np.arange(4, 6), np.full((2, 4), value, np.float32))
    return [((*features, np.ones((3, 3))), np.array([[i % 4 - 1.5]]), f"vid[{value:g}.{i}]") for i in range(count)]


@pytest.mark.parametrize("name", NAMES)
def test_every_name_of_valid_is_valid_in_every_source(tmp_path, name):
    data = mmsa()
    data[name] = data.pop("valid")
    info = shards(save(data, tmp_path / "x.pkl"), tmp_path / "mmsa")
    assert info.counts == COUNTS
    assert list(info.counts) == ["train", "valid", "test"]
    assert np.array_equal(read_all(tmp_path / "mmsa", "valid")["audio"], mmsa()["valid"]["audio"])
    lists = {"train": misa(6), name: misa(3, 2.0)}
    assert shards(save(lists, tmp_path / "lists.pkl"), tmp_path / "misa").counts == {"train": 6, "valid": 3}
    text = name.decode() if isinstance(name, bytes) else name
    (tmp_path / "directory").mkdir()
    for word, entries in (("train", misa(6)), (text, misa(3, 2.0))):
        save(entries, tmp_path / "directory" / f"{word}.pkl")
    assert shards(tmp_path / "directory", tmp_path / "misa2").counts == {"train": 6, "valid": 3}
    rows = [
        {
            "split": "train" if i % 2 else text,
            "id": f"c{i}",
            "label": i / 2 - 1.5,
            "text": [[1.0]],
            "audio": [[float(i)]],
            "vision": [[1.0]],
        }
        for i in range(8)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet", row_group_size=3)
    assert shards(tmp_path / "t.parquet", tmp_path / "table").counts == {"train": 4, "valid": 4}
    assert read_all(tmp_path / "table", "valid")["audio"].ravel().tolist() == [0, 2, 4, 6]
    pq.write_to_dataset(pa.Table.from_pylist(rows), tmp_path / "hive", partition_cols=["split"])
    assert shards(tmp_path / "hive", tmp_path / "table2").counts == {"train": 4, "valid": 4}


def test_names_of_splits():
    assert {split_of(name) for name in NAMES} == {"valid"}
    assert (split_of("Training"), split_of(" test "), split_of("trian"), split_of(3)) == ("train", "test", None, None)


@pytest.mark.parametrize("kind", ["mmsa", "misa", "directory"])
def test_two_names_of_one_split_are_rejected(tmp_path, kind):
    if kind == "directory":
        path = tmp_path / "d"
        path.mkdir()
        for name in ("train", "val", "dev"):
            save(misa(3), path / f"{name}.pkl")
    else:
        data = mmsa() if kind == "mmsa" else {"train": misa(3), "valid": misa(3)}
        path = save({"train": data["train"], "val": data["valid"], "dev": data["valid"]}, tmp_path / "x.pkl")
    with pytest.raises(ValueError, match=r"'(val|dev)' and '(val|dev)' both mean valid; leave one"):
        shards(path, tmp_path / "out")


def test_splits_of_a_joined_file_have_all_names_too(tmp_path):
    other = mmsa(seed=1)
    other["dev"] = other.pop("valid")
    more = ("--feature-audio", str(save(other, tmp_path / "audio.pkl")))
    assert shards(save(mmsa(), tmp_path / "x.pkl"), tmp_path / "out", *more).counts == COUNTS
    assert np.array_equal(read_all(tmp_path / "out", "valid")["audio"], mmsa(seed=1)["valid"]["audio"])


def test_what_a_pickle_has_besides_is_named(tmp_path, capsys):
    data = mmsa()
    for fields in data.values():
        fields["text_bert"] = np.zeros((len(fields["id"]), 3, 6))
        fields["classification_labels"] = [0] * len(fields["id"])
    data["trian"], data["meta"], data["version"] = mmsa({"train": 12})["train"], [1, 2, 3], "2.0"
    info = shards(save(data, tmp_path / "x.pkl"), tmp_path / "out")
    expected = {
        "annotations": 35,
        "classification_labels": 35,
        "text_bert": 35,
        "trian": 12,
        "meta": 3,
        "version": 1,
    }
    assert "text_bert" not in info.ignored, "it gives the lengths of the text"
    assert info.ignored == {name: count for name, count in expected.items() if name != "text_bert"}
    message = "ignored: annotations (35), classification_labels (35), meta (3), trian (12), version (1)\n"
    assert message in capsys.readouterr().out
    assert inspect([str(tmp_path / "out")]) == 0
    assert "not taken from the source: annotations (35)" in capsys.readouterr().out
    for fields in data.values():
        if isinstance(fields, dict):
            fields["text_lengths"] = [1] * len(fields["id"])
    assert shards(save(data, tmp_path / "x.pkl"), tmp_path / "again").ignored == expected


def test_what_a_joined_file_has_besides_is_named(tmp_path):
    other = mmsa({"train": 30, "valid": 5, "test": 7}, seed=1)
    audio = save(other, tmp_path / "audio.pkl")
    info = shards(save(mmsa(), tmp_path / "x.pkl"), tmp_path / "out", "--feature-audio", str(audio))
    assert info.ignored[f"{audio}: train: samples"] == 7
    assert info.ignored[f"{audio}: vision"] == 42
    assert info.ignored["audio"] == info.ignored["audio_lengths"] == 35


def test_what_lists_and_tables_have_besides_is_named(tmp_path):
    (tmp_path / "d").mkdir()
    for name in ("train", "dev", "old_train"):
        save(misa(3), tmp_path / "d" / f"{name}.pkl")
    (tmp_path / "d" / "readme.txt").write_text("x")
    for metadata in (".DS_Store", "._train.pkl"):
        (tmp_path / "d" / metadata).write_bytes(b"\0\1")
    (tmp_path / "d" / "test.pkl").symlink_to(tmp_path / "gone.pkl")
    files = {"file old_train.pkl": 1, "file readme.txt": 1, "a link to nothing: test.pkl": 1}
    assert shards(tmp_path / "d", tmp_path / "one").ignored == files
    lists = save({"train": misa(3), "words": ["a", "b"]}, tmp_path / "x.pkl")
    assert shards(lists, tmp_path / "two").ignored == {"words": 2}
    row = {"id": "c", "label": 0.5, "text": [[1.0]], "audio": [[1.0]], "vision": [[1.0]], "emotion": "sad"}
    rows = [{**row, "split": "train", "id": f"c{i}", "label": i - 1.5} for i in range(4)]
    (tmp_path / "tables").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "tables" / "a.parquet")
    (tmp_path / "tables" / "b.csv").write_text("x")
    (tmp_path / "tables" / "more").symlink_to(tmp_path / "d")
    (tmp_path / "tables" / "._a.parquet").write_bytes(b"\0\5\x16\7")
    assert shards(tmp_path / "tables", tmp_path / "three").ignored == {
        "column emotion": 4,
        "file b.csv": 1,
        "a link to a directory, which is not followed: more": 1,
    }


def test_members_that_are_ignored_are_named_and_macos_metadata_is_skipped(tmp_path, capsys):
    def add(tar, name, raw=b"", **kind):
        info = tarfile.TarInfo(name)
        info.size = len(raw)
        for attribute, value in kind.items():
            setattr(info, attribute, value)
        tar.addfile(info, io.BytesIO(raw))

    def npy():
        file = io.BytesIO()
        np.save(file, np.ones((2, 3), np.float32))
        return file.getvalue()

    with tarfile.open(tmp_path / "validation.tar", "w") as tar:
        add(tar, "README", b"hello")
        add(tar, "LICENSE.md", b"ours")
        add(tar, "clips", type=tarfile.DIRTYPE)
        add(tar, ".DS_Store", b"\0")
        for i in range(3):
            add(tar, f"clips/._{i}.t.npy", b"\0\5\x16\7")
            for m in "tav":
                add(tar, f"clips/{i}.{m}.npy", npy())
            add(tar, f"clips/{i}.json", f'{{"y": {i - 1.5}}}'.encode())
            add(tar, f"clips/{i}.jpg", b"no picture")
        add(tar, "clips/link", type=tarfile.SYMTYPE, linkname="0.jpg")
    (tmp_path / "._validation.tar").write_bytes(b"\0\5\x16\7")
    mapping = ["--map", "text=t.npy,audio=a.npy,vision=v.npy,label=json:y"]
    assert index([str(tmp_path), *mapping]) == 0
    message = "ignored: file README (1), member .jpg (3), member .md (1), special or sparse member clips/link (1)\n"
    assert message in capsys.readouterr().out
    assert ShardIndex.load(tmp_path).info.counts == {"valid": 3}
    assert read_all(tmp_path, "valid")["id"] == ["clips/0", "clips/1", "clips/2"]


@pytest.mark.parametrize("name", ["dev", "val", "validation", "valid"])
def test_split_patterns_of_dmd_index(tmp_path, name):
    with wds.TarWriter(str(tmp_path / "part.tar")) as tar:
        for i in range(2):
            arrays = {f"{m}.npy": np.ones((2, 3), np.float32) for m in "tav"}
            tar.write({"__key__": str(i), **arrays, "json": {"y": i - 1.5}})
    mapping = ["--map", "text=t.npy,audio=a.npy,vision=v.npy,label=json:y"]
    assert index([str(tmp_path), *mapping, "--split", f"{name}=part*"]) == 0
    assert ShardIndex.load(tmp_path).info.counts == {"valid": 2}
    with pytest.raises(ValueError, match="--split: split 'evaluation' is unknown; use train, valid, test"):
        index([str(tmp_path), *mapping, "--split", "evaluation=part*"])
    with pytest.raises(ValueError, match="both mean valid"):
        index([str(tmp_path), *mapping, "--split", "dev=part*", "--split", "val=x*"])


@pytest.mark.parametrize("kind", ["mmsa", "list", "object", "misa", "table"])
def test_what_becomes_infinite_as_float32_is_not_finite(tmp_path, kind):
    if kind == "misa":
        lists = {"train": misa(4)}
        lists["train"][2][0][2][0, 1] = -1e39
        path, named = save(lists, tmp_path / "x.pkl"), r"train/audio 1 \(first in vid\[1.2\]\)"
    elif kind == "table":
        row = {"split": "train", "text": [[1.0]], "vision": [[1.0]]}
        rows = [{**row, "id": f"c{i}", "label": i - 1.5, "audio": [[1e39 if i == 2 else 1.0]]} for i in range(4)]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
        path, named = tmp_path / "x.parquet", r"train/audio 1 \(first in c2\)"
    else:
        data = mmsa()
        audio = data["train"]["audio"].astype(np.float64)
        audio[2, 0, 1] = -1e39
        wrapped = np.empty(len(audio), dtype=object)
        wrapped[:] = list(audio)
        data["train"]["audio"] = {"mmsa": audio, "list": list(audio), "object": wrapped}[kind]
        path, named = save(data, tmp_path / "x.pkl"), r"train/audio 1 \(first in video2"
    words = rf"{path.name}: non-finite values .*beyond float32.*: {named}.*--nonfinite zero"
    with pytest.raises(ValueError, match=words):
        shards(path, tmp_path / "out")
    info = shards(path, tmp_path / "out", "--nonfinite", "zero")
    assert info.zeroed == {"train/audio": 1}
    assert read_all(tmp_path / "out")["audio"][2, 0, 1 if kind != "table" else 0] == 0


def test_a_sample_that_is_wrong_is_named_with_file_field_and_shape(tmp_path):
    data = mmsa()
    data["valid"]["vision"] = [*data["valid"]["vision"][:4], np.ones((5, 2), np.float32)]
    with pytest.raises(ValueError, match=r"x\.pkl: valid: vision is ragged: sample 0 .* \(7, 2\), sample 4 \(5, 2\)"):
        MmsaSource(save(data, tmp_path / "x.pkl"))
    data = mmsa()
    data["valid"]["vision"] = data["valid"]["vision"][:, :, :1]
    path = save(data, tmp_path / "x.pkl")
    with pytest.raises(ValueError, match=rf"{path}: vision of valid samples has shape \(7, 1\), of others \(7, 2\)"):
        build(MmsaSource(path), tmp_path / "out", where=str(path))
    data = mmsa()
    data["test"]["regression_labels"][3] = 7
    path = save(data, tmp_path / "x.pkl")
    with pytest.raises(ValueError, match=rf"{path}: test sample 'video3.*label 7.0"):
        shards(path, tmp_path / "out")


def _tars(folder, *names):
    folder.mkdir(exist_ok=True)
    arrays = {f"{m}.npy": np.ones((2, 2), np.float32) for m in ("text", "audio", "vision")}
    lengths = dict.fromkeys(("text", "audio", "vision"), 2)
    for name in names:
        with wds.TarWriter(str(folder / name)) as tar:
            for i in range(2):
                facts = {"label": i / 2 - 1.5, "lengths": lengths, "id": f"{name}{i}", "raw_text": ""}
                tar.write({"__key__": f"{name}{i}".replace(".", "-"), **arrays, "json": facts})


def test_files_beside_the_tars_are_named(tmp_path, capsys):
    _tars(tmp_path, "train-0.tar")
    (tmp_path / "__MACOSX").mkdir()
    for name in ("train-1.tar.gz", "train-2.TAR", "notes", "a.wav", "b.wav", ".hidden", "__MACOSX/train-3.tar"):
        (tmp_path / name).write_bytes(b"x" * 600)
    (tmp_path / "c.wav").symlink_to("gone.wav")
    assert index([str(tmp_path)]) == 0
    assert (
        "ignored: a link to nothing: c.wav (1), file *.TAR (1), file *.tar.gz (1), file *.wav (2), file notes (1)"
        in capsys.readouterr().out
    )
    assert ShardIndex.load(tmp_path).info.counts == {"train": 2}


def test_data_behind_the_end_of_a_tar_is_an_error(tmp_path):
    _tars(tmp_path, "train-0.tar", "train-1.tar")
    with open(tmp_path / "train-0.tar", "ab") as file:
        file.write((tmp_path / "train-1.tar").read_bytes())
    with pytest.raises(ValueError, match=r"train-0\.tar goes on behind its end at \d+: other tars were appended"):
        index([str(tmp_path)])


@pytest.mark.parametrize("option, values", [("--map", ["label=json:a,label=json:b"]), ("--split", ["dev=a", "dev=b"])])
def test_a_name_that_is_given_twice(tmp_path, option, values):
    _tars(tmp_path, "train-0.tar")
    with pytest.raises(ValueError, match=rf"{option} names (label|dev) twice: .*; leave one"):
        index([str(tmp_path), *(word for value in values for word in (option, value))])


def test_columns_of_any_file_of_a_table_are_named(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    row = {"split": "train", "text": [[1.0]], "audio": [[1.0]], "vision": [[1.0]]}
    for number, more in enumerate(({}, {"speaker": "x"}, {"audio_length": 1, "speaker": "y"})):
        rows = [{**row, "id": f"{number}.{i}", "label": i / 2 - 1.5, **more} for i in range(4)]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in" / f"{number}.parquet")
    (tmp_path / "in" / "__MACOSX").mkdir()
    (tmp_path / "in" / "__MACOSX" / "0.parquet").write_bytes(b"x")
    info = shards(tmp_path / "in", tmp_path / "out")
    assert info.ignored == {"column speaker": 8, "column audio_length": 4}
    rows = [{**row, "id": f"3.{i}", "label": "good"} for i in range(4)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in" / "3.parquet")
    with pytest.raises(ValueError, match=r"in/3\.parquet cannot be read as the table .*in: .*give all files the same"):
        shards(tmp_path / "in", tmp_path / "out")


def test_a_split_that_is_named_twice_is_rejected(tmp_path):
    (tmp_path / "in" / "split=valid").mkdir(parents=True)
    row = {"split": "test", "id": "a", "label": 1.0, "text": [[1.0]], "audio": [[1.0]], "vision": [[1.0]]}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "in" / "split=valid" / "t.parquet")
    with pytest.raises(ValueError, match=r"a column split, and its directory says split=valid; leave one"):
        shards(tmp_path / "in", tmp_path / "out")


def test_a_table_without_rows_is_called_empty(tmp_path):
    row = {"split": "train", "id": "a", "label": 1.0, "text": [[1.0]], "audio": [[1.0]], "vision": [[1.0]]}
    pq.write_table(pa.Table.from_pylist([row]).slice(0, 0), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"t\.parquet: text is empty: the table has no rows"):
        shards(tmp_path / "t.parquet", tmp_path / "out")


def test_the_suffix_of_a_pickle_may_be_in_capitals(tmp_path):
    (tmp_path / "in").mkdir()
    for name, entries in (("train.pkl", misa(6)), ("dev.PKL", misa(3, 2.0))):
        save(entries, tmp_path / "in" / name)
    assert shards(tmp_path / "in", tmp_path / "out").counts == {"train": 6, "valid": 3}
