"""The main job through its commands: shards, a DeepSpeed training, a test result; and what it refuses.

A real launcher and real engines: one rank against two, ZeRO 0 against 1, the same digits from `dmd evaluate`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_shards.reading.reader import ShardReader
from dmd.cli import main
from dmd.config import DataConfig
from dmd.data.loader import training_steps
from dmd.data.plan import EpochPlan
from tests.support.ranks import TINY, finish
from tests.support.trained import make_shards

pytestmark = [pytest.mark.slow, pytest.mark.multiproc]
MODEL = [
    *TINY,
    "train.ghost_batch_size=16",
    "train.ghost_batches_per_step=10",
    "train.ghost_batches_per_forward=auto",
    "train.epochs=9",
]
"""A small model at the published step."""
NO_DROPOUT = [
    f"model.{name}=0"
    for name in ("text_dropout", "attn_dropout", "attn_dropout_audio", "embed_dropout", "output_dropout")
]


def done(*arguments: str | Path) -> str:
    command = [sys.executable, "-m", "dmd.cli", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "shards"
    return make_shards(path, 280, "--samples-per-shard", "64")


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["train/total"] for line in lines if line["kind"] == "train"]


@pytest.fixture(scope="module")
def runs(shards, tmp_path_factory) -> dict[str, Path]:
    """Eight steps without dropout: one rank, two ranks, and two ranks at ZeRO 1.

    At the published learning rate: Adam turns gradients that are rounding alone into steps of that size.
    """
    folder = tmp_path_factory.mktemp("runs")
    limits = ("train.max_steps=8", "train.early_stop=99")
    done("train", "--data", shards, "--run", folder / "two", "--ranks", "2", *limits, *MODEL, *NO_DROPOUT)
    finish(shards, folder / "one", *limits, *MODEL, *NO_DROPOUT)
    finish(shards, folder / "zero1", *limits, *MODEL, *NO_DROPOUT, "train.zero_stage=1", ranks=2)
    return {name: folder / name for name in ("one", "two", "zero1")}


def test_the_losses_do_not_depend_on_ranks_nor_on_the_zero_stage(runs):
    one = losses(runs["one"])
    assert len(one) == 8
    assert len(set(one)) == 8
    for name in ("two", "zero1"):
        assert losses(runs[name]) == pytest.approx(one, rel=1e-6)


def test_evaluate_prints_the_same_digits_from_one_and_two_ranks(runs, tmp_path):
    first = done("evaluate", runs["two"], "--json", tmp_path / "one.json")
    second = done("evaluate", runs["two"], "--ranks", "2", "--json", tmp_path / "two.json")
    assert first == second
    assert (tmp_path / "one.json").read_text() == (tmp_path / "two.json").read_text()
    result = json.loads((tmp_path / "one.json").read_text())
    assert set(result["metrics"]) >= {"fused", "shared", "text_homo", "vision_hetero"}
    assert set(result["metrics"]["fused"]) >= {"mae", "corr", "acc7", "acc5", "acc3", "acc2_has0", "acc2_non0"}


def test_a_run_directory_holds_everything_about_a_run(runs):
    run = json.loads((runs["two"] / "run.json").read_text())
    assert run["config"]["model"]["dim"] == 8
    assert run["info"]["ranks"] == 2
    assert run["info"]["generation"]
    assert list(runs["two"].glob("events.out.tfevents.*"))
    assert len(list((runs["two"] / "checkpoints").iterdir())) >= 2


@pytest.mark.parametrize("samples", [280, 400])
def test_a_two_rank_epoch_consumes_every_sample_once(samples, tmp_path):
    """Train splits that the ghost batches divide (or not), read through the loader of each rank, with workers."""
    make_shards(tmp_path / "shards", samples, "--samples-per-shard", "50")
    with ShardReader(tmp_path / "shards") as reader:
        total = reader.index.num_samples("train")
        consumed: list[str] = []
        per_step: list[list[int]] = [[], []]
        for rank in range(2):
            plan = EpochPlan(
                num_samples=total,
                ghost_batch_size=16,
                ghost_batches_per_step=5,
                ghost_batches_per_forward=2,
                num_ranks=2,
            )
            config = DataConfig(workers=rank)
            for batches in training_steps(reader, plan, config, seed=3, rank=rank, epoch=1):
                rows = np.concatenate([batch.rows[batch.rows >= 0] for batch in batches])
                consumed += reader.index.ids("train", rows)
                per_step[rank].append(len(rows))
        assert sorted(consumed) == sorted(reader.index.ids("train", range(total)))
        sums = [a + b for a, b in zip(*per_step, strict=True)]
        assert sums == [plan.step_samples(step) for step in range(plan.num_steps)]


def refused(capsys: pytest.CaptureFixture[str], arguments: tuple[str | Path, ...], *parts: str) -> None:
    """A command that starts nothing, in this process: exit code 2 and one line."""
    assert main([str(argument) for argument in arguments]) == 2
    told = capsys.readouterr().err
    lines = [line for line in told.splitlines() if "error:" in line]
    assert len(lines) == 1, told
    for part in parts:
        assert part in lines[0]


def test_train_refuses_before_it_writes(shards, runs, tmp_path, capsys):
    run = tmp_path / "run"
    common = ("--data", shards, "--run", run)
    refused(capsys, ("train", *common, "--preset", "mosy"), "unknown preset 'mosy'")
    refused(capsys, ("train", *common, "train.lr=3"), "train.lr", "train.learning_rate")
    refused(capsys, ("train", *common, "--ranks", "161"), "161 ranks for 10 ghost batches")
    refused(capsys, ("train", *common, "--ranks", "0"), "--ranks is 0")
    refused(capsys, ("train", "--data", tmp_path / "gone", "--run", run), "gone", "dmd shard")
    refused(capsys, ("train", *common, "model.kernel_text=99"), "text sequences have 50 steps", "model.kernel_text")
    assert not run.exists()
    other = ("train", "--data", shards, "--run", runs["one"])
    refused(capsys, (*other, *MODEL, *NO_DROPOUT, "model.dim=16"), "model.dim=8, not 16", "another --run")


def test_train_refuses_other_data_and_missing_splits(shards, runs, tmp_path, capsys):
    make_shards(tmp_path / "other", 280, "--seed", "7")
    again = ("train", "--data", tmp_path / "other", "--run", runs["one"], *MODEL, *NO_DROPOUT)
    refused(capsys, again, "data generation")
    refused(capsys, ("evaluate", tmp_path), "no readable run.json")
    refused(capsys, ("evaluate", tmp_path / "gone"), "there is no run directory")
    refused(capsys, ("evaluate", runs["one"], "--data", tmp_path / "gone"), "gone")
    make_shards(tmp_path / "tokens", 50, "--text-kind", "tokens")
    refused(capsys, ("evaluate", runs["one"], "--data", tmp_path / "tokens"), "text_kind")
    refused(
        capsys,
        ("train", "--data", tmp_path / "tokens", "--run", tmp_path / "r", "text.encoder=/nowhere"),
        "'/nowhere'",
        "text.encoder=PATH",
    )
    assert not (tmp_path / "r").exists()
