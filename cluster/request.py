"""What `dmd tune`, `dmd experiment` and `dmd train --address` are asked for: parsed once, checked without a cluster.

    options = parse_tune(["--preset", "mosi-aligned", "--data", "SHARDS", "--out", "EXPERIMENT", "--space", "FILE"])
    request = tune_request(options)

What is checked later needs more than the command line: the shards (`cluster.experiments.orchestrate`), or the cluster
(`cluster.experiments.connection`).
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from cluster.parsers import CPUS_PER_RANK, DEFAULT_TRIALS
from cluster.ray_runtime.resources import TrialSize, parse_ranks, rank_slots
from cluster.search.space import Space, apply, load_space
from cluster.search.strategies import GridStrategy, Method, Strategy, make_strategy
from data_shards.places import Place
from dmd.checkpoint.resume import Resume, parse_resume
from dmd.config import Config
from dmd.config.loading import config_to_dict, load_config
from dmd.config.options import config_of
from launch.arguments import check_restarts


@dataclass(frozen=True, kw_only=True)
class ClusterRequest:
    """Which cluster, and how much of it."""

    address: str | None
    """host:port or `auto`; None: a cluster of its own, on this machine."""
    cpus: int | None
    """CPUs of a cluster of its own; None: all."""
    verbose: bool
    size: TrialSize
    """Without GPUs where none were asked for."""
    gpu_if_any: bool
    """Whether a rank takes a GPU where the cluster has GPUs."""
    concurrent: int | None
    """Trials at once; None: as many as fit."""
    max_failures: int
    """Restarts of a trial."""
    patience: int
    """Seconds in which no trial has room before the command ends."""

    def trial_size(self, *, has_gpus: bool) -> TrialSize:
        """The size of a trial on a cluster with GPUs, or without."""
        return replace(self.size, gpus_per_rank=1.0) if self.gpu_if_any and has_gpus else self.size


@dataclass(frozen=True, kw_only=True)
class SearchRequest:
    """How trials are chosen, and when they are stopped."""

    space: Space
    method: Method
    seed: int
    num_trials: int
    scheduler: Literal["asha", "none"]
    grace: int
    """Epochs before ASHA may stop a trial."""
    reduction: float
    """ASHA keeps one trial of so many."""

    def strategy(self) -> Strategy:
        """A new strategy, which has not learnt from any trial."""
        return make_strategy(self.method, self.space, self.seed)

    def identity(self) -> dict[str, Any]:
        """What a search that continues this one must repeat."""
        return {
            "space": [repr(parameter) for parameter in self.space.parameters],
            "search": self.method,
            "search_seed": self.seed,
            "scheduler": self.scheduler,
            "grace": self.grace,
            "reduction": self.reduction,
        }


@dataclass(frozen=True, kw_only=True)
class Request:
    """What both commands are asked for."""

    config: Config
    data: Place
    """Absolute path or URL of the shards."""
    out: Path
    """Absolute path of the experiment's directory."""
    cluster: ClusterRequest


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """One training on a cluster."""

    config: Config
    data: Place
    """Absolute path or URL of the shards."""
    run: Path
    """Absolute path of the run directory."""
    resume: Resume
    overrides: tuple[str, ...]
    """As they were given."""
    address: str
    ranks: int | None
    """None: as many as the GPUs of the cluster hold, one where it has none."""
    min_ranks: int | None
    """None: as many as `ranks`."""
    cpus_per_rank: float
    gpus_per_rank: float | None
    """None: one where the cluster has GPUs."""
    restarts: int
    patience: int
    """Seconds without room for any rank before the command ends."""

    def size(self, nodes: Sequence[Mapping[str, float]]) -> TrialSize:
        """The size of the training on a cluster whose nodes have these resources.

        Raises:
            ValueError: `min_ranks` is more than there are ranks.
        """
        gpus = sum(node.get("GPU", 0.0) for node in nodes)
        per_rank = float(gpus > 0) if self.gpus_per_rank is None else self.gpus_per_rank
        one = TrialSize(min_ranks=1, max_ranks=1, cpus_per_rank=self.cpus_per_rank, gpus_per_rank=per_rank)
        ranks = self.ranks or (max(1, rank_slots(one, nodes)) if per_rank else 1)
        min_ranks = self.min_ranks or ranks
        if min_ranks > ranks:
            raise ValueError(f"--min-ranks is {min_ranks}; it must lie between 1 and the ranks, which are {ranks}")
        return replace(one, min_ranks=min_ranks, max_ranks=ranks)


