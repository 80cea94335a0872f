"""Emotions, any number per sample: stored, verified, read in every way, indexed again, copied."""

import json
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import webdataset as wds

import data_shards
from data_shards.external.index_tars import index_tars
from data_shards.format.schema import DatasetInfo
from data_shards.labels import LabelFacts, Labels
from data_shards.reading.index import ShardIndex
from data_shards.sources.synthetic import SyntheticSource
from data_shards.tools.verify import verify
from data_shards.writing.build import build
from tests.support.small_data import read_all

NAMES = ("happy", "sad", "angry")
LABELS = Labels(emotions=NAMES)
ARRAYS = {"text": "t.npy", "audio": "a.npy", "vision": "v.npy"}


def flags(count):
    """Emotions [N, 3]: `happy` in every second sample, `sad` in every third, `angry` in none."""
    numbers = np.arange(count)
    return np.stack([numbers % 2 == 0, numbers % 3 == 0, numbers < 0], axis=1).astype(np.uint8)


class Emotional(SyntheticSource):
    """Synthetic samples with emotions, and with or without their sentiment."""

    def __init__(self, *, sentiments=False):
        super().__init__(samples=40, steps=20, text_dim=4)
        self._sentiments = sentiments

    def read(self, split, start, stop):
        for number, sample in enumerate(super().read(split, start, stop), start):
            label = sample.label if self._sentiments else float("nan")
            yield replace(sample, label=label, emotions=flags(stop)[number])


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """A set whose samples have emotions alone."""
    place = tmp_path_factory.mktemp("emotions")
    build(Emotional(), place, samples_per_shard=8, labels=LABELS)
    return place


def test_a_set_knows_its_emotions(shards):
    info = ShardIndex.load(shards).info
    assert (info.task, info.emotions, info.classes) == ("multilabel", NAMES, 0)
    assert info.labels["train"] == LabelFacts(emotions=(14, 10, 0))
    assert info.labels["train"].describe(emotions=NAMES) == "emotions happy (14), sad (10), angry (0)"
    assert DatasetInfo.from_json(info.to_json()) == info
    assert not verify(shards).damage


def test_all_readers_give_them(shards):
    found = read_all(shards)
    assert found["emotions"].dtype == np.uint8
    assert np.array_equal(found["emotions"], flags(28))
    assert np.isnan(found["label"]).all()
    streamed = {sample["row"]: sample["emotions"] for sample in data_shards.pipeline(shards, "train")}
    assert np.array_equal([streamed[row] for row in range(28)], flags(28))


def test_a_tar_says_the_same(shards):
    info = ShardIndex.load(shards).info
    with tarfile.open(shards / info.shards[0].name) as tar:
        facts = [json.loads(tar.extractfile(f"{i:09d}.json").read()) for i in range(3)]
    assert [fact["emotions"] for fact in facts] == flags(3).tolist()
    assert [fact["label"] for fact in facts] == [None] * 3


def test_a_lost_index_comes_back_with_their_names(tmp_path):
    before = build(Emotional(), tmp_path, samples_per_shard=8, labels=LABELS)
    (tmp_path / "index.parquet").unlink()
    with pytest.raises(ValueError, match=r"emotions \(json:emotions\) have no names; give them with --emotions"):
        index_tars(tmp_path, labels=Labels())
    after = index_tars(tmp_path, labels=LABELS)
    assert (after.task, after.emotions, after.labels) == (before.task, before.emotions, before.labels)
    assert np.array_equal(read_all(tmp_path)["emotions"], flags(28))


def test_a_sentiment_beside_them_is_kept(tmp_path):
    info = build(Emotional(sentiments=True), tmp_path, labels=LABELS)
    assert (info.task, info.emotions, info.labels["train"].emotions) == ("regression", NAMES, (14, 10, 0))
    found = read_all(tmp_path)
    assert np.isfinite(found["label"]).all()
    assert np.array_equal(found["emotions"], flags(28))
    assert not verify(tmp_path).damage


@pytest.mark.parametrize("labels", [None, Labels(), Labels(emotions=("happy", "sad"))])
def test_each_needs_a_name(tmp_path, labels):
    names = 0 if labels is None else len(labels.emotions)
    with pytest.raises(ValueError, match=f"samples have 3 emotions, and there are {names} names of them"):
        build(Emotional(), tmp_path / "shards", labels=labels)


def test_samples_that_differ_in_them_are_rejected(tmp_path):
    class Broken(Emotional):
        def __init__(self, emotions):
            super().__init__()
            self._emotions = emotions

        def read(self, split, start, stop):
            for number, sample in enumerate(super().read(split, start, stop), start):
                yield replace(sample, emotions=self._emotions) if number == 5 else sample

    for emotions, words in (
        (None, "label nan is outside"),
        (np.ones(2, np.uint8), "has 2 emotions, others 3"),
        (np.array([0, 2, 1], np.uint8), r"emotions are uint8 \[0, 2, 1\]; give 0 or 1"),
        (np.ones(3), "emotions are float64"),
        (np.ones((3, 1), np.uint8), r"emotions have shape \(3, 1\)"),
    ):
        with pytest.raises(ValueError, match=f"train sample 'synthetic00000.*{words}"):
            build(Broken(emotions), tmp_path / "shards")


def test_externally_created_tars(tmp_path):
    def write(*found):
        with wds.TarWriter(str(tmp_path / "train.tar")) as tar:
            for i, emotions in enumerate(found):
                arrays = {f"{m}.npy": np.ones((2, 3), np.float32) for m in "tav"}
                tar.write({"__key__": f"{i:03d}", **arrays, "json": {"feels": emotions}})

    mapping = {**ARRAYS, "emotions": "json:feels"}
    write([0, 0.33, 3], {"sad": 1, "happy": "0,5", "angry": 0})
    assert index_tars(tmp_path, mapping=mapping, labels=LABELS).task == "multilabel"
    assert read_all(tmp_path)["emotions"].tolist() == [[0, 1, 1], [1, 1, 0]]
    for wrong, words in (
        (
            [0, 1],
            r"sample 000: emotions \(json:feels\) \[0, 1\] are not 3 numbers, one for each name of --emotions hap",
        ),
        ([0, 1, None], "angry is nan; give 0 where an emotion is absent"),
        ([0, 1, -1], "angry is -1"),
        ([0, 1, "x"], "angry 'x' is not a number"),
        ({"happy": 1}, "are of happy, but --emotions names happy, sad, angry"),
        ("happy", "'happy' are not 3 numbers"),
    ):
        write(wrong)
        with pytest.raises(ValueError, match=words):
            index_tars(tmp_path, mapping=mapping, labels=LABELS)
    write([0, 1, 1])
    with pytest.raises(ValueError, match="--map names no member with them"):
        index_tars(tmp_path, mapping={**ARRAYS, "label": "json:y"}, labels=LABELS)
