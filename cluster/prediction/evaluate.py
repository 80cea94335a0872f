"""`dmd evaluate --address`: actors predict the batches of a split, the driver computes the metrics of all of them."""

from collections.abc import Sequence
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
from dmd.evaluation.ensemble import describe_ensemble, shards_of_all, splits_for
from dmd.evaluation.evaluate import Share, check_split, merge_shares, predict_share
from dmd.evaluation.trained_run import describe, read_run_for, ready_model
from dmd.inference.ensemble import DifferentWeights, check_distinct, check_encoder, check_members
from dmd.inference.model_files import ModelFiles
from dmd.kernels.backend import default_device
from dmd.system.models import heads_of
from dmd.system.modules import BATCH_SIZE
from dmd.system.trained_model import TrainedModel, config_of

_BATCHES_PER_TASK = 16
_NUMBER_BYTES = 8
"""Of the number of a task before its shares: its rows begin where an int64 may."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is evaluated."""

    runs: tuple[Path, ...]
    """Several: an ensemble."""
    data: Place | None
    """None: the shards of its training."""
    split: str
    step: Step | None
    """Which checkpoint of each; None: the best."""
    text_encoder: str | None
    """See `dmd.system.trained_model.TrainedModel`."""


class Evaluator(Actor):
    """Predicts batches of a split as one process would, by each member of an ensemble."""

    def __init__(self, *, model: SentModel, data: Place, generation: str, on_gpu: bool) -> None:
        super().__init__(on_gpu=on_gpu)
        self._sent = model
        self._data = data
        self._generation = generation

    def prepare(self) -> None:
        """Build the model, open the shards."""
        self._reader = open_generation(self._data, self._generation)
        info, device, files = self._reader.index.info, default_device(), self._sent.read()
        self._members = [
            ready_model(card, weights, device, info, text_encoder=files.encoder_of(card, self._sent.text_encoder))
            for card, weights in files.members
        ]

    def compute(self, task: Task) -> bytes:
        """The shares of batches `first` to `stop` of a split by all members, one after the other; the number of the
        task before them."""
        return encode_shares(task["number"], [self._share(model, task) for model in self._members])

    def _share(self, model: TrainedModel, task: Task) -> Share:
        with model.running():
            share = predict_share(
                model.modules,
                self._reader,
                task["split"],
                model.config,
                device=model.device,
                numbers=range(task["first"], task["stop"]),
            )
        assert share is not None, "a task has a batch"
        return share


def encode_shares(number: int, shares: Sequence[Share]) -> bytes:
    """The number of a task, the rows [B] int64 of its samples, and of each share its values [B, ...] float32."""
    rows = shares[0][0]
    assert all(share[0].equal(rows) for share in shares), "members predict the same samples"
    values = [values.numpy().tobytes() for _, values in shares]
    return b"".join([number.to_bytes(_NUMBER_BYTES, "little"), rows.numpy().tobytes(), *values])


def decode_shares(content: bytes, columns: Sequence[int]) -> tuple[int, list[Share]]:
    """The number of a task, and the shares of members with that many values per sample each."""
    buffer = bytearray(content)
    size = torch.int64.itemsize + sum(columns) * torch.float32.itemsize
    count, at = (len(buffer) - _NUMBER_BYTES) // size, _NUMBER_BYTES
    rows = torch.frombuffer(buffer, dtype=torch.int64, count=count, offset=at)
    at += count * torch.int64.itemsize
    shares: list[Share] = []
    for width in columns:
        values = torch.frombuffer(buffer, dtype=torch.float32, count=count * width, offset=at)
        shares.append((rows, values.view(count, width)))
        at += count * width * torch.float32.itemsize
    return int.from_bytes(buffer[:_NUMBER_BYTES], "little"), shares


def run_evaluate(question: Question, *, write_to: Path | None, request: PoolRequest) -> int:
    """Evaluate a run's checkpoint; returns the exit code.

    Raises:
        ValueError: the user's mistakes. OSError: storage that fails; `Unreadable` where the same command works later.
    """

    def work(stop: StopRequests) -> int:
        print_evaluation(list(question.runs), _evaluate(question, request, stop), write_to=write_to)
        return 0

    return run_to_end(work, lambda: "nothing is kept of an evaluation")


def _evaluate(question: Question, request: PoolRequest, stop: StopRequests) -> dict[str, Any]:
    runs, split = question.runs, question.split
    check_distinct(runs)
    place = to_place(shards_of_all(runs, question.data)).absolute()
    with ShardReader(place) as reader:
        info = reader.index.info
        check_split(reader, split)
        files = ModelFiles(
            members=tuple(
                read_run_for(run, info, question.step, data=question.data, text_encoder=question.text_encoder)
                for run in runs
            )
        )
        cards = files.cards
        if files.is_ensemble:
            check_members(cards)
            check_encoder(cards, question.text_encoder)
            different = DifferentWeights()
            for member in files.members:
                different.add(*member)
        splits = splits_for(reader, [split]) if files.is_ensemble else [split]
        totals = {name: reader.index.num_samples(name) for name in splits}
        batches = {name: num_evaluation_batches(reader, name, BATCH_SIZE) for name in splits}
    scorings = [scoring_of(config_of(card), card.data) for card in cards]
    heads = [list(heads_of(config_of(card).model.name)) for card in cards]
    columns = [len(own) * scoring.outputs + scoring.label_width for own, scoring in zip(heads, scorings, strict=True)]
    tasks = [
        {"split": name, "first": first, "stop": min(first + _BATCHES_PER_TASK, count)}
        for name, count in batches.items()
        for first in range(0, count, _BATCHES_PER_TASK)
    ]
    shares: dict[str, list[list[Share]]] = {name: [] for name in splits}
    """By split, of each task those of all members."""
    with cluster(request.address, stop, verbose=request.verbose), Progress(len(tasks), "tasks") as progress:
        pool = make_pool(request)
        check_storage(None, place, options="the shards")
        model = send_model(files, text_encoder=question.text_encoder)
        arguments = {"model": model, "data": place, "generation": info.generation}
        numbered: list[Task] = [{"number": number, **task} for number, task in enumerate(tasks)]
        with answers(Evaluator, arguments, numbered, pool) as contents:
            for content in contents:
                number, found = decode_shares(content, columns)
                shares[str(tasks[number]["split"])].append(found)
                progress.advance()
    evaluations = [
        {
            name: merge_shares([found[member] for found in shares[name]], totals[name], scorings[member], heads=own)
            for name in splits
        }
        for member, own in enumerate(heads)
    ]
    if files.is_ensemble:
        return describe_ensemble(runs, cards, info, split, evaluations)
    return describe(runs[0], cards[0], info, split, evaluations[0][split])
