"""The tables about all runs of a report together."""

from collections.abc import Mapping
from dataclasses import replace

from data_shards.format.schema import DatasetInfo
from data_shards.places import Place
from data_shards.reading.index import ShardIndex
from dmd.config.loading import written_config
from dmd.evaluation.trained_run import training_data
from dmd.metrics import Scoring
from dmd.report.groups import Group
from dmd.report.published_results import PUBLISHED_SPLIT, data_set_of, expected, published
from dmd.report.simple_baselines import SimpleBaseline, simple_baselines
from dmd.report.tables import (
    Table,
    ablation_table,
    comparison_table,
    main_table,
    published_table,
    run_table,
    summary_table,
    unimodal_table,
)
from dmd.system.models import DEFAULT

Sets = Mapping[str, tuple[DatasetInfo, Place]]
"""Sets of shards by their generation."""


def overview_tables(groups: list[Group], split: str, sets: Sets) -> list[Table]:
    """What the runs reach beside simple baselines and published figures, and what differs between them.

    Args:
        sets: see `sets_of`.
    """
    baselines = _baselines(groups, split, sets)
    tables: list[Table | None] = [
        main_table(groups, split, baselines),
        comparison_table(groups),
        summary_table(groups, split, baselines),
        run_table(groups, split),
    ]
    scoring = groups[0].members[0].result.scoring
    if is_measured_as_published(scoring):
        counts = _counts(sets)
        known = data_set_of(counts) if split == PUBLISHED_SPLIT else None
        tables += [
            published_table(groups, split, published(counts, split)),
            ablation_table(groups, known),
            unimodal_table(groups, known),
        ]
    return [table for table in tables if table is not None]


def expectation(groups: list[Group], split: str, sets: Sets) -> str:
    """A sentence about what published code of DMD reaches on the data set and split at hand, if that is known and a
    config is of DMD."""
    scoring = groups[0].members[0].result.scoring
    is_dmd = any(group.members[0].run.model == DEFAULT for group in groups)
    return expected(_counts(sets), split) if is_dmd and is_measured_as_published(scoring) else ""


def is_measured_as_published(scoring: Scoring) -> bool:
    """Whether metrics are those of the published figures, of CMU-MOSI and CMU-MOSEI: of sentiments in [-3, 3]."""
    return scoring.protocol == "mosi" and scoring.has_units_of_shards


def sets_of(groups: list[Group], data: Place | None) -> Sets:
    """The sets of shards that runs were evaluated on, by generation.

    Args:
        data: shards that the runs were evaluated on; None: those of each one's training.
    """
    places = [data or training_data(group.members[0].run.path) for group in groups]
    indexes = [(ShardIndex.load(place).info, place) for place in dict.fromkeys(places)]
    return {info.generation: (info, place) for info, place in indexes}


def _counts(sets: Sets) -> dict[str, int]:
    """Samples by split of the shards that all runs were evaluated on; none where these are different ones."""
    return next(iter(sets.values()))[0].counts if len(sets) == 1 else {}


def _baselines(groups: list[Group], split: str, sets: Sets) -> list[SimpleBaseline]:
    """The simple baselines of every set of shards, each fitted once; with the set in their names where there are
    several."""
    config, scoring = written_config(groups[0].config), groups[0].members[0].result.scoring
    found = list[SimpleBaseline]()
    for info, place in sets.values():
        own = simple_baselines(place, split, config, scoring)
        of = f" on {info.name} {info.generation[:8]}" if len(sets) > 1 else ""
        found += [replace(one, name=f"{one.name}{of}") for one in own]
    return found
