"""TensorBoard beside its curves: figures, the config as text, features in the projector, all in the run's one log."""

import io
import itertools
import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager, rc_context
from PIL import Image
from tensorboard.backend.event_processing import plugin_event_multiplexer
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.custom_scalar.custom_scalars_plugin import CustomScalarsPlugin

from data_shards.figures import _say_what_to_install
from dmd.checkpoint.standing import read_lines
from dmd.evaluation.evaluate import Evaluation
from dmd.losses import Objective
from dmd.losses.distillation import make_prior
from dmd.metrics import Scoring
from dmd.model.config import MODALITIES
from dmd.report.inference import SplitResult
from dmd.report.predictions import class_figure, confusion_figure, emotion_figure
from dmd.report.style import RC, new_figure
from dmd.training.logging.recorder import Recorder
from dmd.training.logging.tensorboard_figures import figures, projector_columns, wants_figures
from dmd.training.logging.tensorboard_layout import layout


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
        assert about[0] == ["modality", "label", "prediction", "class", "split", "id", "video"]
        labels = [float(row[1]) for row in about[1 : 1 + len(points) // 3]]
        assert labels == sorted(labels), "the projector gives colours in the order of the rows"
        assert all(row[column] == f"{float(row[column]):g}" for row in about[1:] for column in (1, 2))
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


def test_what_the_projector_is_told_of_classes_and_emotions():
    names = ("happy", "sad")
    classes = Scoring(kind="classes", protocol="classes", outputs=2, names=names)
    told = projector_columns(torch.tensor([0, 1]), torch.tensor([[2.0, 1.0], [3.0, 0.0]]), ["a", "b"], classes)
    assert told == {
        "label": ["happy", "sad"],
        "prediction": ["happy", "happy"],
        "split": ["valid"] * 2,
        "id": ["a", "b"],
    }
    emotions = Scoring(kind="multilabel", protocol="emotions", outputs=2, names=names)
    told = projector_columns(torch.tensor([[1.0, 1.0]]), torch.tensor([[-1.0, -2.0]]), ["v$_$1"], emotions)
    assert (told["label"], told["prediction"], told["video"]) == (["happy, sad"], ["none"], ["v"])
    told = projector_columns(torch.tensor([[1.0, 1.0]]), torch.tensor([[-1.0, -2.0]]), ["v[1]"], emotions)
    assert told["video"] == ["v"]


@pytest.mark.parametrize("kind", ["regression", "classes", "multilabel"])
def test_figures_of_a_log_fit_into_a_card(kind):
    """TensorBoard's cards are 350 dots wide."""
    scoring = {
        "regression": Scoring(),
        "classes": Scoring(kind="classes", protocol="classes", outputs=3),
        "multilabel": Scoring(kind="multilabel", protocol="emotions", outputs=3, names=("a", "b", "c")),
    }[kind]
    shape = (9,) if kind == "regression" else (9, 3)
    labels = torch.arange(9) % 3 if kind == "classes" else torch.ones(shape)
    evaluation = Evaluation(predictions={"fused": torch.zeros(shape)}, labels=labels, scoring=scoring)
    for figure in figures({"homo": torch.full((6,), 1 / 6)}, "published", evaluation).values():
        assert figure.get_size_inches()[0] * RC["figure.dpi"] == 350


def test_custom_scalars_are_on_one_page_also_after_a_resume(run, tmp_path):
    """Every chart of the page shows a tag that the log has."""
    page = layout(Scoring(), Objective)
    tags = {tag for line in read_lines(run) for tag in line if "/" in tag}
    patterns = [pattern for charts in page.values() for chart in charts.values() for pattern in chart[1]]
    unmet = [pattern for pattern in patterns if not any(re.match(pattern, tag) for tag in tags)]
    assert unmet == ["train/learning_rate_text$"]
    for resume in (None, 1):
        record = Recorder(tmp_path, config={}, info={}, resume_step=resume, layout=page)
        record.scalars(1, {"total": 1.0}, kind="train")
        record.close(None)
    multiplexer = plugin_event_multiplexer.EventMultiplexer().AddRunsFromDirectory(str(tmp_path))
    multiplexer.Reload()
    context = TBContext(
        data_provider=MultiplexerDataProvider(multiplexer, str(tmp_path)),
        plugin_name_to_instance={},
        logdir=str(tmp_path),
    )
    plugin = CustomScalarsPlugin(context)
    shown = json.loads(plugin.layout_impl(RequestContext(), ""))["category"]
    assert [category["title"] for category in shown] == list(page)
    assert [len(category["chart"]) for category in shown] == [len(charts) for charts in page.values()]


def test_figures_become_rarer():
    assert [epoch for epoch in range(20) if wants_figures(epoch)] == [0, 1, 3, 7, 15]


@pytest.mark.parametrize("everywhere", [0.0, 1.0])
def test_emotions_that_no_sample_or_every_sample_has_are_drawn(everywhere):
    labels, probabilities = np.full((3, 2), everywhere), np.array([[0.2, 0.9], [0.4, 0.6], [0.7, 0.1]])
    axes = emotion_figure(labels, probabilities, ["happy", "sad"]).get_axes()
    assert [len(panel.patches) for panel in axes] == [4, 2]


def classified(*names: str) -> SplitResult:
    """Two samples of each class, one of them taken for the next class."""
    count = len(names)
    labels = np.arange(2 * count, dtype=np.float64) % count
    chosen = (labels.astype(int) + (np.arange(2 * count) < count)) % count
    logits = np.eye(count)[chosen]
    return SplitResult(
        split="valid",
        ids=[str(number) for number in range(2 * count)],
        labels=labels,
        predictions={"fused": logits},
        edges={},
        features={},
        feature_labels=labels,
        metrics={},
        answers=chosen,
        probabilities=logits,
        scoring=Scoring(kind="classes", protocol="classes", outputs=count, names=names),
    )


@pytest.mark.parametrize(
    "names",
    [
        ("no", "yes"),
        ("negative", "neutral", "positive"),
        ("anger", "happy", "sad", "calm", "fear"),
        ("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger"),
        tuple(f"class{number}" for number in range(12)),
    ],
)
def test_names_below_an_axis_do_not_run_into_each_other(names):
    with rc_context(RC):
        figure = class_figure(classified(*names))
        figure.draw_without_rendering()
        for axes in figure.get_axes():
            labels = axes.get_xticklabels()
            assert [label.get_text() for label in labels] == list(names)
            boxes = [label.get_window_extent() for label in labels]
            apart = all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))
            assert apart or {label.get_rotation() for label in labels} == {45}


