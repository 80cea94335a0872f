"""The training loop: steps, validation after each epoch, schedule, checkpoints, log. It runs on every rank.

    training = Training(engine, config, reader, run)
    outcome = training.run()

`launch.train` builds the engine with DeepSpeed and calls this.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

from data_shards.reader import ShardReader
from dmd.config import Config
from dmd.data.loader import training_steps
from dmd.data.plan import EpochPlan
from dmd.model.graph import PAIRS
from dmd.presets import config_to_dict
from dmd.training.checkpoint import Snapshot, newest_valid, read_checkpoint
from dmd.training.checkpoint_writer import AsyncWriter
from dmd.training.engine import Engine
from dmd.training.epoch_report import EpochReport
from dmd.training.evaluate import Evaluation, evaluate
from dmd.training.faults import fault_point
from dmd.training.record import Recorder
from dmd.training.schedule import Schedule
from dmd.training.state import Cursor, check_continues, make_state, model_state
from dmd.training.step import train_step

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a training ended."""

    step: int
    epoch: int
    best_step: int
    best_loss: float
    stopped: bool
    """A stop was asked for: the same command continues."""


def make_plan(config: Config, num_samples: int, num_ranks: int) -> EpochPlan:
    """The epoch plan of a config."""
    train = config.train
    return EpochPlan(
        num_samples=num_samples, ghost_batch_size=train.ghost_batch_size,
        ghost_batches_per_step=train.ghost_batches_per_step,
        ghost_batches_per_forward=train.ghost_batches_per_forward, num_ranks=num_ranks,
    )  # fmt: skip


