"""Which devices ranks run on. Every function heeds `DS_ACCELERATOR=cpu` and CUDA_VISIBLE_DEVICES."""

from collections.abc import MutableMapping

import torch

from dmd.kernels.backend import default_device

VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"
SAVED_DEVICES = "DMD_VISIBLE_DEVICES"
"""Environment variable: what the user chose, which DeepSpeed's launcher replaces in the other one."""


def num_gpus() -> int:
    """GPUs that ranks of this machine may use; 0 where they run on the CPU."""
    return torch.cuda.device_count() if default_device().type == "cuda" else 0


def check_ranks(ranks: int, gpus: int) -> None:
    """Reject more ranks on this host than it has GPUs; 0 GPUs stand for the CPU.

    Raises:
        ValueError: two ranks would share a GPU, which NCCL rejects.
    """
    if 0 < gpus < ranks:
        raise ValueError(
            f"{ranks} ranks on this host, which offers {gpus} GPU{'s' * (gpus > 1)}; a rank needs one of its own: "
            f"start {gpus}, or set DS_ACCELERATOR=cpu to train on the CPU"
        )


def save_visible_devices(environment: MutableMapping[str, str]) -> None:
    """Before DeepSpeed's launcher starts: save CUDA_VISIBLE_DEVICES, which it replaces by the numbers from 0 on."""
    environment.pop(SAVED_DEVICES, None)
    if VISIBLE_DEVICES in environment:
        environment[SAVED_DEVICES] = environment.pop(VISIBLE_DEVICES)


def restore_visible_devices(environment: MutableMapping[str, str]) -> None:
    """In a rank, before anything uses CUDA: show it the GPUs that the user chose, and none if it runs on the CPU.

    torch shows GPUs to a rank on the CPU as well, and libraries then use one.
    """
    if environment.get("DS_ACCELERATOR") == "cpu":
        environment[VISIBLE_DEVICES] = ""
    elif SAVED_DEVICES in environment:
        environment[VISIBLE_DEVICES] = environment[SAVED_DEVICES]
