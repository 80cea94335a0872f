"""The optimizer's state in the memory of the host: what it takes, and what goes together with it."""

import pytest

from dmd.config.loading import load_config
from launch.trainer.offload import OFFLOADED_BYTES, check_host_memory, free_host_memory


def test_what_a_host_lacks_is_named():
    check_host_memory(1000, num_ranks=4, local_ranks=2, free=1000 * OFFLOADED_BYTES // 2)
    with pytest.raises(ValueError, match=r"takes 0\.0 GiB of this host's memory .*1000 trained weights, 2 of 4 ranks"):
        check_host_memory(1000, num_ranks=4, local_ranks=2, free=1000 * OFFLOADED_BYTES // 2 - 1)
    free = free_host_memory()
    assert 0 < free < 1 << 50
    with pytest.raises(ValueError, match=r"GiB are free; use more hosts.*set train\.offload=none"):
        check_host_memory(1 << 50, num_ranks=1, local_ranks=1, free=free)


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
