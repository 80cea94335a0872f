"""The log of a training as its loop sees it: numbers of a step and of a validation.

Where the storage fails the numbers wait in memory, and the record is opened again as a resume would, so that neither
log gets a hole or a double.
"""

import errno
import os
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import torch
from torch import device

from data_shards.reading.index import ShardIndex
from data_shards.reading.reader import ShardReader
from dmd.config import Config
from dmd.config.loading import config_to_dict
from dmd.data.loader import reader_threads
from dmd.data.plan import EpochPlan
from dmd.distributed.engine import Engine
from dmd.evaluation.evaluate import Evaluation
from dmd.metrics import in_view
from dmd.system.pass_terms import mean_edges
from dmd.system.system import TrainingSystem
from dmd.training.logging.hyperparameters import BEST
from dmd.training.logging.recorder import Recorder
from dmd.training.logging.tensorboard_figures import sample_features, wants_figures
from dmd.training.logging.tensorboard_layout import layout

_FLOAT32_BYTES = 4
RETRY_SECONDS = 30
"""Time between two attempts to reopen a record that could not be written."""


def open_record(
    run: Path,
    config: Config,
    index: ShardIndex,
    plan: EpochPlan,
    engine: Engine,
    resumed: int | None,
    *,
    stored_losses_until: int | None,
) -> Recorder:
    """The record of a training in its run directory, to continue after step `resumed` (None: from the start).

    Args:
        stored_losses_until: see `Recorder`.
    """
    info = index.info
    about = {
        "data": str(index.root),
        "data_name": info.name,
        "generation": info.generation,
        "counts": info.counts,
        "dims": info.dims,
        "lengths": info.lengths,
        "protocol": engine.system.scoring.protocol,
        "ranks": engine.num_ranks,
        "device": str(engine.device),
        "steps_per_epoch": plan.num_steps,
        "parameters": engine.sizes.parameters,
        "trained_parameters": engine.sizes.trained_bytes // _FLOAT32_BYTES,
        "kernels": engine.system.execution.kernels,
        "precision": engine.system.execution.precision,
        "cuda_graph": engine.system.captured,
        "ghost_batches_per_forward": plan.ghost_batches_at_once,
        "data_workers": reader_threads(config.data),
        "threads": torch.get_num_threads(),
    }
    shown = in_view("hparams", [row.name for row in engine.system.scoring.rows()])
    compare = tuple(f"{BEST}/{name}" for name in ("loss", *shown))
    return Recorder(
        run,
        config=config_to_dict(config),
        info=about,
        resume_step=resumed,
        compare=compare,
        stored_losses_until=stored_losses_until,
        layout=layout(engine.system.scoring, type(engine.system.objective), consistency=config.objective.consistency),
    )


class Logbook:
    """Writes the record of a run; held by the rank that writes.

    Args:
        run: the run directory.
        open_record: opens the record to continue after a step (None: from the start).
        resumed: step that the training continues from.
    """

    def __init__(self, run: Path, open_record: Callable[[int | None], Recorder], resumed: int | None) -> None:
        self._run = run
        self._open_record = open_record
        self._record: Recorder | None = open_record(resumed)
        self._written = resumed
        self._waiting: deque[tuple[int, dict[str, float], str]] = deque()
        self._retry_at = 0.0
        self.failure: OSError | None = None
        self._values: dict[str, float] = {}
        self._undrawn: tuple[int, Evaluation] | None = None

    def step(self, step: int, values: dict[str, float], rates: list[float], samples_per_second: float) -> None:
        """The numbers of one optimizer step."""
        self._values = values
        numbers = {**values, "samples_per_second": samples_per_second}
        # Of an encoder whose rates decay by layer that of its last one.
        numbers |= dict(zip(("learning_rate", "learning_rate_text"), rates, strict=False))
        self._write(step, numbers, "train")

    def epoch(self, step: int, epoch: int, evaluation: Evaluation, *, kept: bool) -> None:
        """The numbers of a validation; `kept` if `dmd evaluate` takes the checkpoint of this step from now on."""
        self._look()
        metrics = evaluation.metrics()
        fused = metrics["fused"]
        numbers = {"loss": evaluation.loss, "epoch": epoch, **fused}
        self._write(step, numbers, "valid")
        heads = {f"{head}/{name}": value for head, of in metrics.items() for name, value in of.items()}
        self._write(step, heads, "valid_heads")
        if kept:
            self._write(step, numbers, BEST)
        self._undrawn = step, evaluation
        if wants_figures(epoch):
            self._draw()

    def close(self, metrics: dict[str, float] | None) -> None:
        """End the session (see `Recorder.close`). Raises OSError if the record cannot be brought up to date."""
        self._retry_at = 0.0
        self._flush()
        if self._record is None or self._waiting:
            assert self.failure is not None
            raise self.failure
        self._record.close(metrics)
        self._record = None

    def abandon(self) -> None:
        """Let go of the record, as it is, for good."""
        self._drop()
        self._waiting.clear()

    def end(self, step: int, system: TrainingSystem, reader: ShardReader, config: Config, device: device) -> None:
        """What is drawn at the end of a training: the last validation, and features for the projector."""
        self._draw()
        points = sample_features(system, reader, config, device)
        self._show(lambda record: record.features(step, points))

    def _draw(self) -> None:
        if self._undrawn is not None:
            step, evaluation = self._undrawn
            self._show(lambda record: record.pictures(step, mean_edges(self._values), evaluation))
            self._undrawn = None

    def _show(self, show: Callable[[Recorder], None]) -> None:
        """Add a picture to the log, which can do without it where the storage fails."""
        try:
            if self._record is not None:
                show(self._record)
        except OSError as error:
            print(f"storage: {error}; a picture of the log is left out", file=sys.stderr, flush=True)

    def _look(self) -> None:
        """Notice a log or a run directory that is not where it was; the log goes on in what is there now."""
        try:
            if self._record is not None:
                self._record.look()
        except OSError as error:
            message = f"storage: {error.strerror or error}; the log goes on in what is there now"
            print(message, file=sys.stderr, flush=True)
            self._drop()

    def _drop(self) -> None:
        if self._record is not None:
            self._record.abandon()
        self._record = None
        self._retry_at = 0.0

    def _write(self, step: int, numbers: dict[str, float], kind: str) -> None:
        self._waiting.append((step, numbers, kind))
        self._flush()

    def _flush(self) -> None:
        if self._record is None and time.monotonic() < self._retry_at:
            return
        try:
            if self._record is None:
                os.stat(self._run)  # a run directory that is gone is not made anew: its storage may come back
                self._record = self._open_record(self._written)
            while self._waiting:
                step, numbers, kind = self._waiting[0]
                self._record.scalars(step, numbers, kind=kind)
                self._written = step
                self._waiting.popleft()
            self.failure = None
        except (OSError, ValueError) as error:  # ValueError: a log that someone has damaged meanwhile
            if self.failure is None:
                print(f"storage: {error}; the log waits in memory", file=sys.stderr, flush=True)
            self._drop()
            self.failure = error if isinstance(error, OSError) else OSError(errno.EIO, str(error))
            self._retry_at = time.monotonic() + RETRY_SECONDS
