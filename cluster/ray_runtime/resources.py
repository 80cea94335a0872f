"""How many trials fit on a cluster at once, and a trial that never fits, found before anything starts."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

DRIVER_MEMORY = 256 * 2**20
"""What a trial's driver claims, in bytes: it waits and needs no CPU, but Ray wants a claim."""
_EPSILON = 1e-6


@dataclass(frozen=True, kw_only=True)
class TrialSize:
    """What a trial asks of a cluster."""

    min_ranks: int
    max_ranks: int
    cpus_per_rank: float = 1.0
    gpus_per_rank: float = 0.0

    def __post_init__(self) -> None:
        if self.min_ranks < 1:
            raise ValueError(f"ranks per trial: {self.min_ranks}; at least 1")
        if self.max_ranks < self.min_ranks:
            raise ValueError(f"ranks per trial: {self.min_ranks}:{self.max_ranks} has min above max; swap them")
        if self.cpus_per_rank <= 0:
            raise ValueError(f"CPUs per rank: {self.cpus_per_rank}; more than 0")
        if self.gpus_per_rank < 0:
            raise ValueError(f"GPUs per rank: {self.gpus_per_rank}; at least 0")
        if self.gpus_per_rank > 1 and not float(self.gpus_per_rank).is_integer():
            raise ValueError(f"GPUs per rank: {self.gpus_per_rank}; a part of one, or a whole number")
        if 0 < self.gpus_per_rank < 1 < self.max_ranks:
            raise ValueError(
                f"GPUs per rank: {self.gpus_per_rank} with up to {self.max_ranks} ranks per trial; ranks of one trial "
                "cannot share a GPU (NCCL refuses): give 1 rank per trial, or 1 GPU per rank"
            )

    @property
    def per_rank(self) -> dict[str, float]:
        """Ray's name for what a rank takes."""
        gpus = {"GPU": self.gpus_per_rank} if self.gpus_per_rank else {}
        return {"CPU": self.cpus_per_rank, **gpus}

    def __str__(self) -> str:
        ranks = str(self.max_ranks) if self.min_ranks == self.max_ranks else f"{self.min_ranks} to {self.max_ranks}"
        gpus = f" and {self.gpus_per_rank:g} GPU" if self.gpus_per_rank else ""
        return f"{ranks} rank{'s' * (ranks != '1')} of {self.cpus_per_rank:g} CPU{gpus}"


def parse_ranks(text: str) -> tuple[int, int]:
    """`2`, or `1:4` for a trial that grows and shrinks with the cluster.

    Raises:
        ValueError: neither of the two.
    """
    low, colon, high = text.partition(":")
    if not low.isdecimal() or (colon and not high.isdecimal()):
        raise ValueError(f"--ranks-per-trial is {text!r}; give a number, or MIN:MAX")
    return int(low), int(high if colon else low)


def rank_slots(size: TrialSize, nodes: Iterable[Mapping[str, float]]) -> int:
    """Ranks of this size that the nodes, each given by its resources, hold at once."""
    return slots(size.per_rank, nodes)


def slots(claim: Mapping[str, float], nodes: Iterable[Mapping[str, float]]) -> int:
    """Processes with this claim that the nodes hold at once: a process never spans nodes."""
    return sum(min(int(node.get(name, 0.0) / amount + _EPSILON) for name, amount in claim.items()) for node in nodes)


def concurrent_trials(size: TrialSize, nodes: list[Mapping[str, float]]) -> int:
    """How many trials the nodes hold at once.

    Raises:
        ValueError: not even one: Ray would wait for ever.
    """
    slots = rank_slots(size, nodes)
    if slots < size.min_ranks:
        there = "; ".join(f"{node.get('CPU', 0.0):g} CPU, {node.get('GPU', 0.0):g} GPU" for node in nodes) or "none"
        raise ValueError(
            f"a trial wants {size}; the cluster's nodes ({there}) have room for {slots}: it could never start. Lower "
            "--ranks-per-trial, --cpus-per-rank or --gpus-per-rank, add nodes, or give --concurrent where an "
            "autoscaler will"
        )
    return max(1, slots // size.max_ranks)
