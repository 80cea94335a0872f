"""The tables of metrics, heads and loss terms: what users see of them, and that a new row is seen everywhere."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from data_shards.labels import Protocol
from dmd.evaluation.evaluate import Evaluation
from dmd.losses import Objective, ObjectiveConfig
from dmd.losses.ghost import sample_mean
from dmd.losses.terms import TERMS, Term, all_terms, triton_order
from dmd.metrics import METRICS, Metric, Scoring, heading, headings_of, in_view, loss_title, show, unit_note
from dmd.metrics.table import DEFAULTS, NAME, PROTOCOLS, metrics_of, protocol_of
from dmd.model import DMD, ModelConfig
from dmd.model.config import MODALITIES
from dmd.model.dmd import HEADS, DMDOutput
from dmd.model.network import Head
from dmd.report import names
from dmd.report.build import check_comparable
from dmd.report.curves import loss_terms
from dmd.report.groups import Group, Measured, make_groups
from dmd.report.overview import is_measured_as_published
from dmd.report.predictions import heads_figure
from dmd.report.runs import Curve, read_run
from dmd.report.statistics import Difference
from dmd.report.tables import (
    Table,
    comparison_table,
    difference_cells,
    heads_table,
    main_table,
    run_table,
    summary_table,
)
from dmd.training.logging.logbook import Logbook
from tests.support.commands import command
from tests.support.progress import made_progress, report_of
from tests.support.trained import load_and_run

ROOT = Path(__file__).parents[2]
REGRESSION = {
    "mae": "MAE",
    "corr": "Corr",
    "acc7": "Acc7 %",
    "acc5": "Acc5 %",
    "acc3": "Acc3 %",
    "acc2_has0": "Acc2 Has0 %",
    "f1_has0": "F1 Has0 %",
    "acc2_non0": "Acc2 Non0 %",
    "f1_non0": "F1 Non0 %",
}
CLASSES = {"acc": "Acc %", "f1_weighted": "F1 weighted %", "f1_macro": "F1 macro %", "cross_entropy": "CE"}
SIMS = {
    "mae": "MAE",
    "mae_sims": "MAE SIMS",
    "corr_sims": "Corr SIMS",
    "acc5_sims": "Acc5 SIMS %",
    "acc3_sims": "Acc3 SIMS %",
    "acc2_sims": "Acc2 SIMS %",
    "f1_sims": "F1 SIMS %",
}
MELD = {"acc": "Acc %", "f1_weighted": "F1 weighted %", "cross_entropy": "CE"}
EACH = {f"acc.{NAME}": f"Acc {NAME} %", "acc_mean": "Acc mean %", f"f1.{NAME}": f"F1 {NAME} %", "f1_mean": "F1 mean %"}
LOSS = {"acc_each": "Acc of each %", "binary_cross_entropy": "BCE"}
EMOTIONS = {f"wacc.{NAME}": f"WAcc {NAME} %", "wacc_mean": "WAcc mean %", f"f1.{NAME}": f"F1 {NAME} %"}
TITLES = {
    ("mosi", "regression"): REGRESSION,
    ("sims", "regression"): SIMS,
    ("classes", "classes"): CLASSES,
    ("meld", "classes"): MELD,
    ("iemocap", "classes"): {"acc": "Acc %", "cross_entropy": "CE", **EACH},
    ("iemocap", "multilabel"): {**EACH, **LOSS},
    ("emotions", "multilabel"): {**EMOTIONS, "f1_mean": "F1 mean %", **LOSS},
}
VIEWS = {
    "headline": (["mae", "corr", "acc2_non0", "acc7"], list(CLASSES)),
    "hparams": (["acc2_non0", "f1_non0", "acc7", "corr"], list(CLASSES)),
    "configs": (["mae", "corr", "acc7", "acc2_non0", "f1_non0"], list(CLASSES)),
    "missing": (["mae", "acc2_non0"], ["acc", "f1_weighted"]),
    "bootstrap": (["mae", "corr", "acc7", "acc2_has0", "acc2_non0", "f1_non0"], ["acc", "f1_weighted", "f1_macro"]),
    "paper": (["mae", "corr", "acc7", "acc2_has0", "acc2_non0", "f1_has0", "f1_non0"], list(CLASSES)),
}
HEAD_TITLES = {
    "fused": "fused",
    "shared": "shared",
    "text_homo": "text, homo",
    "audio_homo": "audio, homo",
    "vision_homo": "vision, homo",
    "text_hetero": "text, hetero",
    "audio_hetero": "audio, hetero",
    "vision_hetero": "vision, hetero",
}
TASK = [f"task_{head}" for head in HEAD_TITLES]
DECOUPLING = ["reconstruction", "cycle", "orthogonality", "margin"]
DISTILLATION = ["homo_logit", "homo_regulariser", "hetero_logit", "hetero_regulariser", "hetero_representation"]


def test_names_titles_and_orders_are_those_that_users_know():
    for (protocol, kind), known in TITLES.items():
        found = {row.name: heading(row.name) for row in metrics_of(protocol, kind)}
        assert list(found.items()) == list(known.items())
        assert protocol_of(found) == PROTOCOLS[protocol]
        assert len(in_view("missing", found)) > 1, (protocol, kind)
        assert in_view("bootstrap", found), (protocol, kind)
        assert [METRICS[name].is_loss for name in found].count(True) == 1
    assert {(name, kind) for name, row in PROTOCOLS.items() for kind in row.kinds} == TITLES.keys()
    assert set(PROTOCOLS) == set(get_args(Protocol))
    assert all(kind in PROTOCOLS[name].kinds for kind, name in DEFAULTS.items())
    for view, known in VIEWS.items():
        assert (in_view(view, REGRESSION), in_view(view, CLASSES)) == known, view
    assert all(row.resampled for row in METRICS.values() if "bootstrap" in row.views)
    assert [loss_title(task) for task in ("regression", 3, "multilabel")] == ["MAE", "CE", "BCE"]
    assert [(head.name, head.title) for head in HEADS.values()] == list(HEAD_TITLES.items())
    assert [term.name for term in all_terms()] == TASK + DECOUPLING + DISTILLATION
    assert [term.title for term in all_terms()] == [term.name.replace("_", " ") for term in all_terms()]
    assert triton_order() == TASK + DISTILLATION + DECOUPLING


def test_notes_tell_units_and_protocols():
    assert unit_note(REGRESSION) == (
        "Acc and F1 in per cent, MAE and Corr as they are. Protocol mosi: CMU-MOSI and CMU-MOSEI; classes and signs on "
        "the scale [-3, 3]. Has0: all samples, >= 0 against < 0. Non0: without the labels that are 0, > 0 against < 0."
    )
    assert unit_note(CLASSES) == "Acc and F1 in per cent, CE in nats. Protocol classes: one of several classes."
    assert unit_note({"wacc.happy": 0.5, "f1.happy": 0.5, "binary_cross_entropy": 0.7}).startswith(
        "WAcc and F1 in per cent, BCE in nats. Protocol emotions: emotions of CMU-MOSEI; "
    )


def test_a_metric_of_an_emotion_has_its_name():
    names = {"f1.sad": 0.25, "wacc_mean": 0.5, "f1.happy, or so": 0.5, "loss": 1.0}
    assert headings_of(names) == {
        "wacc_mean": "WAcc mean %",
        "f1.sad": "F1 sad %",
        "f1.happy, or so": "F1 happy, or so %",
    }
    assert show("f1.sad", 0.25) == "25.0"
    with pytest.raises(KeyError):
        heading("f2.sad")


def test_every_row_of_a_table_has_its_own_name():
    for table in (METRICS, HEADS, TERMS):
        assert all(name == row.name for name, row in table.items())
        assert len({row.title for row in table.values()}) == len(table)


def test_the_page_of_the_docs_is_up_to_date():
    page = (ROOT / "docs" / "names.md").read_text()
    assert page == names.page(), "run: python -m dmd.report.names > docs/names.md"


def evaluated(run: Path, out: Path) -> dict[str, dict[str, float]]:
    """What `dmd evaluate --json` writes of a run."""
    assert command("evaluate", run, "--json", out) == 0
    return json.loads(out.read_text())["metrics"]


def measured(run: Path) -> Measured:
    record = read_run(run)
    return Measured(run=record, result=load_and_run(run, Path(record.info["data"]), "valid"))


def test_models_of_other_samples_are_not_ranked(run):
    one = measured(run)
    fewer = replace(one.result, ids=one.result.ids[:-1])
    same, other = (Group(name="other", members=(replace(one, result=result),)) for result in (one.result, fewer))
    count = len(one.result.ids)
    table = main_table([Group(name="first", members=(one,)), same], "valid")
    assert table.directions[2] is False
    assert table.note.startswith(f"{count} samples. 1 seed per model: ")
    apart = main_table([Group(name="first", members=(one,)), other], "valid")
    assert apart.directions == {}
    assert f"Samples: first {count}, other {count - 1}; they are not the same, so no model is marked" in apart.note
    assert run_table([same], "valid").directions == {}, "the best seed is no better than the others"


def test_numbers_are_ranked_where_they_differ():
    rows = [["a", "0.5"], ["b", "–"]]
    table = Table(name="t", title="t", header=["", "MAE"], rows=rows, directions={1: False})
    assert table.ranks(1) == [0, 0]
    assert replace(table, rows=[*rows, ["c", "0.5"]]).ranks(1) == [0, 0, 0]
    assert replace(table, rows=[*rows, ["c", "0.6"]]).ranks(1) == [1, 0, 2]


def test_a_comparison_says_what_it_draws_and_who_has_no_metrics(run):
    """By samples, or by the videos that ids name; a config with an answer that is not finite has no metrics."""
    one = measured(run)
    count = len(one.result.ids)
    fused = one.result.predictions["fused"].copy()
    fused[3] = np.nan
    broken = replace(one.result, predictions={**one.result.predictions, "fused": fused})

    def compared(ids: list[str]) -> Table:
        groups = [
            Group(name=name, members=(replace(one, result=replace(result, ids=ids)),))
            for name, result in (("first", one.result), ("broken", broken))
        ]
        found = comparison_table(groups)
        assert found is not None
        return found

    by_video = compared([f"video{number // 5:03}[{number % 5}]" for number in range(count)])
    assert by_video.note.startswith(f"Whole videos are drawn and swapped, {-(-count // 5)} with {count} samples, ")
    by_sample = compared([str(number) for number in range(count)])
    assert by_sample.note.startswith("Samples are drawn and swapped one by one, as independent")
    assert by_sample.note.endswith("Without metrics, since not all their answers are finite: broken.")
    assert {cell for row in by_sample.rows for cell in row[6:8]} == {"–"}


def test_a_small_p_is_not_zero():
    found = Difference(
        name="b",
        seeds=(1, 1),
        members=None,
        metric="mae",
        mean=1.0,
        low=0.9,
        high=1.1,
        p=1e-4,
        p_of_all=0.001,
        seeds_needed=float("nan"),
        samples_needed=float("inf"),
    )
    assert difference_cells(found)[6:8] == ["<0.001", "0.001"]
    assert difference_cells(found)[-2:] == ["–", "∞"]


class Silent:
    """The part of a `Recorder` that an epoch of the logbook calls; keeps the numbers."""

    def __init__(self) -> None:
        self.numbers: dict[str, float] = {}

    def scalars(self, step: int, values: dict[str, float], *, kind: str) -> None:
        self.numbers |= {f"{kind}/{name}": value for name, value in values.items()}

    def look(self) -> None:
        pass

    def pictures(self, *_: object) -> None:
        pass


def test_a_new_metric_is_a_row_and_its_function(run, monkeypatch, tmp_path, capsys):
    def bias(prediction: torch.Tensor, label: torch.Tensor) -> float:
        return float((prediction - label).mean())

    row = Metric(
        name="bias",
        title="Bias",
        about="mean of prediction minus label",
        protocols=("mosi",),
        unit="",
        function=bias,
        views={"headline": 9, "hparams": 9},
    )
    monkeypatch.setitem(METRICS, "bias", row)
    metrics = evaluated(run, tmp_path / "valid.json")
    assert all("bias" in of for of in metrics.values())
    assert re.search(r" F1 Non0 %\s+Bias$", capsys.readouterr().out, re.MULTILINE)
    one = measured(run)
    expected = float((one.result.predictions["fused"] - one.result.labels).mean())
    assert metrics["fused"]["bias"] == pytest.approx(expected, rel=1e-5)
    summary = summary_table(make_groups([one]), "valid")
    assert f'Bias,synthetic,"single, 1 seed",{expected:.3f},,valid\n' in summary.csv()
    assert "MAE, Corr and Bias as they are" in summary.note
    assert heads_table(one).csv().splitlines()[0].endswith(",F1 Non0 %,Bias,split")
    assert "Bias" in [axes.get_title() for axes in heads_figure(one.result).get_axes()]
    assert "| `bias` | Bias |" in names.page()

    log = Silent()
    evaluation = Evaluation(
        predictions={head: torch.from_numpy(values) for head, values in one.result.predictions.items()},
        labels=torch.from_numpy(one.result.labels),
    )
    Logbook(tmp_path, lambda _: log, None).epoch(1, 2, evaluation, kept=True)  # type: ignore[arg-type,return-value]
    assert f"  Bias {expected:.4f}  " in made_progress().epoch_line(
        report_of(1, evaluation.metrics()["fused"]), best=True
    )
    assert {"valid/bias", "best_valid/bias", "valid_heads/text_homo/bias"} <= log.numbers.keys()


def small() -> tuple[DMDOutput, torch.Tensor, torch.Tensor, ModelConfig]:
    """Output of a small network for two ghost batches, labels and mask."""
    dims, lengths = {"text": 6, "audio": 3, "vision": 4}, {"text": 9, "audio": 9, "vision": 9}
    config = ModelConfig(task="regression", dim=8, heads=2, levels=1)
    torch.manual_seed(0)
    network = DMD(config, dims, lengths)
    output = network(*(torch.randn(8, lengths[m], dims[m]) for m in MODALITIES))
    return output, torch.randn(2, 4), torch.ones(2, 4), config


def test_a_new_term_is_a_row_and_its_function(run, monkeypatch):
    def size(inputs) -> torch.Tensor:
        return sample_mean(inputs.output.predictions["fused"].square(), inputs.mask)

    output, labels, mask, config = small()
    torch.manual_seed(1)
    before = Objective(ObjectiveConfig(), config)(output, labels, mask)
    row = Term(
        name="size",
        title="size of the answer",
        about="square of the fused prediction",
        part="decoupling",
        function=size,
    )
    monkeypatch.setitem(TERMS, "size", row)
    torch.manual_seed(1)
    objective = Objective(ObjectiveConfig(), config)
    after = objective(output, labels, mask)
    assert list(after) == [*list(before)[:-1], "size", "total"]
    torch.testing.assert_close(after["size"], output.predictions["fused"].view(2, 4).square().mean(1))
    torch.testing.assert_close(after["total"], before["total"] + 0.1 * after["size"])
    assert not Objective(ObjectiveConfig(), config).known_to_kernels, "Triton kernels do not know the term"

    curve = Curve(steps=np.array([1, 2]), values=np.array([0.5, 0.25]))
    record = read_run(run)
    figure = loss_terms(replace(record, curves={**record.curves, "train/size": curve, "train/other": curve}))
    titles = [axes.get_title() for axes in figure.get_axes()]
    assert titles[-3:] == ["size of the answer", "gradient norm", "learning rate"]
    assert "other" not in titles
    assert "| `dmd` | `size` | `objective.decoupling_weight` | square of the fused prediction |" in names.page()


def test_a_term_that_no_sum_has_is_rejected():
    with pytest.raises(AssertionError, match="is not summed"):
        Term(name="x", title="x", about="", part="distillation", function=lambda inputs: inputs.labels.sum(1))


def test_a_new_head_is_what_the_network_predicts_and_a_row(run, monkeypatch, tmp_path, capsys):
    forward = DMD.forward

    def with_mean(*args, **options) -> DMDOutput:
        output = forward(*args, **options)
        output.predictions["mean"] = torch.stack([output.predictions[f"{m}_homo"] for m in MODALITIES]).mean(0)
        return output

    monkeypatch.setattr(DMD, "forward", with_mean)
    monkeypatch.setitem(HEADS, "mean", Head(name="mean", title="mean, homo", about="the mean of three heads"))
    output, labels, mask, config = small()
    terms = Objective(ObjectiveConfig(), config)(output, labels, mask)
    torch.testing.assert_close(terms["task_mean"], (output.predictions["mean"].view(2, 4) - labels).abs().mean(1))
    assert not Objective(ObjectiveConfig(), config).known_to_kernels

    metrics = evaluated(run, tmp_path / "valid.json")
    assert list(metrics) == [*HEAD_TITLES, "mean"]
    assert re.search(r"^mean  ", capsys.readouterr().out, re.MULTILINE)
    one = measured(run)
    assert one.result.metrics["mean"] == pytest.approx(metrics["mean"], rel=1e-5)
    assert heads_table(one).csv().splitlines()[-1].startswith('"mean, homo",')
    assert "| `dmd` | `task_mean` | 1 |" in names.page()
    data = read_run(run).info["data"]
    assert command("predict", run, data, "--out", tmp_path / "valid.csv") == 0
    assert ',"vision_hetero","mean","edge_' in (tmp_path / "valid.csv").read_text().splitlines()[0]


def emotions_of(*emotions: str) -> Scoring:
    return Scoring(kind="multilabel", protocol="emotions", outputs=len(emotions), names=emotions)


@pytest.mark.parametrize(
    "first, second",
    [
        (emotions_of("happy", "sad"), emotions_of("happy", "angry")),
        (emotions_of("happy", "sad"), emotions_of("happy", "sad", "angry")),
        (Scoring(), Scoring(scale=1.5, offset=3.0)),
        (Scoring(), Scoring(protocol="sims")),
    ],
)
def test_runs_that_no_table_compares(first, second):
    check_comparable([first, replace(first)])
    with pytest.raises(ValueError, match=r"different tasks .*, names of classes or emotions, or units of sentiments"):
        check_comparable([first, second])


def test_published_figures_stand_beside_sentiments_in_their_units_alone():
    assert is_measured_as_published(Scoring())
    for other in (Scoring(scale=3.0), Scoring(scale=1.5, offset=3.0), Scoring(protocol="sims"), emotions_of("a", "b")):
        assert not is_measured_as_published(other)
