"""Text encoders from elsewhere: nothing in them runs, and what is not whole is rejected before ranks start."""

import json
import pickle
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import BertConfig

import dmd
from data_shards.reading.index import ShardIndex
from dmd.encoder_files import check_encoder_files
from dmd.inference.export import CARD, WEIGHTS
from dmd.model.text import build_text_encoder, encoder_config, load_text_encoder, plain_config
from tests.support.commands import command_apart
from tests.support.trained import SMALL, make_shards

pytestmark = pytest.mark.slow

BERT = BertConfig(
    vocab_size=100,
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=8,
    max_position_embeddings=64,
)
CODE = "from pathlib import Path\nPath({ran!r}).touch()\nclass Evil: pass\n"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 440449768\n"


class Runs:
    """A pickle that runs code when it is opened by a trusting reader."""

    def __init__(self, ran: Path) -> None:
        self.ran = ran

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.ran,))


def yes(*arguments: object) -> subprocess.CompletedProcess[str]:
    """`yes | dmd ...`: whoever asks on standard input is answered y."""
    return command_apart(*arguments, answers="y\n" * 20)


def rejected(ended: subprocess.CompletedProcess[str]) -> str:
    """The only line of a command that was rejected."""
    lines = [line for line in ended.stderr.splitlines() if "error: " in line]
    assert ended.returncode == 2, ended.stderr
    assert len(lines) == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    return lines[0]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory) -> Path:
    return make_shards(tmp_path_factory.mktemp("tokens") / "shards", 96, "--text-kind", "tokens")


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """A whole encoder directory."""
    build_text_encoder(BERT.to_dict(), frozen=False).network.save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def pickled(folder: Path) -> Path:
    """The same directory with its weights as a pickle of tensors."""
    torch.save(build_text_encoder(BERT.to_dict(), frozen=False).network.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


@pytest.mark.parametrize("kind", ["evil", "bert"])
def test_a_training_runs_no_code_of_an_encoder_directory(tokens, bert, tmp_path, kind):
    (bert / "evil.py").write_text(CODE.format(ran=str(tmp_path / "ran")))
    content = json.loads((bert / "config.json").read_text())
    content |= {"model_type": kind, "vocab_size": 2, "auto_map": {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}}
    (bert / "config.json").write_text(json.dumps(content))
    error = rejected(yes("train", "--data", tokens, "--run", tmp_path / "run", *SMALL, f"text.encoder={bert}"))
    assert ("code of its own" if kind == "evil" else "token id") in error
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["evil", "blip_text_model", "bert", None, 7])
def test_a_prediction_runs_no_code_of_an_export(tokens, tmp_path, kind):
    (tmp_path / "evil.py").write_text(CODE.format(ran=str(tmp_path / "ran")))
    save_file({f"tensor{number}": torch.zeros(1) for number in range(12)}, tmp_path / WEIGHTS)
    encoder = {
        **BERT.to_dict(),
        "model_type": kind,
        "auto_map": {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"},
        "name_or_path": str(tmp_path),
        "_attn_implementation": "somebody/kernel",
    }
    info = ShardIndex.load(tokens).info
    shape = {name: getattr(info, name) for name in ("name", "generation", "text_kind", "dims", "lengths")}
    card = {"format": 1, "config": {}, "data": shape, "text_encoder": encoder, "source": {}}
    (tmp_path / CARD).write_text(json.dumps(card))
    error = rejected(yes("predict", tmp_path, tokens, "--out", tmp_path / "out.csv"))
    assert ("the weights do not belong" if kind == "bert" else "no text encoder of type") in error
    assert not (tmp_path / "ran").exists()


def test_what_a_stored_configuration_names_is_dropped_at_any_depth(bert):
    named = {"auto_map": {}, "name_or_path": "x", "quantization_config": {}, "backbone": "timm/x"}
    assert plain_config({"a": 1, **named, "text_config": {"b": 2, **named}}) == {"a": 1, "text_config": {"b": 2}}
    for given, kept in (("eager", "eager"), ("sdpa", "sdpa"), ("kernels-community/flash-attn", None), ({}, None)):
        assert plain_config({"_attn_implementation": given}).get("attn_implementation") == kept
    network = build_text_encoder({**encoder_config(str(bert)), "_attn_implementation": "eager"}, frozen=True).network
    assert network.config._attn_implementation == "eager"
    assert "name_or_path" not in encoder_config(str(bert))


def test_whole_encoders_are_taken(bert):
    weights = load_text_encoder(str(bert), frozen=True).state_dict()
    check_encoder_files(str(bert))
    check_encoder_files("some/hub-name")
    load_text_encoder(str(bert), frozen=True)
    build_text_encoder(BERT.to_dict(), frozen=False).network.save_pretrained(bert / "parts", max_shard_size="1KB")
    assert (bert / "parts" / "model.safetensors.index.json").exists()
    check_encoder_files(str(bert / "parts"))
    check_encoder_files(str(pickled(bert)))
    assert load_text_encoder(str(bert), frozen=True).state_dict().keys() == weights.keys()


def test_half_encoders_are_rejected(bert, tmp_path):
    path = bert / "model.safetensors"
    whole = path.read_bytes()
    for raw, words in (
        (LFS, "is a Git-LFS pointer"),
        (b"", "is empty"),
        (b"<html>Sign in</html>", "is a web page"),
        (whole[:-9], "is not whole"),
        (whole[:40], "is not whole"),
        (whole + b"more", "is not whole"),
    ):
        path.write_bytes(raw)
        with pytest.raises(ValueError, match=words):
            check_encoder_files(str(bert))
        with pytest.raises(ValueError, match="cannot be loaded"):
            load_text_encoder(str(bert), frozen=True)
    path.write_bytes(whole)
    for names, words in (
        ([], "names no file beside it"),
        (["../model.safetensors"], "names no file beside it"),
        ([7], "no index of weights"),
        (["gone.safetensors"], "there is nothing"),
    ):
        path.rename(bert / "kept")
        (bert / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict(enumerate(names))}))
        with pytest.raises(ValueError, match=words):
            check_encoder_files(str(bert))
        (bert / "model.safetensors.index.json").unlink()
        (bert / "kept").rename(path)
    path.unlink()
    with pytest.raises(ValueError, match="holds no weights"):
        check_encoder_files(str(bert))
    (bert / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "somebody/else"}))
    with pytest.raises(ValueError, match="is a PEFT adapter"):
        check_encoder_files(str(bert))
    with pytest.raises(ValueError, match="is a PEFT adapter"):
        load_text_encoder(str(bert), frozen=True)


