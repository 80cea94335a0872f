"""How a training's command ends when its thread has ended: whatever comes after that hides no ending."""

import signal
import threading
from pathlib import Path

import pytest

from cluster.experiments.training import Drive
from cluster.parsers import train_parser
from cluster.ray_runtime.trial import Failure, TrainingEnd
from cluster.request import train_request
from launch.arguments import parse_train
from launch.supervision.ending import Ending


class Ended(Drive):
    """A training whose thread ends at once, without a cluster."""

    def __init__(self, run: Path, end: TrainingEnd | Failure | Exception) -> None:
        line = ["--address", "auto", "--data", "s", "--run", str(run)]
        request = train_request(parse_train(train_parser(), line))
        super().__init__(request, request.size([{"CPU": 1.0}]), "train-1", None)
        self.end = end

    def train(self) -> TrainingEnd | Failure:
        """Ends at once."""
        if isinstance(self.end, Exception):
            raise self.end
        return self.end


def test_a_stop_after_the_end_hides_no_ending(tmp_path):
    """The command still waits for the last lines of the ranks."""
    asked = []

    def stop(number: int, frame: object) -> None:
        asked.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, stop)
    try:
        threading.Timer(0.5, signal.pthread_kill, (threading.get_ident(), signal.SIGINT)).start()
        ending = Ended(tmp_path, Failure("the data lacks a split", "failed")).wait()
    finally:
        signal.signal(signal.SIGINT, before)
    assert asked == [signal.SIGINT]
    assert ending == Ending(code=2, message="the data lacks a split")


def test_an_error_of_the_thread_reaches_the_command(tmp_path):
    with pytest.raises(ValueError, match="GPUs per rank"):
        Ended(tmp_path, ValueError("GPUs per rank: 0.5")).wait()
