"""Where ranks find each other: the store of rank 0, which listens on one address only.

torch's own rendezvous listens on every interface of rank 0's host. Here ranks of one host use its loopback. Ranks of
several use the address of the first host's name, or the interface that the user names (GLOO_SOCKET_IFNAME). Each user
of the store (the process group, `launch.supervision.peers`) has its own connection, so one that waits blocks no other.
"""

import errno
import functools
import os
import socket
from collections.abc import Iterator, Mapping
from datetime import timedelta

import psutil
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import register_rendezvous_handler

from launch.network.interfaces import GLOO_INTERFACE, LOOPBACK, interface_to, is_one_host

SCHEME = "dmd"
_DEFAULT_TIMEOUT = timedelta(minutes=30)
_LOOPBACKS = ("127.", "::1")


@functools.cache
def init_method() -> str:
    """The `init_method` of `init_process_group` for this rendezvous."""
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
    named = environment.get(GLOO_INTERFACE, "")
    if own.startswith(_LOOPBACKS):  # the host's name resolves to its loopback, as on Debian
        numbers = [entry.address for entry in psutil.net_if_addrs().get(named, ()) if entry.family == socket.AF_INET]
        return numbers[0] if numbers else own
    return own


def open_store(timeout: timedelta) -> TCPStore:
    """A connection to the store that the launcher's variables name; rank 0 holds it from its first call on.

    Raises:
        ValueError: rank 0 cannot listen where it should.
        torch.distributed.DistNetworkError: rank 0 cannot be reached in time.
    """
    port, ranks = int(os.environ["MASTER_PORT"]), int(os.environ["WORLD_SIZE"])
    if os.environ["RANK"] == "0":
        address = listening_address(os.environ)
        port = _host_store(address, port).port
    else:
        address = LOOPBACK if is_one_host(os.environ) else os.environ["MASTER_ADDR"]
    return TCPStore(address, port, world_size=ranks, is_master=False, timeout=timeout, wait_for_workers=False)


def _rendezvous(
    url: str, timeout: timedelta = _DEFAULT_TIMEOUT, **options: object
) -> Iterator[tuple[TCPStore, int, int]]:
    """torch's handler of `dmd://`: the store, this rank and the number of ranks, from the launcher's variables."""
    yield open_store(timeout), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


@functools.cache
def _host_store(address: str, port: int) -> TCPStore:
    """The store itself, in this process; port 0 is a free one."""
    listener = listen(address, port)
    port = listener.getsockname()[1]
    descriptor = listener.detach()  # the store closes it
    return TCPStore(
        address,
        port,
        world_size=None,
        is_master=True,
        timeout=_DEFAULT_TIMEOUT,
        wait_for_workers=False,
        master_listen_fd=descriptor,
    )


def listen(address: str, port: int) -> socket.socket:
    """A socket that listens there, for rank 0's store. Raises ValueError where it cannot."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address, port))
        listener.listen(socket.SOMAXCONN)
    except OSError as error:
        listener.close()
        why = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be listened on ({error.strerror})"
        raise ValueError(f"port {port} {why} at {address}, on the host of rank 0; give another --port") from error
    return listener
