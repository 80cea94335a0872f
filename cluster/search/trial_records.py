"""What an experiment knows on its storage: its request, and one record per trial. A restart reads it and goes on.

    EXPERIMENT/experiment.json          what was asked for; the same command continues, another one is rejected
    EXPERIMENT/shards/                  the shards of the search: train and valid, no test
    EXPERIMENT/trials/0007/             run directory of trial 7: checkpoints, TensorBoard, metrics.jsonl, run.json
    EXPERIMENT/trials/0007/trial.json   its values, its state, its validation losses so far

Nothing of Ray's own experiment state is needed to resume, and no pickle is read.
"""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from cluster.search.values import Values
from data_shards.durable import replace_file
from dmd.checkpoint.saver import CHECKPOINTS
from dmd.checkpoint.standing import standing
from dmd.config.loading import config_to_dict, written_config
from dmd.documents import LINES, TRIAL, encode
from dmd.training.logging.record_files import end_logs_at

State = Literal["running", "finished", "stopped", "diverged", "failed"]
DONE: frozenset[State] = frozenset({"finished", "stopped", "diverged"})
"""States that a restart does not run again; a failed trial gets another chance."""


@dataclass(kw_only=True)
class TrialRecord:
    """One trial."""

    number: int
    values: Values
    state: State = "running"
    losses: list[tuple[int, float]] = field(default_factory=list)
    """(epochs done, best validation loss so far) after each epoch."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Validation metrics at the best epoch."""
    ray_id: str = ""
    """Ray's name for it in the latest session."""
    reason: str = ""
    """Why it diverged or failed."""
    stopped_after: int | None = None
    """Epochs that ASHA had seen when it stopped the trial; its run may have made more before it ended."""

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return self.losses[-1][0] if self.losses else 0

    @property
    def best_loss(self) -> float:
        """Best validation loss; infinite before the first epoch, and where it diverged before one."""
        return self.losses[-1][1] if self.losses else math.inf

    def note(self, epoch: int, best_loss: float, metrics: dict[str, float]) -> None:
        """Add an epoch; one that a resumed trial repeats replaces what it knew from there on."""
        self.losses = [entry for entry in self.losses if entry[0] < epoch]
        if best_loss < self.best_loss or not self.metrics:
            self.metrics = metrics
        self.losses.append((epoch, best_loss))

    def reconcile(self, run: Path) -> None:
        """Take epochs, losses and metrics from the checkpoints and log of the trial's run, which are the truth: reports
        stop with the trial, or are lost with the process that collects them. Nothing changes without a checkpoint. The
        log of a trial that ASHA stopped is cut there too; that of any other is cut when it resumes.

        Raises:
            ValueError: checkpoints, none of them whole; or a damaged log.
        """
        stands = standing(run)
        if stands is None or stands.best is None:
            return
        self.losses = [(validation.epoch, validation.best_loss) for validation in stands.validations]
        self.metrics = dict(stands.best.metrics)
        if self.state == "stopped":
            end_logs_at(run, stands.step)

    def seen_by_asha(self) -> list[tuple[int, float]]:
        """The losses that ASHA saw, or is to see."""
        return [entry for entry in self.losses if self.stopped_after is None or entry[0] <= self.stopped_after]


class TrialRecords:
    """The trial records of an experiment directory."""

    def __init__(self, experiment: Path) -> None:
        self.root = experiment / "trials"
        self.records: dict[int, TrialRecord] = {}
        for path in sorted(self.root.glob(f"*/{TRIAL}")):
            record = _record(path)
            self.records[record.number] = record

    def run(self, number: int) -> Path:
        """The run directory of a trial."""
        return self.root / f"{number:04d}"

    def write(self, record: TrialRecord) -> None:
        """Keep a record, durably."""
        self.records[record.number] = record
        self.run(record.number).mkdir(parents=True, exist_ok=True)
        replace_file(self.run(record.number) / TRIAL, encode(asdict(record), indent=1))

    def reconcile(self) -> None:
        """Bring every record to where its trial's run ends (`TrialRecord.reconcile`)."""
        for record in self.records.values():
            try:
                record.reconcile(self.run(record.number))
            except ValueError as error:  # the trial itself cannot go on from there, or has ended
                record.reason = record.reason or str(error)
            self.write(record)

    def marks(self) -> list[tuple[int, list[str]]]:
        """What grows in the run directories of stopped trials as long as their ranks live: log and checkpoints."""
        runs = [self.run(record.number) for record in self.records.values() if record.state == "stopped"]
        logs = [run / LINES for run in runs]
        return [
            (log.stat().st_size if log.exists() else 0, sorted(path.name for path in run.glob(f"{CHECKPOINTS}/*")))
            for run, log in zip(runs, logs, strict=True)
        ]

    def num_ended(self) -> int:
        """Trials that have ended, well or not."""
        return sum(record.state != "running" for record in self.records.values())

    def best(self) -> TrialRecord | None:
        """The trial with the best validation loss; None while there is none with a loss."""
        scored = [record for record in self.records.values() if math.isfinite(record.best_loss)]
        return min(scored, key=lambda record: (record.best_loss, record.number), default=None)


def _record(path: Path) -> TrialRecord:
    """A trial.json.

    Raises:
        ValueError: damaged.
    """
    content = read_json(path)
    try:
        content["losses"] = [(int(epoch), math.inf if loss is None else loss) for epoch, loss in content["losses"]]
        content["metrics"] = {name: or_nan(value) for name, value in content["metrics"].items()}
        record = TrialRecord(**content)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no record of a trial ({error}); move it away") from error
    if type(record.number) is not int or record.state not in get_args(State):
        raise ValueError(f"{path} is no record of a trial (number {record.number!r}); move it away")
    return record


def keep_request(path: Path, request: dict[str, Any]) -> None:
    """Write what an experiment is, or compare it with what was written.

    Raises:
        ValueError: the directory belongs to another request; names the first difference.
    """
    request = json.loads(encode(request))
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, encode(request, indent=1))
        return
    began = read_json(path)
    if not isinstance(began, dict) or not began or not began.keys() <= request.keys():
        raise ValueError(f"{path} is not what this command asks for; give the one that began it, or another --out")
    before, now = _by_key(began, path), _by_key(request, path)
    for key, value in before.items():
        if value != now.get(key):
            raise ValueError(
                f"{path.parent} was started with {key} {json.dumps(value)}, not {json.dumps(now.get(key))}; give "
                "that again to continue it, or another --out"
            )


def _by_key(request: dict[str, Any], path: Path) -> dict[str, Any]:
    """A request with every value of its config under a dotted key; those that an older program did not know have what
    they stand for."""
    values = dict(request)
    if "config" not in values:
        return values
    try:
        config = json.loads(encode(config_to_dict(written_config(values.pop("config")))))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: its config cannot be read: {error}; give another --out") from error
    return {f"{section}.{key}": value for section, keys in config.items() for key, value in keys.items()} | values


def read_json(path: Path) -> Any:
    """A JSON file of ours.

    Raises:
        ValueError: damaged.
    """
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}; move it away") from error


def or_nan(value: float | None) -> float:
    """A number that `encode` wrote."""
    return math.nan if value is None else value
