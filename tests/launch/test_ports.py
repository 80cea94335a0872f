"""A port that is kept for rank 0 until it listens: nobody else gets it, whoever asks for it or for any."""

import platform
import socket
import struct

import pytest

from launch.network.ports import LOOPBACK, reserved_port
from launch.network.rendezvous import listen

KERNEL = tuple(int(number) for number in platform.release().split(".")[:2])
IP_LOCAL_PORT_RANGE = 51
"""Of ip(7); the lowest and, in the upper half, the highest port that a socket may be given."""


def test_rank_0_alone_gets_a_reserved_port():
    with reserved_port() as port:
        with socket.socket() as other, pytest.raises(OSError, match="Address already in use"):
            other.bind((LOOPBACK, port))
        with listen(LOOPBACK, port) as listener:
            with socket.create_connection((LOOPBACK, port)), listener.accept()[0]:
                pass
            with pytest.raises(ValueError, match=f"port {port} is taken at 127.0.0.1"):
                listen(LOOPBACK, port)


@pytest.mark.skipif(KERNEL < (6, 3), reason="needs Linux 6.3 for a port range of one socket")
@pytest.mark.parametrize("reuse", [0, 1])
def test_nobody_who_asks_for_any_port_gets_a_reserved_one(reuse):
    """Asked for one of a range in which there is no other."""
    with reserved_port() as port, socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
        other.setsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, struct.pack("I", port << 16 | port))
        with pytest.raises(OSError, match="Address already in use"):
            other.bind((LOOPBACK, 0))