@dataclass(frozen=True, kw_only=True)
class TuneRequest(Request):
    """A search, and seeds of the best config."""

    search: SearchRequest
    final_seeds: tuple[int, ...]
    """Seeds to train the best config with; none: the test split stays closed."""


@dataclass(frozen=True, kw_only=True)
class ExperimentRequest(Request):
    """Configs over seeds."""

    seeds: tuple[int, ...]
    configs: Mapping[str, Config]
    """The preset, as `preset`, and each ablation by its name."""
    ablations: tuple[str, ...]
    """As they were given."""


def train_request(options: argparse.Namespace) -> TrainRequest:
    """The request of a `dmd train` with `--address`, from what `cluster.parsers.train_parser` has parsed.

    Raises:
        ValueError: a value out of range, an option of the launcher's, a config that is impossible.
    """
    check_train_options(options)
    config = config_of(options)
    check_encoder(config.text.encoder)
    return TrainRequest(
        config=config,
        data=options.data.absolute(),
        run=options.run.absolute(),
        resume=parse_resume(options.resume),
        overrides=tuple(options.overrides),
        address=options.address,
        ranks=options.ranks,
        min_ranks=options.min_ranks,
        cpus_per_rank=CPUS_PER_RANK if options.cpus_per_rank is None else options.cpus_per_rank,
        gpus_per_rank=options.gpus_per_rank,
        restarts=options.restarts,
        patience=options.patience,
    )


