"""What `dmd tune` and `dmd experiment` do, in order: check everything, search or train, write the tables."""

import argparse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from cluster.experiments.results import markdown, note_of, seed_rows, write_best, write_table, write_trials
from cluster.experiments.seed_runs import RESULT, make_cells, parse_seeds, run_cells
from cluster.experiments.selection_shards import selection_shards
from cluster.experiments.tune import SearchOptions, search
from cluster.options import Request, check_test_split, read_request
from cluster.ray_runtime.patience import Patience, Unavailable
from cluster.ray_runtime.resources import concurrent_trials, rank_slots
from cluster.ray_runtime.session import check_storage, cluster, has_gpus, live_nodes
from cluster.ray_runtime.stopping import StopRequests, stop_requests
from cluster.ray_runtime.trial import TrialOptions
from cluster.search.asha import check_asha
from cluster.search.space import apply, load_space
from cluster.search.strategies import GridStrategy, Strategy, make_strategy
from cluster.search.tensorboard_hparams import describe_cells, describe_search
from cluster.search.trial_records import TrialRecords, keep_request
from data_shards.reading.reader import ShardReader
from data_shards.sole_writer import sole_writer
from dmd.config import Config
from dmd.config.loading import config_to_dict
from dmd.exit_codes import LOST, STOPPED
from dmd.metrics import loss_title
from launch.trainer.preflight import check_training, open_shards

