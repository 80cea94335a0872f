"""A cluster that is ready for the trainings of an experiment: connected, its nodes and storage checked, shards made."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cluster.experiments.selection_shards import selection_shards
from cluster.ray_runtime.resources import concurrent_trials, rank_slots
from cluster.ray_runtime.session import check_storage, cluster, has_gpus, live_nodes
from cluster.ray_runtime.stopping import StopRequests
from cluster.ray_runtime.trial import TrialOptions
from cluster.request import Request
from cluster.search.trial_records import keep_request
from data_shards.places import to_place
from data_shards.reading.reader import ShardReader
from data_shards.sole_writer import sole_writer
from dmd.config.loading import config_to_dict
from dmd.documents import EXPERIMENT
from dmd.training.logging.trackers.variables import tracker_variables


@dataclass(frozen=True, kw_only=True)
class Connection:
    """How trainings run on the cluster."""

    trial: TrialOptions
    concurrent: int
    """Trainings at once."""
    patience: float
    """Seconds in which no training has room before the command ends."""


@contextmanager
def connected(
    request: Request, reader: ShardReader, *, identity: Mapping[str, Any], stop: StopRequests
) -> Iterator[Connection]:
    """Take the experiment's directory, connect, check nodes and storage, note what the experiment is, make the shards
    of its trainings.

    Args:
        identity: what the same command must repeat to continue, beside the config and the data.

    Raises:
        ValueError: another process works on the experiment; no cluster; storage that is not shared; another request.
    """
    wanted = request.cluster
    with sole_writer(request.out), cluster(wanted.address, stop, cpus=wanted.cpus, verbose=wanted.verbose):
        size = wanted.trial_size(has_gpus=has_gpus())
        concurrent = wanted.concurrent or concurrent_trials(size, live_nodes())
        if rank_slots(size, live_nodes()) < size.min_ranks:
            print(f"no node has room for a trial of {size} yet: waiting for an autoscaler", flush=True)
        check_storage(request.out, request.data)
        generation = reader.index.info.generation
        keep_request(
            request.out / EXPERIMENT,
            {"config": config_to_dict(request.config), "generation": generation, **identity},
        )
        trial = TrialOptions(
            data=to_place(selection_shards(reader, request.out / "shards")),
            ray_storage=str(request.out / "ray"),
            size=size,
            max_failures=wanted.max_failures,
            environment=tracker_variables(request.config.train.trackers, os.environ),
        )
        yield Connection(trial=trial, concurrent=concurrent, patience=wanted.patience)
