"""The connection to a Ray cluster, and what is checked on all of its nodes before a trial starts."""

import logging
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._private import auto_init_hook, ray_constants, ray_logging
from ray._private.services import canonicalize_bootstrap_address_or_die, find_gcs_addresses
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.ray_runtime.access import agree_on_token, make_token
from cluster.ray_runtime.stopping import StopRequests
from data_shards.places import Place
from data_shards.reading.index import ShardIndex
from data_shards.waiting import waiting

_CHECK_SECONDS = 120
EVALUATOR = "Evaluator"
"""The class of the actor that evaluates a training (`cluster.experiments.drivers`)."""
_SPARED = ("RAY_prestart_worker_first_driver", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER")
"""What a cluster of this machine does without: a worker per CPU, started before there is work, none of which ever gets
any, since trials have an environment of their own; and a process per trial that looks out for lost spot nodes."""


@contextmanager
def cluster(
    address: str | None,
    stop: StopRequests,
    *,
    cpus: int | None = None,
    verbose: bool = False,
    show_ranks: bool = False,
) -> Iterator[None]:
    """A connection to the cluster at `address`; None: to one of its own, on this machine, that ends with the block.

    Args:
        stop: gets the signals again that Ray takes for itself.
        cpus: of a cluster of its own.
        verbose: whether Ray shows what it does, and what ranks print.
        show_ranks: whether it shows what ranks print.

    Ray's workers end with this process however it ends, so a killed driver leaves no training behind. From here on no
    call to Ray of this process starts a cluster by itself: a thread of a library's that outlives the connection gets
    an error.

    Raises:
        ValueError: no cluster at the address.
    """
    auto_init_hook.enable_auto_connect = False  # of RAY_ENABLE_AUTO_CONNECT, which Ray has read
    os.environ["TUNE_DISABLE_AUTO_INIT"] = "1"
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # TensorBoard is the training's own
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")  # a trial that cannot go on reports no loss
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Tune's makes of an interrupted search one that has returned
    level = logging.INFO if verbose else logging.ERROR
    logging.getLogger("ray.tune").setLevel(level)
    try:
        with waiting(f"the Ray cluster at {address}" if address else "a Ray cluster on this machine to start"):
            _connect(address, cpus, verbose or show_ranks, level)
        stop.listen()  # again: while it starts Ray sets a handler of its own for SIGTERM
        yield
    except SystemExit as error:
        raise KeyboardInterrupt from error  # that handler's
    finally:
        ray.shutdown()


def show_every_line() -> None:
    """Before a connection that shows what ranks print: every line of every rank, its name before it, and no colour.

    Ray leaves out lines that several processes print, and decides that when it is imported.
    """
    ray_logging.RAY_DEDUP_LOGS = False  # type: ignore[attr-defined]
    os.environ.setdefault("RAY_COLOR_PREFIX", "0")


def _connect(address: str | None, cpus: int | None, show_ranks: bool, level: int) -> None:
    def name_the_cluster() -> None:
        """In each worker: Ray Train asks "the" cluster of a host for its state, and there may be several."""
        import os

        import ray

        os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address

    environment = {"worker_process_setup_hook": name_the_cluster}
    if address is None:
        make_token()
        # A trial is some seven processes, most of which only wait; Ray warns of that, by this number, in the table.
        os.environ.setdefault("RAY_worker_maximum_startup_concurrency", str(4 * (cpus or os.cpu_count() or 1)))
        for name in _SPARED:
            os.environ.setdefault(name, "0")
        # The dashboard, on loopback: Ray Train asks it which controllers live, to take back a stopped trial's CPUs.
        with _on_loopback():
            ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=True,
                dashboard_host="127.0.0.1",
                log_to_driver=show_ranks,
                logging_level=level,
                runtime_env=environment,
            )
    else:
        try:
            head = _head(address)
            agree_on_token(head)  # it fails at once where nothing listens; Ray itself tries for 20 s
            ray.init(address=head, log_to_driver=show_ranks, logging_level=level, runtime_env=environment)
        except (ConnectionError, RuntimeError) as error:
            raise ValueError(f"no Ray cluster at {address}: {error}; start one with `ray start --head`") from error


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Within the block Ray starts clusters whose processes all listen on loopback, as it does on systems where it makes
    no clusters of several hosts. It reads the switch for that when it is imported, here and in what it starts."""
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        del os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR]


def _head(address: str) -> str:
    """The host:port that an address means.

    Raises:
        ValueError: an address that cannot be used, or `auto` where there are several clusters, of which Ray would take
            the latest. ConnectionError: no cluster that `auto` finds.
    """
    if address.startswith("ray://"):
        raise ValueError(
            f"--address is {address}, a Ray Client server, through which trainings cannot be driven; give the head's "
            "host:port on a node of the cluster, or use dmd submit"
        )
    if address != "auto":
        return address
    found = [] if os.environ.get("RAY_ADDRESS") else sorted(find_gcs_addresses())  # type: ignore[no-untyped-call]
    if len(found) > 1:
        raise ValueError(f"--address auto finds several Ray clusters here ({', '.join(found)}); give one of them")
    return canonicalize_bootstrap_address_or_die(address)


def _nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def live_nodes() -> list[Mapping[str, float]]:
    """The resources of each live node."""
    return [node["Resources"] for node in _nodes()]


def has_gpus() -> bool:
    """Whether any node of the cluster offers GPUs."""
    return any(node.get("GPU", 0) > 0 for node in live_nodes())


def num_ranks() -> int:
    """Ranks and evaluations of this driver that are alive, as Ray's control store knows them; it needs no dashboard."""
    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
    alive = ray._private.state.actors(job_id=job, actor_state_name="ALIVE").values()
    return sum(any(name in actor["ActorClassName"] for name in ("RayTrainWorker", EVALUATOR)) for actor in alive)


def check_storage(
    directory: Path | None, data: Place, *, what: str = "the experiment's directory", options: str = "--out and --data"
) -> None:
    """Let every node look at the directory that a command writes, and at its shards.

    Args:
        directory: None where the command writes to none.
        what: the directory, for messages.
        options: which name both.

    Raises:
        ValueError: a node that does not see what the others see: the storage is not shared.
    """
    marker = None if directory is None else directory / f".shared-{uuid.uuid4().hex}"
    if marker is not None:
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.write_text(marker.name, encoding="utf-8")
    generation = ShardIndex.load(data).info.generation
    nodes = _nodes()
    try:
        checks = {
            node["NodeManagerAddress"]: _see.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(None if marker is None else str(marker), what, data, generation)
            for node in nodes
        }
        for host, check in checks.items():
            try:
                fault = ray.get(check, timeout=_CHECK_SECONDS)
            except ray.exceptions.GetTimeoutError:
                fault = f"has not looked at the storage within {_CHECK_SECONDS} s"
            if fault:
                raise ValueError(
                    f"node {host} {fault}; put {options} on storage that all {len(nodes)} nodes share (NFS, "
                    "Lustre, ...), under the same path"
                )
    finally:
        if marker is not None:
            marker.unlink()


@ray.remote(num_cpus=0)
def _see(marker: str | None, what: str, data: Place, generation: str) -> str | None:
    """What is wrong with a node's view; None if nothing."""
    if marker is not None:
        path = Path(marker)
        if not path.exists() or path.read_text(encoding="utf-8") != path.name:
            return f"does not see {what} {path.parent}"
    try:
        there = ShardIndex.load(data).info.generation
    except (ValueError, OSError) as error:
        return f"does not see the shards: {error}"
    return None if there == generation else f"sees other shards at {data} (generation {there}, not {generation})"
