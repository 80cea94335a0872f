"""Normalisation from train statistics: the same as normalised features, padding untouched, part of the model."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from data_shards.reading.index import ShardIndex
from data_shards.reading.reader import ShardReader
from dmd.config.loading import load_config
from dmd.evaluation.trained_run import evaluate_run
from dmd.inference.export import export, load
from dmd.model import DMD, ModelConfig
from dmd.model.config import MODALITIES
from dmd.model.normalisation import PRESENT, Normalisation
from launch.trainer.build import build_system
from launch.trainer.preflight import check_training
from tests.support.commands import command
from tests.support.trained import train

DIMS, LENGTHS = {"text": 6, "audio": 3, "vision": 4}, {"text": 9, "audio": 9, "vision": 9}
SMALL = ModelConfig(task="regression", dim=8, heads=2, levels=1)


def features() -> dict[str, torch.Tensor]:
    """Front-padded features with an offset; channel 0 of the audio is constant."""
    generator = torch.Generator().manual_seed(5)
    made = {m: 3 + 2 * torch.randn(7, LENGTHS[m], DIMS[m], generator=generator) for m in MODALITIES}
    made["audio"][..., 0] = 0.7
    for array in made.values():
        array[:, :3] = 0
    return made


def test_off_is_the_published_model_to_the_name():
    torch.manual_seed(0)
    plain = DMD(SMALL, DIMS, LENGTHS)
    torch.manual_seed(0)
    other = DMD(dataclasses.replace(SMALL, normalise="train"), DIMS, LENGTHS)
    added = set(other.state_dict()) - set(plain.state_dict())
    assert added == {f"normalisation.{m}.{name}" for m in MODALITIES for name in ("mean", "scale")}
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in plain.state_dict().items())


def test_a_model_with_statistics_reads_raw_features_as_one_without_reads_normalised_ones():
    raw = features()
    torch.manual_seed(0)
    plain = DMD(SMALL, DIMS, LENGTHS)
    other = DMD(dataclasses.replace(SMALL, normalise="train"), DIMS, LENGTHS)
    other.load_state_dict(plain.state_dict(), strict=False)
    ready = {}
    for m, array in raw.items():
        frames = array[array.any(-1)].double()
        mean, std = frames.mean(0), frames.std(0, correction=0)
        std = torch.where(std < 1e-6, 0.0, std)
        other.normalisation[m].set(mean.tolist(), std.tolist())
        scaled = (array.double() - mean) / torch.where(std == 0, 1.0, std)
        ready[m] = (scaled * array.any(-1, keepdim=True)).float()
    expected, found = plain(**ready).predictions, other(**raw).predictions
    for head in expected:
        torch.testing.assert_close(found[head], expected[head], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(plain(**raw).predictions["fused"], expected["fused"], atol=1e-3)


def test_padding_stays_zero_and_what_is_there_keeps_its_position():
    normalise = Normalisation(2)
    normalise.set([0.5, 4.0], [0.0, 2.0])
    x = torch.tensor([[[0.0, 0.0], [0.5, 8.0], [0.5, 4.0], [0.75, 0.0]]])
    assert normalise(x).tolist() == [[[0, 0], [pytest.approx(PRESENT), 2], [pytest.approx(PRESENT), 0], [0.25, -2]]]
    normalise.set([1000.0, 0.0], [1e-4, 1e-4])
    assert normalise.get_buffer("scale").tolist() == pytest.approx([1, 1e4]), "1000 +- 1e-4 is rounding"


def test_shards_without_statistics_are_rejected(shards, tmp_path):
    overrides = ["model.task=regression", "model.normalise=train", "model.dim=8", "model.heads=2"]
    config, device = load_config(None, overrides), torch.device("cpu")
    info = ShardIndex.load(shards).info
    system, _ = build_system(config, info, device)
    assert system.network.normalisation["audio"].get_buffer("mean").tolist() == pytest.approx(
        info.statistics["audio"]["mean"]
    )
    with ShardReader(shards) as reader:
        check_training(config, reader, tmp_path / "run", 1)
        older = dataclasses.replace(info, statistics={})
        reader.index.info = older
        for reject in (
            lambda: check_training(config, reader, tmp_path / "run", 1),
            lambda: build_system(config, older, device),
        ):
            with pytest.raises(ValueError, match=r"model\.normalise is 'train', but the index of .*`dmd shard`"):
                reject()


def test_evaluate_predict_and_export_read_raw_features(shards, tmp_path, capsys):
    (run,) = train(shards, {tmp_path / "run": ["model.normalise=train", "train.ema_decay=0.9"]})
    found = evaluate_run(run, data=None, split="test")["metrics"]["fused"]["mae"]
    assert export(run, tmp_path / "exported", program=True) is None
    model = load(tmp_path / "exported")
    with ShardReader(shards) as reader:
        batch = reader.read("test", range(reader.index.num_samples("test")))
        raw = {m: batch[m] for m in MODALITIES}
        result = model.predict(**raw).sentiment.numpy()
        assert np.abs(result - batch["label"]).mean() == pytest.approx(found, rel=1e-6)
    assert command("predict", run, shards, "--split", "test", "--out", tmp_path / "p.csv") == 0
    state = model.modules.state_dict()
    assert state["dmd.normalisation.audio.mean"].tolist() == pytest.approx(
        ShardIndex.load(shards).info.statistics["audio"]["mean"]
    )
    line = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    assert any("valid/mae" in entry for entry in line)
