"""What labels mean: facts in the index, what is rejected until it is declared, and what each declaration stores."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset as wds

from data_shards.commands import index, inspect, shard
from data_shards.format.schema import DatasetInfo
from data_shards.label_checks import check_labels
from data_shards.labels import LabelFacts, Labels
from data_shards.reading.index import ShardIndex
from data_shards.reading.reader import ShardReader
from data_shards.tools.verify import verify
from tests.support.small_data import COUNTS, build_from, mmsa, read_all, save

OLD = Path(__file__).parent / "old"
"""A set that commit 61f3096 wrote: clip0 to clip2 with labels -1.5, 0.5, 2 and classes 0, 2, 2, and one in valid."""


def labelled(path, labels, *, name="regression_labels"):
    """A pickle whose labels are `labels(split, count)`."""
    data = mmsa()
    for split, fields in data.items():
        del fields["regression_labels"]
        fields[name] = labels(split, COUNTS[split])
    return save(data, path / "x.pkl")


def sharded(path, folder, *options):
    assert shard([str(path), str(folder / "shards"), "--processes", "1", *options]) == 0
    return ShardIndex.load(folder / "shards").info


def cycle(*values):
    return lambda split, count: np.array([values[i % len(values)] for i in range(count)], dtype=np.float32)


def test_the_index_says_what_the_labels_are(tmp_path):
    info = build_from(mmsa(), tmp_path)
    assert info.task == "regression"
    assert info.label_scale == 1
    for split, fields in mmsa().items():
        labels = fields["regression_labels"]
        assert info.labels[split] == LabelFacts(min=float(labels.min()), max=float(labels.max()), whole=False)
    assert DatasetInfo.from_json(info.to_json()) == info


@pytest.mark.parametrize(
    "values, words",
    [
        ((0, 1), "all 0 and 1: class numbers .*--binary"),
        ((0, 1, 2, 3), "all whole numbers and never negative: .*--classes"),
        ((1, 2, 3), "never negative"),
        ((1, 2), "never negative"),
        ((-1, 0, 0.4, 1), r"lie in \[-1, 1\], .*--label-scale 3.*--label-scale 1$"),
        ((-1, 0, 1), "--label-scale 3.*model.task=3"),
        ((-0.2, 0.9), "--label-scale 3"),
        ((0.5, 0.75), "--label-scale 3"),
        ((0, 0), "every sample of train has the label 0"),
        ((2.2,), "every sample of train has the label 2.2"),
        ((0, 1, 2, 3, 4, 5), r"label 4.0 is outside \[-3, 3\]; .*--label-scale FACTOR, .*--classes"),
        ((-50, 100), "--label-scale FACTOR"),
    ],
)
def test_ambiguous_labels_are_rejected_with_a_suggested_fix(tmp_path, values, words):
    path = labelled(tmp_path, cycle(*values))
    with pytest.raises(ValueError, match=words) as caught:
        shard([str(path), str(tmp_path / "shards"), "--processes", "1"])
    assert str(path) in str(caught.value)
    assert not (tmp_path / "shards").exists()


@pytest.mark.parametrize("values", [(-3, 0, 3), (-1.5, 0.5), (-1, 2), (0.5, 1.5)])
def test_ordinary_sentiments_pass(tmp_path, values):
    assert sharded(labelled(tmp_path, cycle(*values)), tmp_path).labels["train"].max == max(values)


@pytest.mark.parametrize("values", [(0, 1, 2, 3), (-1, 0.4, 1)])
def test_a_scale_of_one_keeps_them_as_they_are(tmp_path, values):
    info = sharded(labelled(tmp_path, cycle(*values)), tmp_path, "--label-scale", "1")
    assert (info.task, info.label_scale, info.classes) == ("regression", 1, 0)
    assert read_all(tmp_path / "shards")["label"][:3].tolist() == pytest.approx([values[i] for i in range(3)])


def test_a_scale_multiplies_and_is_remembered(tmp_path, capsys):
    info = sharded(labelled(tmp_path, cycle(-1, 0.2, 0.8)), tmp_path, "--label-scale", "3")
    assert read_all(tmp_path / "shards")["label"][:3] == pytest.approx([-3, 0.6, 2.4])
    assert info.label_scale == 3
    assert "train labels: sentiments -1 to 0.8, stored as -3 to 2.4" in capsys.readouterr().out
    assert not verify(tmp_path / "shards").damage
    assert inspect([str(tmp_path / "shards")]) == 0
    assert "labels -1 to 1 of the source are stored as -3 to 3" in capsys.readouterr().out


@pytest.mark.parametrize("factor", ["0", "-3", "nan", "inf"])
def test_factors_that_are_none(tmp_path, factor):
    with pytest.raises(ValueError, match="is no factor; give a number above 0"):
        sharded(labelled(tmp_path, cycle(-1, 1)), tmp_path, f"--label-scale={factor}")


@pytest.mark.parametrize("name", ["labels", "regression_labels", "classification_labels"])
@pytest.mark.parametrize("shape", ["[N]", "[N, 1]", "[N, 1, 1]", "one-hot"])
def test_class_numbers_without_a_sentiment(tmp_path, capsys, name, shape):
    numbers = cycle(0, 1, 5, 3, 2, 4)

    def shaped(split, count):
        values = numbers(split, count).astype(np.int64)
        return np.eye(6)[values] if shape == "one-hot" else values.reshape(count, *[1] * (shape.count("1")))

    info = sharded(labelled(tmp_path, shaped, name=name), tmp_path, "--classes")
    assert (info.task, info.classes) == ("classes", 6)
    expected = np.bincount(numbers("train", COUNTS["train"]).astype(int)).tolist()
    assert info.labels["train"] == LabelFacts(classes=tuple(expected))
    found = read_all(tmp_path / "shards")
    assert np.array_equal(found["class"], numbers("train", COUNTS["train"]))
    assert np.isnan(found["label"]).all()
    assert f"train labels: classes 0 ({expected[0]}), 1 ({expected[1]})" in capsys.readouterr().out
    assert not verify(tmp_path / "shards").damage
    assert inspect([str(tmp_path / "shards"), "--plot", str(tmp_path / "x.png")]) == 0
    assert f"classes 0 ({expected[0]})" in capsys.readouterr().out


def test_a_lost_index_of_classes_comes_back(tmp_path):
    before = sharded(labelled(tmp_path, cycle(0, 1)), tmp_path, "--binary")
    assert before.classes == 2
    (tmp_path / "shards" / "index.parquet").unlink()
    assert index([str(tmp_path / "shards")]) == 0
    after = ShardIndex.load(tmp_path / "shards").info
    assert (after.task, after.classes, after.labels) == ("classes", 2, before.labels)


@pytest.mark.parametrize(
    "option, values, words",
    [
        ("--classes", (0, 1.5), r"train sample 'video1.*label 1.5 is no class number"),
        ("--classes", (-1, 1), "label -1 is no class number"),
        ("--classes", (2,), "every sample of train has the class 2"),
        ("--classes", (0, 1, float("nan")), r"label is not a number \(NaN\)"),
        ("--binary", (0, 1, 2), "label 2 is neither 0 nor 1"),
        ("--binary", (-1, 1), "label -1 is neither 0 nor 1, .* for -1 and .1 use --label-scale 1 and model.task=2"),
    ],
)
def test_what_is_no_class_is_rejected(tmp_path, option, values, words):
    with pytest.raises(ValueError, match=words):
        sharded(labelled(tmp_path, cycle(*values)), tmp_path, option)


def test_several_labels_per_sample_are_rejected_with_their_shape(tmp_path):
    for options in ((), ("--classes",)):
        path = labelled(tmp_path, lambda split, count: np.tile([[0, 1]], (count, 4, 1)), name="labels")
        with pytest.raises(ValueError, match=r"train: labels has shape \(23, 4, 2\), several labels per sample"):
            sharded(path, tmp_path, *options)
    path = labelled(tmp_path, lambda split, count: np.ones((count, 3)), name="labels")
    with pytest.raises(ValueError, match=r"labels has shape \(23, 3\)"):
        sharded(path, tmp_path, "--classes")


def test_classes_alone_ask_for_the_option(tmp_path):
    path = labelled(tmp_path, cycle(0, 1, 2), name="classification_labels")
    for options in ((), ("--class-labels",)):
        with pytest.raises(ValueError, match=r"lacks regression_labels .*class numbers alone are taken with --classes"):
            sharded(path, tmp_path, *options)
    with pytest.raises(ValueError, match="give one"):
        sharded(path, tmp_path, "--class-labels", "--classes")


def test_classes_that_training_does_not_see_are_reported(tmp_path, caplog):
    path = labelled(tmp_path, lambda split, count: np.arange(count) % (2 if split == "train" else 5))
    sharded(path, tmp_path, "--classes")
    assert "classes 2, 3, 4 are in no training sample" in caplog.text
    caplog.clear()
    sharded(labelled(tmp_path, cycle(0, 2)), tmp_path, "--classes")
    assert "class 1 is in no sample at all" in caplog.text
    caplog.clear()
    sharded(labelled(tmp_path, cycle(0, 900)), tmp_path, "--classes")
    assert "classes 1, 2, 3, 4, 5, 6, 7, 8, ... (899 of them) are in no sample at all" in caplog.text


@pytest.mark.parametrize(
    "labels, options, words",
    [
        (
            cycle(0.2, 2.5),
            (),
            r"no training label is negative \(they lie in \[0\.2, 2\.5\]\), but 0 is taken for neutral",
        ),
        (cycle(-0.2, -2.5), (), "no training label is positive"),
        (cycle(0.2, 0.9), ("--label-scale", "3"), "no training label is negative"),
        (cycle(-2.5, 2.5), ("--label-scale", "0.1"), r"after --label-scale 0\.1 the labels lie in \[-0\.25, 0\.25\]"),
        (
            lambda split, count: cycle(-1, 0.5)(split, count) * (1 if split == "train" else 3),
            (),
            "of train alone, .*SIMS",
        ),
        (
            lambda split, count: cycle(0, 2)(split, count) * (1 if split == "train" else -1),
            (),
            "of train alone, .*--bin",
        ),
    ],
)
def test_odd_sentiments_are_warned_of(tmp_path, caplog, labels, options, words):
    sharded(labelled(tmp_path, labels), tmp_path, *options)
    assert re.search(words, caplog.text)


def test_one_class_beside_varied_sentiments_is_warned_of(tmp_path, caplog):
    data = mmsa()
    for fields in data.values():
        fields["classification_labels"] = np.ones(len(fields["id"]), dtype=np.int64)
    sharded(save(data, tmp_path / "x.pkl"), tmp_path, "--class-labels")
    assert "every training sample has class 1; data.classes=stored can learn nothing" in caplog.text


def test_a_factor_that_goes_too_far_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"label 1 times --label-scale 4 is 4, beyond \[-3, 3\]; give a smaller one"):
        sharded(labelled(tmp_path, cycle(1, -1)), tmp_path, "--label-scale", "4")
    sharded(labelled(tmp_path, cycle(0.6, -0.6)), tmp_path, "--label-scale", "5")  # 0.6 is a little more in float32
    assert read_all(tmp_path / "shards")["label"][:2].tolist() == [3, -3]


def test_labels_that_are_no_plain_numbers(tmp_path):
    path = labelled(tmp_path, lambda split, count: np.arange(count) * 0.1j)
    with pytest.raises(ValueError, match="train: regression_labels are complex128; give one plain number"):
        sharded(path, tmp_path)


def test_labels_that_are_none_give_way_to_the_next_field(tmp_path):
    data = mmsa()
    for fields in data.values():
        fields["labels"], fields["regression_labels"] = fields["regression_labels"], None
    sharded(save(data, tmp_path / "x.pkl"), tmp_path)
    assert np.array_equal(read_all(tmp_path / "shards")["label"], mmsa()["train"]["regression_labels"])


def test_tables_and_tars_ask_the_same(tmp_path):
    rows = [
        {"split": "train", "id": f"c{i}", "label": i % 2, "text": [[1.0]], "audio": [[1.0]], "vision": [[1.0]]}
        for i in range(6)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="--binary"):
        sharded(tmp_path / "t.parquet", tmp_path)
    assert sharded(tmp_path / "t.parquet", tmp_path, "--binary").labels["train"].classes == (3, 3)

    (tmp_path / "tars").mkdir()
    with wds.TarWriter(str(tmp_path / "tars" / "train.tar")) as tar:
        for i in range(6):
            arrays = {f"{m}.npy": np.ones((2, 3), np.float32) for m in "tav"}
            tar.write({"__key__": f"{i:03d}", **arrays, "json": {"y": i % 3 - 1.0}, "cls": i % 4})
    mapping = "text=t.npy,audio=a.npy,vision=v.npy"
    with pytest.raises(ValueError, match="--label-scale 3"):
        index([str(tmp_path / "tars"), "--map", f"{mapping},label=json:y"])
    assert index([str(tmp_path / "tars"), "--map", f"{mapping},label=json:y", "--label-scale", "3"]) == 0
    assert read_all(tmp_path / "tars")["label"].tolist() == [-3, 0, 3] * 2
    with pytest.raises(ValueError, match="--map names a class; give one"):
        index([str(tmp_path / "tars"), "--map", f"{mapping},label=json:y,class=cls", "--classes"])
    for more in (("class=cls",), ("label=cls", "--classes")):
        assert index([str(tmp_path / "tars"), "--map", f"{mapping},{more[0]}", *more[1:]]) == 0
        info = ShardIndex.load(tmp_path / "tars").info
        assert (info.task, info.labels["train"].classes) == ("classes", (2, 2, 1, 1))
        assert read_all(tmp_path / "tars")["class"].tolist() == [0, 1, 2, 3, 0, 1]


def test_some_samples_without_a_sentiment_are_rejected(tmp_path):
    with wds.TarWriter(str(tmp_path / "train.tar")) as tar:
        for i in range(3):
            arrays = {f"{m}.npy": np.ones((2, 3), np.float32) for m in ("text", "audio", "vision")}
            facts = {"id": f"c{i}", "label": None if i == 2 else 0.5, "class": i, "raw_text": "", "lengths": {}}
            facts["lengths"] = dict.fromkeys(("text", "audio", "vision"), 2)
            tar.write({"__key__": f"{i:03d}", **arrays, "json": facts})
    with pytest.raises(ValueError, match="'c2': some samples have a sentiment and others have none"):
        index([str(tmp_path)])


def test_a_sample_without_any_label_is_named(tmp_path):
    with wds.TarWriter(str(tmp_path / "train.tar")) as tar:
        for i in range(2):
            arrays = {f"{m}.npy": np.ones((2, 3), np.float32) for m in "tav"}
            tar.write({"__key__": str(i), **arrays, "json": {"y": None if i else 1.0}})
    with pytest.raises(ValueError, match=r"train\.tar: sample 1: it has no label: json:y is null"):
        index([str(tmp_path), "--map", "text=t.npy,audio=a.npy,vision=v.npy,label=json:y"])


def test_a_set_of_an_older_program_stays_readable(tmp_path):
    shutil.copytree(OLD, tmp_path / "old")
    with ShardReader(tmp_path / "old") as reader:
        info = reader.index.info
        assert (info.generation, info.task, info.labels, info.label_scale) == ("2a1cd98af5fbf05e", "regression", {}, 1)
        batch = reader.read("train", [2, 0])
        assert batch["label"].tolist() == [2, -1.5]
        assert batch["class"].tolist() == [2, 0]
        assert reader.index.label_facts("train") == LabelFacts(min=-1.5, max=2.0, whole=False, classes=(1, 0, 2))
        assert reader.index.label_facts("test") == LabelFacts()
    assert not verify(tmp_path / "old").damage
    assert inspect([str(tmp_path / "old")]) == 0


def test_the_same_data_has_the_generation_that_the_older_program_gave_it(tmp_path):
    counts = {"train": 3, "valid": 1}
    data = {
        split: {
            "id": [f"clip{i}" for i in range(n)],
            "raw_text": [f"words {i} of {split}" for i in range(n)],
            "text": np.arange(n * 4, dtype="f4").reshape(n, 2, 2),
            "audio": np.ones((n, 2, 1), "f4"),
            "vision": np.ones((n, 1, 2), "f4"),
            "regression_labels": np.array([-1.5, 0.5, 2.0][:n], "f4"),
            "classification_labels": np.array([0, 2, 2][:n]),
        }
        for split, n in counts.items()
    }
    info = build_from(data, tmp_path, samples_per_shard=512, name="old", class_labels=True)
    old = ShardIndex.load(OLD).info
    assert (info.generation, info.shards) == (old.generation, old.shards)


def test_facts_join_and_forged_ones_are_rejected(tmp_path):
    left, right = LabelFacts.of([1.0, -2.0], [0, 2]), LabelFacts.of([0.5], [1, 1, 4])
    assert left | right == LabelFacts(min=-2.0, max=1.0, whole=False, classes=(1, 2, 1, 0, 1))
    assert left | LabelFacts() == left
    assert check_labels({"valid": LabelFacts.of([0.0, 0.0], [])}, Labels(), "x", training_samples=0) == []
    facts = json.loads(build_from(mmsa(), tmp_path).to_json())
    for forged in (
        {"train": {**facts["labels"]["train"], "min": "x"}},
        {"train": {}},
        {"other": {}},
        [1],
        {"train": 3},
    ):
        with pytest.raises(ValueError, match=r"labels|incomplete"):
            DatasetInfo.from_json(json.dumps({**facts, "labels": forged}))
    for name, value in (("label_scale", -1.0), ("task", "x"), ("task", "classes"), ("label_scale", "1")):
        with pytest.raises(ValueError, match=r"task|labels"):
            DatasetInfo.from_json(json.dumps({**facts, name: value}))
