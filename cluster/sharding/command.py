"""`dmd shard --address`: connects to a cluster and lets its nodes write the shards."""

import argparse
from collections.abc import Iterator
from pathlib import Path

from cluster.cluster_options import TASK_PATIENCE
from cluster.ray_runtime.session import cluster
from cluster.ray_runtime.stopping import StopRequests, stop_requests
from cluster.ray_runtime.tasks import RayTasks
from cluster.sharding.parser import MAX_FAILURES
from data_shards.commands import make_shards
from data_shards.executor import TasksLost
from data_shards.shard_options import FILE_OPTIONS
from data_shards.storage.cache import parse_bytes
from dmd.exit_codes import LOST, STOPPED

_AS_BEFORE = "is as it was; the same command begins again"
_LONGEST_END_SECONDS = 3600
"""Time for the shards of a stopped build to be removed from a bucket, some of them by a server that does not answer."""


def shard_on_cluster(options: argparse.Namespace) -> int:
    """Make the shards; returns the exit code.

    Args:
        options: as `cluster.sharding.parser.parse_shard` gives them, with an address.

    Raises:
        ValueError: the user's mistakes; no cluster at the address.
    """
    options = _absolute(options)
    memory = None
    if options.memory_per_task is not None:
        memory = parse_bytes(options.memory_per_task, "--memory-per-task")
    tasks = RayTasks(
        paths=tuple(_paths(options)),
        places="FEATURES and SHARDS",
        to_need_less="write the features in smaller files or row groups",
        memory=memory,
        in_flight=options.tasks,
        max_retries=MAX_FAILURES if options.max_failures is None else options.max_failures,
        patience=TASK_PATIENCE if options.patience is None else options.patience,
    )
    outlook = f"shards that it uploaded may be left in {options.shards}; the same command begins again"
    with stop_requests(longest_end=_LONGEST_END_SECONDS, outlook=outlook) as stop:
        try:
            return _make(options, tasks, stop)
        except KeyboardInterrupt:
            print(f"stopped on request; {options.shards} {_AS_BEFORE}")
            return STOPPED
        except TasksLost as error:
            print(f"{error}; {options.shards} {_AS_BEFORE}")
            return LOST


def _make(options: argparse.Namespace, tasks: RayTasks, stop: StopRequests) -> int:
    with cluster(options.address, stop, verbose=options.verbose):
        make_shards(options, tasks)
    return 0


def _absolute(options: argparse.Namespace) -> argparse.Namespace:
    """The same options for processes that work elsewhere."""
    changed = argparse.Namespace(**vars(options))
    changed.features = [str(Path(path).absolute()) for path in options.features]
    changed.shards = options.shards.absolute()
    for name in FILE_OPTIONS:
        path = getattr(options, name)
        setattr(changed, name, path and str(Path(path).absolute()))
    return changed


def _paths(options: argparse.Namespace) -> Iterator[Path]:
    """What every node must see. The directory of the shards is there when the build has taken it. A tokenizer and word
    vectors are read here and travel with the tasks."""
    others = (getattr(options, name) for name in FILE_OPTIONS)
    yield from map(Path, filter(None, (*options.features, *others)))
