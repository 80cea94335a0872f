"""LoRA: adapters alone are trained and stored; whoever reads them needs the base that they were trained on."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import dmd
from data_shards.extraction.settings import ExtractionSettings
from data_shards.text.tokenizer import load_tokenizer
from dmd.checkpoint.select import chosen_checkpoint
from dmd.config.loading import load_config
from dmd.inference.export import CARD, WEIGHTS, example, export
from dmd.model.lora import LoraSettings
from dmd.model.text import build_text_encoder, load_text_encoder
from tests.support.clips import tones, write_wav
from tests.support.commands import command, command_apart, rejected
from tests.support.encoders import KINDS, save_encoder
from tests.support.tokenizers import save_tokenizer
from tests.support.trained import SMALL, make_shards, train

LORA = ("text.lora_rank=2", "text.lora_alpha=4", "text.lora_dropout=0.1")
SETTINGS = LoraSettings(rank=2, targets="default", alpha=4, dropout=0.1)
ADAPTED = ("bert", "gpt2")
"""Adapters beside linear layers, and beside GPT-2's, whose weights are transposed."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("tokens") / "shards", 40, "--text-kind", "tokens")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {kind: save_encoder(kind, folder / kind) for kind in ADAPTED}


@pytest.fixture(scope="module")
def runs(shards: Path, bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("lora")
    overrides = {folder / kind: [*LORA, f"text.encoder={base}", "train.epochs=2"] for kind, base in bases.items()}
    return dict(zip(bases, train(shards, overrides), strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("targets", ["default", "all-linear"])
def test_adapters_of_every_kind_leave_the_states_at_first_and_are_all_that_is_trained(kind, targets):
    torch.manual_seed(0)
    plain = build_text_encoder(KINDS[kind], frozen=False).eval()
    settings = LoraSettings(rank=2, targets=targets, alpha=4, dropout=0.1)
    torch.manual_seed(0)
    adapted = build_text_encoder(KINDS[kind], frozen=False, lora=settings).eval()
    tokens = torch.ones(2, 3, 5, dtype=torch.int64)
    tokens[:, 2] = 0
    tokens[1, 0] = torch.arange(5) + 7
    assert torch.equal(plain(tokens), adapted(tokens)), "the second matrix of each is zero"
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert trained == set(adapted.state_dict())
    assert all("lora_" in name for name in trained)
    adapted(tokens).square().sum().backward()
    assert {name for name, parameter in adapted.named_parameters() if parameter.grad is not None} == trained
    assert len(trained) > 3


@pytest.mark.slow
@pytest.mark.parametrize("kind", ADAPTED)
def test_a_checkpoint_holds_adapters_and_names_the_base(kind, runs, bases):
    snapshot = chosen_checkpoint(runs[kind])
    of_encoder = [name for name in snapshot.model if name.startswith("dmd.text_encoder.")]
    assert of_encoder
    assert all("lora_" in name for name in of_encoder)
    assert {name for name in snapshot.optimizer if "text_encoder" in name} == {
        f"{key}/{name}" for key in ("exp_avg", "exp_avg_sq") for name in of_encoder
    }
    base = load_text_encoder(str(bases[kind]), frozen=False, lora=SETTINGS).base
    assert snapshot.state["text_base"] == {"name": str(bases[kind]), "sha256": base.sha256}
    model = dmd.load(runs[kind], "cpu")
    stored = load_file(bases[kind] / "model.safetensors")
    own = model.modules.network.text_encoder.network.state_dict()
    kept = {name.replace(".base_layer", ""): tensor for name, tensor in own.items() if "lora_" not in name}
    assert kept, "and the base is as it was"
    assert [name for name, tensor in kept.items() if not torch.equal(tensor, stored[name])] == []
    assert any(bool(tensor.any()) for name, tensor in snapshot.model.items() if "lora_B" in name), "trained"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ADAPTED)
def test_an_export_needs_its_base_unless_it_was_merged(kind, runs, bases, tmp_path):
    model = dmd.load(runs[kind], "cpu")
    samples = example(model.card, 4)
    wanted = model.predict(**samples).sentiment
    assert export(runs[kind], tmp_path / "adapters", program=False) == "not asked for"
    assert export(runs[kind], tmp_path / "merged", program=False, merge=True) == "not asked for"
    moved = shutil.copytree(bases[kind], tmp_path / "moved")
    card = json.loads((tmp_path / "adapters" / CARD).read_text())
    card["text_base"]["name"] = str(tmp_path / "gone")
    (tmp_path / "adapters" / CARD).write_text(json.dumps(card))
    with pytest.raises(ValueError, match=r"which are not here: .*--text-encoder PATH"):
        dmd.load(tmp_path / "adapters", "cpu")
    assert torch.equal(
        dmd.load(tmp_path / "adapters", "cpu", text_encoder=str(moved)).predict(**samples).sentiment, wanted
    )
    merged = dmd.load(tmp_path / "merged", "cpu")
    assert merged.card.text_base is None
    torch.testing.assert_close(merged.predict(**samples).sentiment, wanted, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="holds all its weights itself"):
        dmd.load(tmp_path / "merged", "cpu", text_encoder=str(moved))
    sizes = [(tmp_path / name / WEIGHTS).stat().st_size for name in ("adapters", "merged")]
    assert sizes[0] < sizes[1]


@pytest.mark.slow
def test_a_clip_is_predicted_by_adapters_whose_base_has_moved(runs, bases, tmp_path, capsys):
    export(runs["bert"], tmp_path / "adapters", program=False)
    card = json.loads((tmp_path / "adapters" / CARD).read_text())
    card["text_base"]["name"] = str(tmp_path / "gone")
    tokenizer = save_tokenizer("bert", tmp_path / "tokenizer", size=100)
    card["data"] |= {
        "tokenizer": {"name": str(tokenizer), "digest": load_tokenizer(str(tokenizer)).digest},
        "extraction": ExtractionSettings(audio="none", vision="none").to_dict(),
    }
    (tmp_path / "adapters" / CARD).write_text(json.dumps(card))
    clip = write_wav(tmp_path / "clip.wav", tones(0.2))
    predict = ("predict", tmp_path / "adapters", clip, "--transcript", "good")
    assert "which are not here" in rejected(capsys, *predict)
    moved = shutil.copytree(bases["bert"], tmp_path / "moved")
    assert command(*predict, "--text-encoder", moved) == 0
    model = dmd.load(tmp_path / "adapters", "cpu", text_encoder=str(moved))
    with pytest.raises(ValueError, match="the text of clips is no encoder's hidden states"):
        dmd.predict_clip(model, clip, transcript="good", text_encoder=str(moved))


@pytest.mark.slow
def test_another_base_is_rejected_with_both_names(runs, bases, shards, tmp_path, capsys):
    other = save_encoder("bert", tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match=r"trained on the weights of the text encoder") as error:
        dmd.load(runs["bert"], "cpu", text_encoder=str(other))
    assert str(bases["bert"]) in str(error.value)
    assert str(other) in str(error.value)
    for arguments in (
        ("evaluate", runs["bert"], "--text-encoder", other),
        ("predict", runs["bert"], shards, "--out", tmp_path / "out.csv", "--text-encoder", other),
        ("export", runs["bert"], tmp_path / "export", "--text-encoder", other),
        ("report", runs["bert"], "--out", tmp_path / "report", "--text-encoder", other),
        ("missing", runs["bert"], "--out", tmp_path / "missing", "--text-encoder", other),
    ):
        ended = command_apart(*arguments)
        assert ended.returncode == 2
        assert "are others (sha256" in ended.stderr
    moved = shutil.copytree(bases["bert"], tmp_path / "moved")
    assert command("evaluate", runs["bert"], "--text-encoder", moved) == 0
    assert "valid split" in capsys.readouterr().out
    rates = ("--rates", 0, "--unit", "sample")
    assert command("missing", runs["bert"], "--out", tmp_path / "grid", *rates, "--text-encoder", moved) == 0
    page = ("--out", tmp_path / "page", "--projection", "pca")
    assert command("report", runs["bert"], *page, "--text-encoder", moved) == 0


def test_adapters_without_a_base_or_a_base_without_adapters_are_rejected(runs, tmp_path):
    export(runs["bert"], tmp_path / "export", program=False)
    card = json.loads((tmp_path / "export" / CARD).read_text())
    for wrong, words in (
        ({"text_base": None}, "names none"),
        ({"text_base": {"name": "x"}}, "lacks 'sha256'"),
        ({"text_base": "x"}, "of another type"),
        ({"text_base": {**card["text_base"], "revision": "main"}}, "it must have name and sha256"),
    ):
        (tmp_path / "export" / CARD).write_text(json.dumps(card | wrong))
        with pytest.raises(ValueError, match=words):
            dmd.load(tmp_path / "export", "cpu")


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["text.lora_rank=-1"], "text.lora_rank is -1"),
        (["text.lora_rank=2", "text.frozen=true"], "adapters are trained"),
        (["text.lora_rank=2", "text.lora_targets=[]"], "text.lora_targets is empty"),
        (["text.lora_alpha=0"], "text.lora_alpha is 0"),
        (["text.lora_dropout=1"], "text.lora_dropout is 1"),
        (["text.lora_targets=all-linear"], "text.lora_targets is 'all-linear', but text.lora_rank is 0"),
        (["text.lora_alpha=4"], "set text.lora_rank=8, or text.lora_alpha=16"),
        (["text.lora_dropout=0.1"], "set text.lora_rank=8, or text.lora_dropout=0.0"),
        (["text.layer_decay=0.9", "text.frozen=true"], "set text.layer_decay=1, or text.frozen=false"),
    ],
)
def test_impossible_values_are_rejected(overrides, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        load_config(None, overrides)


def test_targets_that_match_nothing_are_named_with_what_there_is():
    for targets in ("c_attn", ("query", "c_attn")):
        settings = LoraSettings(rank=2, targets=targets, alpha=4, dropout=0)
        with pytest.raises(
            ValueError, match=r"'c_attn', which matches no linear layer.* it has: query, key, value, dense"
        ):
            build_text_encoder(KINDS["bert"], frozen=False, lora=settings)
    for targets in ("query", ("attention.self.query", "value"), ("layer.1.output.dense",)):
        settings = LoraSettings(rank=2, targets=targets, alpha=4, dropout=0)
        assert build_text_encoder(KINDS["bert"], frozen=False, lora=settings).state_dict()
    unknown = {**KINDS["bert"], "model_type": "mpnet"}
    with pytest.raises(ValueError, match=r"peft knows no LoRA targets for a text encoder of type 'mpnet'"):
        build_text_encoder(unknown, frozen=False, lora=SETTINGS)


@pytest.mark.slow
def test_targets_that_match_nothing_end_before_ranks_start(shards, bases, tmp_path):
    wrong = [*SMALL, *LORA, f"text.encoder={bases['bert']}", "text.lora_targets=[c_attn]"]
    ended = command_apart("train", "--data", shards, "--run", tmp_path / "run", *wrong)
    assert ended.returncode == 2
    assert "which matches no linear layer" in ended.stderr
    assert not (tmp_path / "run").exists()
