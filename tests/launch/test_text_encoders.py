"""Trainings with a text encoder are killed, continued and moved to other numbers of ranks, as those without one."""

import shutil
from pathlib import Path

import pytest
import torch

from data_shards.commands import shard
from tests.support.encoders import NO_DROPOUT, save_encoder
from tests.support.ranks import assert_bitwise, assert_close, finish, last, train

pytestmark = [pytest.mark.multiproc, pytest.mark.slow]
SAVES = "train.save_every=2"
ONE_EPOCH = "train.epochs=1"
LORA = ("text.lora_rank=2", "text.lora_targets=all-linear", "text.learning_rate=1e-3")


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """112 samples to train on, 16 to validate: an epoch of 5 steps."""
    path = tmp_path_factory.mktemp("launch-tokens") / "shards"
    assert shard(["--synthetic", "--text-kind", "tokens", "--samples", "160", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder("bert", tmp_path_factory.mktemp("base") / "bert")


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder without dropout, which alone gives the same on any number of ranks."""
    return save_encoder("bert", tmp_path_factory.mktemp("still") / "bert", **NO_DROPOUT)


def killed_and_continued(tokens: Path, run: Path, *overrides: str, fault: str = "step@3@1") -> None:
    """Two ranks, one of which is killed after step 3; then to the end."""
    ended = train(tokens, run, ONE_EPOCH, SAVES, *overrides, ranks=2, DMD_FAULT=fault)
    assert ended.codes == [69, 137], ended.output
    assert last(run).step == 2
    finish(tokens, run, ONE_EPOCH, SAVES, *overrides, ranks=2)


def test_lora_is_killed_and_continues_bitwise(tokens, base, tmp_path):
    run, whole = tmp_path / "run", tmp_path / "whole"
    overrides = (*LORA, "text.lora_dropout=0.1", "train.zero_stage=1", f"text.encoder={base}")
    overrides += ("text.gradient_checkpointing=true", "text.layer_decay=0.8", "text.warmup_epochs=1")
    finish(tokens, whole, ONE_EPOCH, SAVES, *overrides, ranks=2)
    killed_and_continued(tokens, run, *overrides)
    assert_bitwise(run, whole)
    held = [name for name in last(run).model if name.startswith("dmd.text_encoder.")]
    assert len(held) == 24
    assert all("lora_" in name for name in held)


def test_lora_is_elastic_over_ranks_and_stages(tokens, still, tmp_path):
    run, whole = tmp_path / "run", tmp_path / "whole"
    overrides = (*LORA, f"text.encoder={still}", "text.layer_decay=0.8", ONE_EPOCH)
    finish(tokens, whole, *overrides)
    for ranks, stage, steps in ((2, 2, 2), (1, 0, 4), (2, 1, 5)):
        finish(tokens, run, *overrides, f"train.zero_stage={stage}", f"train.max_steps={steps}", ranks=ranks)
    assert_close(run, whole)


def test_a_run_continues_on_the_base_that_it_began_with(tokens, base, tmp_path):
    run, other = tmp_path / "run", save_encoder("bert", tmp_path / "other", seed=1)
    finish(tokens, run, *LORA, f"text.encoder={base}", "train.max_steps=2")
    before = last(run)
    rejected = train(tokens, run, *LORA, f"text.encoder={other}", "train.max_steps=3")
    assert rejected.codes == [2], rejected.output
    assert f"was trained on the weights of the text encoder {base}" in rejected.output
    assert f"but those of {other} are others" in rejected.output
    assert last(run).step == 2
    moved = shutil.copytree(base, tmp_path / "moved")
    finish(tokens, run, *LORA, f"text.encoder={moved}", "train.max_steps=3")
    assert last(run).state["text_base"] == {"name": str(moved), "sha256": before.state["text_base"]["sha256"]}
    assert any(not torch.equal(tensor, last(run).model[name]) for name, tensor in before.model.items())


def test_ranks_with_different_bases_do_not_start(tokens, base, tmp_path):
    other = save_encoder("bert", tmp_path / "other", seed=1)
    own = [[f"text.encoder={base}"], [f"text.encoder={other}"]]
    ended = train(tokens, tmp_path / "run", *LORA, ranks=2, own=own)
    assert ended.codes == [2, 2], ended.output
    assert "the ranks were not given the same: the weights of the text encoder is " in ended.output


def test_zero_3_is_killed_and_continues_bitwise(tokens, base, tmp_path):
    run, whole = tmp_path / "run", tmp_path / "whole"
    overrides = (f"text.encoder={base}", "train.zero_stage=3", "text.learning_rate=1e-3", "text.layer_decay=0.8")
    overrides += ("text.gradient_checkpointing=true", "train.ghost_batches_per_forward=2")
    finish(tokens, whole, ONE_EPOCH, SAVES, *overrides, ranks=2)
    killed_and_continued(tokens, run, *overrides)
    assert_bitwise(run, whole)


def test_zero_3_is_elastic_over_ranks_and_stages(tokens, still, tmp_path):
    """With three ranks, whose parts of a weight do not divide it evenly, and with an optimizer on the host."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    overrides = (f"text.encoder={still}", "text.learning_rate=1e-3", ONE_EPOCH)
    finish(tokens, whole, *overrides)
    for ranks, stage, offload, steps in ((2, 3, "none", 1), (1, 3, "cpu", 2), (3, 3, "none", 3), (2, 2, "cpu", 5)):
        own = (f"train.zero_stage={stage}", f"train.offload={offload}", f"train.max_steps={steps}")
        ended = finish(tokens, run, *overrides, *own, ranks=ranks)
        assert ("train.offload is 'cpu', and so is the device" in ended.output) == (offload == "cpu")
    assert_close(run, whole)
    ours, plain = last(run), last(whole)
    for mine, its in ((ours.model, plain.model), (ours.optimizer, plain.optimizer)):
        assert {name: tensor.shape for name, tensor in mine.items()} == {name: t.shape for name, t in its.items()}
