"""Every model of `dmd.system.models`: trained, resumed, evaluated, exported and reported as DMD is.

That ranks have the numbers of one, also where they share ghost batches, is in test_sharing.py.
"""

import json
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

import dmd
from cluster.search.space import apply, load_space
from dmd.config import Config
from dmd.config.loading import config_to_dict, load_config
from dmd.inference.export import example, save_program
from dmd.inference.outputs import schema
from dmd.kernels.dropout.keys import number_samples
from dmd.kernels.dropout.rng import DropoutRNG
from dmd.losses import MisaConfig, ObjectiveConfig
from dmd.losses.consistency import CONSISTENCY
from dmd.losses.label_weights import of_sentiments
from dmd.losses.model_objective import FUSED_ERROR, ModelObjective
from dmd.model.config import MODALITIES, ModelConfig, ModelName, kind_of
from dmd.model.network import FUSED, Network
from dmd.model.padding import resample, to_front
from dmd.model.text import build_text_encoder
from dmd.report.identity import compared_values, concerns, differing_keys
from dmd.system.models import DEFAULT, MODELS, heads_of, spaces_of, terms_of
from dmd.system.modules import Modules
from dmd.system.trained_model import ModelCard, TrainedModel
from dmd.training.step import make_rng
from tests.support.commands import command, rejected
from tests.support.ranks import assert_bitwise, losses
from tests.support.small_data import build_from, mmsa
from tests.support.small_system import GHOSTS, LENGTHS, SAMPLES, SIZES, make_batch, make_system, small_model
from tests.support.trained import small_for, train

