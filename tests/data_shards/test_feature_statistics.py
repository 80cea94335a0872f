"""Statistics of the train split in an index: right, reproducible, exact for constants, absent where they must be."""

import json
from dataclasses import replace

import numpy as np
import pytest

from data_shards.external.index_tars import index_tars
from data_shards.format.feature_statistics import Moments
from data_shards.format.schema import DatasetInfo
from data_shards.reading.index import ShardIndex
from data_shards.sources.mmsa import MmsaSource
from data_shards.writing.build import build
from data_shards.writing.process_pool import ForkedProcesses
from tests.support.small_data import build_from, mmsa, read_all, save


def padded():
    """`mmsa()` with padding before and behind the frames, a constant feature, and a large offset."""
    data = mmsa()
    for fields in data.values():
        for row in range(len(fields["id"])):
            fields["audio"][row, : row % 4] = 0
            fields["vision"][row, 5 - row % 3 :] = 0
        fields["audio"][:, :, 2] = np.where(fields["audio"].any(axis=2), np.float32(0.1), 0)
        fields["text"][:, :, 1] += 5000
    return data


def test_statistics_are_those_of_the_frames_to_train_on(tmp_path):
    info = build_from(padded(), tmp_path)
    for modality in ("text", "audio", "vision"):
        frames = padded()["train"][modality].astype(np.float64).reshape(-1, info.dims[modality])
        frames = frames[frames.any(axis=1)]
        assert info.statistics[modality]["mean"] == pytest.approx(frames.mean(axis=0), rel=1e-12, abs=1e-12)
        assert info.statistics[modality]["std"] == pytest.approx(frames.std(axis=0), rel=1e-9, abs=1e-12)
    assert info.statistics["audio"]["std"][2] == 0
    assert info.statistics["audio"]["mean"][2] == float(np.float32(0.1))
    assert ShardIndex.load(tmp_path / "shards").info == info


def test_they_do_not_depend_on_processes_nor_change_the_generation(tmp_path):
    source = MmsaSource(save(padded(), tmp_path / "features.pkl"), name="tiny")
    one, two = (build(source, tmp_path / str(n), samples_per_shard=4, executor=ForkedProcesses(n)) for n in (1, 2))
    assert (tmp_path / "1" / "index.parquet").read_bytes() == (tmp_path / "2" / "index.parquet").read_bytes()
    assert one == two
    index_tars(tmp_path / "1", name="tiny")
    assert ShardIndex.load(tmp_path / "1").info.statistics == one.statistics


def test_float16_statistics_are_those_of_what_is_read(tmp_path):
    source = MmsaSource(save(padded(), tmp_path / "features.pkl"), name="tiny")
    info = build(source, tmp_path / "shards", storage="float16")
    read = read_all(tmp_path / "shards")["audio"].astype(np.float64).reshape(-1, 3)
    assert info.statistics["audio"]["mean"] == pytest.approx(read[read.any(axis=1)].mean(axis=0), rel=1e-12)
    assert info.statistics["audio"]["std"][2] == 0


def test_tokens_have_none_and_neither_has_a_set_without_a_train_split(tmp_path):
    (tmp_path / "tokens").mkdir()
    (tmp_path / "test").mkdir()
    assert set(build_from(mmsa(tokens=True), tmp_path / "tokens").statistics) == {"audio", "vision"}
    assert build_from(mmsa({"test": 4}), tmp_path / "test").statistics == {}


def test_an_index_of_an_older_program_is_read_and_a_forged_one_rejected(tmp_path):
    info = build_from(mmsa(), tmp_path)
    fields = json.loads(info.to_json())
    del fields["statistics"]
    assert DatasetInfo.from_json(json.dumps(fields)) == replace(info, statistics={})
    vision = info.statistics["vision"]
    for forged in (
        {"vision": {"mean": vision["mean"]}},
        {"vision": {**vision, "std": [1.0]}},
        {"smell": vision},
        {"vision": {**vision, "std": [-1.0, 1.0]}},
        {"vision": {**vision, "mean": [float("nan"), 0.0]}},
        {"vision": 3},
    ):
        with pytest.raises(ValueError, match=r"statistics of .* are damaged"):
            DatasetInfo.from_json(json.dumps({**fields, "statistics": forged}))


def test_no_frame_at_all():
    moments = Moments()
    moments.add(np.zeros((4, 2), np.float32))
    assert moments.describe(2) == {"mean": [0.0, 0.0], "std": [0.0, 0.0]}