class Training:
    """One training from its start, or from the newest valid checkpoint in its run directory.

    Args:
        engine: the system, its optimizer and its collectives.
        config: what to train.
        reader: shards with a train and a valid split.
        run: the run directory, on storage that rank 0 writes and every rank reads.
        text_encoder: the encoder's configuration, for checkpoints; None where the shards hold features.
        stop_requested: asked at step boundaries; one rank that says so stops all of them.
        on_epoch: called on every rank after each validation.
    """

    def __init__(
        self, engine: Engine, config: Config, reader: ShardReader, run: Path, *,
        text_encoder: dict[str, Any] | None = None, stop_requested: Callable[[], bool] = lambda: False,
        on_epoch: Callable[[EpochReport], None] = lambda report: None,
    ) -> None:
        self.engine, self.config, self.reader, self.run_path = engine, config, reader, run
        self.text_encoder, self.stop_requested, self.on_epoch = text_encoder, stop_requested, on_epoch
        self.plan = make_plan(config, reader.index.num_samples("train"), engine.num_ranks)
        self.schedule = Schedule(engine.optimizer, config.train)
        self.cursor, self.step = Cursor(), 0
        resumed = self._resume()
        self.leads = engine.rank == 0
        self.writer = AsyncWriter(run / CHECKPOINTS, config.train.keep_checkpoints) if self.leads else None
        self.record = self._open_record(resumed) if self.leads else None

    def run(self) -> Outcome:
        """Train until the config or a stop request ends it; the record and the last checkpoint are closed."""
        stopped = False
        while not stopped and not self.finished:
            stopped = self._epoch()
            if not stopped:
                self._end_epoch()
        best = self.schedule
        if self.writer is not None and self.record is not None:
            self.writer.close()
            self.record.close(None if stopped else {"valid/loss": best.best_loss})
        if dist.is_initialized():
            dist.barrier()
        return Outcome(
            step=self.step, epoch=self.cursor.epoch, best_step=best.best_step, best_loss=best.best_loss,
            stopped=stopped,
        )  # fmt: skip

    @property
    def finished(self) -> bool:
        """Whether the config asks for no further step."""
        train = self.config.train
        by_steps = train.max_steps is not None and self.step >= train.max_steps
        by_epochs = self.cursor.step == 0 and (
            self.cursor.epoch >= train.epochs or (self.step > 0 and self.schedule.should_stop(self.cursor.epoch - 1))
        )
        return by_steps or by_epochs

    def _epoch(self) -> bool:
        """Steps from the cursor to the end of its epoch; returns whether a stop was asked for."""
        train, plan = self.config.train, self.plan
        self.engine.system.train()
        steps = training_steps(
            self.reader, plan, self.config.data, seed=train.seed, rank=self.engine.rank, epoch=self.cursor.epoch,
            first_step=self.cursor.step,
        )  # fmt: skip
        bar = tqdm(
            total=plan.num_steps, initial=self.cursor.step, desc=f"epoch {self.cursor.epoch}", unit="step",
            disable=not self.leads, leave=False,
        )  # fmt: skip
        begin = time.perf_counter()
        with bar:
            for batches in steps:
                values = train_step(
                    self.engine, batches, self.config, plan, step=self.step, step_in_epoch=self.cursor.step
                )
                samples = plan.step_samples(self.cursor.step)
                self.step += 1
                self.cursor = Cursor(epoch=self.cursor.epoch, step=self.cursor.step + 1)
                fault_point("step")
                bar.update()
                if self.step % train.log_every == 0:
                    now = time.perf_counter()
                    self._log_step(values, samples * train.log_every / (now - begin), bar)
                    begin = now
                if self.finished or self.cursor.step == plan.num_steps:
                    return False
                if self._agree_to_stop():
                    self._save()
                    return True
                if train.save_every and self.step % train.save_every == 0:
                    self._save()
        return False

    def _end_epoch(self) -> None:
        """Validate, log and save; the schedule looks at whole epochs only, `max_steps` may end inside one."""
        evaluation = evaluate(self.engine.system, self.reader, "valid", self.config, device=self.engine.device)
        fault_point("evaluate")
        epoch = self.cursor.epoch
        best = False
        if self.cursor.step == self.plan.num_steps:
            best = self.schedule.update(evaluation.loss, epoch=epoch, step=self.step)
            self.cursor = Cursor(epoch=epoch + 1)
        if self.record is not None:
            self._log_epoch(self.record, evaluation, epoch, best)
        self._save()
        self.on_epoch(EpochReport(
            epoch=epoch + 1, step=self.step, loss=evaluation.loss, best_loss=self.schedule.best_loss,
            metrics=evaluation.metrics()["fused"],
        ))  # fmt: skip

    def _agree_to_stop(self) -> bool:
        asked = torch.tensor(float(self.stop_requested()), device=self.engine.device)
        if self.engine.num_ranks > 1:
            dist.all_reduce(asked)
        return bool(asked)

    def _save(self) -> None:
        """Snapshot on every rank (a collective), written in the background by one."""
        optimizer = self.engine.optimizer_state()
        if self.writer is None:
            return
        state = make_state(
            config=self.config, info=self.reader.index.info, cursor=self.cursor, schedule=self.schedule.state(),
            text_encoder=self.text_encoder,
        )  # fmt: skip
        model = model_state(self.engine.system)
        self.writer.submit(Snapshot(step=self.step, model=model, optimizer=optimizer, state=state))

    def _resume(self) -> int | None:
        """Continue from the newest valid checkpoint, if there is one; returns its step."""
        path, skipped = newest_valid(self.run_path / CHECKPOINTS)
        if self.engine.rank == 0:
            for reason in skipped:
                print(f"skipped an invalid checkpoint: {reason}", flush=True)
        if path is None:
            return None
        snapshot = read_checkpoint(path)
        check_continues(snapshot.state, self.config, self.reader.index.info, self.run_path)
        self.engine.load_weights(snapshot.model)
        self.engine.load_optimizer_state(snapshot.optimizer)
        self.schedule.load_state(snapshot.state["schedule"])
        self.cursor, self.step = Cursor(**snapshot.state["cursor"]), snapshot.step
        if self.engine.rank == 0:
            print(f"resumed {self.run_path} at step {self.step} (epoch {self.cursor.epoch})", flush=True)
        return self.step

    def _open_record(self, resumed: int | None) -> Recorder:
        info = self.reader.index.info
        about = {
            "data": str(self.reader.index.root), "data_name": info.name, "generation": info.generation,
            "counts": info.counts, "dims": info.dims, "lengths": info.lengths, "ranks": self.engine.num_ranks,
            "device": str(self.engine.device), "steps_per_epoch": self.plan.num_steps,
            "parameters": sum(p.numel() for p in self.engine.system.parameters()),
        }  # fmt: skip
        compare = ("valid/loss", "valid/acc2_non0", "valid/f1_non0", "valid/acc7", "valid/corr")
        return Recorder(
            self.run_path, config=config_to_dict(self.config), info=about, resume_step=resumed, compare=compare
        )

    def _log_step(self, values: dict[str, torch.Tensor], samples_per_second: float, bar: Any) -> None:
        if self.record is None:
            return
        numbers = {
            name: value.item() for name, value in values.items() if not name.startswith("edges_")
        }
        for name, edges in values.items():
            if name.startswith("edges_"):
                numbers.update({f"{name}/{to}_from_{source}": edge for (to, source), edge in
                                zip(PAIRS, edges.tolist(), strict=True)})  # fmt: skip
        numbers["samples_per_second"] = samples_per_second
        for number, group in enumerate(self.engine.optimizer.param_groups):
            numbers["learning_rate_text" if number else "learning_rate"] = group["lr"]
        bar.set_postfix(loss=f"{numbers['total']:.3f}", best_valid=f"{self.schedule.best_loss:.4f}")
        self.record.scalars(self.step, numbers, kind="train")

    def _log_epoch(self, record: Recorder, evaluation: Evaluation, epoch: int, best: bool) -> None:
        metrics = evaluation.metrics()
        record.scalars(self.step, {"loss": evaluation.loss, "epoch": epoch, **metrics["fused"]}, kind="valid")
        heads = {f"{head}/{name}": value for head, of in metrics.items() for name, value in of.items()}
        record.scalars(self.step, heads, kind="valid_heads")
        fused = metrics["fused"]
        tqdm.write(
            f"epoch {epoch:3d}  step {self.step:5d}  valid MAE {fused['mae']:.4f}  Corr {fused['corr']:.4f}  "
            f"Acc2 {fused['acc2_non0']:.4f}  Acc7 {fused['acc7']:.4f}{'  best' if best else ''}"
        )
