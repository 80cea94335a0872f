"""Ray Train's process group, over the network interface that carries the node's own address.

Left alone, gloo takes the interface that the host's name resolves to, which on many hosts is a loopback: ranks on two
nodes then wait for each other until they time out. And rank 0's store would listen on every interface: the ranks meet
at that of `launch.network.rendezvous` instead, on the loopback of one host, on the address of rank 0's node where there
are several.
"""

import os
from typing import Any

import ray.util
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import BackendConfig
from ray.train.torch import TorchConfig
from ray.train.torch.config import _set_torch_distributed_env_vars, _setup_torch_process_group, _TorchBackend

from launch.network.interfaces import interface_of, take_interface
from launch.network.rendezvous import LOOPBACK, init_method


def choose_interface() -> str:
    """Name this node's interface to gloo and NCCL, unless the user has; a rank calls it before its process group.

    Returns:
        this node's address.
    """
    own = str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
    name = interface_of(own)
    if name is not None:
        take_interface(os.environ, name, between_hosts=own != LOOPBACK)
    return own


def hide_gpus() -> None:
    """Let this process, to which Ray has given no GPU, see none; Ray itself leaves all of the node's in sight."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def meet(backend: str, addresses: list[str], port: int, timeout_s: int) -> None:
    """Join the process group of the ranks at these addresses; rank 0, the first of them, holds the store."""
    nodes = len(set(addresses))
    os.environ |= {"MASTER_ADDR": addresses[0], "MASTER_PORT": str(port), "CROSS_SIZE": str(nodes)}
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    _setup_torch_process_group(backend, rank, ranks, init_method(), timeout_s)


class _Backend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        assert isinstance(backend_config, TorchConfig)
        gpus = worker_group.get_resources_per_worker().get("GPU", 0)
        if not gpus:
            worker_group.execute(hide_gpus)
        worker_group.execute(_set_torch_distributed_env_vars)
        addresses = worker_group.execute(choose_interface)
        _, port = worker_group.execute_single(0, get_address_and_port)
        worker_group.execute(meet, "nccl" if gpus else "gloo", addresses, port, backend_config.timeout_s)


class OwnInterface(TorchConfig):
    """`TorchConfig` whose ranks talk through the interface of their node's address."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """What Ray Train starts the process group with."""
        return _Backend
