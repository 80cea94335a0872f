"""`dmd predict --address`: actors compute the parts of a directory of predictions and write them themselves."""

from dataclasses import asdict
from typing import Any

from cluster.prediction.model import SentModel, send_model
from cluster.prediction.pool import Actor, Task, answers, make_pool
from cluster.prediction.request import PoolRequest
from cluster.ray_runtime.session import check_storage, cluster
from cluster.ray_runtime.stopping import StopRequests
from cluster.ray_runtime.unfinished import run_to_end
from data_shards.places import Place
from data_shards.progress import Progress
from data_shards.reading.reader import ShardReader
from data_shards.storage.folder import Folder, open_folder
from dmd.inference.part_files import Part, write_part
from dmd.inference.predict_parts import Order, Work, predict_part, predict_parts
from dmd.kernels.backend import default_device
from dmd.testing.fault_points import fault_point


class PartWriter(Actor):
    """Predicts parts, and writes each to the output when it is whole."""

    def __init__(self, *, model: SentModel, data: Place, generation: str, out: Place, stamp: str, on_gpu: bool) -> None:
        super().__init__(on_gpu=on_gpu)
        self._sent = model
        self._data = data
        self._generation = generation
        self._out = out
        self._stamp = stamp

    def prepare(self) -> None:
        """Build the model, open the shards."""
        self._model = self._sent.read().build(default_device(), text_encoder=self._sent.text_encoder)
        self._reader = open_generation(self._data, self._generation)
        self._folder: Folder = open_folder(self._out)

    def compute(self, task: Task) -> bytes:
        """Write the part that `task` is."""
        part = Part(**task)
        write_part(self._folder, part, predict_part(self._model, self._reader, part), self._stamp)
        return part.name.encode()


def open_generation(data: Place, generation: str) -> ShardReader:
    """The shards that the driver has seen. Raises ValueError for a set that has been rebuilt since."""
    reader = ShardReader(data)
    there = reader.index.info.generation
    if there != generation:
        raise ValueError(
            f"{data} has been rebuilt (generation {there}, not {generation}); start again, with a new --out"
        )
    return reader


def run_predict(order: Order, request: PoolRequest) -> int:
    """Predict what the output lacks; returns the exit code.

    Raises:
        ValueError: the user's mistakes. OSError: storage that fails; `Unreadable` where the same command works later.
    """
    done: list[str] = []

    def work(stop: StopRequests) -> int:
        print(f"{order.out}: {predict_parts(order, lambda missing: _compute(missing, request, stop, done))}")
        return 0

    return run_to_end(
        work, lambda: f"parts written by this command: {len(done)} ({order.out}); the same command continues"
    )


def _compute(work: Work, request: PoolRequest, stop: StopRequests, done: list[str]) -> None:
    order = work.order
    with cluster(request.address, stop, verbose=request.verbose):
        pool = make_pool(request)
        check_storage(
            None if order.out.is_url else order.out.path,
            order.data,
            what="the directory of predictions",
            options="SHARDS and --out",
        )
        work.begin()
        arguments: dict[str, Any] = {
            "model": send_model(work.files, text_encoder=order.text_encoder),
            "data": order.data,
            "generation": work.generation,
            "out": order.out,
            "stamp": work.stamp,
        }
        tasks = [asdict(part) for part in work.parts]
        with Progress(len(tasks), "parts") as progress, answers(PartWriter, arguments, tasks, pool) as names:
            for name in names:
                done.append(name.decode())
                progress.advance()
                fault_point("answer")
