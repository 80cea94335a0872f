"""The peers that our kernels are measured against compute what DMD computes; a failure of one is told, not fatal."""

import copy
import os
import signal
import time

import pytest
import torch

from benchmarks.apart import LONGEST_REASON, Apart, one_line
from benchmarks.batched import TorchRNG, batched
from benchmarks.kernel_times import covered
from benchmarks.tables import Table
from dmd.model import DMD
from dmd.model.config import ModelConfig

DIMS = {"text": 9, "audio": 5, "vision": 7}


@pytest.mark.parametrize("lengths", [(9, 9, 9), (9, 8, 17)])
def test_the_batched_peer_is_the_same_model(lengths):
    """Predictions and gradients, with equal and with unequal lengths; 12 channels in 2 heads need padding."""
    torch.manual_seed(0)
    lengths = dict(zip(DIMS, lengths, strict=True))
    model = DMD(ModelConfig(task="regression", dim=12, heads=2, levels=2), DIMS, lengths).double()
    peer = batched(copy.deepcopy(model))
    parts = [torch.randn(4, lengths[m], DIMS[m], dtype=torch.float64) for m in DIMS]
    parts[1][:2, :3] = 0
    found = []
    for side in (model, peer):
        predictions = torch.stack(list(side(*parts).predictions.values()))
        (predictions * torch.linspace(-1, 1, predictions.numel()).view_as(predictions)).sum().backward()
        gradients = [parameter.grad for parameter in side.parameters() if parameter.grad is not None]
        found.append((predictions, torch.cat([gradient.flatten() for gradient in gradients])))
    for ours, its in zip(*found, strict=True):
        torch.testing.assert_close(its, ours, rtol=1e-9, atol=1e-11)


def test_the_peers_dropout_keeps_the_mean():
    torch.manual_seed(0)
    mask = TorchRNG(torch.device("cpu")).scaled_keep_mask((1000, 100), 0.3, batch_dim=0, dtype=torch.float32)
    assert sorted(mask.unique().tolist()) == pytest.approx([0, 1 / 0.7])
    assert float(mask.mean()) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    ("work", "reason"),
    [
        (lambda: None, ""),
        (lambda: time.sleep(60), "cut off after 1 s"),
        (lambda: 1 // 0, "ZeroDivisionError"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "killed by SIGKILL"),
        (lambda: os._exit(3), "exit code 3"),
    ],
)
def test_work_apart_tells_how_it_ended(work, reason):
    began = time.monotonic()
    told = Apart(work).reason(1)
    assert told.startswith(reason)
    assert bool(told) == bool(reason)
    assert time.monotonic() - began < 10


def test_long_reasons_keep_both_ends():
    told = one_line(RuntimeError("begin " + "x" * 1000 + " end"))
    assert told.startswith("RuntimeError: begin")
    assert told.endswith(" end")
    assert len(told) < LONGEST_REASON + 10


def test_a_table_holds_each_row_at_once(tmp_path):
    path = tmp_path / "table.csv"
    table = Table(path)
    table.add({"a": 1, "b": "x,y"})
    assert path.read_text().splitlines() == ["a,b", '1,"x,y"']
    table.add({"b": 2})
    assert path.read_text().splitlines()[-1] == ",2"
    with pytest.raises(AssertionError):
        table.add({"c": 1})


def test_busy_time_counts_overlaps_once():
    assert covered([(5, 6), (0, 2), (1, 3), (2.5, 2.75)]) == 4
