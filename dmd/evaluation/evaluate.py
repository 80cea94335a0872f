"""Evaluation of a split: every sample exactly once at any number of ranks, metrics computed once from all of them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from data_shards.reading.reader import ShardReader
from dmd.config import Config
from dmd.data.loader import evaluation_batches, num_evaluation_batches
from dmd.losses.task import task_loss
from dmd.metrics import Scoring, head_metrics
from dmd.system.modules import BATCH_SIZE, Modules

Share = tuple[Tensor, Tensor]
"""Part of an evaluation: row of each sample in its split [B], -1 for padding; its predictions of all heads and, last,
its label [B, heads * outputs + 1], of emotions [B, heads * L + L];
float32, on the scale of the shards. On the CPU."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Predictions and labels of a split, in the order of the index."""

    predictions: dict[str, Tensor]
    """{head: [N], sentiments in the units of the source; or logits [N, outputs]}"""
    labels: Tensor
    """[N], sentiments in the units of the source or class numbers; [N, L], emotions as 0 and 1"""
    scoring: Scoring = field(default_factory=Scoring)

    @property
    def loss(self) -> float:
        """Mean task loss of the fused prediction over samples (MAE in the units of the source, cross entropy): what
        selection looks at."""
        return float(task_loss(self.predictions["fused"], self.labels, self.scoring.kind).double().mean())

    def metrics(self) -> dict[str, dict[str, float]]:
        """{head: {metric: value}} for all heads, the fused one first."""
        return {head: head_metrics(values, self.labels, self.scoring) for head, values in self.predictions.items()}


def check_split(reader: ShardReader, split: str) -> None:
    """Raise ValueError unless the shards have samples of a split."""
    if reader.index.num_samples(split) == 0:
        there = ", ".join(reader.index.info.counts) or "none"
        raise ValueError(f"the shards have no split {split!r}; splits that are there: {there}")


def evaluate(
    system: Modules,
    reader: ShardReader,
    split: str,
    config: Config,
    *,
    device: torch.device,
    heartbeat: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Predict a split with this rank's share and gather all shares on every rank; `heartbeat` is called per batch.

    Raises:
        ValueError: the shards have no such split.
    """
    check_split(reader, split)
    distributed = dist.is_initialized()
    rank, num_ranks = (dist.get_rank(), dist.get_world_size()) if distributed else (0, 1)
    numbers = range(rank, num_evaluation_batches(reader, split, BATCH_SIZE), num_ranks)
    share = predict_share(system, reader, split, config, device=device, numbers=numbers, heartbeat=heartbeat)
    shares = [share] * num_ranks
    if distributed:
        dist.all_gather_object(shares, share)
    return merge_shares(shares, reader.index.num_samples(split), system.scoring, heads=list(system.network.heads))


def predict_share(
    system: Modules,
    reader: ShardReader,
    split: str,
    config: Config,
    *,
    device: torch.device,
    numbers: range,
    heartbeat: Callable[[], None] = lambda: None,
) -> Share | None:
    """Predict some of a split's batches of `BATCH_SIZE`, given by their numbers; None where that is no batch.

    Nothing is read from the device before the last batch, so that it never waits for the host.
    """
    was_training = system.training
    system.eval()
    share: Share | None = None
    rows: list[Tensor] = []
    tables: list[Tensor] = []  # [B, heads, ...], on the device
    labels: list[Tensor] = []
    batches = evaluation_batches(reader, split, config.data, batch_size=BATCH_SIZE, numbers=numbers)
    with torch.inference_mode():
        for batch in batches:
            tables.append(system.all_heads(system.predict(batch.to(device))))
            rows.append(batch.rows.flatten())
            labels.append(system.targets(batch).flatten(0, 1).view(-1, system.scoring.label_width))
            heartbeat()
        if rows:
            share = torch.cat(rows), torch.cat([torch.cat(tables).flatten(1).cpu(), torch.cat(labels)], dim=1)
    system.train(was_training)
    return share


def merge_shares(shares: Iterable[Share | None], total: int, scoring: Scoring, *, heads: Sequence[str]) -> Evaluation:
    """All samples of a split of `total`, each of which is in one share, in their order; `scoring` and the names of the
    heads are the model's."""
    present = [share for share in shares if share is not None]
    rows = torch.cat([rows for rows, _ in present])
    values = torch.cat([values for _, values in present])
    values, rows = values[rows >= 0], rows[rows >= 0]
    order = rows.argsort()
    assert rows[order].equal(torch.arange(total)), "every sample exactly once"
    width = scoring.label_width
    table, labels = values[order, :-width], values[order, -width:]
    if scoring.kind != "regression":
        table = table.unflatten(1, (len(heads), scoring.outputs))  # [N, heads, outputs]
    if scoring.kind != "multilabel":
        labels = labels.squeeze(1)
    table, labels = scoring.in_units(table), scoring.in_units(labels)
    return Evaluation(predictions={head: table[:, i] for i, head in enumerate(heads)}, labels=labels, scoring=scoring)
