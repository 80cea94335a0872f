"""The training loop: steps, validation after each epoch, schedule, checkpoints, log. It runs on every rank.

    training = Training(engine, config, reader, run)
    outcome = training.run()

`launch.trainer.build` makes the engine with DeepSpeed and constructs `Training`; `launch.trainer.main`, for `dmd.train`
`launch.trainer.in_process`, and for trials `cluster.ray_runtime.worker`, call `run()`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data_shards.reading.reader import ShardReader
from data_shards.sole_writer import Lease
from data_shards.waiting import waiting
from dmd.checkpoint.format import Snapshot
from dmd.checkpoint.resume import Resume, load_checkpoint
from dmd.checkpoint.saver import CHECKPOINTS
from dmd.checkpoint.standing import (
    NEVER_VALIDATED,
    ValidatedStep,
    finished_at,
    has_stored_losses,
    newest_validation,
    schedule_of,
)
from dmd.checkpoint.state import (
    Cursor,
    check_continues,
    check_same_base,
    make_state,
    with_objective,
    without_objective,
)
from dmd.config import Config
from dmd.data.loader import num_evaluation_batches, training_steps
from dmd.distributed.collectives import all_or_none, any_rank, from_first_rank, stay_sole_writer
from dmd.distributed.engine import Engine
from dmd.evaluation.evaluate import evaluate
from dmd.system.models import terms_of
from dmd.system.modules import BATCH_SIZE
from dmd.testing.fault_points import fault_point
from dmd.training.audit import Audit
from dmd.training.callbacks import Callback, Callbacks
from dmd.training.ema import WeightAverage
from dmd.training.logging.progress import TrainingProgress
from dmd.training.logging.provenance import versions
from dmd.training.nonfinite import NonfiniteGuard
from dmd.training.outcome import EpochReport, Outcome, StepReport
from dmd.training.output import RunOutput, storage_error
from dmd.training.pace import Throughput
from dmd.training.schedule import Schedule
from dmd.training.step import StepResult, make_plan, train_step


class Training:
    """One training from its start, or from a checkpoint in its run directory.

    Args:
        engine: the system, its optimizer and its collectives.
        config: what to train.
        reader: shards with a train and a valid split.
        run: the run directory, on storage that rank 0 writes and every rank reads.
        text_encoder: the encoder's configuration, for checkpoints; None where the shards hold features.
        resume: which checkpoint to continue from.
        stop_requested: asked in each step, before its update; one rank that says so stops all of them after it.
        callbacks: called on this rank after each step and each validation (`dmd.training.callbacks`).
        heartbeat: called on every rank at each sign of progress.
        lease: rank 0's right to write to the run directory.

    Raises:
        ValueError: a checkpoint of another training, or none that is whole.
        StorageFailed: a checkpoint that cannot be read, or storage that cannot hold one; on every rank.
    """

    def __init__(
        self,
        engine: Engine,
        config: Config,
        reader: ShardReader,
        run: Path,
        *,
        text_encoder: dict[str, Any] | None = None,
        resume: Resume = "auto",
        stop_requested: Callable[[], bool] = lambda: False,
        callbacks: Sequence[Callback] = (),
        heartbeat: Callable[[], None] = lambda: None,
        lease: Lease | None = None,
    ) -> None:
        self.engine = engine
        self.config = config
        self.reader = reader
        self.run_path = run
        self.text_encoder = text_encoder
        self.stop_requested = stop_requested
        self.callbacks = Callbacks(callbacks, may_save=engine.num_ranks == 1)
        self.heartbeat = heartbeat
        self.lease = lease
        self.plan = make_plan(config, reader.index.num_samples("train"), engine.num_ranks)
        self.schedule = Schedule(engine.optimizer, config.train, text_warmup=config.text.warmup_epochs)
        self.average = WeightAverage(engine.system, config.train.ema_decay)
        self.cursor = Cursor()
        self.step = 0
        self.is_main_rank = engine.rank == 0
        self.guard = NonfiniteGuard(config.train, reader, run, is_main_rank=self.is_main_rank)
        self.versions = versions()
        self.throughput = Throughput()
        self.stored_losses_until: int | None = None
        engine.system.objective.start_training(reader.index.num_samples("train"), engine.device)
        resumed = self._resume(resume)
        self.audit = Audit(engine, self.step)
        self.first_step = self.step
        self.validated = NEVER_VALIDATED
        self.failures: list[OSError] = []
        self.taken: str | None = None
        with all_or_none(engine.device):
            closed = self.is_main_rank and resumed is not None and finished_at(run) == resumed
        self.finished_before = from_first_rank(engine, closed) and self.finished
        batches = num_evaluation_batches(reader, "valid", BATCH_SIZE)
        self.progress = TrainingProgress(
            config.train,
            self.plan,
            self.schedule,
            engine.system.scoring,
            terms=terms_of(config.model.name),
            step=self.step,
            cursor=self.cursor,
            to_validate=len(range(engine.rank, batches, engine.num_ranks)),
            ranks=f"{engine.num_ranks} rank{'s' * (engine.num_ranks > 1)} ({engine.device})",
            shown=self.is_main_rank,
        )
        self.output: RunOutput | None = None
        with all_or_none(engine.device):
            if self.is_main_rank and not self.finished_before:
                self.output = RunOutput(
                    run,
                    config,
                    reader.index,
                    self.plan,
                    engine,
                    resumed=resumed,
                    stored_losses_until=self.stored_losses_until,
                    lease=lease,
                )

    def run(self) -> Outcome:
        """Train until the config or a stop request ends it, and close the log; a run that is finished stays as is.

        Raises:
            Diverged: too many steps in a row could not be applied.
            StorageFailed: the storage failed where the config says stop, or at the end.
            TakenOver: another process has taken the run directory over.
            ValueError: a damaged shard; on the rank that reads it.
            Exception: what a callback raised, after a checkpoint.
        """
        interrupted = False
        try:
            if self.finished_before:
                return self._outcome(stopped=False)
            with self.progress:
                outcome = self._run()
            self.callbacks.raise_failure()
            return outcome
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt)
            if self.output is not None:
                self.output.abandon()
            if isinstance(error, Exception):
                self.callbacks.raise_failure()  # it came first; this error is its context
            raise
        finally:
            self._let_go(at_once=interrupted)

    def _let_go(self, *, at_once: bool) -> None:
        """End the trackers, and with `at_once` without patience; then release the run directory in any case."""
        try:
            if self.output is not None:
                self.output.trackers.close(at_once=at_once)
        finally:
            if self.lease is not None:
                self.lease.release()

    def _run(self) -> Outcome:
        stopped = False
        try:
            while not stopped and not self.finished:
                stopped = self._epoch()
                if not stopped:
                    self._end_epoch()
                    stopped = not self.finished and any_rank(self.engine, self._stop_requested())[0]
        finally:
            if self.output is not None:
                with waiting("the last checkpoint to be written"):
                    self.output.saver.wait()
        if not stopped:
            with self.engine.whole_weights(), self.average.in_place():
                if self.output is not None:
                    with waiting("the last pictures of the log"):
                        self.output.log.end(self.step, self.engine.system, self.reader, self.config, self.engine.device)
        outcome = self._outcome(stopped=stopped)
        self._close(None if stopped else {"valid/loss": outcome.best_loss})
        return outcome

    def _stop_requested(self) -> bool:
        """Whether this rank asks for a stop, or a callback of its has failed."""
        return self.stop_requested() or self.callbacks.ended

    def _outcome(self, *, stopped: bool) -> Outcome:
        best_step, best_loss = self.schedule.best_step, self.schedule.best_loss
        if best_step < 0:  # no epoch is whole: the newest checkpoint stands for the run
            best_step, best_loss = (
                newest_validation(self.run_path, self.validated) if self.is_main_rank else self.validated
            )
        return Outcome(
            step=self.step,
            epoch=self.cursor.epoch,
            first_step=self.first_step,
            best_step=best_step,
            best_loss=best_loss,
            stopped=stopped,
            finished_before=self.finished_before,
        )

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
        """Steps from the cursor to the end of its epoch; returns whether a stop was asked for, after saving."""
        train, plan = self.config.train, self.plan
        self.engine.system.train()
        steps = training_steps(
            self.reader,
            plan,
            self.config.data,
            seed=train.seed,
            rank=self.engine.rank,
            epoch=self.cursor.epoch,
            first_step=self.cursor.step,
        )
        self.progress.begin_epoch()
        self.throughput.begin()
        for batches in steps:
            place = self.cursor.step
            with waiting("the first step", shown=self.is_main_rank and self.step == self.first_step):
                result = train_step(
                    self.engine,
                    batches,
                    self.config,
                    plan,
                    step=self.step,
                    step_in_epoch=place,
                    flags=self._flags,
                )
            self._advance(result)
            self.throughput.step(plan.step_samples(place))
            self.progress.step(self.step, self.cursor, result.values, self._log_step(result))
            self.callbacks.step(self._report(result))
            if self.finished or self.cursor.step == plan.num_steps:
                return False
            stop, *others = result.raised
            if self._between_steps(stop or self.callbacks.ended, *others):
                return True
        return False

    def _report(self, result: StepResult) -> StepReport:
        """What callbacks get of a step that was counted."""
        return StepReport(
            step=self.step,
            epoch=self.cursor.epoch,
            step_in_epoch=self.cursor.step,
            steps_per_epoch=self.plan.num_steps,
            loss=result.values["total"],
            values=result.values,
            learning_rate=float(self.engine.optimizer.param_groups[0]["lr"]),
            applied=result.applied,
        )

    def _log_step(self, result: StepResult) -> float | None:
        """Log a step where it is due; returns samples per second since the last one that was logged."""
        if self.output is None or self.step % self.config.train.log_every:
            return None
        samples = self.throughput.lap()
        rates = [group["lr"] for group in self.engine.optimizer.param_groups]
        self.output.log.step(self.step, result.values, rates, samples)
        return samples

    def _advance(self, result: StepResult) -> None:
        """Count a step that was made, and look at what it gave."""
        epoch = self.cursor.epoch
        self.step += 1
        self.cursor = Cursor(epoch=epoch, step=self.cursor.step + 1)
        if result.applied:
            self.average.update()
        self.engine.system.objective.after_step(epoch=epoch, applied=result.applied)
        self.heartbeat()
        fault_point("step")
        if self.audit.on:
            self.audit.step(epoch=epoch, step=self.step, ids=self.reader.index.ids("train", result.rows))
        if not result.applied and self.output is not None:
            self.output.saver.wait()
        self.guard.look(result, epoch=epoch, step=self.step)

    def _flags(self) -> tuple[bool, bool, bool, bool]:
        """What this rank raises during a step, for `_between_steps` after it."""
        output = self.output
        if output is None:
            return self.stop_requested(), False, False, False
        self.failures, self.taken = output.failures(), output.taken()
        due = output.saver.due(self.step + 1)
        return self.stop_requested(), due, bool(self.failures), self.taken is not None

    def _between_steps(self, stop: bool, save: bool, failed: bool, taken_over: bool) -> bool:
        """Save where it is due; returns whether a stop was asked for. Each argument is whether a rank raised it."""
        if taken_over:
            stay_sole_writer(self.engine, self.taken)
        if failed and self.config.train.on_storage_error == "stop":
            raise storage_error(self.run_path, self.failures)
        if stop or save:
            self._save()
        return stop

    def _end_epoch(self) -> None:
        """Validate, log and save; the schedule looks at whole epochs only, `max_steps` may end inside one."""
        engine = self.engine
        self.progress.begin_validation(self.throughput.whole())

        def heartbeat() -> None:
            self.heartbeat()
            self.progress.validated()

        first = self.is_main_rank and self.validated is NEVER_VALIDATED
        with engine.whole_weights(), self.average.in_place(), waiting("the first validation", shown=first):
            evaluation = evaluate(
                engine.system, self.reader, "valid", self.config, device=engine.device, heartbeat=heartbeat
            )
        fault_point("evaluate")
        stay_sole_writer(engine, None if self.output is None else self.output.taken())
        epoch = self.cursor.epoch
        best = False
        if self.cursor.step == self.plan.num_steps:
            best = self.schedule.update(evaluation.loss, epoch=epoch, step=self.step)
            self.cursor = Cursor(epoch=epoch + 1)
        self.audit.same(schedule=self.schedule.state(), best=best, cursor=self.cursor, finished=self.finished)
        kept = best or self.schedule.best_step < 0
        self.validated = ValidatedStep(step=self.step, loss=evaluation.loss)
        if self.output is not None:
            self.output.log.epoch(self.step, epoch, evaluation, kept=kept)
        self._save()
        report = EpochReport(
            epoch=epoch + 1,
            step=self.step,
            loss=evaluation.loss,
            best_loss=evaluation.loss if kept else self.schedule.best_loss,
            metrics=evaluation.metrics()["fused"],
        )
        self.progress.end_epoch(report, self.cursor, best=best)
        self.callbacks.epoch(report)

    def _close(self, metrics: dict[str, float] | None) -> None:
        """Wait for what is being written; the ranks leave together, and all of them know if it failed."""
        failures = [] if self.output is None else self.output.close(metrics)
        if any_rank(self.engine, bool(failures))[0]:
            raise storage_error(self.run_path, failures)

    def _save(self) -> None:
        """Snapshot on every rank (a collective), written in the background by one."""
        optimizer = self.engine.optimizer_state()
        with self.average.in_place():
            model = self.engine.weights()
        if self.output is None:
            return
        state = make_state(
            config=self.config,
            info=self.reader.index.info,
            cursor=self.cursor,
            schedule=self.schedule.state(),
            text_encoder=self.text_encoder,
            text_base=self.engine.system.text_base,
            nonfinite_in_a_row=self.guard.in_a_row,
            library_versions=self.versions,
            averaged_steps=self.average.updates,
        )
        optimizer = with_objective(optimizer | self.average.own_weights(), self.engine.system.objective)
        self.output.saver.save(Snapshot(step=self.step, model=model, optimizer=optimizer, state=state))

    def _resume(self, resume: Resume) -> int | None:
        """Continue from a checkpoint, if there is one; returns its step."""
        snapshot = load_checkpoint(self.engine, self.run_path / CHECKPOINTS, resume)
        if snapshot is None:
            return None
        check_continues(snapshot.state, self.config, self.reader.index.info, self.run_path)
        check_same_base(snapshot.state, self.engine.system.text_base, self.run_path)
        snapshot, of_objective = without_objective(snapshot)
        self.average.restore(self.engine, snapshot)
        self.engine.system.objective.load_training_state(of_objective)
        self.schedule.load_state(schedule_of(snapshot.state))
        self.guard.in_a_row = snapshot.state["nonfinite_in_a_row"]
        self.cursor = Cursor(**snapshot.state["cursor"])
        self.step = snapshot.step
        self.stored_losses_until = self.step if has_stored_losses(snapshot.state) else None
        if self.is_main_rank and not self.finished:
            where = f"step {self.step}, in epoch {self.cursor.epoch + 1} of {self.config.train.epochs}"
            print(f"resumed {self.run_path} at {where}", flush=True)
        return self.step
