"""The layout of a training's ranks: on this machine, on this host's part of several, or on all hosts through ssh."""

from dataclasses import dataclass

from launch.starting.hosts import Hosts

DEFAULT_PORT = 29500
"""Of rank 0's host, where several hosts have to know it."""


@dataclass(frozen=True, kw_only=True)
class RankLayout:
    """Which ranks run where, and how they are started."""

    ranks: int
    """On this machine, where `hosts` is None."""
    hosts: Hosts | None = None
    host_rank: int | None = None
    """This host's line in the hostfile, where every host gets its own command; None: ssh starts all of them."""
    port: int | None = None
    """Of rank 0's host; None: a free one on this machine, DEFAULT_PORT between hosts."""
    ssh_port: int | None = None

    @property
    def by_ssh(self) -> bool:
        """Whether ranks are started through ssh."""
        return self.hosts is not None and self.host_rank is None

    @property
    def num_ranks(self) -> int:
        """Ranks of the training, on all hosts."""
        return self.ranks if self.hosts is None else self.hosts.num_ranks

    @property
    def rank_numbers(self) -> range:
        """The ranks that are started from here."""
        if self.hosts is None:
            return range(self.ranks)
        if self.host_rank is None:
            return range(self.hosts.num_ranks)
        slots = list(self.hosts.slots.values())
        first = sum(slots[: self.host_rank])
        return range(first, first + slots[self.host_rank])
