"""Optimizer state in the memory of the hosts (`train.offload=cpu`): whether it fits, asked before the first step."""

import resource
from collections.abc import Mapping
from pathlib import Path

import torch

from data_shards.sources.memory import free_memory
from dmd.config import Config
from dmd.system.system import TrainingSystem

OFFLOADED_BYTES = 16
"""Of each trained weight, over all ranks: its float32 copy, its gradient, and both of Adam's moments."""
_CGROUP = Path("/sys/fs/cgroup")
_GIB = 2**30


def check_offload(
    config: Config, system: TrainingSystem, device: torch.device, *, num_ranks: int, environment: Mapping[str, str]
) -> None:
    """Reject an offload that this host's memory does not hold; say where it moves nothing.

    Args:
        system: what is trained, whole.
        environment: of a rank; says how many ranks this host has.

    Raises:
        ValueError: what the ranks of this host would take is not free.
    """
    if config.train.offload == "none":
        return
    trained = sum(parameter.numel() for parameter in system.parameters() if parameter.requires_grad)
    local_ranks = int(environment.get("LOCAL_SIZE", "1"))
    check_host_memory(trained, num_ranks=num_ranks, local_ranks=local_ranks, free=free_host_memory())
    if device.type == "cpu" and environment.get("RANK", "0") == "0":
        print("train.offload is 'cpu', and so is the device: nothing is moved", flush=True)


def check_host_memory(trained: int, *, num_ranks: int, local_ranks: int, free: int) -> None:
    """Raise ValueError if the ranks of a host would offload more than it has free.

    Args:
        trained: weights that are trained.
        num_ranks: ranks that divide them.
        local_ranks: those of them on this host.
        free: bytes.
    """
    wanted = OFFLOADED_BYTES * trained * local_ranks // num_ranks
    if wanted > free:
        raise ValueError(
            f"train.offload is 'cpu', which takes {wanted / _GIB:.1f} GiB of this host's memory ({OFFLOADED_BYTES} "
            f"bytes for each of {trained} trained weights, {local_ranks} of {num_ranks} ranks here), but "
            f"{free / _GIB:.1f} GiB are free; use more hosts, train fewer weights (text.lora_rank), or set "
            "train.offload=none"
        )


def free_host_memory() -> int:
    """Bytes that this process and its neighbours may still take: of the host, its cgroup and the process's limit."""
    found = [free_memory()]
    limit, used = _CGROUP / "memory.max", _CGROUP / "memory.current"
    if limit.exists() and used.exists() and (text := limit.read_text().strip()).isdecimal():
        found.append(int(text) - int(used.read_text()))
    of_process = resource.getrlimit(resource.RLIMIT_AS)[0]
    if of_process != resource.RLIM_INFINITY:
        found.append(of_process)
    return max(0, min(found))
