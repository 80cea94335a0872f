"""Which devices ranks run on: `DS_ACCELERATOR=cpu` and CUDA_VISIBLE_DEVICES count wherever this is asked."""

from collections.abc import MutableMapping

import torch

from dmd.kernels.backend import default_device

VISIBLE, CHOSEN = "CUDA_VISIBLE_DEVICES", "DMD_VISIBLE_DEVICES"


def num_gpus() -> int:
    """GPUs that ranks of this machine may use; 0 where they run on the CPU."""
    return torch.cuda.device_count() if default_device().type == "cuda" else 0


def check_ranks(ranks: int, gpus: int) -> None:
    """Refuse more ranks on this host than it has GPUs; 0 GPUs stand for the CPU.

    Raises:
        ValueError: NCCL would refuse two ranks on one GPU.
    """
    if 0 < gpus < ranks:
        raise ValueError(
            f"{ranks} ranks on this host, which offers {gpus} GPU{'s' * (gpus > 1)}; a rank needs one of its own: "
            f"start {gpus}, or set DS_ACCELERATOR=cpu to train on the CPU"
        )


def keep_choice(environment: MutableMapping[str, str]) -> None:
    """Before DeepSpeed's launcher: note CUDA_VISIBLE_DEVICES, which it replaces by the numbers from 0 on."""
    environment.pop(CHOSEN, None)
    if VISIBLE in environment:
        environment[CHOSEN] = environment.pop(VISIBLE)


def take_choice(environment: MutableMapping[str, str]) -> None:
    """In a rank, before anything asks for CUDA: let it see the GPUs that the user chose, on the CPU none.

    torch offers a GPU to a rank on the CPU as well, and code that is not ours takes it.
    """
    if environment.get("DS_ACCELERATOR") == "cpu":
        environment[VISIBLE] = ""
    elif CHOSEN in environment:
        environment[VISIBLE] = environment[CHOSEN]
