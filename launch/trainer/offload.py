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
_RECLAIMABLE = ("inactive_file", "slab_reclaimable")
"""Of a cgroup's `memory.stat`: page cache that nothing has read lately, and the kernel's own caches."""
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
    check_host_memory(trained, num_ranks=num_ranks, local_ranks=local_ranks, free=free_host_memory(local_ranks))
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


def free_host_memory(local_ranks: int) -> int:
    """Bytes that the ranks of this host may still take: of the host, its cgroup and the limit of each process."""
    found = [free_memory()]
    if (of_cgroup := free_of_cgroup(_CGROUP)) is not None:
        found.append(of_cgroup)
    of_process = resource.getrlimit(resource.RLIMIT_AS)[0]
    if of_process != resource.RLIM_INFINITY:
        found.append(of_process * local_ranks)
    return max(0, min(found))


def free_of_cgroup(directory: Path) -> int | None:
    """Bytes below the limit of a cgroup (version 2), what the kernel can take back counted as free; None: no limit."""
    limit, used, parts = (directory / name for name in ("memory.max", "memory.current", "memory.stat"))
    if not (limit.exists() and used.exists() and (text := limit.read_text().strip()).isdecimal()):
        return None
    found = dict(line.split() for line in parts.read_text().splitlines()) if parts.exists() else {}
    return int(text) - int(used.read_text()) + sum(int(found.get(name, 0)) for name in _RECLAIMABLE)
