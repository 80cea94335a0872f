"""The connection to a Ray cluster, and what is checked on all of its nodes before a trial starts."""

import logging
import os
import socket
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from data_shards.index import ShardIndex
from data_shards.places import Place

_PROBE_SECONDS = 5
_CHECK_SECONDS = 120


def chosen_address(address: str | None) -> str | None:
    """The cluster that was asked for, by the command or by RAY_ADDRESS; None: one of its own, on this machine."""
    return address or os.environ.get("RAY_ADDRESS")


@contextmanager
def cluster(address: str | None, *, cpus: int | None = None, verbose: bool = False) -> Iterator[None]:
    """A connection to the cluster at `address` (or RAY_ADDRESS), or to one of its own that ends with the block.

    Ray's workers end with this process however it ends, so a killed driver leaves no training behind.

    Raises:
        ValueError: no cluster at the address.
    """
    address = chosen_address(address)
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # TensorBoard is the training's own
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")  # a refused trial reports no loss
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    level = logging.INFO if verbose else logging.ERROR
    logging.getLogger("ray.tune").setLevel(level)
    if address is None:
        # A trial is some seven processes, most of which only wait; Ray warns of that, by this number, in the table.
        os.environ.setdefault("RAY_worker_maximum_startup_concurrency", str(4 * (cpus or os.cpu_count() or 1)))
        # The dashboard, on loopback: Ray Train asks it which controllers live, to take back a stopped trial's CPUs.
        ray.init(
            address="local", num_cpus=cpus, include_dashboard=True, dashboard_host="127.0.0.1",
            log_to_driver=verbose, logging_level=level,
        )  # fmt: skip
    else:
        _probe(address)
        try:
            ray.init(address=address, log_to_driver=verbose, logging_level=level)
        except (ConnectionError, RuntimeError) as error:
            raise ValueError(f"no Ray cluster at {address}: {error}; start one with `ray start --head`") from error
    try:
        yield
    finally:
        ray.shutdown()


def _probe(address: str) -> None:
    """Ray itself tries for minutes before it gives up."""
    if address.startswith("ray://"):
        raise ValueError(
            f"--address is {address}, a Ray Client server, through which trainings cannot be driven; give the head's "
            "host:port on a node of the cluster, or use dmd submit"
        )
    host, colon, port = address.rpartition(":")
    if address in ("auto", "local") or not colon or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PROBE_SECONDS).close()
    except OSError as error:
        raise ValueError(
            f"no Ray cluster at {address}: {error.strerror or error}; start one with `ray start --head`, or leave "
            "--address out for a local one"
        ) from error


def _nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def live_nodes() -> list[Mapping[str, float]]:
    """The resources of each live node."""
    return [node["Resources"] for node in _nodes()]


def has_gpus() -> bool:
    """Whether any node of the cluster offers GPUs."""
    return any(node.get("GPU", 0) > 0 for node in live_nodes())


def num_ranks() -> int:
    """Ranks of this driver's trials that are alive, as Ray's control store knows them; it needs no dashboard."""
    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
    alive = ray._private.state.actors(job_id=job, actor_state_name="ALIVE").values()
    return sum("RayTrainWorker" in actor["ActorClassName"] for actor in alive)


def check_storage(experiment: Path, data: Place) -> None:
    """Let every node look at the experiment's directory and at its shards.

    Raises:
        ValueError: a node that does not see what the others see: the storage is not shared.
    """
    experiment.mkdir(parents=True, exist_ok=True)
    marker = experiment / f".shared-{uuid.uuid4().hex}"
    marker.write_text(marker.name, encoding="utf-8")
    generation = ShardIndex.load(data).info.generation
    nodes = _nodes()
    try:
        checks = {
            node["NodeManagerAddress"]: _see.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(str(marker), data, generation)
            for node in nodes
        }
        for host, check in checks.items():
            fault = ray.get(check, timeout=_CHECK_SECONDS)
            if fault:
                raise ValueError(
                    f"node {host} {fault}; put --out and --data on storage that all {len(nodes)} nodes share (NFS, "
                    "Lustre, ...), under the same path"
                )
    finally:
        marker.unlink()


@ray.remote(num_cpus=0)
def _see(marker: str, data: Place, generation: str) -> str | None:
    """What is wrong with a node's view; None if nothing."""
    path = Path(marker)
    if not path.exists() or path.read_text(encoding="utf-8") != path.name:
        return f"does not see the experiment's directory {path.parent}"
    try:
        there = ShardIndex.load(data).info.generation
    except ValueError as error:
        return f"does not see the shards: {error}"
    return None if there == generation else f"sees other shards at {data} (generation {there}, not {generation})"
