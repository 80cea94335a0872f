"""One optimizer step: the sample-weighted mean over its ghost batches, however ranks and passes share them."""

import torch
import torch.distributed as dist
from torch import Tensor

from dmd.config import Config
from dmd.data.loader import Batch
from dmd.data.plan import EMPTY, EpochPlan
from dmd.model.noise import Noise, derived_seed
from dmd.training.engine import Engine


def ghost_weights(batch: Batch, samples: int) -> Tensor:
    """Share of each ghost batch in the step's mean: [G], 0 for padding."""
    return batch.mask.sum(1) / samples


def make_noise(batch: Batch, config: Config, *, step: int, forward: int, device: torch.device) -> Noise:
    """Dropout of one pass, keyed by (seed, step, ghost batch); the text encoder draws from torch's own generator."""
    torch.manual_seed(derived_seed("text", config.train.seed, step, *batch.ghosts))
    spare = config.train.ghost_batches_per_step  # slots without a ghost batch draw what nobody reads
    ghosts = [spare + forward if ghost == EMPTY else ghost for ghost in batch.ghosts]
    size = config.train.ghost_batch_size
    return Noise(seed=config.train.seed, step=step, ghosts=ghosts, ghost_size=size, device=device)


def train_step(
    engine: Engine, batches: list[Batch], config: Config, plan: EpochPlan, *, step: int, step_in_epoch: int
) -> dict[str, Tensor]:
    """Run the passes of this rank and update the weights.

    Returns:
        the step's loss terms and mean edges over all ranks, and the gradient norm, as tensors on the device.
    """
    samples = plan.step_samples(step_in_epoch)
    sums: dict[str, Tensor] = {}
    for forward, batch in enumerate(batches):
        batch = batch.to(engine.device)
        noise = make_noise(batch, config, step=step, forward=forward, device=engine.device)
        terms = engine.forward(batch, noise)
        weights = ghost_weights(batch, samples)  # [G]
        # The engine averages over ranks, a step sums their shares: hence the factor.
        engine.backward((terms["total"] * weights).sum() * engine.num_ranks)
        for name, term in terms.items():
            share = torch.tensordot(weights, term.detach(), dims=1)
            sums[name] = share + sums[name] if name in sums else share
    norm = engine.step()
    return {**reduce_sums(sums), "gradient_norm": norm}


def reduce_sums(sums: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add the ranks' sums, in one collective."""
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return sums
    flat = torch.cat([value.flatten() for value in sums.values()])
    dist.all_reduce(flat)
    parts = flat.split([value.numel() for value in sums.values()])
    return {name: part.view_as(value) for (name, value), part in zip(sums.items(), parts, strict=True)}
