"""Which samples make up which ghost batch, step, forward pass and rank share: arithmetic, nothing stored.

An epoch's order (`data_shards.reading.shuffle`) is cut into ghost batches of S; a step owns G of them. Up to G ranks
get whole ghost batches and run F at once; of more ranks, neighbours share one, each of them an even part of its
samples. The last ghost batch of an epoch may be short and the last step may have fewer than G: slots without a ghost
batch keep every rank at the same number of forward passes.
"""

from dataclasses import dataclass

from dmd.losses.sharing import WHOLE, Part, even_part

EMPTY = -1
"""A slot without a ghost batch: a rank runs it with weight zero."""


@dataclass(frozen=True, kw_only=True)
class EpochPlan:
    """The steps of an epoch of `num_samples`, for any number of ranks.

    Raises:
        ValueError: no sample, or more ranks than samples of a step.
    """

    num_samples: int
    ghost_batch_size: int
    ghost_batches_per_step: int
    ghost_batches_per_forward: int
    num_ranks: int

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise ValueError("the train split is empty; give shards that hold training samples")
        most = self.ghost_batches_per_step * self.ghost_batch_size
        if self.num_ranks > most:
            raise ValueError(
                f"{self.num_ranks} ranks for {self.ghost_batches_per_step} ghost batches of {self.ghost_batch_size} "
                f"samples per step: a rank would have no work; use at most {most} ranks or raise "
                "train.ghost_batches_per_step"
            )

    @property
    def num_ghost_batches(self) -> int:
        """Ghost batches of an epoch, the short one included."""
        return -(-self.num_samples // self.ghost_batch_size)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of an epoch."""
        return -(-self.num_ghost_batches // self.ghost_batches_per_step)

    @property
    def forwards_per_step(self) -> int:
        """Forward passes that each rank makes in a step."""
        slots = -(-self.ghost_batches_per_step // self.num_ranks)
        return -(-slots // self.ghost_batches_per_forward)

    @property
    def ghost_batches_at_once(self) -> int:
        """Ghost batch slots of one forward pass: the share of a rank, spread evenly over its passes."""
        slots = -(-self.ghost_batches_per_step // self.num_ranks)
        return -(-slots // self.forwards_per_step)

    @property
    def sharers(self) -> list[range]:
        """The ranks that share each ghost batch of a step, one or more; empty where ranks have whole ones."""
        ghosts = self.ghost_batches_per_step
        if self.num_ranks <= ghosts:
            return []
        return [even_part(self.num_ranks, ghosts, ghost) for ghost in range(ghosts)]

    def shared(self, rank: int) -> tuple[int, range]:
        """Of a rank that shares a ghost batch: its number inside the step, and the ranks that share it."""
        return next((ghost, ranks) for ghost, ranks in enumerate(self.sharers) if rank in ranks)

    def part(self, rank: int) -> Part:
        """What a rank runs of each of its ghost batches."""
        if not self.sharers:
            return WHOLE
        _, ranks = self.shared(rank)
        return Part(ranks.index(rank), len(ranks))

    @property
    def samples_at_once(self) -> int:
        """Samples of one forward pass, padding included, of the rank that has the most."""
        size = self.ghost_batch_size
        return self.ghost_batches_at_once * max(
            (Part(0, len(ranks)).slots(size) for ranks in self.sharers), default=size
        )

    def step_samples(self, step: int) -> int:
        """Samples of a step, over all ranks."""
        per_step = self.ghost_batch_size * self.ghost_batches_per_step
        return min(per_step, self.num_samples - step * per_step)

    def slots(self, step: int, forward: int, rank: int) -> list[int]:
        """The ghost batches (numbered inside the step) that a rank runs in one forward pass; EMPTY where none."""
        first_ghost = step * self.ghost_batches_per_step
        in_step = min(self.ghost_batches_per_step, self.num_ghost_batches - first_ghost)
        if self.sharers:
            ghosts = [self.shared(rank)[0]]
        else:
            begin = forward * self.ghost_batches_at_once
            ghosts = [slot * self.num_ranks + rank for slot in range(begin, begin + self.ghost_batches_at_once)]
        return [ghost if ghost < in_step else EMPTY for ghost in ghosts]

    def positions(self, step: int, ghost: int) -> range:
        """Places in the epoch's order that a ghost batch of a step takes; none for EMPTY."""
        if ghost == EMPTY:
            return range(0)
        begin = (step * self.ghost_batches_per_step + ghost) * self.ghost_batch_size
        return range(begin, min(begin + self.ghost_batch_size, self.num_samples))
