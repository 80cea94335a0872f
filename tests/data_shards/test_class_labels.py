"""Class labels beside the sentiment: stored on request, verified, indexed again, for all samples or none."""

import json
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset as wds

from data_shards.external.index_tars import index_tars
from data_shards.reading.index import ShardIndex
from data_shards.reading.reader import ShardReader
from data_shards.tools.verify import verify
from tests.support.small_data import COUNTS, build_from, mmsa, read_all


def classified():
    data = mmsa()
    for fields in data.values():
        fields["classification_labels"] = np.sign(fields["regression_labels"]) + 1
    return data


def test_they_are_kept_on_request_alone(tmp_path):
    for name in ("with", "without", "never"):
        (tmp_path / name).mkdir()
    stored = build_from(classified(), tmp_path / "with", class_labels=True)
    left = build_from(classified(), tmp_path / "without")
    assert left == build_from(mmsa(), tmp_path / "never")
    assert (stored.classes, left.classes) == (3, 0)
    assert stored.generation != left.generation
    shards = tmp_path / "with" / "shards"
    assert not verify(shards).damage
    for split in COUNTS:
        assert np.array_equal(read_all(shards, split)["class"], classified()[split]["classification_labels"])
        assert "class" not in read_all(tmp_path / "without" / "shards", split)
    assert pq.read_table(shards / "index.parquet")["class"].to_pylist()[:3] == read_all(shards)["class"].tolist()[:3]
    with tarfile.open(shards / stored.shards[0].name) as tar:
        facts = json.loads(tar.extractfile("000000000.json").read())
    assert facts["class"] == classified()["train"]["classification_labels"][0]


def test_a_lost_index_comes_back_with_them(tmp_path):
    build_from(classified(), tmp_path, class_labels=True)
    before = read_all(tmp_path / "shards")["class"]
    (tmp_path / "shards" / "index.parquet").unlink()
    assert index_tars(tmp_path / "shards").classes == 3
    assert np.array_equal(read_all(tmp_path / "shards")["class"], before)


def test_externally_created_tars(tmp_path):
    mapping = {"text": "t.npy", "audio": "a.npy", "vision": "v.npy", "label": "json:y", "class": "cls"}

    def write(classes):
        with wds.TarWriter(str(tmp_path / "train.tar")) as tar:
            for i, number in enumerate(classes):
                arrays = {f"{m}.npy": np.ones((2, 3), np.float32) for m in "tav"}
                extra = {} if number is None else {"cls": number}
                tar.write({"__key__": f"{i:03d}", **arrays, "json": {"y": 0.5}, **extra})

    write([4, 0, 1])
    assert index_tars(tmp_path, mapping=mapping).classes == 5
    with ShardReader(tmp_path) as reader:
        assert reader.read("train", [2, 0])["class"].tolist() == [1, 4]
    write([4, None, 1])
    with pytest.raises(ValueError, match=r"'001' has no class label, but others have one"):
        index_tars(tmp_path, mapping=mapping)
    write([None, None])
    with pytest.raises(ValueError, match=r"no sample .* has the class label cls"):
        index_tars(tmp_path, mapping=mapping)
    write(["2.5"])
    with pytest.raises(ValueError, match=r"class \(cls\) '2\.5' is not a whole number"):
        index_tars(tmp_path, mapping={**mapping, "class": "cls"})
    assert ShardIndex.load(tmp_path).info.classes == 5, "the last index that was whole"


@pytest.mark.parametrize(
    "labels, message",
    [
        (None, "lacks classification_labels"),
        (0.5, "are not whole numbers"),
        (-1.0, "-1 is not from 0 to 999; number"),
        (float("nan"), "are not whole numbers"),
    ],
)
def test_what_is_no_class_label_is_rejected(tmp_path, labels, message):
    data = classified()
    if labels is None:
        del data["valid"]["classification_labels"]
    else:
        data["valid"]["classification_labels"][3] = labels
    with pytest.raises(ValueError, match=message):
        build_from(data, tmp_path, class_labels=True)
    assert not (tmp_path / "shards" / "index.parquet").exists()
