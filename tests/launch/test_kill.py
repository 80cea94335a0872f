"""kill -9 of one of two ranks at every stage of a training; the next start with the same command continues it."""

import inspect
import re
from collections import Counter

import pytest

from data_shards.reading.reader import ShardReader
from dmd.checkpoint import writer as checkpoint_writer
from dmd.training import loop, step
from tests.support.ranks import assert_bitwise, assert_close, committed_samples, finish, last, train

pytestmark = [pytest.mark.multiproc, pytest.mark.slow]
SAVES = "train.save_every=2"
KILLED, LOST = 137, 69
FAULTS = (
    "backward@1@1",
    "step@1@0",
    "checkpoint.staged@1@0",
    "checkpoint.model@1@0",
    "checkpoint.optimizer@1@0",
    "checkpoint.state@1@0",
    "checkpoint.manifest@1@0",
    "checkpoint.replacing@1@0",
    "checkpoint.renamed@1@0",
    "checkpoint.committed@1@0",
    "checkpoint.removing@1@0",
    "evaluate@1@0",
    "evaluate@1@1",
)
"""One per session, one after the other: each session is the restart after the one before."""


def test_the_faults_cover_every_fault_point():
    source = "".join(inspect.getsource(module) for module in (checkpoint_writer, loop, step))
    assert {fault.partition("@")[0] for fault in FAULTS} == set(re.findall(r'fault_point\("(.+?)"\)', source))


def test_killed_everywhere_and_bitwise_the_run_that_was_not(shards, reference, tmp_path, capsys):
    run, noticed = tmp_path / "run", 0.0
    for fault in FAULTS:
        ended = train(shards, run, SAVES, ranks=2, DMD_FAULT=fault)
        rank = int(fault[-1])
        assert (ended.codes[rank], ended.codes[1 - rank]) == (KILLED, LOST), f"{fault}: {ended.codes}\n{ended.output}"
        assert f"rank {rank} on " in ended.output
        assert "was killed by SIGKILL (signal 9)" in ended.output
        assert f"rank {1 - rank} on " in ended.output
        assert "lost the other ranks" in ended.output
        noticed = max(noticed, ended.seconds)
    finish(shards, run, SAVES, ranks=2)
    assert_bitwise(run, reference(SAVES, ranks=2))
    with capsys.disabled():
        print(f"\n{len(FAULTS)} kills survived; longest time to notice {noticed:.1f} s")


def test_every_sample_counts_once_over_five_kills_and_two_resizes(shards, reference, tmp_path):
    run, audit = tmp_path / "run", tmp_path / "audit"
    audit.mkdir()
    sessions = (
        (2, "step@3@1"),
        (2, "checkpoint.model@1@0"),
        (1, "step@3@0"),
        (1, "checkpoint.renamed@1@0"),
        (3, "evaluate@1@2"),
    )
    for ranks, fault in sessions:
        ended = train(shards, run, SAVES, ranks=ranks, DMD_FAULT=fault, DMD_AUDIT=str(audit))
        assert KILLED in ended.codes, f"{fault}: {ended.codes}\n{ended.output}"
    finish(shards, run, SAVES, ranks=3, DMD_AUDIT=str(audit))
    with ShardReader(shards) as reader:
        split = Counter(reader.index.ids("train", range(reader.index.num_samples("train"))))
    steps = committed_samples(audit)
    assert sorted(steps) == [(step // 5, step + 1) for step in range(10)]
    for epoch in (0, 1):
        assert sum((ids for (of, _), ids in steps.items() if of == epoch), Counter()) == split
    assert_close(run, reference(ranks=1))


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
def test_a_torn_checkpoint_is_skipped_and_the_run_still_ends_equal(shards, reference, half_done, tmp_path, name):
    run = half_done(tmp_path)
    path = run / "checkpoints" / "step_00000008" / name
    content = path.read_bytes()
    damage = {
        "model.safetensors": content[:-1],
        "optimizer.safetensors": b"",
        "state.json": bytes([content[0] ^ 1]) + content[1:],
        "manifest.json": None,
    }[name]
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage)
    ended = finish(shards, run, SAVES)
    assert f"skipped a damaged checkpoint: step_00000008: {name}" in ended.output
    assert "at step 6, in epoch 2 of " in ended.output
    assert_bitwise(run, reference(SAVES))


def test_no_valid_checkpoint_is_an_error_and_no_fresh_start(shards, half_done, tmp_path):
    run = half_done(tmp_path)
    for path in (run / "checkpoints").glob("*/model.safetensors"):
        path.write_bytes(b"")
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    ended = train(shards, run, SAVES, ranks=2)
    assert ended.codes == [2, 2]
    assert "no checkpoint in" in ended.output
    assert "is whole (step_00000008: model.safetensors has 0 bytes" in ended.output
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    with pytest.raises(ValueError, match="no checkpoint in"):
        last(run)
