"""TensorBoard beside its curves: figures, the config as text, features in the projector, all in the run's one log."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

from dmd.evaluation.evaluate import Evaluation
from dmd.losses.distillation import make_prior
from dmd.model.config import MODALITIES
from dmd.report.predictions import emotion_figure
from dmd.training.logging.tensorboard_figures import figures, wants_figures


@pytest.fixture(scope="module")
def event_files(run) -> EventMultiplexer:
    multiplexer = EventMultiplexer(size_guidance={"images": 0, "tensors": 0}).AddRunsFromDirectory(str(run))
    multiplexer.Reload()
    assert list(multiplexer.Runs()) == ["."]
    return multiplexer


def test_figures_are_in_the_log(event_files):
    tags = event_files.Runs()["."]["images"]
    assert set(tags) == {"edges_beside_prior", "predictions"}
    for tag in tags:
        events = event_files.Images(".", tag)
        assert len(events) == 2, "after epoch 1 and 2"
        shades = np.asarray(Image.open(io.BytesIO(events[-1].encoded_image_string)).convert("L"))
        assert min(shades.shape) > 100
        assert (shades < 128).mean() > 0.002


def test_the_config_is_text(event_files):
    text = event_files.Tensors(".", "config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| prior | published |" in text
    assert "| data_name | synthetic |" in text
    assert "| dim | 8 |" in text


def test_features_are_in_the_projector(run):
    listing = (run / "projector_config.pbtxt").read_text()
    for space, width in (("homo", 8), ("hetero", 16)):
        folder = next(path for path in run.iterdir() if path.is_dir() and (path / space).is_dir()) / space
        assert str(folder.relative_to(run)) in listing
        points = np.loadtxt(folder / "tensors.tsv", delimiter="\t")
        about = [line.split("\t") for line in (folder / "metadata.tsv").read_text().splitlines()]
        assert about[0] == ["modality", "label", "sample"]
        assert points.shape == (len(about) - 1, width)
        assert [row[0] for row in about[1:]] == [m for m in MODALITIES for _ in range(len(points) // 3)]
        assert np.isfinite(points).all()


def test_edges_stand_beside_their_prior():
    edges = {"homo": torch.arange(6) / 15, "hetero": torch.full((6,), 1 / 6)}
    evaluation = Evaluation(predictions={"fused": torch.zeros(4)}, labels=torch.ones(4))
    drawn = figures(edges, "published", evaluation)["edges_beside_prior"]
    titles = [axes.get_title() for axes in drawn.get_axes()]
    assert titles == ["HomoGD: edges", "HomoGD: prior", "HeteroGD: edges", "HeteroGD: prior"]
    shown = sorted(float(text.get_text()) for text in drawn.get_axes()[3].texts)
    assert shown == pytest.approx(sorted(make_prior("published", "hetero").tolist()), abs=1e-3)


def test_figures_become_rarer():
    assert [epoch for epoch in range(20) if wants_figures(epoch)] == [0, 1, 3, 7, 15]


@pytest.mark.parametrize("everywhere", [0.0, 1.0])
def test_emotions_that_no_sample_or_every_sample_has_are_drawn(everywhere):
    labels, probabilities = np.full((3, 2), everywhere), np.array([[0.2, 0.9], [0.4, 0.6], [0.7, 0.1]])
    axes = emotion_figure(labels, probabilities, ["happy", "sad"]).get_axes()
    assert [len(panel.patches) for panel in axes] == [4, 2]
