"""Classification into 2, 3, 5 or 7 classes: binning, metrics, objective, and every command on such a run."""

import csv
import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, log_loss

import dmd
from data_shards.reading.reader import ShardReader
from dmd.config import DataConfig
from dmd.config.loading import load_config
from dmd.data.loader import evaluation_batches, training_steps
from dmd.data.plan import EpochPlan
from dmd.data.targets import resolve_task, scoring_of, targets
from dmd.inference.export import PROGRAM, example
from dmd.losses import Objective, ObjectiveConfig
from dmd.losses.distillation import logit_distillation
from dmd.metrics import Scoring, confusion, head_metrics, to_classes
from dmd.model import DMD, ModelConfig
from dmd.model.config import MODALITIES
from dmd.model.dmd import HEADS
from launch.trainer.preflight import check_training
from tests.support.commands import command
from tests.support.small_data import build_from, mmsa
from tests.support.trained import train

LABELS = torch.tensor([-3.0, -1.5, -0.4, 0.0, 0.5, 1.5, 2.5, 3.0])
EXPECTED = {
    2: [0, 0, 0, 1, 1, 1, 1, 1],
    3: [0, 0, 0, 1, 2, 2, 2, 2],
    5: [0, 0, 2, 2, 2, 4, 4, 4],
    7: [0, 1, 3, 3, 3, 5, 5, 6],
}
DIMS, LENGTHS = {"text": 6, "audio": 3, "vision": 4}, {"text": 9, "audio": 9, "vision": 9}


@pytest.mark.parametrize("classes", EXPECTED)
def test_sentiments_become_classes(classes):
    assert to_classes(LABELS, classes).tolist() == EXPECTED[classes]
    scoring = scoring_of(load_config(None, [f"model.task={classes}"]), {})
    assert len(scoring.titles) == classes
    assert targets(LABELS, scoring).tolist() == EXPECTED[classes]
    assert targets(LABELS, Scoring()) is LABELS


@pytest.mark.parametrize("classes", EXPECTED)
def test_class_metrics_equal_scikit_learn(classes):
    rng = np.random.default_rng(classes)
    label, logits = rng.integers(0, min(classes, 5), 83), rng.normal(size=(83, classes))
    guess = logits.argmax(1)
    odds = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    scoring = Scoring(kind="classes", protocol="classes", outputs=classes)
    assert head_metrics(torch.from_numpy(logits), torch.from_numpy(label), scoring) == pytest.approx(
        {
            "acc": accuracy_score(label, guess),
            "f1_weighted": f1_score(label, guess, average="weighted"),
            "f1_macro": f1_score(label, guess, average="macro"),
            "cross_entropy": log_loss(label, odds, labels=list(range(classes))),
        }
    )
    counts = confusion(torch.from_numpy(logits), torch.from_numpy(label))
    assert np.array_equal(counts, confusion_matrix(label, guess, labels=range(classes)))
    with pytest.raises(ValueError, match="no class numbers from 0"):
        head_metrics(torch.zeros(2, classes), torch.tensor([0.0, float(classes)]), scoring)


def small(task: object) -> tuple[DMD, Objective]:
    model = ModelConfig(dim=8, heads=2, levels=1, task=task)  # type: ignore[arg-type]
    torch.manual_seed(0)
    return DMD(model, DIMS, LENGTHS), Objective(ObjectiveConfig(), model)


def test_the_objective_of_a_classifier():
    network, objective = small(3)
    generator = torch.Generator().manual_seed(5)
    output = network(*(torch.randn(8, LENGTHS[m], DIMS[m], generator=generator) for m in MODALITIES))
    label = torch.tensor([[0.0, 1, 2, 2], [1, 1, 0, 2]])
    mask = torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, 0]])
    terms = objective(output, label, mask)
    for head in HEADS:
        logits = output.predictions[head]
        assert logits.shape == (8, 3)
        each = torch.nn.functional.cross_entropy(logits, label.flatten().long(), reduction="none").view(2, 4)
        torch.testing.assert_close(terms[f"task_{head}"], (each * mask).sum(1) / mask.sum(1))
    terms["total"].sum().backward()
    gradients = {name: p.grad for part in (network, objective) for name, p in part.named_parameters()}
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())
    regression = dict(small("regression")[0].named_parameters())
    grown = {name for name, p in network.named_parameters() if p.shape != regression[name].shape}
    assert grown == {name for name in regression if ".out." in name}