BERT = {"model_type": "bert", "hidden_size": 6, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 99}
BASELINES = ("text_only", "early_fusion", "late_fusion")
TASKS: dict[str, dict[str, Any]] = {
    "sentiments": {"task": "regression"},
    "classes": {"task": 3},
    "emotions": {"task": "multilabel", "emotions": 3},
}
ABSOLUTE = MisaConfig(regression_loss="absolute")
CONSISTENT = ObjectiveConfig(consistency=1)
WITHOUT_DROPOUT = small_model("late_fusion", text_dropout=0, output_dropout=0, modality_dropout=0)
OUTPUTS: dict[str, tuple[int, ...]] = {"sentiments": (), "classes": (3,), "emotions": (3,)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """A run of each model, and one beside it that was stopped after the first epoch and continued."""
    folder = tmp_path_factory.mktemp("models")
    build_from(mmsa(), folder)
    wanted: dict[Path, list[str]] = {}
    for name in MODELS:
        wanted[folder / name] = small_for(name)
        wanted[folder / f"{name}_stopped"] = [*small_for(name), "train.epochs=1"]
    steps = ["train.ghost_batch_size=4", "train.ghost_batches_per_step=2"]
    train(folder / "shards", wanted, base=steps)
    train(folder / "shards", {folder / f"{name}_stopped": small_for(name) for name in MODELS}, base=steps)
    return {name: folder / name for name in MODELS}


@pytest.mark.parametrize("name", MODELS)
def test_a_row_is_a_network_and_its_objective(name):
    row = MODELS[name]
    assert name in get_args(ModelName)
    assert issubclass(row.network_class(), Network)
    assert issubclass(row.objective_class(), ModelObjective)
    assert next(iter(heads_of(name))) == FUSED
    assert len({term.name for term in terms_of(name)}) == len(terms_of(name))
    assert f"task_{FUSED}" in [term.name for term in terms_of(name)]
    known = {f"{section.name}.{key.name}" for section in fields(Config) for key in fields(section.type)}
    assert {key for key in row.reads if "*" not in key} <= known
    assert not row.section or row.section in Config.__dataclass_fields__


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_run_that_was_continued_is_bitwise_the_run_that_was_not(runs, name):
    assert_bitwise(runs[name].with_name(f"{name}_stopped"), runs[name])
    log = [json.loads(line) for line in (runs[name] / "metrics.jsonl").read_text().splitlines()]
    terms = {f"train/{term.name}" for term in terms_of(name) if term not in (CONSISTENCY, FUSED_ERROR)}
    if name == "misa":  # whose error is squared
        terms.add(f"train/{FUSED_ERROR.name}")
    assert all(terms <= line.keys() for line in log if "train/total" in line)
    assert len(losses(runs[name])) == 2 * 3, "23 samples in steps of 8"
    assert {f"valid_heads/{head}/mae" for head in heads_of(name)} <= {tag for line in log for tag in line}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_run_is_evaluated_loaded_and_exported(runs, name, tmp_path):
    run = runs[name]
    metrics = dmd.evaluate(run)
    assert list(metrics) == list(heads_of(name))
    model, data = dmd.load(run), mmsa()["valid"]
    assert repr(model).startswith(f"TrainedModel({name}, regression; ")
    given = {m: data[m] for m in MODALITIES}
    found = model.predict(**given)
    error = np.abs(found.sentiment.numpy() - data["regression_labels"]).mean()
    assert metrics[FUSED]["mae"] == pytest.approx(error, rel=1e-5)
    assert list(found.edges) == list(spaces_of(name))
    features = model.features(**given)
    assert features.fused.shape[0] == len(data["id"])
    assert bool(features.common) == bool(features.private) == bool(spaces_of(name))
    assert all(key.startswith((f"{name}.", "objective.")) for key in model.modules.state_dict())

    assert command("export", run, tmp_path / "export", "--no-program") == 0
    readme = (tmp_path / "export" / "README.md").read_text()
    assert ("Decoupled Multimodal Distilling" in readme) == (name == "dmd")
    assert MODELS[name].title in readme
    again = dmd.load(tmp_path / "export").predict(**given)
    assert all(torch.equal(again.heads[head], found.heads[head]) for head in heads_of(name))
    assert command("predict", run, run.parent / "shards", "--out", tmp_path / "out.csv") == 0
    columns = (tmp_path / "out.csv").read_text().splitlines()[0].replace('"', "").split(",")
    wanted = schema(model.modules.scoring, heads=heads_of(name), spaces=spaces_of(name))
    assert columns == wanted.names
    assert sum(column.startswith("edge_") for column in columns) == 6 * len(spaces_of(name))


@pytest.mark.slow
def test_a_report_compares_models(runs, tmp_path, capsys):
    """What only DMD has, edges and spaces, is drawn of it alone."""
    paths = [runs["late_fusion"], runs["dmd"]]
    assert command("report", *paths, "--projection", "pca", "--small", "--out", tmp_path) == 0
    assert {"edges.svg", "features.svg"} <= {path.name for path in (tmp_path / "dmd").iterdir()}
    assert not {"edges.svg", "features.svg"} & {path.name for path in (tmp_path / "late_fusion").iterdir()}
    assert (tmp_path / "late_fusion" / "losses.svg").is_file()
    summary = (tmp_path / "overview" / "summary.csv").read_text()
    assert 'MAE,name=late_fusion,"single, 1 seed",' in summary
    assert 'MAE,name=dmd,"single, 1 seed",' in summary
    unimodal = (tmp_path / "overview" / "unimodal.csv").read_text()
    assert "name=dmd: homo" in unimodal
    assert "late_fusion" not in unimodal


def trained(name: str, task: str, *, tokens: bool = False) -> TrainedModel:
    """An untrained model of a task."""
    config = replace(Config(), model=small_model(name, **TASKS[task]))
    data = {
        "name": "x",
        "generation": "x",
        "text_kind": "tokens" if tokens else "features",
        "dims": {**SIZES, "text": 0} if tokens else SIZES,
        "lengths": LENGTHS,
        "class_names": [],
        "emotions": ["happy", "sad", "angry"] if task == "emotions" else [],
    }
    encoder = build_text_encoder(BERT, frozen=False) if tokens else None
    torch.manual_seed(0)
    modules = Modules(config, data=data, text_encoder=encoder, device=torch.device("cpu"), binding=False)
    card = ModelCard(
        config=config_to_dict(config), data=data, text_encoder=BERT if tokens else None, source={"run": "x", "step": 1}
    )
    return TrainedModel(card, modules.state_dict(), torch.device("cpu"))


@pytest.mark.parametrize(
    "name, task",
    [(name, task) for name in MODELS for task, given in TASKS.items() if kind_of(given["task"]) in MODELS[name].kinds],
)
def test_every_task_is_predicted_also_without_a_modality(name, task):
    model = trained(name, task)
    sample = {m: torch.randn(4, LENGTHS[m], SIZES[m]) for m in MODALITIES}
    for missing in (None, *MODALITIES):
        found = model.predict(**{m: None if m == missing else x for m, x in sample.items()})
        assert list(found.heads) == list(heads_of(name))
        for values in found.heads.values():
            assert values.shape == (4, *OUTPUTS[task])
            assert values.isfinite().all()


def network_of(name: str, **settings: Any) -> Network:
    return MODELS[name].network_class()(small_model(name, **settings), SIZES, LENGTHS)


@pytest.mark.parametrize("name", MODELS)
def test_token_ids_are_read_through_a_text_encoder(name):
    model = trained(name, "sentiments", tokens=True)
    model.modules.requires_grad_(True)
    sample = {m: torch.randn(4, LENGTHS[m], SIZES[m]) for m in MODALITIES}
    ids = torch.randint(1, 50, (4, 1, LENGTHS["text"]))
    tokens = torch.cat([ids, (torch.arange(LENGTHS["text"]) < 3).expand(4, 1, -1), 0 * ids], 1)
    output = model.modules.network(tokens, sample["audio"], sample["vision"])
    output.predictions[FUSED].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.modules.network.text_encoder.parameters())