def check_train_options(options: argparse.Namespace) -> None:
    """Raise ValueError for options of a `dmd train` with `--address` that are out of range, or the launcher's."""
    if options.dry_run:
        raise ValueError("--dry-run and --address; steps are timed on this machine, leave --address out")
    for name in ("hosts", "host_rank", "port", "ssh_port"):
        if getattr(options, name) is not None:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(
                f"{option} {getattr(options, name)} and --address; Ray places the ranks, leave {option} out"
            )
    check_restarts(options)
    for name in ("ranks", "min_ranks"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be at least 1")


def tune_request(options: argparse.Namespace) -> TuneRequest:
    """The request of `dmd tune`, from what `cluster.parsers.parse_tune` has parsed.

    Raises:
        ValueError: a value out of range, a space or a config that is impossible.
    """
    shared = _shared(options)
    space = load_space(options.space, shared.config)
    num_trials = _num_trials(options.trials, make_strategy(options.search, space, options.search_seed))
    final_seeds = parse_seeds(options.final_seeds) if options.final_seeds else ()
    if options.scheduler == "asha":
        _check_asha(epochs=shared.config.train.epochs, grace=options.grace, reduction=options.reduction)
    return TuneRequest(
        config=shared.config,
        data=shared.data,
        out=shared.out,
        cluster=shared.cluster,
        search=SearchRequest(
            space=space,
            method=options.search,
            seed=options.search_seed,
            num_trials=num_trials,
            scheduler=options.scheduler,
            grace=options.grace,
            reduction=options.reduction,
        ),
        final_seeds=final_seeds,
    )


def experiment_request(options: argparse.Namespace) -> ExperimentRequest:
    """The request of `dmd experiment`, from what `cluster.parsers.parse_experiment` has parsed.

    Raises:
        ValueError: a value out of range, a config that is impossible.
    """
    shared = _shared(options)
    seeds = parse_seeds(options.seeds)
    configs = {"preset": shared.config}
    for text in options.ablation:
        name, config = parse_ablation(text, shared.config)
        if name in configs:
            raise ValueError(f"two configs are called {name!r}; give each --ablation a name of its own")
        configs[name] = config
    return ExperimentRequest(
        config=shared.config,
        data=shared.data,
        out=shared.out,
        cluster=shared.cluster,
        seeds=seeds,
        configs=configs,
        ablations=tuple(options.ablation),
    )


def parse_seeds(text: str) -> tuple[int, ...]:
    """Seeds from `1111,1112,1113`.

    Raises:
        ValueError: not such a list, or a seed that is given twice.
    """
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise ValueError(f"seeds are {text!r}; give whole numbers with commas between them, such as 1111,1112")
    seeds = tuple(int(part) for part in parts)
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds are {text!r}; give none twice")
    return seeds


def parse_ablation(text: str, base: Config) -> tuple[str, Config]:
    """A name and its config from `no-graph:objective.distillation_weight=0,model.levels=2`.

    Raises:
        ValueError: not such a text, or a config that the tree rejects.
    """
    name, colon, changes = text.partition(":")
    if not colon or not name.replace("-", "").replace("_", "").isalnum() or not changes:
        raise ValueError(f"--ablation is {text!r}; give NAME:section.key=value, the name of letters, digits, - and _")
    changed = changes.split(",")
    values = config_to_dict(load_config(None, changed))
    keys = [change.partition("=")[0].strip() for change in changed]
    return name, apply(base, {key: values[key.partition(".")[0]][key.partition(".")[2]] for key in keys})


def _shared(options: argparse.Namespace) -> Request:
    """The part of the request that both commands share."""
    for name, least in (("cpus", 1), ("concurrent", 1), ("max_failures", 0), ("patience", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be at least {least}")
    if options.out.exists() and not options.out.is_dir():
        raise ValueError(f"--out {options.out} is a file; give a directory for the experiment")
    config = config_of(options)
    check_encoder(config.text.encoder)
    return Request(
        config=config, data=options.data.absolute(), out=options.out.absolute(), cluster=_cluster_request(options)
    )


def check_encoder(name: str) -> None:
    """Raise ValueError for an encoder whose path means nothing to a rank."""
    encoder = Path(name)
    if not encoder.is_absolute() and encoder.is_dir():
        raise ValueError(f"text.encoder is {encoder}; ranks run elsewhere, give the absolute path {encoder.absolute()}")


def _cluster_request(options: argparse.Namespace) -> ClusterRequest:
    address = options.address or os.environ.get("RAY_ADDRESS")
    address = None if address == "local" else address
    # Of this machine's own cluster; ranks of another have the environment of their nodes.
    on_cpu = address is None and os.environ.get("DS_ACCELERATOR") == "cpu"
    min_ranks, max_ranks = parse_ranks(options.ranks_per_trial)
    if on_cpu and options.gpus_per_rank:
        raise ValueError(
            f"--gpus-per-rank is {options.gpus_per_rank:g}, but DS_ACCELERATOR=cpu keeps ranks on the CPU; unset one"
        )
    return ClusterRequest(
        address=address,
        cpus=options.cpus,
        verbose=options.verbose,
        size=TrialSize(
            min_ranks=min_ranks,
            max_ranks=max_ranks,
            cpus_per_rank=options.cpus_per_rank,
            gpus_per_rank=options.gpus_per_rank or 0.0,
        ),
        gpu_if_any=options.gpus_per_rank is None and not on_cpu,
        concurrent=options.concurrent,
        max_failures=options.max_failures,
        patience=options.patience,
    )


def _num_trials(asked: int | None, strategy: Strategy) -> int:
    if asked is not None and asked < 1:
        raise ValueError(f"--trials is {asked}; it must be at least 1")
    if isinstance(strategy, GridStrategy):
        return min(len(strategy), asked or len(strategy))
    return asked or DEFAULT_TRIALS


def _check_asha(*, epochs: int, grace: int, reduction: float) -> None:
    if not 1 <= grace <= epochs:
        raise ValueError(f"--grace is {grace}; it must lie between 1 and train.epochs, which is {epochs}")
    if reduction <= 1:
        raise ValueError(f"--reduction is {reduction}; it must be above 1")
