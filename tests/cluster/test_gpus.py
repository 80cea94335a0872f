"""A rank that claimed no GPU sees none, whatever its node has."""

import os
from typing import Any

import pytest
from ray.train import RunConfig, ScalingConfig

from cluster.ray_runtime.process_group import RankEnvironment
from cluster.ray_runtime.session import cluster
from cluster.ray_runtime.stopping import stop_requests
from cluster.ray_runtime.trial import Trainer

pytestmark = [pytest.mark.ray, pytest.mark.multiproc, pytest.mark.slow]


def _look(settings: dict[str, Any]) -> dict[str, str | None]:
    import torch.distributed as dist

    from launch.trainer.engine import join_process_group

    join_process_group()
    return {"visible": os.environ.get("CUDA_VISIBLE_DEVICES"), "backend": dist.get_backend()}


def test_a_rank_without_a_claim_sees_no_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")  # Ray leaves it to a process without a claim
    monkeypatch.setenv("DS_ACCELERATOR", "cuda")
    with stop_requests() as stop, cluster(None, stop, cpus=2):
        trainer = Trainer(
            _look,
            train_loop_config={},
            backend_config=RankEnvironment(run=tmp_path),
            scaling_config=ScalingConfig(num_workers=1, use_gpu=False),
            run_config=RunConfig(name="look", storage_path=str(tmp_path)),
        )
        assert trainer.fit().return_value == {"visible": "", "backend": "gloo"}