def test_a_program_has_lstms(tmp_path):
    model = trained("self_mm", "sentiments")
    assert save_program(model, tmp_path / "model.pt2") is None
    program, samples = torch.export.load(tmp_path / "model.pt2").module(), example(model.card, 7)
    heads, *_ = program(*samples.values())
    torch.testing.assert_close(heads[:, 0], model.predict(**samples).sentiment)


@pytest.mark.parametrize("name", MODELS)
def test_dropout_is_that_of_the_sample_whoever_runs_it(name):
    """A sample has the same masks alone as among others: no model draws from torch's generator."""
    network = trained(name, "sentiments").modules.network.train()
    sample = [torch.randn(3, LENGTHS[m], SIZES[m]) for m in MODALITIES]

    def predict(rows: list[int]) -> torch.Tensor:
        samples = number_samples([0], range(3))[rows]
        rng = DropoutRNG(seed=1, step=2, samples=samples, device=torch.device("cpu"))
        return network(*(x[rows] for x in sample), rng).predictions[FUSED]

    together, without = predict([0, 1, 2]), network(*sample).predictions[FUSED]
    assert torch.allclose(predict([1]), together[1:2], atol=1e-6)
    assert not torch.allclose(together, without)


@pytest.mark.parametrize("name", MODELS)
def test_two_passes_are_to_predict_the_same(name):
    """`objective.consistency` of any model. What is remembered of a sample is that of its first pass, which is the pass
    of a training without it."""
    cpu, rows = torch.device("cpu"), torch.arange(GHOSTS * SAMPLES).view(GHOSTS, SAMPLES)
    batch, terms, states = replace(make_batch(0, "cpu"), rows=rows), [], []
    for weight in (0.0, 3.0):
        objective = ObjectiveConfig(consistency=weight)
        system, config = make_system("plain", "cpu", small_model(name, text_dropout=0.3), objective=objective)
        system.objective.start_training(rows.numel(), cpu)
        terms.append(system.terms(batch, make_rng(batch, config, step=1, forward=0, device=cpu)))
        system.objective.after_step(epoch=0, applied=True)
        states.append(system.objective.training_state())
    single, joined = terms
    assert joined.keys() == {*single, CONSISTENCY.name}
    assert joined[CONSISTENCY.name].min() > 0
    assert not joined["task_fused"].equal(single["task_fused"])
    joined[CONSISTENCY.name].sum().backward()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in system.network.parameters())
    for key, tensor in states[0].items():
        torch.testing.assert_close(states[1][key], tensor, msg=key)


