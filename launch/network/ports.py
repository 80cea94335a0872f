"""TCP ports of this machine."""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from launch.network.interfaces import LOOPBACK


def free_port() -> int:
    """A free TCP port of this machine, which any process may take from now on."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def reserved_port() -> Iterator[int]:
    """A free TCP port of this machine's loopback, which within the block rank 0 alone can take.

    Linux gives the port of a bound socket neither to those who ask for any nor to those who ask for this one, except
    where both have set SO_REUSEADDR and none listens yet. Rank 0 does so (`launch.network.rendezvous`).
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind((LOOPBACK, 0))
        yield holder.getsockname()[1]


def check_port(port: int, *, here: bool) -> None:
    """Reject a port that rank 0 cannot listen on.

    Args:
        here: whether rank 0 runs on this machine.

    Raises:
        ValueError: not a port number, or somebody listens there, or this user may not.
    """
    if not 0 < port < 1 << 16:
        raise ValueError(f"--port is {port}; a TCP port is a number from 1 to 65535")
    if not here:
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the rendezvous does, for TIME_WAIT
        try:
            probe.bind(("", port))
        except OSError as error:
            why = "is taken on this host" if error.errno == errno.EADDRINUSE else os.strerror(error.errno or 0)
            raise ValueError(f"port {port} {why}; give another --port") from error