FAILED = 1
"""Exit code where a trial or a training failed; the same command tries it again."""
_DEFAULT_TRIALS = 20
_PROBES = 16


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A cluster that is connected and shards that every node sees."""

    trial: TrialOptions
    concurrent: int


@contextmanager
def _connected(request: Request, reader: ShardReader, what: dict[str, Any], stop: StopRequests) -> Iterator[Ready]:
    """Take the experiment's directory, connect, check nodes and storage, note what the experiment is, make the shards
    of its trainings.

    Raises:
        ValueError: another process works on the experiment; no cluster; storage that is not shared; another request.
    """
    with sole_writer(request.out), cluster(request.address, stop, cpus=request.cpus, verbose=request.verbose):
        trial = request.trial_options(request.out / "shards", gpus=has_gpus())
        concurrent = request.concurrent or concurrent_trials(trial.size, live_nodes())
        if rank_slots(trial.size, live_nodes()) < trial.size.min_ranks:
            print(f"no node has room for a trial of {trial.size} yet: waiting for an autoscaler", flush=True)
        check_storage(request.out, request.data)
        keep_request(
            request.out / "experiment.json",
            {"config": config_to_dict(request.config), "generation": reader.index.info.generation, **what},
        )
        selection_shards(reader, request.out / "shards")
        yield Ready(trial=trial, concurrent=concurrent)


def run_tune(options: argparse.Namespace) -> int:
    """The search, then the final seeds if they were asked for; returns the exit code.

    Raises:
        ValueError: the user's mistakes, all before the first trial starts.
    """
    request = read_request(options)
    with stop_requests() as stop:
        try:
            return _tune(request, options, stop)
        except KeyboardInterrupt:
            return _report_unfinished(request, "stopped on request", STOPPED)
        except Unavailable as error:
            return _report_unfinished(request, str(error), LOST)


def _tune(request: Request, options: argparse.Namespace, stop: StopRequests) -> int:
    space = load_space(options.space, request.config)
    strategy = make_strategy(options.search, space, options.search_seed)
    num_trials = _num_trials(options.trials, strategy)
    seeds = parse_seeds(options.final_seeds) if options.final_seeds else []
    check_asha(epochs=request.config.train.epochs, grace=options.grace, reduction=options.reduction)
    with open_shards(request.data, request.config) as reader:
        if seeds:
            check_test_split(reader)
        _check_configs(request, reader, (apply(request.config, values) for values in space.probes()))
        what = {
            "space": [repr(parameter) for parameter in space.parameters],
            "search": options.search,
            "search_seed": options.search_seed,
            "scheduler": options.scheduler,
            "grace": options.grace,
            "reduction": options.reduction,
        }
        with _connected(request, reader, what, stop) as ready:
            trials = TrialRecords(request.out)
            for folder in (trials.root, *([request.out / "final"] if seeds else [])):
                describe_search(space.parameters, request.config.model.task, folder)
            search(
                request.config,
                request.out,
                trials,
                strategy,
                ready.trial,
                SearchOptions(
                    num_trials=num_trials,
                    scheduler=options.scheduler,
                    grace=options.grace,
                    reduction=options.reduction,
                    concurrent=ready.concurrent,
                    patience=request.patience,
                ),
            )
            if trials.num_ended() < max(num_trials, len(trials.records)):
                return _report_unfinished(request, "the search has returned before its end", STOPPED)
            code, best = _report_search(request, trials), trials.best()
            if seeds and best is not None:
                # By number: with more trials another one may become the best, whose seeds are to be trained then.
                configs = {f"trial_{best.number:04d}": apply(request.config, best.values)}
                code = max(code, _train_seeds(request, ready, configs, seeds, request.out / "final"))
    return code


def run_experiment(options: argparse.Namespace) -> int:
    """Every config with every seed; returns the exit code.

    Raises:
        ValueError: the user's mistakes, all before the first training starts.
    """
    request = read_request(options)
    with stop_requests() as stop:
        try:
            return _experiment(request, options, stop)
        except KeyboardInterrupt:
            why, code = "stopped on request", STOPPED
        except Unavailable as error:
            why, code = str(error), LOST
    ended = len(list(request.out.glob(f"*/*/{RESULT}")))
    print(f"{why}; trainings ended: {ended}; the same command continues")
    return code


def _experiment(request: Request, options: argparse.Namespace, stop: StopRequests) -> int:
    seeds = parse_seeds(options.seeds)
    configs = {"preset": request.config}
    for text in options.ablation:
        name, config = parse_ablation(text, request.config)
        if name in configs:
            raise ValueError(f"two configs are called {name!r}; give each --ablation a name of its own")
        configs[name] = config
    with open_shards(request.data, request.config) as reader:
        check_test_split(reader)
        _check_configs(request, reader, iter(configs.values()))
        with _connected(request, reader, {"ablations": options.ablation}, stop) as ready:
            describe_cells(list(configs.values()), seeds, request.out)
            return _train_seeds(request, ready, configs, seeds, request.out)


def parse_ablation(text: str, base: Config) -> tuple[str, Config]:
    """A name and its config from `no-graph:objective.distillation_weight=0,model.levels=2`.

    Raises:
        ValueError: another form, or a config that the tree refuses.
    """
    from dmd.config.loading import load_config

    name, colon, changes = text.partition(":")
    if not colon or not name.replace("-", "").replace("_", "").isalnum() or not changes:
        raise ValueError(f"--ablation is {text!r}; give NAME:section.key=value, the name of letters, digits, - and _")
    changed = changes.split(",")
    values = config_to_dict(load_config(None, changed))
    keys = [change.partition("=")[0].strip() for change in changed]
    return name, apply(base, {key: values[key.partition(".")[0]][key.partition(".")[2]] for key in keys})


def _num_trials(asked: int | None, strategy: Strategy) -> int:
    if asked is not None and asked < 1:
        raise ValueError(f"--trials is {asked}; it must be at least 1")
    if isinstance(strategy, GridStrategy):
        return min(len(strategy), asked or len(strategy))
    return asked or _DEFAULT_TRIALS


def _check_configs(request: Request, reader: ShardReader, configs: Iterator[Config]) -> None:
    """Refuse a trial that could not start: each is built without memory for its weights."""
    for config in islice(configs, _PROBES):
        check_training(config, reader, request.out / "not-there", request.ranks[1], here=False)


def _report_search(request: Request, trials: TrialRecords) -> int:
    write_trials(trials, request.out, request.config)
    failed = [record for record in trials.records.values() if record.state == "failed"]
    for record in trials.records.values():
        if record.state in ("failed", "diverged"):
            print(f"trial {record.number} {record.state}: {record.reason}")
    best = trials.best()
    if best is None:
        print(f"no trial has a validation loss; see {request.out}")
        return FAILED
    write_best(best, len(trials.records), request.out, request.config)
    print(
        f"best: trial {best.number}, validation {loss_title(request.config.model.task)} {best.best_loss:.4f}; "
        f"{request.out}/best.yaml, trials.md\n"
        f"TensorBoard: tensorboard --logdir {trials.root}"
    )
    return FAILED if failed else 0


def _report_unfinished(request: Request, why: str, code: int) -> int:
    """What there is of a search that has not ended; nothing is called the best."""
    trials = TrialRecords(request.out)
    write_trials(trials, request.out, request.config)
    ended = trials.num_ended()
    print(
        f"{why}; trials ended: {ended}, begun: {len(trials.records) - ended} ({request.out}/trials.md); "
        "the same command continues"
    )
    return code


def _train_seeds(request: Request, ready: Ready, configs: Mapping[str, Config], seeds: list[int], out: Path) -> int:
    """Train and test every cell, write results.csv and results.md; a failed cell is named and left out."""
    cells, patience = make_cells(configs, seeds, out), Patience(request.patience)
    results = run_cells(cells, ready.trial, request.data, ready.concurrent, patience)
    good = [result for result in results if "error" not in result]
    for result in results:
        if "error" in result:
            print(f"{result['name']} seed {result['seed']} failed: {result['error']}")
    if good:
        rows = seed_rows(good)
        write_table(out / "results.csv", rows, note=note_of(good))
        print(f"{markdown(rows)}{note_of(good)}")
    return FAILED if len(good) < len(results) else 0
