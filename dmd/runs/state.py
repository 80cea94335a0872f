"""Whether a run is running, or how it ended, as its directory tells."""

from pathlib import Path
from typing import Any, Literal

from data_shards.durable import read_regular
from data_shards.sole_writer import is_held
from dmd.checkpoint.format import checkpoint_name
from dmd.documents import NONFINITE, TRIAL, parse_object

State = Literal["running", "finished", "stopped", "diverged", "crashed", "imported"]
"""running: a living process holds the directory's lease;
finished: it came to its end;
stopped: it was asked to stop, or a search stopped it;
diverged: too many steps in a row could not be applied;
crashed: its last session has no end: it was killed, or failed;
imported: a checkpoint of another program."""
_OF_TRIALS: dict[object, State] = {"stopped": "stopped", "diverged": "diverged", "failed": "crashed"}


def state_of(run: Path, config: dict[str, Any], sessions: list[dict[str, Any]], last_step: int) -> State:
    """The state of a run.

    Args:
        config: under dotted keys.
        last_step: of its log.

    Raises:
        ValueError: what its search knows of it is no regular file.
        OSError: its lease cannot be read.
    """
    last = sessions[-1] if sessions else {}
    if "started" not in last:
        return "imported"
    if is_held(run):
        return "running"
    if last.get("finished"):
        return "finished"
    of_trial = _of_trial(run)
    if of_trial is not None:
        return of_trial
    if "ended" in last:
        return "stopped"
    return "diverged" if _has_diverged(run, config, last_step) else "crashed"


def _of_trial(run: Path) -> State | None:
    try:
        with read_regular(run / TRIAL) as file:
            record = parse_object(file.read())
    except FileNotFoundError:
        return None
    return _OF_TRIALS.get((record or {}).get("state"))


def _has_diverged(run: Path, config: dict[str, Any], last_step: int) -> bool:
    """Whether the steps behind the last one of the log could not be applied, as many in a row as end a training."""
    limit = config.get("train.nonfinite_limit", 0) if config.get("train.on_nonfinite") == "skip" else 0
    names = {path.stem for path in (run / NONFINITE).glob("*.json")}
    last = max((int(name.rpartition("_")[2]) for name in names if name.rpartition("_")[2].isdecimal()), default=0)
    return last > last_step and all(checkpoint_name(step) in names for step in range(last - limit, last + 1))
