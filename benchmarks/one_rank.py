"""A process group of this process alone, for benchmarks that run the DeepSpeed engine."""

import os
from datetime import timedelta

import torch

from launch.network.ports import free_port
from launch.network.rank_environment import rank_environment
from launch.trainer.engine import join_process_group


def join_alone() -> torch.device:
    """Become the only rank; returns its device."""
    os.environ |= rank_environment(rank=0, ranks=1, port=free_port())
    return join_process_group(timedelta(minutes=5))
