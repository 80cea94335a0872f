"""Published results of the test splits of CMU-MOSI and CMU-MOSEI, with their sources, to stand beside ours.

A set of shards is one of these data sets if it has the published numbers of samples in all three splits
(`data_set_of`): names are the user's, and features differ. Only then, and only on its test split, are
its published figures shown.
"""

from collections.abc import Mapping
from dataclasses import dataclass

COUNTS = {
    "MOSI": {"train": 1_284, "valid": 229, "test": 686},
    "MOSEI": {"train": 16_326, "valid": 1_871, "test": 4_659},
}
"""Utterances of each split, as the paper has them, and as MMSA's feature files."""
PUBLISHED_SPLIT = "test"
PAPER = "Li et al., CVPR 2023, Tables 1 and 2"
"""It prints no MAE, no Corr, no deviation and no number of seeds."""
MMSA = "thuiar/MMSA at a94e65d, results/result-stat.md"
"""A rerun of all models under one setting; means over the seeds 1111 to 1115 (its issue 81)."""


@dataclass(frozen=True, kw_only=True)
class PublishedResult:
    """A row of a published table."""

    method: str
    data: str
    """A key of `COUNTS`."""
    setting: str
    source: str
    metrics: Mapping[str, float]
    """By name, as `dmd.metrics` has them: shares in [0, 1] of those in per cent."""


def data_set_of(counts: Mapping[str, int]) -> str | None:
    """Which of the data sets of `COUNTS` has so many samples by split; None for any other."""
    return next((name for name, published in COUNTS.items() if dict(counts) == published), None)


def published(counts: Mapping[str, int], split: str) -> list[PublishedResult]:
    """The published rows of a set of shards on a split; none where it is another data set, or another split."""
    data = data_set_of(counts) if split == PUBLISHED_SPLIT else None
    return [row for row in RESULTS if row.data == data]


def _of_paper(method: str, data: str, setting: str, figures: tuple[float, float, float]) -> PublishedResult:
    """Acc7, Acc2 and F1 in per cent, the latter two by Non0."""
    names = ("acc7", "acc2_non0", "f1_non0")
    return PublishedResult(
        method=method,
        data=data,
        setting=setting,
        source=PAPER,
        metrics={name: figure / 100 for name, figure in zip(names, figures, strict=True)},
    )


def _of_mmsa(method: str, data: str, text: str, figures: tuple[float, ...]) -> PublishedResult:
    """On unaligned features. Acc2 and F1 by Has0, the same by Non0, Acc5, Acc7, MAE, Corr, all times 100."""
    names = ("acc2_has0", "f1_has0", "acc2_non0", "f1_non0", "acc5", "acc7", "mae", "corr")
    return PublishedResult(
        method=method,
        data=data,
        setting=f"unaligned, {text}",
        source=MMSA,
        metrics={name: figure / 100 for name, figure in zip(names, figures, strict=True)},
    )


RESULTS = (
    _of_paper("DMD", "MOSI", "aligned, BERT", (45.6, 86.0, 86.0)),
    _of_paper("DMD", "MOSI", "aligned, GloVe", (41.4, 84.5, 84.4)),
    _of_paper("DMD", "MOSI", "unaligned, GloVe", (41.9, 83.5, 83.5)),
    _of_paper("DMD", "MOSEI", "aligned, BERT", (54.5, 86.6, 86.6)),
    _of_paper("DMD", "MOSEI", "aligned, GloVe", (53.7, 85.0, 84.9)),
    _of_paper("DMD", "MOSEI", "unaligned, GloVe", (54.6, 84.8, 84.7)),
    _of_paper("MISA", "MOSI", "aligned, BERT", (42.3, 83.4, 83.6)),
    _of_paper("MISA", "MOSEI", "aligned, BERT", (52.2, 85.5, 85.3)),
    _of_paper("FDMER", "MOSI", "aligned, BERT", (44.1, 84.6, 84.7)),
    _of_paper("FDMER", "MOSEI", "aligned, BERT", (54.1, 86.1, 85.8)),
    _of_paper("MulT", "MOSI", "unaligned, GloVe", (39.1, 81.1, 81.0)),
    _of_paper("MulT", "MOSEI", "unaligned, GloVe", (50.7, 81.6, 81.6)),
    _of_paper("PMR", "MOSI", "unaligned, GloVe", (40.6, 82.4, 82.1)),
    _of_paper("PMR", "MOSEI", "unaligned, GloVe", (51.8, 83.1, 82.8)),
    _of_mmsa("MulT", "MOSI", "BERT, frozen", (79.71, 79.63, 80.98, 80.95, 42.68, 36.91, 87.99, 70.22)),
    _of_mmsa("MulT", "MOSEI", "BERT, frozen", (81.15, 81.56, 84.63, 84.52, 54.18, 52.84, 55.93, 73.31)),
    _of_mmsa("MISA", "MOSI", "BERT", (81.84, 81.82, 83.54, 83.58, 47.08, 41.37, 77.65, 77.81)),
    _of_mmsa("MISA", "MOSEI", "BERT", (80.67, 81.12, 84.67, 84.66, 53.63, 52.05, 55.75, 75.15)),
    _of_mmsa("Self-MM", "MOSI", "BERT", (83.44, 83.36, 85.46, 85.43, 53.47, 46.67, 70.80, 79.63)),
    _of_mmsa("Self-MM", "MOSEI", "BERT", (83.76, 83.82, 85.15, 84.90, 55.53, 53.87, 53.09, 76.49)),
)
ABLATION = (
    ((True, True, True, True), {"MOSI": (41.9, 83.5), "MOSEI": (54.6, 84.7)}),
    ((True, True, True, False), {"MOSI": (38.8, 81.1), "MOSEI": (53.2, 84.1)}),
    ((True, True, False, True), {"MOSI": (37.5, 80.6), "MOSEI": (52.4, 83.8)}),
    ((True, True, False, False), {"MOSI": (37.2, 80.8), "MOSEI": (52.4, 84.3)}),
    ((True, False, False, False), {"MOSI": (34.7, 79.3), "MOSEI": (51.6, 82.8)}),
    ((False, False, False, False), {"MOSI": (32.4, 79.0), "MOSEI": (50.0, 81.9)}),
)
"""The paper's Table 3, unaligned: (FD, HomoGD, CA, HeteroGD), then Acc7 and F1 in per cent of each data set."""
UNIMODAL = {
    "MOSEI": {
        "without feature decoupling": {"text": (81.2, 81.4), "vision": (58.2, 52.2), "audio": (53.4, 54.0)},
        "with feature decoupling": {"text": (82.7, 82.5), "vision": (62.8, 60.0), "audio": (64.9, 62.5)},
    }
}
"""The paper's Table 4: Acc2 and F1 in per cent of the single modalities, by data set."""
EXPECTED = {
    "MOSI": "On this test split independent reruns of the published code (BERT, aligned) reach Acc2 83.4-84.5 %, Acc7 "
    "about 45 % and MAE 0.72-0.74.",
    "MOSEI": "On this test split independent reruns of the published code (BERT) reach Acc2 about 85 %, Acc7 52.5-53.5 "
    "% and MAE about 0.54.",
}
"""What to expect of DMD, by data set."""
_CAVEAT = (
    "The paper's figures need the best of several seeds or epochs; the GloVe features of its other rows were never "
    "published."
)


def expected(counts: Mapping[str, int], split: str) -> str:
    """A sentence about what to expect on a split of a set of shards; empty where there are no published figures."""
    data = data_set_of(counts) if split == PUBLISHED_SPLIT else None
    return f"{EXPECTED[data]} {_CAVEAT}" if data else ""
