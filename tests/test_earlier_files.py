"""Files of an earlier version stay readable: shards, a run and an exported model that commit 61f3096 wrote.

`data/written_at_61f3096.tar.xz` holds them, and under `recorded/` what that version evaluated, predicted and logged:

    dmd shard features.pkl shards --name tiny --samples-per-shard 24
    dmd train --data shards --run run MODEL train.epochs=2 train.max_steps=2 train.log_every=1
    dmd export run exported --no-program
    dmd evaluate run --split test --json recorded/evaluate.json
    dmd predict exported shards --split test --out recorded/predictions.csv
    dmd train --data shards --run RUN MODEL train.epochs=2 train.log_every=1    # RUN: a copy; its metrics.jsonl

where MODEL is what `MODEL` below adds to `TINY` of `tests.support.ranks`. It drops nothing: that version drew other
dropout masks.
"""

import csv
import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import dmd
from data_shards.format.schema import Sample
from data_shards.format.tar import write_shard
from data_shards.reading.reader import ShardReader
from tests.support.commands import command
from tests.support.ranks import finish, last

ARCHIVE = Path(__file__).parent / "data" / "written_at_61f3096.tar.xz"
MODEL = (
    "model.dim=4",
    "train.learning_rate=1e-3",
    "model.text_dropout=0",
    "model.attn_dropout=0",
    "model.attn_dropout_audio=0",
    "model.attn_dropout_vision=0",
    "model.embed_dropout=0",
    "model.output_dropout=0",
)
TOLERANCE = 1e-4
"""Relative; another processor multiplies in another order."""


@pytest.fixture(autouse=True)
def _on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the files were written: a GPU computes in bfloat16."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the earlier version's files; nobody writes into them."""
    folder = tmp_path_factory.mktemp("earlier")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


def close(values: dict[str, float]) -> dict[str, object]:
    """What numbers under the same names must be near to."""
    return {name: pytest.approx(value, rel=TOLERANCE, abs=1e-6) for name, value in values.items()}


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def logged(run: Path) -> dict[int, dict[str, float]]:
    """{step: {tag: value}} of a run's losses and validation, without times and rates."""
    steps: dict[int, dict[str, float]] = {}
    for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        numbers = {tag: value for tag, value in line.items() if tag.startswith(("train/", "valid/", "valid_heads/"))}
        numbers.pop("train/samples_per_second", None)
        steps.setdefault(line["step"], {}).update(numbers)
    return steps


def samples_of(reader: ShardReader, split: str) -> Iterator[Sample]:
    """The samples of a split, as a source gives them."""
    positions = range(reader.index.num_samples(split))
    batch = reader.read(split, positions)
    texts = zip(reader.index.ids(split, positions), reader.raw_texts(split, positions), strict=True)
    for i, (name, raw_text) in enumerate(texts):
        yield Sample(
            id=name,
            split=split,
            label=float(batch["label"][i]),
            raw_text=raw_text,
            text=batch["text"][i],
            audio=batch["audio"][i],
            vision=batch["vision"][i],
            lengths=tuple(batch["lengths"][i].tolist()),
        )


def test_shards_are_intact_and_are_the_same_data(written, capsys):
    assert command("verify", written / "shards") == 0
    assert "56 samples in 4 shards, 233472 bytes: all intact" in capsys.readouterr().out
    with ShardReader(written / "shards") as reader:
        info = reader.index.info
        assert (info.generation, info.counts) == ("d9ec223ce2d0d657", {"train": 40, "valid": 8, "test": 8})
        assert reader.index.ids("test", range(2)) == ["clip0", "clip1"]
        assert reader.raw_texts("test", range(1)) == ["words 0 of test"]


def test_the_same_samples_have_the_same_bytes(written, tmp_path):
    """So sets that are rebuilt keep their generation, and runs on them go on."""
    with ShardReader(written / "shards") as reader:
        for shard in (shard for shard in reader.index.info.shards if shard.split == "test"):
            rows = write_shard(
                tmp_path / shard.name,
                samples_of(reader, "test"),
                name="tiny",
                split="test",
                first=48,
                storage="float32",
            )
            assert (tmp_path / shard.name).read_bytes() == (written / "shards" / shard.name).read_bytes()
            assert (rows.bytes, rows.sha256) == (shard.bytes, shard.sha256)
            records = reader.index.records("test", range(8))
            for found, column in ((rows.offsets, "offset"), (rows.sizes, "size"), (rows.crc32, "crc32")):
                assert found == records[column].tolist()


def test_a_run_is_evaluated_to_the_same_numbers(written, tmp_path, capsys):
    options = ("--data", written / "shards", "--split", "test", "--json", tmp_path / "evaluate.json")
    assert command("evaluate", written / "run", *options) == 0
    assert "test split, 8 samples, checkpoint of step 2" in capsys.readouterr().out
    got, recorded = (json.loads((folder / "evaluate.json").read_text()) for folder in (tmp_path, written / "recorded"))
    assert {key: got[key] for key in ("step", "data", "generation", "split", "samples")} == {
        key: recorded[key] for key in ("step", "data", "generation", "split", "samples")
    }
    assert list(got["metrics"]) == list(recorded["metrics"])
    for head, values in recorded["metrics"].items():
        assert got["metrics"][head] == close(values), head


@pytest.mark.parametrize("model", ["exported", "run"])
def test_a_trained_model_predicts_the_same_numbers(written, tmp_path, model):
    assert (
        command("predict", written / model, written / "shards", "--split", "test", "--out", tmp_path / "out.csv") == 0
    )
    got, recorded = rows(tmp_path / "out.csv"), rows(written / "recorded" / "predictions.csv")
    assert len(got) == len(recorded) == 8
    for mine, its in zip(got, recorded, strict=True):
        assert list(mine) == list(its)
        told = ("split", "id", "text")
        assert [mine[name] for name in told] == [its[name] for name in told]
        numbers = {name: float(value) for name, value in its.items() if name not in told}
        assert {name: float(mine[name]) for name in numbers} == close(numbers)


def test_an_exported_model_says_what_it_is(written):
    card = dmd.load(written / "exported", device="cpu").card
    assert card.source["step"] == 2
    assert card.config["model"]["dim"] == 4
    assert (card.data["name"], card.data["dims"]) == ("tiny", {"text": 4, "audio": 3, "vision": 2})


@pytest.mark.multiproc
def test_a_training_goes_on_from_where_it_stood(written, tmp_path):
    shutil.copytree(written / "run", run := tmp_path / "run")
    ended = finish(written / "shards", run, *MODEL, "train.log_every=1", DS_ACCELERATOR="cpu")
    assert "at step 2, in epoch 2 of " in ended.output
    assert last(run).step == 4
    shutil.copy(written / "recorded" / "continued.jsonl", tmp_path / "metrics.jsonl")
    got, recorded = logged(run), logged(tmp_path)
    assert sorted(got) == sorted(recorded) == [1, 2, 3, 4]
    for step, values in recorded.items():
        assert got[step] == close(values), step
