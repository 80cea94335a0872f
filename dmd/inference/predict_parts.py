"""`dmd predict RUN [RUN ...] SHARDS --out DIR/`: what is missing in DIR, computed here or elsewhere, then the manifest.

predict_parts(order, compute)    # `compute_here`, or what `cluster.prediction` does on a Ray cluster
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_shards.places import Place
from data_shards.progress import Progress
from data_shards.reading.reader import ShardReader
from data_shards.sole_writer import sole_writer
from data_shards.storage.folder import open_folder
from dmd.checkpoint.select import Step
from dmd.data.targets import scoring_of
from dmd.evaluation.split_option import DEFAULT_SPLIT
from dmd.evaluation.trained_run import checkpoint_of
from dmd.inference.calibrated_files import check_calibration, source_of, with_calibration
from dmd.inference.inputs import check_shards, chosen_splits, shard_batches
from dmd.inference.model_files import Model, ModelFiles, read_files
from dmd.inference.outputs import checkpoint_text, predictions, schema, to_table
from dmd.inference.part_files import Part, PartFiles, make_request, write_part
from dmd.kernels.backend import default_device
from dmd.system.trained_model import config_of


@dataclass(frozen=True, kw_only=True)
class Order:
    """What `dmd predict` is asked for with a directory as its output."""

    models: tuple[Path, ...]
    """A run, or an export; several: an ensemble."""
    data: Place
    """Shards."""
    out: Place
    splits: list[str] | None
    """None: the split that is read by default."""
    samples_per_part: int
    step: Step | None = None
    """Which checkpoint of a run; None: the best, or what an export holds."""
    text_encoder: str | None = None
    """See `TrainedModel`."""
    calibration: Place | None = None
    """Shards whose validation split calibrates an ensemble; None: those of the trainings; `none`: no calibration."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """Parts to compute, and all that this takes."""

    order: Order
    parts: list[Part]
    """At least one."""
    begin: Callable[[], None]
    """To be called when nothing stands in the way any more, before the first part is written."""
    stamp: str
    """Of every part, for `dmd.inference.part_files.write_part`."""
    generation: str
    """Of the shards."""
    files: ModelFiles


Compute = Callable[[Work], None]
"""Write all parts of a work, in any order."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What is in the directory at the end."""

    rows: int
    splits: dict[str, int]
    parts: int
    found: int
    """Parts that an earlier command had written."""
    chosen: str
    """Whose predictions they are, as `checkpoint_text` says it."""

    def __str__(self) -> str:
        of_splits = ", ".join(f"{split} {count}" for split, count in self.splits.items())
        earlier = f", {self.found} of them written before" if self.found else ""
        parts = f"{self.parts} part{'s' * (self.parts != 1)}"
        return f"{self.rows} predictions ({of_splits}) in {parts}{earlier}; {self.chosen}"


def predict_parts(order: Order, compute: Compute) -> Outcome:
    """Predict what the output lacks; the same order again continues it.

    Raises:
        ValueError: data that the model cannot read; another process at work in the directory; a directory that holds
            something else; a part that `compute` did not write where this process reads.
    """
    if not order.data.is_dir():
        raise ValueError(
            f"{order.data} is no directory of shards, which --out {order.out} takes; make one with `dmd shard`, or "
            "name a .parquet file with --out"
        )
    folder = open_folder(order.out)
    files = read_files(order.models, order.step, text_encoder=order.text_encoder)
    check_calibration(files, order.models, data=order.calibration, text_encoder=order.text_encoder)
    card = files.card
    with ShardReader(order.data) as reader:
        info = reader.index.info
        splits = chosen_splits(order.data, info.counts, order.splits, DEFAULT_SPLIT)
        check_shards(card, reader, splits)
        source = source_of(files, order.calibration)
        request = make_request(files, info, splits, order.samples_per_part, calibration=source)
        columns = schema(
            scoring_of(config_of(card), card.data),
            heads=files.heads,
            spaces=files.spaces,
            of_ensemble=files.is_ensemble,
        )
        parts = PartFiles(folder, request, reader.index, columns)
        with nullcontext() if order.out.is_url else sole_writer(order.out.path):
            missing = parts.missing()
            if missing:
                files = _calibrated(files, order, parts)
                compute(
                    Work(
                        order=order,
                        parts=missing,
                        begin=partial(parts.begin, files.calibration),
                        stamp=request.digest(),
                        generation=info.generation,
                        files=files,
                    )
                )
            rows = parts.finish(_origin(files))
    total = len(request.parts())
    return Outcome(
        rows=rows,
        splits=request.splits,
        parts=total,
        found=total - len(missing),
        chosen=checkpoint_text(files.sources),
    )


def _calibrated(files: ModelFiles, order: Order, parts: PartFiles) -> ModelFiles:
    """The files with the calibration with which the output was begun, or where it is new with one of the order."""
    if parts.is_begun():
        return replace(files, calibration=parts.calibration())
    return with_calibration(files, order.models, data=order.calibration, text_encoder=order.text_encoder)


def _origin(files: ModelFiles) -> dict[str, Any]:
    """What the manifest says of the run, of its checkpoint or those whose mean the weights are; of each member."""
    members = [{"run": card.source.get("run"), **checkpoint_of(card)} for card in files.cards]
    return {"members": members} if files.is_ensemble else members[0]


def compute_here(work: Work) -> None:
    """Compute parts in this process, one after the other."""
    model = work.files.build(default_device(), text_encoder=work.order.text_encoder)
    folder = open_folder(work.order.out)
    work.begin()
    with ShardReader(work.order.data) as reader, Progress(len(work.parts), "parts") as progress:
        for part in work.parts:
            write_part(folder, part, predict_part(model, reader, part), work.stamp)
            progress.advance()


def predict_part(model: Model, reader: ShardReader, part: Part) -> pa.Table:
    """The rows of a part."""
    batches = shard_batches(reader, model.card, part.split, range(part.begin, part.stop))
    return pa.concat_tables(to_table(samples, prediction) for samples, prediction in predictions(model, batches))
