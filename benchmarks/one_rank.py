"""A process group of this process alone, for benchmarks that run the DeepSpeed engine."""

import os
from datetime import timedelta

import torch

from launch.network.ports import free_port
from launch.trainer.engine import join_process_group


def join_alone() -> torch.device:
    """Become the only rank; returns its device."""
    os.environ |= {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    return join_process_group(timedelta(minutes=5))
