"""Ray Train's process group, over the network interface that carries the node's own address.

Left alone, gloo takes the interface that the host's name resolves to, which on many hosts is a loopback: ranks on two
nodes then wait for each other until they time out.
"""

import os
from typing import Any

import psutil
import ray.util
from ray.train.backend import BackendConfig
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend


def choose_interface() -> None:
    """Name this node's interface to gloo and NCCL, unless the user has; a rank calls it before its process group."""
    own = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address == own for entry in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
            if own != "127.0.0.1":
                os.environ.setdefault("NCCL_SOCKET_IFNAME", name)


def hide_gpus() -> None:
    """Let this process, to which Ray has given no GPU, see none; Ray itself leaves all of the node's in sight."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


class _Backend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        assert isinstance(backend_config, TorchConfig)
        if not worker_group.get_resources_per_worker().get("GPU", 0):
            worker_group.execute(hide_gpus)
        worker_group.execute(choose_interface)
        super().on_start(worker_group, backend_config)


class OwnInterface(TorchConfig):
    """`TorchConfig` whose ranks talk through the interface of their node's address."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """What Ray Train starts the process group with."""
        return _Backend
