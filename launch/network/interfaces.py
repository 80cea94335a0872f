"""The network interface that the ranks of a training use: the one towards rank 0."""

import socket
from collections.abc import Mapping, MutableMapping

import psutil

LOOPBACK = "127.0.0.1"
GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"
NCCL_INTERFACE = "NCCL_SOCKET_IFNAME"
"""Environment variables that name the interface of gloo and NCCL."""


def is_one_host(environment: Mapping[str, str]) -> bool:
    """Whether all ranks of a training are on this host, by what DeepSpeed's launcher says."""
    return int(environment.get("CROSS_SIZE", "1")) == 1


def interface_to(address: str) -> tuple[str, str]:
    """The network interface of this host towards an address, and its own address there.

    Raises:
        ValueError: no such host, or no way there.
    """
    try:
        family, _, _, _, target = socket.getaddrinfo(address, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:  # a datagram socket's connect sends nothing
            probe.connect(target)
            own = str(probe.getsockname()[0])
    except OSError as error:
        raise ValueError(f"there is no way to {address} from {socket.gethostname()}: {error.strerror}") from error
    return interface_of(own) or "lo", own  # the rest of 127.0.0.0/8


def interface_of(own: str) -> str | None:
    """The network interface that carries an address of this host; None: none does."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address.partition("%")[0] == own for entry in addresses):
            return name
    return None


def take_interface(environment: MutableMapping[str, str], name: str, *, between_hosts: bool) -> None:
    """Name an interface to gloo, and where ranks talk between hosts to NCCL, unless the user has chosen one."""
    environment.setdefault(GLOO_INTERFACE, name)
    if between_hosts:
        environment.setdefault(NCCL_INTERFACE, name)


def choose_interfaces(environment: MutableMapping[str, str]) -> None:
    """Make gloo, and between hosts NCCL, use the interface towards rank 0, unless the user has chosen one.

    By default gloo takes the one that the host's name resolves to, which on many hosts is a loopback.
    """
    address = environment.get("MASTER_ADDR")
    if address is None:
        return
    name, _ = interface_to(LOOPBACK if is_one_host(environment) else address)
    take_interface(environment, name, between_hosts=not is_one_host(environment))
