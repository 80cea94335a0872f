"""What `dmd tune` and `dmd experiment` do, in order: check the shards, search or train, write the tables."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from cluster.experiments.connection import Connection, connected
from cluster.experiments.results import markdown, note_of, seed_rows, write_best, write_table, write_trials
from cluster.experiments.seed_runs import make_cells, run_cells, run_ensembles
from cluster.experiments.tune import search
from cluster.ray_runtime.stopping import StopRequests
from cluster.ray_runtime.unfinished import run_to_end
from cluster.request import ExperimentRequest, Request, TuneRequest
from cluster.search.space import apply
from cluster.search.tensorboard_hparams import describe_cells, describe_search
from cluster.search.trial_records import TrialRecords
from data_shards.reading.reader import ShardReader
from dmd.config import Config
from dmd.config.loading import config_to_dict
from dmd.data.targets import resolve_task, scoring_of
from dmd.documents import TEST_RESULT
from dmd.exit_codes import FAILED, STOPPED
from dmd.metrics import Scoring, loss_title
from dmd.report.identity import check_distinct
from launch.trainer.preflight import check_training, open_shards

_PROBES = 16
AnyRequest = TypeVar("AnyRequest", TuneRequest, ExperimentRequest)


def run_tune(request: TuneRequest) -> int:
    """The search, then the final seeds if they were asked for; returns the exit code: `FAILED` where a trial or a
    training failed, which the same command tries again.

    Raises:
        ValueError: the user's mistakes, all before the first trial starts.
    """

    def work(stop: StopRequests) -> int:
        nonlocal request
        request = _resolved(request)
        return _tune(request, stop)

    return run_to_end(work, lambda: _what_is_there(request))


def _tune(request: TuneRequest, stop: StopRequests) -> int:
    space, seeds = request.search.space, request.final_seeds
    with open_shards(request.data, request.config) as reader:
        if seeds:
            _check_test_split(reader)
        _check_configs(request, reader, (apply(request.config, values) for values in space.probes()))
        with connected(request, reader, identity=request.search.identity(), stop=stop) as connection:
            trials = TrialRecords(request.out)
            for folder in (trials.root, *([request.out / "final"] if seeds else [])):
                describe_search(space.parameters, request.config, _scoring(request.config, reader), folder)
            search(request.config, request.out, trials, request.search, connection)
            if trials.num_ended() < max(request.search.num_trials, len(trials.records)):
                print(f"the search has returned before its end; {_what_is_there(request)}")
                return STOPPED
            code, best = _report_search(request, trials), trials.best()
            if seeds and best is not None:
                # By number: with more trials another one may become the best, whose seeds are to be trained then.
                configs = {f"trial_{best.number:04d}": apply(request.config, best.values)}
                code = max(code, _train_seeds(request, connection, configs, seeds, request.out / "final"))
    return code


def run_experiment(request: ExperimentRequest) -> int:
    """Every config with every seed; returns the exit code: `FAILED` where a training failed, which the same command
    tries again.

    Raises:
        ValueError: the user's mistakes, all before the first training starts.
    """

    def what_is_there() -> str:
        ended = len(list(request.out.glob(f"*/*/{TEST_RESULT}")))
        return f"trainings ended: {ended}; the same command continues"

    return run_to_end(lambda stop: _experiment(_resolved(request), stop), what_is_there)


def _experiment(request: ExperimentRequest, stop: StopRequests) -> int:
    with open_shards(request.data, request.config) as reader:
        _check_test_split(reader)
        check_distinct({name: config_to_dict(c) for name, c in request.configs.items()}, reader.index.info.dims)
        _check_configs(request, reader, request.configs.values())
        identity = {"ablations": list(request.ablations)}
        with connected(request, reader, identity=identity, stop=stop) as connection:
            configs = list(request.configs.values())
            describe_cells(configs, request.seeds, _scoring(configs[0], reader), request.out)
            return _train_seeds(request, connection, request.configs, request.seeds, request.out)


def _resolved(request: AnyRequest) -> AnyRequest:
    """The request with what the shards hold in the place of `model.task: auto`, in all of its configs."""
    with open_shards(request.data, request.config) as reader:
        info = reader.index.info
    changed: dict[str, Any] = {"config": resolve_task(request.config, info)}
    if isinstance(request, ExperimentRequest):
        changed["configs"] = {name: resolve_task(config, info) for name, config in request.configs.items()}
    return replace(request, **changed)


def _scoring(config: Config, reader: ShardReader) -> Scoring:
    return scoring_of(config, vars(reader.index.info))


def _check_test_split(reader: ShardReader) -> None:
    """Raise ValueError unless the shards have what a final evaluation needs."""
    if reader.index.num_samples("test") == 0:
        raise ValueError(f"{reader.index.root} has no test split, which the final result needs; shard a file with one")


def _check_configs(request: Request, reader: ShardReader, configs: Iterable[Config]) -> None:
    """Reject a trial that could not start: each is built without memory for its weights."""
    for config in islice(configs, _PROBES):
        check_training(config, reader, request.out / "not-there", request.cluster.size.max_ranks, here=False)


def _report_search(request: TuneRequest, trials: TrialRecords) -> int:
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
        f"TensorBoard: tensorboard --logdir {shlex.quote(str(trials.root))}"
    )
    return FAILED if failed else 0


def _what_is_there(request: TuneRequest) -> str:
    """Write the table of a search that has not ended, and say how far it is; nothing is called the best."""
    trials = TrialRecords(request.out)
    write_trials(trials, request.out, request.config)
    ended = trials.num_ended()
    begun = len(trials.records) - ended
    return f"trials ended: {ended}, begun: {begun} ({request.out}/trials.md); the same command continues"


def _train_seeds(
    request: Request, connection: Connection, configs: Mapping[str, Config], seeds: Sequence[int], out: Path
) -> int:
    """Train and test every cell and the ensemble of each config's seeds, write results.csv and results.md; what failed
    is named and left out."""
    cells = make_cells(configs, seeds, out)
    results = run_cells(cells, connection, request.data)
    ensembles = run_ensembles(cells, results, connection, request.data, out)
    for name, found in ensembles.items():
        if "error" in found:
            print(f"{name}, ensemble of its seeds failed: {found['error']}")
    good = [result for result in results if "error" not in result]
    for result in results:
        if "error" in result:
            print(f"{result['name']} seed {result['seed']} failed: {result['error']}")
    if good:
        rows = seed_rows(good, {name: found for name, found in ensembles.items() if "error" not in found})
        write_table(out / "results.csv", rows, note=note_of(good))
        print(f"{markdown(rows)}{note_of(good)}")
    failed = len(good) < len(results) or any("error" in found for found in ensembles.values())
    return FAILED if failed else 0
