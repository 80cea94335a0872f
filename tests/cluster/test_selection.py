"""Shards for selection: nothing of the test split is in them, everything else is as it was."""

from collections.abc import Iterator
from dataclasses import fields, replace

import numpy as np
import pytest

from cluster.experiments.selection_shards import SelectionSource, selection_shards
from data_shards.format.schema import DatasetInfo, Sample
from data_shards.labels import Labels
from data_shards.reading.index import ShardIndex
from data_shards.reading.reader import ShardReader
from data_shards.sources.synthetic import SyntheticSource
from data_shards.tools.verify import verify
from data_shards.writing.build import build
from dmd.config import Config
from launch.trainer.preflight import open_shards
from tests.support.clusters import make_shards


def test_the_test_split_is_not_there(tmp_path):
    with ShardReader(make_shards(tmp_path / "all")) as whole:
        ids = set(whole.index.ids("test", range(20)))
        out = selection_shards(whole, tmp_path / "selection")
        with open_shards(str(out), Config()) as reader:
            assert reader.index.info.counts == {"train": 70, "valid": 10}
            with pytest.raises(ValueError, match="has no test split"):
                reader.read("test", [0])
        assert not verify(out).damage
    assert not list(out.glob("test-*"))
    content = b"".join(path.read_bytes() for path in out.iterdir())
    assert not any(name.encode() in content for name in ids), "no file of it names a test sample"


def test_the_rest_is_the_same(tmp_path):
    """Bitwise identical, so a training on them is the training on all shards; made once."""
    for kind, storage in (("features", "float16"), ("tokens", "float32")):
        source = SyntheticSource(samples=100, steps=20, text_dim=8, text_kind=kind)
        build(source, tmp_path / kind, samples_per_shard=32, storage=storage)
        with ShardReader(tmp_path / kind) as whole:
            out = selection_shards(whole, tmp_path / f"{kind}-selection")
            before = (out / "index.parquet").stat().st_mtime_ns
            selection_shards(whole, out)
            assert (out / "index.parquet").stat().st_mtime_ns == before
            with ShardReader(out) as reader:
                assert reader.index.shard_size("train") == whole.index.shard_size("train")
                for split, count in reader.index.info.counts.items():
                    assert reader.index.ids(split, range(count)) == whole.index.ids(split, range(count))
                    assert reader.raw_texts(split, range(count)) == whole.raw_texts(split, range(count))
                    ours, theirs = reader.read(split, range(count)), whole.read(split, range(count))
                    for name, array in theirs.items():
                        assert np.array_equal(ours[name], array), (split, name)


EMOTIONS = ("happy", "sad")


class Classified(SyntheticSource):
    """Samples with a class number and emotions beside their sentiment; test has one more class than other splits."""

    def read(self, split: str, start: int, stop: int) -> Iterator[Sample]:
        for number, sample in enumerate(super().read(split, start, stop), start):
            yield replace(
                sample,
                label=float(np.float32(sample.label)),
                class_label=number % (4 if split == "test" else 3),
                emotions=np.array([number % 2, number % 3 == 0], np.uint8),
            )


def test_every_fact_of_the_set_is_copied(tmp_path):
    """Walks what an index says: all but what follows from the test split, and from being a set of its own."""
    own = {"counts", "shards", "generation", "builder", "labels", "zeroed"}
    build(
        Classified(samples=100, steps=20, text_dim=8),
        tmp_path / "all",
        samples_per_shard=32,
        storage="float16",
        labels=Labels(scale=0.5, class_names=("a", "b", "c", "d"), emotions=EMOTIONS, protocol="emotions"),
        ids="number",
        zeroed={"train/audio": 3, "test/audio": 5},
        ignored={"field video": 7},
    )
    with ShardReader(tmp_path / "all") as whole:
        before, after = whole.index.info, ShardIndex.load(selection_shards(whole, tmp_path / "selection")).info
    assert (before.label_scale, before.ids_numbered, before.ignored) == (0.5, True, {"field video": 7})
    assert before.rounding["audio"] > 0
    for field in fields(DatasetInfo):
        if field.name not in own:
            assert getattr(before, field.name) == getattr(after, field.name), field.name
    assert after.labels == {split: before.labels[split] for split in ("train", "valid")}
    assert after.zeroed == {"train/audio": 3}


@pytest.mark.parametrize("kind", ["features", "tokens"])
def test_every_field_of_a_sample_is_copied(tmp_path, kind):
    """Walks the dataclass, so that a field that is added to it cannot be forgotten here."""
    source = Classified(samples=100, steps=20, text_dim=8, text_kind=kind)
    build(source, tmp_path / "all", samples_per_shard=32, labels=Labels(emotions=EMOTIONS))
    with ShardReader(tmp_path / "all") as whole:
        copy = SelectionSource(whole)
        for split, count in copy.counts().items():
            there, here = list(source.read(split, 0, count)), list(copy.read(split, 0, count))
            assert len(there) == len(here) == count
            for before, after in zip(there, here, strict=True):
                for field in fields(Sample):
                    assert np.array_equal(getattr(before, field.name), getattr(after, field.name)), field.name
        with ShardReader(selection_shards(whole, tmp_path / "selection")) as reader:
            assert reader.index.info.classes == 3
            assert np.array_equal(reader.read("valid", range(10))["class"], np.arange(10) % 3)