def test_distilled_logits_are_compared_up_to_a_constant():
    logits = {m: torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(n)) for n, m in enumerate(MODALITIES)}
    edges, mask = torch.full((1, 4, 6), 1 / 6), torch.ones(1, 4)
    loss = logit_distillation(edges, torch.zeros(6), logits, mask, kind="classes")
    shifted = {m: logit + 10 * number for number, (m, logit) in enumerate(logits.items())}
    torch.testing.assert_close(logit_distillation(edges, torch.zeros(6), shifted, mask, kind="classes"), loss)
    equal = dict.fromkeys(MODALITIES, logits["text"])
    assert float(logit_distillation(edges, torch.zeros(6), equal, mask, kind="classes")) == 0 < float(loss)


def classified(folder: Path, **options: object) -> Path:
    """Shards of a pickle with `classification_labels`, as MMSA has them."""
    data = mmsa()
    for fields in data.values():
        fields["classification_labels"] = np.sign(fields["regression_labels"]) + 1
    build_from(data, folder, **options)
    return folder / "shards"


def test_stored_classes_are_what_is_read(tmp_path):
    shards = classified(tmp_path, class_labels=True)
    stored = load_config(None, ["model.task=3", "data.classes=stored", "model.dim=8", "model.heads=2"])
    with ShardReader(shards) as reader:
        assert reader.index.info.classes == 3
        check_training(stored, reader, tmp_path / "run", 1)
        both = [
            next(evaluation_batches(reader, "train", config, batch_size=23)) for config in (stored.data, DataConfig())
        ]
    scoring = scoring_of(stored, {})
    assert torch.equal(targets(both[0].labels, scoring), to_classes(both[1].labels, 3).float())
    assert targets(both[0].labels, scoring) is both[0].labels


def test_ranks_that_share_a_ghost_batch_have_the_stored_classes_of_all_its_samples(tmp_path):
    stored = DataConfig(classes="stored")
    with ShardReader(classified(tmp_path, class_labels=True)) as reader:

        def labels(ranks: int, rank: int) -> torch.Tensor:
            plan = EpochPlan(
                num_samples=reader.index.num_samples("train"),
                ghost_batch_size=4,
                ghost_batches_per_step=1,
                ghost_batches_per_forward=1,
                num_ranks=ranks,
            )
            steps = training_steps(reader, plan, stored, seed=0, rank=rank, epoch=0)
            return torch.cat([batch.labels for batches in steps for batch in batches])

        alone = labels(1, 0)
        assert set(alone.flatten().tolist()) == {0, 1, 2}
        assert torch.equal(labels(2, 0), alone)
        assert torch.equal(labels(2, 1), alone)


def test_classes_that_are_not_there_are_rejected(tmp_path):
    plain = classified(tmp_path)
    with ShardReader(plain) as reader:
        info = reader.index.info
        for overrides, message in (
            (["model.task=3", "data.classes=stored"], r"hold no class labels; .*--class-labels"),
            (["data.classes=stored"], r"hold no class labels"),
            (["model.task=multilabel"], r"hold no emotions, of which it takes two .*; set model\.task=auto"),
        ):
            with pytest.raises(ValueError, match=message):
                check_training(load_config(None, overrides), reader, tmp_path / "run", 1)
    with pytest.raises(ValueError, match=r"hold the class number 2; set model\.task to at least 3"):
        resolve_task(load_config(None, ["model.task=2", "data.classes=stored"]), replace(info, classes=3))
    with pytest.raises(
        ValueError, match=r"data\.classes is 'stored', but model\.task is 'regression'; set model\.task=auto"
    ):
        resolve_task(load_config(None, ["model.task=regression", "data.classes=stored"]), replace(info, classes=3))
    with pytest.raises(ValueError, match=r"model\.task is 4, but a sentiment has 2, 3, 5, 7 classes; .*=stored"):
        resolve_task(load_config(None, ["model.task=4"]), info)
    for task in (1, 0, True):
        with pytest.raises(ValueError, match=r"model\.task is 1|model\.task is 0"):
            load_config(None, [f"model.task={task}"])
    (tmp_path / "none.pkl").write_bytes(pickle.dumps(mmsa()))
    assert command("shard", tmp_path / "none.pkl", tmp_path / "none", "--class-labels") == 2


