"""Options of `dmd shard` and `dmd index` about labels and ids, and what both print about labels and ignored data."""

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from data_shards.format.schema import DatasetInfo
    from data_shards.labels import LabelKind, Labels


def add_label_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    group = parser.add_argument_group(
        "labels and ids", "Labels are sentiments in [-3, 3]. What looks like something else is rejected until declared."
    )
    kinds = group.add_mutually_exclusive_group()
    kinds.add_argument(
        "--label-scale",
        type=float,
        metavar="FACTOR",
        help="multiply sentiments: by 3 for CH-SIMS, whose labels lie in [-1, 1]; by 1: they are right as they are",
    )
    kinds.add_argument(
        "--classes",
        action="store_true",
        help="labels are class numbers from 0, without a sentiment; train with model.task=N data.classes=stored",
    )
    kinds.add_argument("--binary", action="store_true", help="the same for labels that are 0 and 1 only")
    group.add_argument(
        "--ids",
        choices=("keep", "number"),
        default="keep",
        help="number: make ids unique, as ID#SPLITNUMBER (default: keep; ids that repeat in a split are rejected)",
    )


def labels_from_options(options: argparse.Namespace) -> "Labels":
    """What the options say about labels."""
    from data_shards.labels import Labels

    kind: LabelKind = "binary" if options.binary else "classes" if options.classes else "sentiments"
    return Labels(kind=kind, scale=options.label_scale)


def format_counts(counts: Mapping[str, int]) -> str:
    """Names with their counts, in alphabetical order."""
    return ", ".join(f"{name} ({count})" for name, count in sorted(counts.items()))


def print_ignored(ignored: Mapping[str, int]) -> None:
    """Print what was not used, with its count."""
    if ignored:
        print(f"ignored: {format_counts(ignored)}")


def print_labels(info: "DatasetInfo") -> None:
    """Print what the labels of each split are."""
    for split, facts in info.labels.items():
        scaled = f", multiplied by {info.label_scale:g}" if info.label_scale != 1 and facts.min is not None else ""
        print(f"{split} labels: {facts.describe()}{scaled}")
