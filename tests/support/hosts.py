"""Hosts in network namespaces of this machine: their own addresses, a link between each two that can go down.

    with hosts(2) as (head, worker):
        subprocess.run([*head.inside, "ping", "-c", "1", worker.address])
        worker.link("down")

Files and processes are shared, the network is not. Needs root and iproute2.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

_NETWORK = 0x40000000
"""CLONE_NEWNET of setns(2)."""
can_make_hosts = os.geteuid() == 0 and shutil.which("ip") is not None


@dataclass(frozen=True)
class Host:
    """One network namespace."""

    name: str
    address: str
    interface: str = "eth0"

    @property
    def inside(self) -> list[str]:
        """What to put before a command, so that it runs on this host."""
        return ["ip", "netns", "exec", self.name]

    def enter(self) -> None:
        """Put this thread, and those that it starts, on this host."""
        with open(f"/run/netns/{self.name}") as namespace:
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _NETWORK):
                raise OSError(ctypes.get_errno(), f"no way into {self.name}")

    def link(self, state: str) -> None:
        """Bring this host's network `up` or `down`; its loopback stays."""
        _ip("-n", self.name, "link", "set", self.interface, state)


@contextmanager
def hosts(count: int) -> Iterator[tuple[Host, ...]]:
    """That many hosts behind one switch; they go away with the block, and all processes in them."""
    tag = uuid.uuid4().hex[:6]
    switch = f"dmd-{tag}-switch"
    made = tuple(Host(f"dmd-{tag}-{number}", f"10.231.0.{number + 1}") for number in range(count))
    try:
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        for number, host in enumerate(made):
            _ip("netns", "add", host.name)
            _ip("-n", host.name, "link", "set", "lo", "up")
            port = f"port{number}"
            peer = ("peer", "name", port, "netns", switch)
            _ip("-n", host.name, "link", "add", host.interface, "type", "veth", *peer)
            _ip("-n", switch, "link", "set", port, "master", "bridge", "up")
            _ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", host.interface)
            host.link("up")
        yield made
    finally:
        for name in (switch, *(host.name for host in made)):
            pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout.split()
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
