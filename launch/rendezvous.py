"""Where ranks find each other: the store of rank 0, on one address in the place of all.

torch's own rendezvous listens on every interface of rank 0's host. Ranks of one host meet on its loopback; ranks of
several where the first host's name leads, or on the interface that the user names (GLOO_SOCKET_IFNAME).
"""

import functools
import os
import socket
from collections.abc import Iterator, Mapping
from datetime import timedelta

import psutil
from torch._C._distributed_c10d import TCPStore
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import register_rendezvous_handler

from launch.environment import interface_to, is_one_host

SCHEME = "dmd"
LOOPBACK = "127.0.0.1"
_DEFAULT_TIMEOUT = timedelta(minutes=30)
_LOOPBACKS = ("127.", "::1")


@functools.cache
def init_method() -> str:
    """What `init_process_group` is told, so that it asks here."""
    register_rendezvous_handler(SCHEME, _rendezvous)
    return f"{SCHEME}://"


def listening_address(environment: Mapping[str, str]) -> str:
    """The address of this host, which holds rank 0, that its store listens on.

    Raises:
        ValueError: no way to MASTER_ADDR.
    """
    if is_one_host(environment):
        return LOOPBACK
    _, own = interface_to(environment["MASTER_ADDR"])
    named = environment.get("GLOO_SOCKET_IFNAME", "")
    if own.startswith(_LOOPBACKS):  # the host's name leads to its loopback, as on Debian
        numbers = [entry.address for entry in psutil.net_if_addrs().get(named, ()) if entry.family == socket.AF_INET]
        return numbers[0] if numbers else own
    return own


def _rendezvous(
    url: str, timeout: timedelta = _DEFAULT_TIMEOUT, **options: object
) -> Iterator[tuple[Store, int, int]]:
    """torch's handler of `dmd://`: the store, this rank and the number of ranks, from the launcher's variables."""
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    port = int(os.environ["MASTER_PORT"])
    if rank == 0:
        address = listening_address(os.environ)
        listener = _listen(address, port)
        port = listener.getsockname()[1]
        descriptor = listener.detach()
        store = TCPStore(address, port, ranks, is_master=True, timeout=timeout, master_listen_fd=descriptor)
    else:
        address = LOOPBACK if is_one_host(os.environ) else os.environ["MASTER_ADDR"]
        store = TCPStore(address, port, ranks, is_master=False, timeout=timeout)
    yield store, rank, ranks


def _listen(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address, port))
        listener.listen(socket.SOMAXCONN)
    except OSError as error:
        listener.close()
        reason = f"rank 0 cannot listen on {address}, port {port}: {error.strerror}"
        raise ValueError(f"{reason}; give another --port") from error
    return listener
