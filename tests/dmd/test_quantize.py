"""A frozen base in 8 or 4 bits: near what it was, never trained, and named by checkpoints instead of held."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dmd
from dmd.checkpoint.select import chosen_checkpoint
from dmd.config.loading import load_config
from dmd.distributed.engine import sizes_of
from dmd.inference.export import example, export
from dmd.model.lora import LoraSettings
from dmd.model.quantize import check_quantized
from dmd.model.text import build_text_encoder
from tests.support.encoders import KINDS, save_encoder
from tests.support.trained import make_shards, train

LORA = LoraSettings(rank=2, targets="default", alpha=4, dropout=0)
ERROR = {"8bit": 0.01, "4bit": 0.25}
"""Largest difference of a state, relative to the largest state: NF4 keeps 16 values of a weight."""


@pytest.mark.parametrize("how", ERROR)
@pytest.mark.parametrize("kind", KINDS)
def test_quantised_layers_of_every_kind_are_near_and_not_trained(kind, how):
    tokens = torch.zeros(4, 3, 12, dtype=torch.int64)
    tokens[:, 0] = torch.randint(2, 100, (4, 12), generator=torch.Generator().manual_seed(1))
    tokens[:, 1] = 1
    torch.manual_seed(0)
    whole = build_text_encoder(KINDS[kind], frozen=True).eval()(tokens)
    torch.manual_seed(0)
    encoder = build_text_encoder(KINDS[kind], frozen=False, lora=LORA, quantize=how).eval().to("cpu")
    check_quantized(encoder.network, otherwise="")
    states = encoder(tokens)
    error = float((states.detach() - whole).abs().max() / whole.abs().max())
    assert 0 < error < ERROR[how]
    states.square().sum().backward()
    trained = {name for name, parameter in encoder.named_parameters() if parameter.grad is not None}
    assert trained == set(encoder.state_dict())
    assert all("lora_" in name for name in trained)
    assert torch.equal(encoder(tokens), states)
    stored = [p for p in encoder.network.parameters() if not p.is_floating_point()]
    assert len(stored) >= 8
    whole = build_text_encoder(KINDS[kind], frozen=False, lora=LORA)
    assert sizes_of(encoder).parameters == sizes_of(whole).parameters


@pytest.mark.slow
def test_a_quantised_training_is_resumed_evaluated_and_exported(tmp_path):
    shards = make_shards(tmp_path / "shards", 40, "--text-kind", "tokens")
    base = save_encoder("bert", tmp_path / "bert")
    lora = [f"text.encoder={base}", "text.lora_rank=2", "text.quantize=4bit", "train.epochs=2"]
    frozen = [f"text.encoder={base}", "text.frozen=true", "text.quantize=8bit", "train.epochs=1"]
    whole, cut, still = (tmp_path / name for name in ("whole", "cut", "still"))
    train(shards, {whole: lora, cut: [*lora, "train.max_steps=1"], still: frozen})
    train(shards, {cut: lora})
    ours, its = chosen_checkpoint(cut), chosen_checkpoint(whole)
    assert [name for name in its.model if not torch.equal(ours.model[name], its.model[name])] == []
    for run, adapters in ((whole, 8), (still, 0)):
        held = [name for name in chosen_checkpoint(run).model if "text_encoder" in name]
        assert len(held) == adapters
        assert chosen_checkpoint(run).state["text_base"]["name"] == str(base)
        model = dmd.load(run, "cpu")
        samples = example(model.card, 3)
        export(run, tmp_path / f"{run.name}-export", program=False)
        loaded = dmd.load(tmp_path / f"{run.name}-export", "cpu")
        assert torch.equal(loaded.predict(**samples).sentiment, model.predict(**samples).sentiment)
    with pytest.raises(ValueError, match="cannot be added to quantised weights"):
        export(whole, tmp_path / "merged", program=False, merge=True)
    with pytest.raises(ValueError, match="the model has no adapters"):
        export(still, tmp_path / "merged", program=False, merge=True)


MISSING = """
import sys
sys.modules["bitsandbytes"] = None
from dmd.model.text import build_text_encoder
from tests.support.encoders import KINDS
try:
    build_text_encoder(KINDS["bert"], frozen=True, quantize="8bit")
except ValueError as error:
    print(error)
"""


def test_without_bitsandbytes_the_error_names_it():
    ended = subprocess.run(
        [sys.executable, "-c", MISSING], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert "text.quantize is '8bit', which needs bitsandbytes: pip install bitsandbytes" in ended.stdout, ended.stderr


def test_a_device_that_cannot_is_named():
    with torch.device("meta"):
        encoder = build_text_encoder(KINDS["bert"], frozen=True, quantize="4bit")
    with pytest.raises(ValueError, match=r"bitsandbytes cannot run a Linear4bit on meta .*; run it on another device$"):
        check_quantized(encoder.network, otherwise="run it on another device")


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["text.quantize=8bit"], "quantised weights are not trained"),
        (["text.quantize=2bit"], "text.quantize is '2bit'"),
        (["text.quantize=4bit", "text.lora_rank=2", "train.zero_stage=3"], "ranks cannot divide quantised weights"),
    ],
)
def test_what_does_not_go_together_is_rejected(overrides, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        load_config(None, overrides)