@pytest.fixture(scope="module")
def classifier(shards, tmp_path_factory) -> Path:
    return train(shards, {tmp_path_factory.mktemp("classifier") / "run": ["model.task=3", "train.epochs=1"]})[0]


@pytest.mark.slow
def test_every_command_reads_a_classifier(classifier, run, shards, tmp_path, capsys):
    assert command("evaluate", classifier, "--split", "test", "--json", tmp_path / "test.json") == 0
    assert "F1 macro" in capsys.readouterr().out
    metrics = json.loads((tmp_path / "test.json").read_text())["metrics"]["fused"]
    assert command("predict", classifier, shards, "--split", "test", "--out", tmp_path / "out.csv") == 0
    with open(tmp_path / "out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    odds = np.array([[float(row[f"probability_{number}"]) for number in range(3)] for row in rows])
    assert odds.sum(1) == pytest.approx(np.ones(len(rows)), abs=1e-5)
    guess, label = (np.array([float(row[name]) for row in rows]) for name in ("prediction_number", "label_number"))
    assert np.array_equal(odds.argmax(1), guess)
    assert (guess == label).mean() == pytest.approx(metrics["acc"])
    titles = ["negative", "neutral", "positive"]
    assert [row["prediction"] for row in rows] == [titles[int(number)] for number in guess]
    assert [row["label"] for row in rows] == [titles[int(number)] for number in label]
    assert {row["text_homo"] for row in rows} <= set(titles)
    capsys.readouterr()
    assert command("predict", classifier, shards, "--split", "test") == 0
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert printed[0][:4] == ["split", "id", "label", "prediction"]
    assert printed[1][2:4] == [rows[0]["label"], rows[0]["prediction"]]
    assert not any("_number" in name for name in printed[0])
    assert command("export", classifier, tmp_path / "exported") == 0
    model = dmd.load(tmp_path / "exported")
    samples = example(model.card, 5)
    heads, homo, _ = torch.export.load(tmp_path / "exported" / PROGRAM).module()(*samples.values())
    torch.testing.assert_close(heads[:, 0].softmax(-1), model.predict(**samples).probabilities, rtol=1e-4, atol=1e-5)
    assert homo.shape == (5, 6)
    with pytest.raises(ValueError, match="predicts classes, no sentiment"):
        model.predict(**samples).sentiment  # noqa: B018
    assert not hasattr(model.predict(**samples), "sentiment")
    with pytest.raises(ValueError, match="predicts the sentiment, no classes"):
        dmd.load(run).predict(**samples).classes  # noqa: B018
    assert (
        command(
            "missing",
            classifier,
            "--split",
            "valid",
            "--rates",
            "0",
            "1",
            "--unit",
            "sample",
            "--out",
            tmp_path / "missing",
        )
        == 0
    )
    table = next((tmp_path / "missing").rglob("missing.csv")).read_text()
    assert table.splitlines()[0] == "dropped by,modality,rate,Acc %,F1 weighted %,F1 macro %,CE,split"


@pytest.mark.slow
def test_the_report_of_a_classifier(classifier, run, tmp_path, capsys):
    assert command("report", classifier, run, "--projection", "pca", "--out", tmp_path / "report") == 2
    assert "different tasks" in capsys.readouterr().err
    assert command("report", classifier, "--projection", "pca", "--out", tmp_path / "report") == 0
    tables = {path.stem: path.read_text() for path in (tmp_path / "report").rglob("*.csv")}
    assert "F1 weighted" in tables["summary"]
    assert not {"published", "ablation", "unimodal"} & set(tables)
    log = [json.loads(line) for line in (classifier / "metrics.jsonl").read_text().splitlines()]
    valid = next(line for line in log if "valid/acc" in line)
    assert valid["valid/loss"] == pytest.approx(valid["valid/cross_entropy"], rel=1e-5)