def test_pickled_weights_run_nothing(bert, tmp_path):
    path = pickled(bert) / "pytorch_model.bin"
    whole = path.read_bytes()
    evil = {"embeddings.word_embeddings.weight": Runs(tmp_path / "ran")}
    torch.save(evil, bert / "evil.bin")
    for raw in (pickle.dumps(evil), (bert / "evil.bin").read_bytes(), whole[: len(whole) // 2], b"\x80\x02x"):
        path.write_bytes(raw)
        with pytest.raises(ValueError, match=r"nothing in it was run|zip archive that is not whole"):
            check_encoder_files(str(bert))
        with pytest.raises(ValueError, match="cannot be loaded"):
            load_text_encoder(str(bert), frozen=True)
    assert not (tmp_path / "ran").exists()


@pytest.mark.multiproc
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_clone_without_lfs_ends_before_ranks_start(tokens, tmp_path, name):
    folder = tmp_path / "bert"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**BERT.to_dict(), "vocab_size": 40000}))
    (folder / name).write_bytes(LFS)
    error = rejected(yes("train", "--data", tokens, "--run", tmp_path / "run", *SMALL, f"text.encoder={folder}"))
    assert f"{folder / name} is a Git-LFS pointer" in error
    assert not (tmp_path / "run").exists()


def test_a_run_with_an_encoder_stores_nothing_that_names_code(bert):
    assert not plain_config(encoder_config(str(bert))).keys() & {"auto_map", "name_or_path", "_name_or_path"}
    with pytest.raises(ValueError, match="no text encoder of type"):
        build_text_encoder({"model_type": "bert", "hidden_size": "wide"}, frozen=False)
    with pytest.raises(ValueError, match="there is no directory"):
        dmd.load(bert / "gone")