def test_a_dollar_in_a_name_is_no_mathematics():
    with rc_context(RC):
        figure = confusion_figure(np.eye(2, dtype=np.int64), ["$x^", "a$b$"])
        figure.draw_without_rendering()
        assert not any(label.get_parse_math() for label in figure.get_axes()[0].get_xticklabels())


def install_font(folder: Path, characters: str) -> None:
    """The font Squares, which has one for each of these characters."""
    builder = FontBuilder(1000)
    pen = TTGlyphPen(None)
    for place, corner in enumerate(((0, 0), (0, 800), (800, 800), (800, 0))):
        (pen.lineTo if place else pen.moveTo)(corner)
    pen.closePath()
    glyphs = {".notdef": pen.glyph(), **{f"g{ord(character)}": pen.glyph() for character in characters}}
    builder.setupGlyphOrder(list(glyphs))
    builder.setupCharacterMap({ord(character): f"g{ord(character)}" for character in characters})
    builder.setupGlyf(glyphs)
    builder.setupHorizontalMetrics(dict.fromkeys(glyphs, (1000, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=0)
    builder.setupNameTable({"familyName": "Squares", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(folder / "font.ttf")
    font_manager.fontManager.addfont(folder / "font.ttf")


def test_names_in_chinese_are_drawn_by_a_font_that_has_them(tmp_path, caplog, monkeypatch):
    """Elsewhere one line says what to install, and matplotlib warns of no character."""
    monkeypatch.setattr(font_manager.fontManager, "ttflist", list(font_manager.fontManager.ttflist))
    monkeypatch.setattr("data_shards.figures._BEHIND", ("Squares",))
    _say_what_to_install.cache_clear()

    def draw() -> bytes:
        figure, content = new_figure(2, 2), io.BytesIO()
        axes = figure.subplots()
        axes.set_title("悲伤")
        axes.set_xticks([0, 1], ["开心", "悲伤"])
        figure.savefig(content, format="png", metadata={"Software": None})
        return content.getvalue()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        boxes = draw()
        assert draw() == boxes
        assert caplog.text.count("install one of their language, such as fonts-noto-cjk") == 1
        caplog.clear()
        install_font(tmp_path, "开心悲伤")
        assert draw() != boxes
    assert not caplog.records