@pytest.mark.parametrize("name", MODELS)
def test_rare_labels_weigh_more(name):
    """`objective.label_density_smoothing` of any model weighs the task loss of its fused head sample by sample."""
    batch, width = make_batch(0, "cpu"), 0.1
    objective = ObjectiveConfig(label_density_smoothing=width)
    system, _ = make_system("plain", "cpu", small_model(name), objective=ObjectiveConfig())
    system.eval()
    alone = [
        system.terms(replace(batch, mask=mask.expand(GHOSTS, -1)), None)["task_fused"] for mask in torch.eye(SAMPLES)
    ]
    plain = system.terms(batch, None)
    system, _ = make_system("plain", "cpu", small_model(name), objective=objective)
    low, high = float(batch.labels.min()), float(batch.labels.max())
    system.objective.label_weights = of_sentiments([batch.labels.flatten()] * 20, low=low, high=high, width=width)
    weights = system.objective.label_weights(batch.labels)
    assert weights.unique().numel() > 1
    weighted = system.eval().terms(batch, None)
    error = weighted.pop(FUSED_ERROR.name)
    torch.testing.assert_close(error, plain.get(FUSED_ERROR.name, plain["task_fused"]))
    torch.testing.assert_close(weighted["task_fused"], (torch.stack(alone, 1) * weights).mean(1))
    for key, term in weighted.items():
        assert key == "total" or key.startswith("task_") or term.equal(plain[key]), key


@pytest.mark.parametrize("name", MODELS)
def test_options_beyond_the_published_code_are_read_by_every_model(name):
    given = ["objective.consistency=1", "objective.label_density_smoothing=0.5"]
    assert load_config(None, [f"model.name={name}", *given]).objective.consistency == 1


@pytest.mark.parametrize("name", BASELINES)
def test_padding_changes_nothing_on_either_side(name):
    lengths = dict.fromkeys(MODALITIES, 6)
    longer = dict.fromkeys(MODALITIES, 9)
    config = small_model(name)
    if MODELS[name].reads_key("model.kernel_text"):  # a window reaches into the padding
        config = replace(config, kernel_text=1)
    torch.manual_seed(0)
    network, padded = (MODELS[name].network_class()(config, SIZES, steps) for steps in (lengths, longer))
    padded.load_state_dict(network.state_dict())
    sample = [torch.randn(4, 6, SIZES[m]) for m in MODALITIES]
    wanted = network(*sample).predictions[FUSED]
    behind = [torch.nn.functional.pad(x, (0, 0, 0, 3)) for x in sample]
    in_front = [torch.nn.functional.pad(x, (0, 0, 3, 0)) for x in sample]
    assert torch.allclose(padded(*behind).predictions[FUSED], wanted, atol=1e-6)
    if name != "text_only":  # whose encoder knows positions
        assert torch.allclose(padded(*in_front).predictions[FUSED], wanted, atol=1e-6)


def test_sequences_are_moved_and_resampled():
    x = torch.tensor([[0.0, 1, 2, 3, 4, 0], [5, 6, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]])[..., None]
    ranges = torch.tensor([[1, 5], [0, 2], [0, 0]])
    moved, lengths = to_front(x, ranges)
    assert moved.squeeze(-1).tolist() == [[1, 2, 3, 4, 0, 0], [5, 6, 0, 0, 0, 0], [0] * 6]
    assert lengths.tolist() == [4, 2, 0]
    halves = resample(x, ranges, torch.tensor([2, 3, 2]), 3).squeeze(-1)
    assert halves.tolist() == [pytest.approx([1.5, 3.5, 0]), pytest.approx([5, 5.5, 6]), [0, 0, 0]]


