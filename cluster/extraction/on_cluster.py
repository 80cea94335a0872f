"""`dmd extract --address`: the nodes of a Ray cluster extract the clips."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.cluster_options import TASK_PATIENCE
from cluster.extraction.command import run_extraction
from cluster.ray_runtime.session import cluster
from cluster.ray_runtime.stopping import StopRequests
from cluster.ray_runtime.tasks import RayTasks
from data_shards.storage.cache import parse_bytes


def extract_on_cluster(options: argparse.Namespace) -> int:
    """Extract clips; returns the exit code.

    Args:
        options: as `cluster.extraction.parser.parse_extract` gives them, with an address.

    Raises:
        ValueError: the user's mistakes; no cluster at the address.
    """
    absolute = argparse.Namespace(**vars(options))
    for name in ("clips", "out", "labels", "transcripts", "face_model"):
        path = getattr(options, name)
        setattr(absolute, name, path and path.absolute())
    return run_extraction(absolute, lambda stop: _tasks(absolute, stop))


@contextmanager
def _tasks(options: argparse.Namespace, stop: StopRequests) -> Iterator[RayTasks]:
    """The cluster's tasks. Raises ValueError: no cluster at the address."""
    memory = None
    if options.memory_per_task is not None:
        memory = parse_bytes(options.memory_per_task, "--memory-per-task")
    encoder = Path(options.text_encoder) if options.text == "states" and Path(options.text_encoder).is_dir() else None
    needed = (options.clips, options.transcripts, options.face_model, encoder and encoder.absolute())
    tasks = RayTasks(
        paths=tuple(path for path in needed if path is not None),
        places="CLIPS (and --transcripts, --face-model, --text-encoder)",
        to_need_less="give the nodes more memory",
        memory=memory,
        in_flight=options.tasks,
        max_retries=options.max_failures,
        patience=TASK_PATIENCE if options.patience is None else options.patience,
    )
    with cluster(options.address, stop, verbose=options.verbose):
        yield tasks
