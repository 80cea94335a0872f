"""Steps whose loss or gradient is not finite: never applied, reported with their samples, bounded in number.

RUN/nonfinite/step_00000042.json    {"step", "epoch", "ghost_batches": [[id, ...], ...]}
"""

import json
from pathlib import Path

from data_shards.durable import Unreadable, replace_file
from data_shards.reading.reader import ShardReader
from dmd.checkpoint.format import checkpoint_name, checkpoint_paths
from dmd.checkpoint.saver import CHECKPOINTS
from dmd.config import TrainConfig
from dmd.distributed.errors import Diverged
from dmd.documents import NONFINITE
from dmd.training.step import StepResult


class NonfiniteGuard:
    """Counts the steps in a row that could not be applied; equal on every rank.

    Args:
        is_main_rank: whether this rank writes the log.
    """

    def __init__(self, config: TrainConfig, reader: ShardReader, run: Path, *, is_main_rank: bool) -> None:
        self._config = config
        self._reader = reader
        self._run = run
        self._is_main_rank = is_main_rank
        self.in_a_row = 0

    def look(self, result: StepResult, *, epoch: int, step: int) -> None:
        """Take note of a step.

        Raises:
            Diverged: one too many could not be applied; names the samples' log and the last good checkpoint.
        """
        if result.applied:
            self.in_a_row = 0
            return
        self.in_a_row += 1
        ghosts = [self._reader.index.ids("train", rows) for rows in result.suspects]
        loss, norm = (result.values[name] for name in ("total", "gradient_norm"))
        what = f"step {step}: loss {loss:g}, gradient norm {norm:g}: not applied"
        log = self._run / NONFINITE / f"{checkpoint_name(step)}.json"
        if self._is_main_rank:
            text = json.dumps({"step": step, "epoch": epoch, "ghost_batches": ghosts})
            try:
                log.parent.mkdir(exist_ok=True)
                replace_file(log, text.encode())
                print(f"{what}; {len(ghosts)} ghost batches to look at in {log}", flush=True)
            except OSError as error:
                print(f"{what}; {log} cannot be written ({error.strerror}), so here: {text}", flush=True)
        limit = self._config.nonfinite_limit if self._config.on_nonfinite == "skip" else 0
        if self.in_a_row > limit:
            suggested_fix = (
                "lower train.learning_rate in a new run"
                if limit
                else "look at these samples, lower train.learning_rate in a new run, or pass train.on_nonfinite=skip"
            )
            raise Diverged(f"the training has diverged: {what}; samples: {log}; {self._last_good()}; {suggested_fix}")

    def _last_good(self) -> str:
        try:
            paths = list(checkpoint_paths(self._run / CHECKPOINTS).values())
        except Unreadable as error:
            return str(error)
        return f"last good checkpoint: {paths[-1]}" if paths else "there is no checkpoint yet"