@pytest.mark.parametrize(
    "given, message",
    [
        (
            ["model.name=late_fusion", "model.gd_size_homo=32"],
            "model.gd_size_homo is 32, which model.name=late_fusion ",
        ),
        (
            ["model.name=late_fusion", "objective.gamma=0.2"],
            "objective.gamma is 0.2, which model.name=late_fusion does",
        ),
        (["model.name=text_only", "model.kernel_audio=3"], "model.kernel_audio is 3, which model.name=text_only does"),
        (["model.name=text_only", "model.heads=7"], "model.heads is 7; it must divide model.dim, which is 50"),
        (["model.name=dmt"], r"model.name is 'dmt'; input should be 'dmd', "),
    ],
)
def test_a_value_that_the_model_does_not_read_is_rejected(given, message):
    with pytest.raises(ValueError, match=message):
        load_config(None, given)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: ModelConfig(name="nope"), "model.name is 'nope'; give one of dmd, text_only, "),
        (lambda: Config(model=ModelConfig(name="misa", task=3), misa=ABSOLUTE), "misa.regression_loss is 'absolute', "),
        *(
            (lambda name=name: network_of(name, heads=7), "model.heads is 7; it must divide")
            for name in ("dmd", "misa")
        ),
        (
            lambda: make_system("plain", "cpu", WITHOUT_DROPOUT, objective=CONSISTENT),
            "every dropout is 0, so that both",
        ),
    ],
)
def test_a_mistake_in_python_is_the_error_of_a_config(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_width_of_a_model_without_heads_needs_no_heads():
    assert load_config(None, ["model.name=late_fusion", "model.dim=64"]).model.dim == 64


def test_models_are_told_apart_by_name_alone():
    dims = {"text": 5, "audio": 3, "vision": 4}
    values = [compared_values(config_to_dict(load_config(None, [f"model.name={name}"])), dims) for name in MODELS]
    assert differing_keys(values) == ["model.name"]
    assert ModelConfig().name == DEFAULT
    assert not concerns("model.gd_size_homo", {"model.name": "late_fusion"})
    assert concerns("model.gd_size_homo", {}), "of a run that is older than other models"
    assert concerns("train.clip", {"model.name": "late_fusion"})


def test_a_search_varies_models_and_what_they_read(tmp_path):
    base = load_config(None, ["model.name=late_fusion"])
    (tmp_path / "space.yaml").write_text(
        "model.dim: {choice: [32, 64]}\nmodel.name: {choice: [late_fusion, early_fusion]}"
    )
    load_space(tmp_path / "space.yaml", base)
    found = apply(base, {"model.dim": 64, "model.name": "early_fusion"}).model
    assert (found.name, found.dim) == ("early_fusion", 64)
    (tmp_path / "other.yaml").write_text("model.gd_size_homo: {choice: [32, 64]}")
    with pytest.raises(ValueError, match=r"impossible config: model\.gd_size_homo is 32, which model\.name=late"):
        load_space(tmp_path / "other.yaml", base)


def test_a_key_is_explained_with_the_models_that_read_it(capsys):
    assert command("config", "model.kernel_text", "model.text_dropout") == 0
    explained, common = capsys.readouterr().out.split("\n\n")
    assert "read by: dmd, text_only" in explained
    assert "read by" not in common


def test_a_published_checkpoint_is_no_other_model(tmp_path, capsys):
    (tmp_path / "x.pth").write_bytes(b"")
    assert "model.name is 'late_fusion', but published files hold a DMD" in rejected(
        capsys, "import", tmp_path / "x.pth", tmp_path / "run", "--preset", "mosi-aligned", "model.name=late_fusion"
    )


def test_the_page_has_a_row_of_every_model():
    """With its parameters at the published width on unaligned CMU-MOSI."""
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| ([\d,]+) \|$", page, re.MULTILINE))
    assert list(rows) == list(MODELS)
    mosi = {"dims": {"text": 768, "audio": 5, "vision": 20}, "lengths": {"text": 50, "audio": 375, "vision": 500}}
    for name, parameters in rows.items():
        config = load_config(None, [f"model.name={name}", "model.task=regression"])
        with torch.device("meta"):
            modules = Modules(config, data=mosi, text_encoder=None, device=torch.device("cpu"), binding=False)
        assert parameters == f"{sum(p.numel() for p in modules.parameters()):,}", name
