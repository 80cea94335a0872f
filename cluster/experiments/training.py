"""What `dmd train --address` does: one training on a Ray cluster, in the run directory that the launcher would write.

Ray Train starts the ranks as it does for a trial (`cluster.ray_runtime.trial`); exit codes and the last line are those
of the launcher.
"""

import os
import shutil
import signal
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from ray.exceptions import RayError
from ray.train import TrainingFailedError

from cluster.ray_runtime.patience import LOOK_SECONDS, Patience, Unavailable
from cluster.ray_runtime.rank_endings import ending_of_failure
from cluster.ray_runtime.resources import TrialSize, rank_slots
from cluster.ray_runtime.session import check_storage, cluster, live_nodes, num_ranks, show_every_line
from cluster.ray_runtime.stop_flag import make_stop_flag
from cluster.ray_runtime.stopping import StopRequests, stop_requests
from cluster.ray_runtime.trial import Command, Failure, TrainingEnd, TrialOptions, run_training
from cluster.request import TrainRequest
from dmd.checkpoint.resume import checkpoint_marks
from dmd.checkpoint.saver import CHECKPOINTS
from dmd.config.loading import config_to_dict
from dmd.exit_codes import LOST, SIGNALLED, STOPPED, USER_ERROR, restart_mends
from dmd.training.logging.trackers.variables import tracker_variables
from launch.supervision.ending import CONTINUES, Ending, given_up
from launch.trainer.preflight import check_command

RAY_NOTES = ".ray"
"""Where Ray Train keeps notes of its own in the run directory, while it runs."""
_LOG_SECONDS = 1.5
"""What the last lines of the ranks take to come here: Ray reads them from files on their nodes."""
_END_MARGIN = 60.0
"""How much longer than a collective may take the ranks get to stop."""


def run_train(request: TrainRequest) -> Ending:
    """Train, and show what the ranks print; returns how they ended.

    Raises:
        ValueError: the user's mistakes, all before a rank starts.
    """
    with stop_requests(longest_end=request.config.train.collective_timeout + _END_MARGIN) as stop:
        try:
            return _train(request, stop)
        except KeyboardInterrupt:
            return Ending(code=STOPPED, message=f"asked to stop before a rank ran{CONTINUES}")
        except Unavailable as error:
            return Ending(code=LOST, message=str(error))


def _train(request: TrainRequest, stop: StopRequests) -> Ending:
    show_every_line()
    # A node that is drained is a node that is lost, and counts as a restart.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    name = f"train-{uuid.uuid4().hex[:8]}"
    try:
        with cluster(request.address, stop, show_ranks=True):
            size = request.size(live_nodes())
            check_command(
                request.config,
                request.data,
                request.run,
                resume=request.resume,
                overrides=request.overrides,
                num_ranks=size.max_ranks,
                here=False,
            )
            slots = rank_slots(size, live_nodes())
            if slots < size.min_ranks:
                print(f"the cluster has room for {slots} of {size}: waiting {request.patience} s for more", flush=True)
            check_storage(request.run, request.data, what="the run directory", options="--run and --data")
            return Drive(request, size, name, make_stop_flag()).wait()
    finally:
        remove_notes(request.run, name)


def remove_notes(run: Path, name: str) -> None:
    """Remove what Ray Train has noted in a run directory for a training of this name, and nothing of another's."""
    shutil.rmtree(run / RAY_NOTES / name, ignore_errors=True)
    with suppress(OSError):  # it is not there, or holds the notes of another command
        (run / RAY_NOTES).rmdir()


class Drive:
    """A training under way, in a thread: the main one takes requests to stop."""

    def __init__(self, request: TrainRequest, size: TrialSize, name: str, stop_flag: Any) -> None:
        """Prepare it; `wait` starts it. Raises Unreadable for a checkpoint that cannot be read.

        Args:
            name: of this training among Ray Train's runs, and of its writers.
            stop_flag: see `cluster.ray_runtime.stop_flag`.
        """
        self._request = request
        self._name = name
        self._options = TrialOptions(
            data=request.data,
            ray_storage=str(request.run / RAY_NOTES),
            size=size,
            max_failures=request.restarts,
            environment=tracker_variables(request.config.train.trackers, os.environ),
        )
        self._before = checkpoint_marks(request.run / CHECKPOINTS)
        self._flag = stop_flag
        self._ending: Ending | Exception | None = None
        self._ended = threading.Event()

    def wait(self) -> Ending:
        """Wait for the end of the training.

        Raises:
            Unavailable: no rank has had room for too long. Any error of the training's thread that no rank reports.
        """
        threading.Thread(target=self._run, name="training", daemon=True).start()
        try:
            self._look()
        except KeyboardInterrupt:
            if not self._ended.is_set():
                return self._stop()
        return self._how_it_ended()

    def _stop(self) -> Ending:
        """Ask the ranks to stop, and wait until they have, or for a second request."""
        if num_ranks() == 0:
            return Ending(code=STOPPED, message=f"asked to stop while no rank ran{CONTINUES}")
        print("dmd train: stopping after a checkpoint; a second request ends at once", flush=True)
        self._flag.ask.remote()
        try:
            self._look()
        except KeyboardInterrupt:
            if not self._ended.is_set():
                message = f"asked to stop again: the ranks were killed{CONTINUES}"
                return Ending(code=SIGNALLED + signal.SIGKILL, message=message)
        return self._how_it_ended()

    def _how_it_ended(self) -> Ending:
        if isinstance(self._ending, Exception):
            raise self._ending
        assert self._ending is not None
        return self._ending

    def _look(self) -> None:
        patience = Patience(self._request.patience)
        while not self._ended.wait(LOOK_SECONDS):
            patience.look()
        time.sleep(_LOG_SECONDS)

    def _run(self) -> None:
        try:
            self._ending = self._ending_of(self.train())
        except TrainingFailedError as error:
            ending, restarts = ending_of_failure(error), self._request.restarts
            self._ending = given_up(ending, restarts) if restarts and restart_mends(ending.code) else ending
        except RayError as error:
            first_line = str(error).strip().partition("\n")[0]
            self._ending = Ending(code=LOST, message=f"Ray Train is gone ({first_line}){CONTINUES}")
        except Exception as error:
            self._ending = error
        finally:
            self._ended.set()

    def train(self) -> TrainingEnd | Failure:
        """What the thread runs."""
        request = self._request
        command = Command(
            resume=request.resume,
            before=self._before,
            writers=self._name,
            stop_flag=self._flag,
        )
        return run_training(
            config_to_dict(request.config),
            request.run,
            self._options,
            name=self._name,
            command=command,
        )

    def _ending_of(self, end: TrainingEnd | Failure) -> Ending:
        if isinstance(end, Failure):
            return Ending(code=USER_ERROR, message=end.reason)
        print(end.text, flush=True)
        return Ending(code=STOPPED if end.stopped else 0)
