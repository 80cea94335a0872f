"""Options of `dmd shard` and `dmd index` about labels and ids, and what both print about labels and ignored data."""

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, get_args

if TYPE_CHECKING:
    from data_shards.format.schema import DatasetInfo
    from data_shards.labels import LabelKind, Labels


def add_label_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    from data_shards.labels import Protocol

    group = parser.add_argument_group(
        "labels and ids",
        "Labels are sentiments in [-3, 3]. What looks like something else is rejected until declared. Sentiments on "
        "another scale are stored in [-3, 3], and reported as they are in the source.",
    )
    kinds = group.add_mutually_exclusive_group()
    kinds.add_argument(
        "--label-range",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="the ends of the sentiments' own scale, stored as -3 and 3: -1 1 for CH-SIMS, or such as 1 5",
    )
    kinds.add_argument(
        "--label-scale",
        type=float,
        metavar="FACTOR",
        help="multiply sentiments: by 3 is the same as --label-range -1 1; by 1: they are right as they are",
    )
    kinds.add_argument(
        "--classes",
        action="store_true",
        help="labels are class numbers from 0, without a sentiment, which the training learns",
    )
    kinds.add_argument("--binary", action="store_true", help="the same for labels that are 0 and 1 only")
    group.add_argument(
        "--class-names",
        metavar="NAME,...",
        help="names of the classes from 0 on, with --classes, --binary or --class-labels; labels may be these names",
    )
    group.add_argument(
        "--emotions",
        metavar="NAME,...",
        help="several labels per sample: names of the columns of `emotions` or `labels` [N, L] of a pickle, or columns "
        "of a table; a number above 0 means that the emotion is present. A sentiment beside them is kept",
    )
    group.add_argument(
        "--protocol",
        choices=get_args(Protocol),
        help="which metrics the field reports on this set (default: mosi for sentiments, classes, or emotions)",
    )
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
    return Labels(
        kind=kind,
        scale=options.label_scale,
        range=None if options.label_range is None else tuple(options.label_range),
        class_names=_names(options.class_names),
        emotions=_names(options.emotions),
        protocol=options.protocol or "",
    )


def _names(given: str | None) -> tuple[str, ...]:
    """Names with commas between them."""
    return () if given is None else tuple(name.strip() for name in given.split(","))


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
        text = facts.describe(
            class_names=info.class_names, emotions=info.emotions, scale=info.label_scale, offset=info.label_offset
        )
        print(f"{split} labels: {text}")
    if info.emotions and info.task == "regression":
        print("samples have a sentiment and emotions; model.task=multilabel trains on the emotions")
