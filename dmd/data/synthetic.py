"""A batch of synthetic samples, in the shapes of a data set: to try a pass before the first real one."""

import torch
from torch import Tensor

from data_shards.format.schema import DatasetInfo
from dmd.config import Config
from dmd.data.loader import Batch
from dmd.data.plan import EMPTY
from dmd.losses.sharing import WHOLE, Part
from dmd.model.config import MODALITIES

LARGEST_LABEL = 3.0


def random_batch(
    info: DatasetInfo, ghosts: int, ghost_size: int, *, part: Part = WHOLE, config: Config | None = None
) -> Batch:
    """`ghosts` ghost batches of `ghost_size` samples that belong to no split, on the CPU.

    Args:
        part: what of each ghost batch there are features of.
        config: of the model, which may read class numbers or emotions; None: sentiments.
    """
    generator = torch.Generator().manual_seed(0)
    count = ghosts * part.slots(ghost_size)
    parts: dict[str, Tensor] = {
        m: torch.randn(count, info.lengths[m], info.dims[m], generator=generator)
        for m in MODALITIES
        if not (m == "text" and info.text_kind == "tokens")
    }
    if "text" not in parts:
        ids = torch.randint(info.vocab_size, (count, 1, info.lengths["text"]), generator=generator)
        parts["text"] = torch.cat([ids, torch.ones_like(ids), torch.zeros_like(ids)], dim=1)  # [G*S, 3, T]
    labels = torch.linspace(-LARGEST_LABEL, LARGEST_LABEL, ghosts * ghost_size)
    if config is not None and config.data.classes == "stored":
        labels = (torch.arange(ghosts * ghost_size) % config.model.outputs).float()
    if config is not None and config.data.classes == "emotions":
        labels = torch.randint(2, (ghosts * ghost_size, config.model.outputs), generator=generator).float()
    return Batch(
        **parts,
        labels=labels.view(ghosts, ghost_size, *labels.shape[1:]),
        mask=torch.ones(ghosts, ghost_size),
        rows=torch.full((ghosts, ghost_size), -1),
        ghosts=(EMPTY,) * ghosts,
        part=part,
    )
