"""Where the ranks of a trial meet: over the network interface that carries each node's own address.

Ray Train calls `RankEnvironment` when it has placed the ranks. Each gets the variables that DeepSpeed's launcher would
have set, and joins the process group by itself (`launch.trainer.engine.join_process_group`). Ray's `TorchConfig` is not
used: gloo takes the interface that the host's name resolves to, which on many hosts is a loopback, so that ranks on two
nodes wait for each other until they time out; and its store listens on every interface.

A trial's driver and controller read this module, and only wait: torch is imported in what runs on a rank.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray.train
import ray.util
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig

from dmd.training.logging.provenance import RESTART
from launch.network.interfaces import LOOPBACK, interface_of, take_interface
from launch.network.rank_environment import rank_environment

if TYPE_CHECKING:
    from dmd.checkpoint.resume import Marks, Resume

RESUME = "DMD_RESUME"
"""Environment variable of a rank: what it resumes."""


def hide_gpus() -> None:
    """Let this process, to which Ray has given no GPU, see none; Ray itself leaves all of the node's in sight."""
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}


def require_gpu() -> None:
    """Let DeepSpeed use the GPU that Ray has given to this process.

    Raises:
        ValueError: torch cannot use it.
    """
    import torch

    if not torch.cuda.is_available():
        node = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        raise ValueError(
            f"node {node} offers a GPU to Ray, and torch {torch.__version__} finds no CUDA device there; install a "
            "CUDA build of torch or a newer driver, or start Ray there with --num-gpus 0"
        )
    os.environ["DS_ACCELERATOR"] = "cuda"


def import_training() -> None:
    """Import what takes seconds before a port is chosen, which another process could take meanwhile."""
    import launch.trainer.build  # noqa: F401


def choose_interface() -> str:
    """Name this node's interface to gloo and NCCL, unless the user has.

    Returns:
        this node's address.
    """
    own = str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
    name = interface_of(own)
    if name is not None:
        take_interface(os.environ, name, between_hosts=own != LOOPBACK)
    return own


def name_ranks(addresses: list[str], port: int) -> None:
    """Set what DeepSpeed's launcher sets: this rank's numbers, and where rank 0 holds the store.

    Args:
        addresses: of the node of each rank, rank 0's first.
        port: a free one of rank 0's node.
    """
    context = ray.train.get_context()
    os.environ |= rank_environment(
        rank=context.get_world_rank(),
        ranks=context.get_world_size(),
        local_rank=context.get_local_rank(),
        local_ranks=context.get_local_world_size(),
        hosts=len(set(addresses)),
        address=addresses[0],
        port=port,
    )


def tell_attempt(resume: str, restart: str | None) -> None:
    """Tell this rank what to resume, and the why of a restart."""
    os.environ[RESUME] = resume
    if restart is not None:
        os.environ[RESTART] = restart


class _Backend(Backend):
    share_cuda_visible_devices = True
    """NCCL reaches the GPUs of other ranks of its node; a rank takes that of its LOCAL_RANK."""

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        """On the controller, when the ranks are placed."""
        assert isinstance(backend_config, RankEnvironment)
        restart = os.environ.pop(RESTART, None)  # a change of the number of ranks comes after it, and is none
        worker_group.execute(tell_attempt, backend_config.resume_now(), restart)
        claims_gpu = worker_group.get_resources_per_worker().get("GPU", 0) > 0
        worker_group.execute(require_gpu if claims_gpu else hide_gpus)
        worker_group.execute(import_training)
        addresses = worker_group.execute(choose_interface)
        _, port = worker_group.execute_single(0, get_address_and_port)
        worker_group.execute(name_ranks, addresses, port)


@dataclass(kw_only=True)
class RankEnvironment(BackendConfig):
    """What Ray Train prepares on every rank before it trains."""

    run: Path
    resume: "Resume" = "auto"
    """What the command asked for."""
    before: "Marks" = field(default_factory=dict)
    """The run's checkpoints when the command was given."""

    @property
    def backend_cls(self) -> type[Backend]:
        """What Ray Train calls."""
        return _Backend

    def resume_now(self) -> str:
        """What the ranks that start now resume."""
        if self.resume == "auto":
            return "auto"
        from dmd.checkpoint.resume import resume_of_restart  # torch, which a controller does without otherwise
        from dmd.checkpoint.saver import CHECKPOINTS

        return str(resume_of_restart(self.run / CHECKPOINTS, self.resume, self.before))
