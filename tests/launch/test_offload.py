"""The optimizer's state in the memory of the host: what it takes, and what goes together with it."""

import resource

import pytest

from dmd.config.loading import load_config
from launch.trainer.offload import OFFLOADED_BYTES, check_host_memory, free_host_memory, free_of_cgroup


def test_what_a_host_lacks_is_named():
    check_host_memory(1000, num_ranks=4, local_ranks=2, free=1000 * OFFLOADED_BYTES // 2)
    with pytest.raises(ValueError, match=r"takes 0\.0 GiB of this host's memory .*1000 trained weights, 2 of 4 ranks"):
        check_host_memory(1000, num_ranks=4, local_ranks=2, free=1000 * OFFLOADED_BYTES // 2 - 1)
    free = free_host_memory(1)
    assert 0 < free < 1 << 50
    with pytest.raises(ValueError, match=r"GiB are free; use more hosts.*set train\.offload=none"):
        check_host_memory(1 << 50, num_ranks=1, local_ranks=1, free=free)


def test_the_page_cache_of_a_container_is_free(tmp_path):
    assert free_of_cgroup(tmp_path) is None
    for name, text in {
        "memory.max": "max\n",
        "memory.current": "900\n",
        "memory.stat": "anon 300\nfile 550\ninactive_file 500\nslab_reclaimable 40\n",
    }.items():
        (tmp_path / name).write_text(text)
    assert free_of_cgroup(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    assert free_of_cgroup(tmp_path) == 1000 - 900 + 500 + 40


def test_the_limit_of_a_process_is_each_ranks_own(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1000, 1000))
    assert free_host_memory(1) == 1000
    assert free_host_memory(3) == 3000


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["train.offload=cpu"], "which ZeRO does from stage 1 on"),
        (["train.offload=cpu", "train.zero_stage=1", "train.adam=deepspeed"], "runs on the GPU alone"),
        (["train.zero_stage=3", "train.ema_decay=0.9"], "set train.ema_decay=0, or train.zero_stage=2"),
        (["train.zero_stage=3", "text.compile=true"], "set text.compile=false, or train.zero_stage=2"),
        (["train.zero_stage=4"], "train.zero_stage is 4"),
    ],
)
def test_what_does_not_go_together_is_rejected(overrides, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        load_config(None, overrides)
