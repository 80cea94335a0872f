"""One optimizer step: the sample-weighted mean over its ghost batches, however ranks and passes share them.

With n_g samples in ghost batch g, of N in the step, the step's loss is sum over g of (n_g / N) L_g. Each of the k ranks
that share g computes L_g and weighs it with n_g / (N k) (`dmd.losses.sharing`), so that the sum over the ranks is right
for the logged terms, and, by the engine, for the gradient.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from dmd.config import Config
from dmd.data.loader import Batch
from dmd.data.plan import EMPTY, EpochPlan
from dmd.distributed.engine import Engine
from dmd.kernels.dropout.keys import SECOND_PASS, DropoutKeys, number_samples
from dmd.kernels.dropout.rng import DropoutRNG, derived_seed
from dmd.testing.fault_points import fault_point


def make_plan(config: Config, num_samples: int, num_ranks: int) -> EpochPlan:
    """The epoch plan of a config, whose number of ghost batches that run at once is settled or does not matter yet."""
    train = config.train
    at_once = train.ghost_batches_per_forward
    return EpochPlan(
        num_samples=num_samples,
        ghost_batch_size=train.ghost_batch_size,
        ghost_batches_per_step=train.ghost_batches_per_step,
        ghost_batches_per_forward=train.ghost_batches_per_step if at_once == "auto" else at_once,
        num_ranks=num_ranks,
    )


def ghost_weights(batch: Batch, samples: int) -> Tensor:
    """This rank's share of each ghost batch's share in the step's mean: [G], 0 for padding."""
    return batch.mask.sum(1) / (samples * batch.part.of)


def make_rng(
    batch: Batch, config: Config, *, step: int, forward: int, device: torch.device, keys: DropoutKeys | None = None
) -> DropoutRNG:
    """Dropout of one pass, keyed by (seed, step, ghost batch, place), the same on however many ranks and passes.

    The text encoder draws from torch's generator instead, which is seeded by the ghost batches of the pass together:
    its draws are others with other ranks or `train.ghost_batches_per_forward`, as with another seed.

    With `objective.consistency` the samples go through the pass twice: the first time with the masks of a training
    without it, then with those of ghost batches that no step has.
    """
    seed = derived_seed("text", config.train.seed, step, *batch.ghosts, batch.part.number)
    # torch.manual_seed takes 0.2 ms: it asks for every kind of device.
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    spare = config.train.ghost_batches_per_step  # slots without a ghost batch draw what nobody reads
    ghosts = [spare + forward if ghost == EMPTY else ghost for ghost in batch.ghosts]
    if config.objective.consistency:
        ghosts += [SECOND_PASS + ghost for ghost in ghosts]
    size = config.train.ghost_batch_size
    first = batch.part.places(size).start
    samples = number_samples(ghosts, range(first, first + batch.part.slots(size)))
    return DropoutRNG(seed=config.train.seed, step=step, samples=samples, device=device, keys=keys)


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step did, the same on every rank but for `rows`."""

    values: dict[str, float]
    """Loss terms and mean edges over all ranks, by the names of `PassTerms`, and `gradient_norm`."""
    applied: bool
    """Whether the weights were updated: loss and gradient were finite."""
    suspects: list[list[int]]
    """Of a step that was not applied: rows of each ghost batch whose loss is not finite; of all where each is."""
    rows: list[int]
    """Rows of the train split that this rank consumed."""
    raised: list[bool]
    """For each flag that was asked for, whether a rank raised it."""


def train_step(
    engine: Engine,
    batches: list[Batch],
    config: Config,
    plan: EpochPlan,
    *,
    step: int,
    step_in_epoch: int,
    flags: Callable[[], Sequence[bool]] = tuple,
) -> StepResult:
    """Run the passes of this rank and update the weights, unless the loss or the gradient is not finite.

    Args:
        flags: asked after the last pass; what the ranks decide together after the step travels with its loss terms.
    """
    samples = plan.step_samples(step_in_epoch)
    shares: list[Tensor] = []
    totals: list[Tensor] = []
    names: tuple[str, ...] = ()
    for forward, batch in enumerate(batches):
        batch = batch.to(engine.device)
        rng = make_rng(batch, config, step=step, forward=forward, device=engine.device, keys=engine.system.keys)
        names, total, rows = engine.forward(batch, rng)
        weights = ghost_weights(batch, samples)  # [G]
        # The engine averages over ranks, a step sums their shares: hence the factor.
        engine.backward(total @ (weights * engine.num_ranks))
        totals.append(total.detach())
        shares.append(rows @ weights)  # [names]
    fault_point("backward")
    numbers, raised = sum(shares[1:], shares[0]), [float(flag) for flag in flags()]
    if engine.num_ranks > 1:  # flags travel behind the terms
        numbers = torch.cat([numbers, torch.tensor(raised, device=engine.device)])
        dist.all_reduce(numbers)
    (*found, norm), applied = engine.step(numbers)
    return StepResult(
        values={**dict(zip(names, found, strict=False)), "gradient_norm": norm},
        applied=applied,
        suspects=[] if applied else _suspects(batches, totals),
        rows=[row for batch in batches for row in batch.own_rows()],
        raised=[ranks > 0 for ranks in found[len(names) :] or raised],
    )


def _suspects(batches: list[Batch], totals: list[Tensor]) -> list[list[int]]:
    """Rows of the ghost batches, of all ranks, that may have spoilt the step. A collective."""
    mine: list[tuple[bool, list[int]]] = []
    for batch, total in zip(batches, totals, strict=True):
        for rows, finite in zip(batch.rows.tolist(), total.isfinite().tolist(), strict=True):
            kept = [row for row in rows if row >= 0]
            mine += [(finite, kept)] if kept and batch.part.number == 0 else []
    shares = [mine]
    if dist.is_initialized():
        shares = [mine] * dist.get_world_size()
        dist.all_gather_object(shares, mine)
    every = [ghost for share in shares for ghost in share]
    return [rows for finite, rows in every if not finite] or [rows for _, rows in every]
