"""What `dmd predict` and `dmd evaluate` are asked for of a cluster; no Ray is imported here."""

import argparse
import os
from dataclasses import dataclass

from cluster.cluster_options import require_address

PATIENCE = 600
"""Seconds."""


@dataclass(frozen=True, kw_only=True)
class PoolRequest:
    """Which cluster, and which actors on it."""

    address: str | None
    """host:port or `auto`; None: a cluster of its own, on this machine."""
    actors: int | None
    """None: as many as fit."""
    cpus: float
    """Of an actor."""
    gpus: float | None
    """Of an actor; None: one where the cluster has GPUs."""
    patience: int
    """Seconds in which no actor ends a task before the command ends."""
    verbose: bool

    def claim(self, *, has_gpus: bool) -> dict[str, float]:
        """Ray's name for what an actor takes, on a cluster with GPUs or without."""
        gpus = float(has_gpus) if self.gpus is None else self.gpus
        return {"CPU": self.cpus, **({"GPU": gpus} if gpus else {})}


_OPTIONS = ("actors", "cpus_per_actor", "gpus_per_actor", "patience")


def pool_request(options: argparse.Namespace) -> PoolRequest | None:
    """The request; None: no cluster.

    Raises:
        ValueError: a value out of range, or one for a cluster without a cluster.
    """
    if options.address is None:
        require_address(options, (*_OPTIONS, "verbose"), what="actors")
        return None
    for name in _OPTIONS:
        value, least = getattr(options, name), 1 if name in ("actors", "patience") else 0
        if value is not None and (value < least or (name == "cpus_per_actor" and not value)):
            raise ValueError(f"--{name.replace('_', '-')} is {value:g}; it must be {_LIMITS[name]}")
    own = options.address == "local"
    on_cpu = own and os.environ.get("DS_ACCELERATOR") == "cpu"
    if on_cpu and options.gpus_per_actor:
        raise ValueError(
            f"--gpus-per-actor is {options.gpus_per_actor:g}, but DS_ACCELERATOR=cpu keeps actors of this machine on "
            "the CPU; unset one"
        )
    return PoolRequest(
        address=None if own else options.address,
        actors=options.actors,
        cpus=options.cpus_per_actor or 1.0,
        gpus=0.0 if on_cpu else options.gpus_per_actor,
        patience=options.patience or PATIENCE,
        verbose=options.verbose,
    )


def evaluation_request(options: argparse.Namespace) -> PoolRequest | None:
    """As `pool_request`, for `dmd evaluate`.

    Raises:
        ValueError: as there, or ranks beside a cluster.
    """
    request = pool_request(options)
    if request is not None and options.ranks > 1:
        raise ValueError(f"--ranks is {options.ranks} beside --address; the cluster has actors, give --actors")
    return request


_LIMITS = {
    "actors": "at least 1",
    "cpus_per_actor": "above 0",
    "gpus_per_actor": "at least 0",
    "patience": "at least 1",
}
