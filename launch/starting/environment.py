"""The part of the environment that must reach the ranks on every host."""

from collections.abc import Mapping

FORWARDED = (
    "CUBLAS_WORKSPACE_CONFIG",
    "CUDA_DEVICE_MAX_CONNECTIONS",
    "CUDA_LAUNCH_BLOCKING",
    "DMD_AUDIT",
    "DMD_FAULT",
    "DMD_RESTART",
    "DMD_WRITERS",
    "DS_ACCELERATOR",
    "GLOO_",
    "HF_",
    "LD_LIBRARY_PATH",
    "NCCL_",
    "OMP_NUM_THREADS",
    "PATH",
    "PYTHON",
    "TOKENIZERS_PARALLELISM",
    "TORCH_",
    "TRITON_",
    "WANDB_",
    "MLFLOW",
    "MV2",
    "UCX",
)
"""Variables (by prefix) that `dmd train --hosts` carries to the ranks on other hosts; the last three are those that
DeepSpeed carries by itself."""

REJECTION = "DMD_REJECTION"
"""Environment variable: why `dmd train` cannot train on this host. Its ranks join only to report that to the other
hosts, whose ranks wait for them."""
WRITERS = "DMD_WRITERS"
"""Environment variable: group of the writers to the run directory (`data_shards.sole_writer.acquire`), the same in all
restarts of one `dmd train`. A host that lost its link may go on for a while after a restart without it."""


def forwarded(environment: Mapping[str, str]) -> dict[str, str]:
    """The part of an environment that must reach every host."""
    return {name: value for name, value in environment.items() if name.startswith(FORWARDED)}
