"""`dmd evaluate --address`: actors predict the batches of a split, the driver computes the metrics of all of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cluster.prediction.model import SentModel, send_model
from cluster.prediction.pool import Actor, Task, answers, make_pool
from cluster.prediction.predict import open_generation
from cluster.prediction.request import PoolRequest
from cluster.ray_runtime.session import check_storage, cluster
from cluster.ray_runtime.stopping import StopRequests
from cluster.ray_runtime.unfinished import run_to_end
from data_shards.places import Place, to_place
from data_shards.progress import Progress
from data_shards.reading.reader import ShardReader
from dmd.checkpoint.select import Step
from dmd.commands import print_evaluation
from dmd.data.loader import num_evaluation_batches
from dmd.data.targets import scoring_of
from dmd.evaluation.evaluate import Share, check_split, merge_shares, predict_share
from dmd.evaluation.trained_run import describe, read_run_for, ready_model, shards_of
from dmd.kernels.backend import default_device
from dmd.model.dmd import HEADS
from dmd.system.modules import BATCH_SIZE
from dmd.system.trained_model import config_of

_BATCHES_PER_TASK = 16


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is evaluated."""

    run: Path
    data: Place | None
    """None: the shards of its training."""
    split: str
    step: Step | None
    """Which checkpoint; None: the best."""
    text_encoder: str | None
    """See `dmd.system.trained_model.TrainedModel`."""


class Evaluator(Actor):
    """Predicts batches of a split as one process would."""

    def __init__(self, *, model: SentModel, data: Place, generation: str, split: str, on_gpu: bool) -> None:
        super().__init__(on_gpu=on_gpu)
        self._sent = model
        self._data = data
        self._generation = generation
        self._split = split

    def prepare(self) -> None:
        """Build the model, open the shards."""
        self._reader = open_generation(self._data, self._generation)
        info = self._reader.index.info
        sent = self._sent
        self._model = ready_model(
            sent.card, sent.read_weights(), default_device(), info, text_encoder=sent.text_encoder
        )

    def compute(self, task: Task) -> bytes:
        """The share of batches `first` to `stop`."""
        model = self._model
        with model.running():
            share = predict_share(
                model.modules,
                self._reader,
                self._split,
                model.config,
                device=model.device,
                numbers=range(task["first"], task["stop"]),
            )
        assert share is not None, "a task has a batch"
        return encode_share(share)


def encode_share(share: Share) -> bytes:
    """The rows [B] int64 and, after them, the values [B, ...] float32 of a share."""
    rows, values = share
    return rows.numpy().tobytes() + values.numpy().tobytes()


def decode_share(content: bytes, columns: int) -> Share:
    """A share with that many values per sample."""
    row_bytes, value_bytes = torch.int64.itemsize, columns * torch.float32.itemsize
    count = len(content) // (row_bytes + value_bytes)
    buffer = bytearray(content)
    rows = torch.frombuffer(buffer, dtype=torch.int64, count=count)
    values = torch.frombuffer(buffer, dtype=torch.float32, offset=count * row_bytes)
    return rows, values.view(count, columns)


def run_evaluate(question: Question, *, write_to: Path | None, request: PoolRequest) -> int:
    """Evaluate a run's checkpoint; returns the exit code.

    Raises:
        ValueError: the user's mistakes. OSError: storage that fails; `Unreadable` where the same command works later.
    """

    def work(stop: StopRequests) -> int:
        print_evaluation(question.run, _evaluate(question, request, stop), write_to=write_to)
        return 0

    return run_to_end(work, lambda: "nothing is kept of an evaluation")


def _evaluate(question: Question, request: PoolRequest, stop: StopRequests) -> dict[str, Any]:
    run, split = question.run, question.split
    place = to_place(shards_of(run, question.data)).absolute()
    with ShardReader(place) as reader:
        info = reader.index.info
        card, weights = read_run_for(run, info, question.step, text_encoder=question.text_encoder)
        check_split(reader, split)
        total, batches = reader.index.num_samples(split), num_evaluation_batches(reader, split, BATCH_SIZE)
    scoring = scoring_of(config_of(card), card.data)
    columns = len(HEADS) * scoring.outputs + scoring.label_width
    tasks = [
        {"first": first, "stop": min(first + _BATCHES_PER_TASK, batches)}
        for first in range(0, batches, _BATCHES_PER_TASK)
    ]
    with cluster(request.address, stop, verbose=request.verbose), Progress(len(tasks), "tasks") as progress:
        pool = make_pool(request)
        check_storage(None, place, options="the shards")
        model = send_model(card, weights, text_encoder=question.text_encoder)
        arguments = {"model": model, "data": place, "generation": info.generation, "split": split}
        shares = []
        for content in answers(Evaluator, arguments, tasks, pool):
            shares.append(decode_share(content, columns))
            progress.advance()
    return describe(run, card, info, split, merge_shares(shares, total, scoring))
