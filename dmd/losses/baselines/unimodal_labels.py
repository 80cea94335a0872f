"""Labels of single modalities that Self-MM makes of the sentiments, one for each training sample and modality.

A sample's unimodal label starts as its sentiment y. From `self_mm.first_epoch` on it moves, each time that the sample
is trained on, towards what the sample's representation says. With d+ and d- for the Euclidean distances of a
representation to the mean representations of positive and of negative training samples, in its own space,

    a = (d- - d+) / (d+ + e)                    of the fused representation a_m, of a modality's a_s
    new = ((a_s / (a_m + e)) y + y + a_s - a_m) / 2, limited to [-limit, limit]
    label <- (n - 1) / (n + 1) label + 2 / (n + 1) new          in epoch n, counted from 1

Source: thuiar/Self-MM@1786283, trains/multiTask/SELF_MM.py, `update_labels`, `update_centers`, `update_features`;
paper: Yu et al., AAAI 2021. There the means are computed anew of all samples after each batch; here their sums are kept
in float64 and follow each sample that changes, so that a batch costs the same in a data set of any size.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from dmd.model.baselines.self_mm_config import SelfMMConfig
from dmd.model.config import MODALITIES
from dmd.model.network import FUSED

SPACES = (FUSED, *MODALITIES)
"""Representations that are remembered; the label of the fused one is the sentiment."""
TINY = 1e-8
"""e, which keeps the published code from dividing by zero."""


class UnimodalLabels:
    """What is remembered of N training samples: representations, labels, and the sums of both classes.

    Args:
        samples: N, all samples of the train split.
        config: widths of the representations, and how labels are made.
        device: where it lies.
    """

    def __init__(self, samples: int, config: SelfMMConfig, device: torch.device) -> None:
        self.config = config
        self.labels = torch.zeros(len(SPACES), samples, device=device)
        """[4, N], in the order of `SPACES`."""
        self.seen = torch.zeros(samples, dtype=torch.bool, device=device)
        """[N], whether a step has taken the sample; nothing else is known of those that none has."""
        self.features = {name: torch.zeros(samples, width, device=device) for name, width in config.widths.items()}
        """{space: [N, width]}"""
        self.sums = {
            name: torch.zeros(2, width, dtype=torch.float64, device=device) for name, width in config.widths.items()
        }
        """{space: [2, width]}, over positive and over negative samples."""
        self.counts = torch.zeros(len(SPACES), 2, dtype=torch.float64, device=device)
        """[4, 2], samples of the sums."""

    def of(self, rows: Tensor, sentiments: Tensor) -> dict[str, Tensor]:
        """The label of each modality, like `sentiments`, which are what samples have that no step has taken.

        Args:
            rows: of the train split, of any shape; padding may have any sample's.
            sentiments: of the same shape.
        """
        labels = torch.where(self.seen[rows], self.labels[1:, rows], sentiments)  # [3, ...]
        return dict(zip(MODALITIES, labels, strict=True))

    def take(self, rows: Tensor, sentiments: Tensor, features: Mapping[str, Tensor], *, epoch: int) -> None:
        """Make the labels of a ghost batch that a step was trained on, then remember its representations.

        Args:
            rows: [n], each once.
            sentiments: [n]
            features: {space: [n, width]}
            epoch: number of the epoch, from 1.
        """
        labels = torch.stack([sentiments, *self.of(rows, sentiments).values()])  # [4, n]
        if epoch >= self.config.first_epoch:
            labels = self._moved(labels, features, epoch)
        before, seen = self.labels[:, rows], self.seen[rows]
        for number, name in enumerate(SPACES):
            left = self._classes(before[number]) * seen  # [2, n]
            joined = self._classes(labels[number])
            self.sums[name] += joined @ features[name].double() - left @ self.features[name][rows].double()
            self.counts[number] += joined.sum(1) - left.sum(1)
            self.features[name][rows] = features[name]
        self.labels[:, rows] = labels
        self.seen[rows] = True

    def _moved(self, labels: Tensor, features: Mapping[str, Tensor], epoch: int) -> Tensor:
        """Labels [4, n] after their step towards what the representations say; where a class has no sample yet, so that
        it has no mean, they stay."""
        distances = {name: self._relative_distance(name, features[name]) for name in SPACES}
        sentiments = labels[0].double()
        moved = [labels[0]]
        for number, name in enumerate(SPACES[1:], start=1):
            ratio = distances[name] / (distances[FUSED] + TINY)
            new = (ratio * sentiments + sentiments + distances[name] - distances[FUSED]) / 2
            new = new.clamp(-self.config.label_limit, self.config.label_limit)
            known = (self.counts[0].minimum(self.counts[number]) > 0).all() & new.isfinite()
            step = ((epoch - 1) * labels[number] + 2 * new) / (epoch + 1)
            moved.append(torch.where(known, step.to(labels.dtype), labels[number]))
        return torch.stack(moved)

    def _relative_distance(self, name: str, features: Tensor) -> Tensor:
        """a of each representation [n, width]: [n], above 0 where it is nearer to the positive ones; float64."""
        counts = self.counts[SPACES.index(name)].clamp(min=1)
        means = self.sums[name] / counts[:, None]  # [2, width]
        positive, negative = (features.double() - means[:, None]).norm(dim=-1)
        return (negative - positive) / (positive + TINY)

    def _classes(self, labels: Tensor) -> Tensor:
        """Whether labels [n] are positive, and whether negative: [2, n], float64."""
        positive = labels > 0 if self.config.exclude_zero else labels >= 0
        return torch.stack([positive, labels < 0]).double()

    def state(self) -> dict[str, Tensor]:
        """All of it by name; not copies."""
        spaces = {f"{kind}.{name}": own for kind, of in self._by_space().items() for name, own in of.items()}
        return {"labels": self.labels, "seen": self.seen, "counts": self.counts} | spaces

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over a `state` of as many samples."""
        for name, own in self.state().items():
            own.copy_(state[name])

    def _by_space(self) -> dict[str, dict[str, Tensor]]:
        return {"features": self.features, "sums": self.sums}
