"""What `dmd predict` writes: one row per sample, as Parquet or CSV, batch after batch, or as text; a directory of parts
has `dmd.inference.part_files`."""

import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import pyarrow as pa
from pyarrow.csv import CSVWriter
from pyarrow.parquet import ParquetWriter

from data_shards.places import Place
from dmd.inference.inputs import Samples
from dmd.model.config import Task
from dmd.model.dmd import HEADS
from dmd.model.graph import PAIRS
from dmd.system.modules import SPACES
from dmd.system.trained_model import Prediction, TrainedModel

_SUFFIXES = (".parquet", ".csv")
PRINTED_ROWS = 50
"""Of a table on the terminal."""
_PRINTED = ("split", "id", "label", "prediction", "probability")
"""How the columns begin that are printed."""
EDGE_COLUMNS = tuple(f"edge_{space}_{to}_from_{source}" for space in SPACES for to, source in PAIRS)


def schema(task: Task) -> pa.Schema:
    """Columns of the predictions of a model of this task.

    `prediction` is the fused head's sentiment or class; of a classifier `probability_0`, ... are its probabilities. The
    other heads and the twelve edges follow under their names.
    """
    kind = pa.float32() if task == "regression" else pa.int64()
    probabilities = [] if task == "regression" else [f"probability_{number}" for number in range(task)]
    return pa.schema(
        [
            *((name, pa.string()) for name in ("split", "id", "text")),
            ("label", pa.float64()),
            ("prediction", kind),
            *((name, pa.float32()) for name in probabilities),
            *((head, kind) for head in _other_heads()),
            *((name, pa.float32()) for name in EDGE_COLUMNS),
        ]
    )


def _other_heads() -> list[str]:
    """The heads whose columns have their names."""
    return [head for head in HEADS if head != "fused"]


def predictions(model: TrainedModel, batches: Iterable[Samples]) -> Iterator[tuple[Samples, Prediction]]:
    """Predict batch after batch."""
    for samples in batches:
        yield samples, model.read(model.output(samples.inputs))


def to_table(samples: Samples, prediction: Prediction) -> pa.Table:
    """One batch as a table of `schema`; a missing label is null."""
    fused = prediction.heads["fused"]
    classifies = fused.ndim > 1
    heads = {head: logits.argmax(-1) if classifies else logits for head, logits in prediction.heads.items()}
    columns = {
        "split": pa.array([samples.split] * len(samples.ids)),
        "id": pa.array(samples.ids),
        "text": pa.array(samples.texts),
        "label": pa.array(samples.labels, from_pandas=True),
        "prediction": pa.array(heads["fused"].numpy()),
        **{head: pa.array(heads[head].numpy()) for head in _other_heads()},
    }
    if classifies:
        for number, column in enumerate(prediction.probabilities.T.contiguous()):
            columns[f"probability_{number}"] = pa.array(column.numpy())
    for space in SPACES:
        for number, (to, source) in enumerate(PAIRS):
            edge = prediction.edges[space][:, number].contiguous()
            columns[f"edge_{space}_{to}_from_{source}"] = pa.array(edge.numpy())
    return pa.table(columns, schema=schema(fused.shape[1] if classifies else "regression"))  # type: ignore[arg-type]


def write_predictions(path: Path, tables: Iterable[pa.Table], columns: pa.Schema) -> int:
    """Write tables of these columns to a .parquet or .csv file, whole or not at all; returns the number of rows.

    Raises:
        ValueError: another suffix.
    """
    check_suffix(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    rows = 0
    try:
        parquet = path.suffix == ".parquet"
        with ParquetWriter(staged, columns) if parquet else CSVWriter(str(staged), columns) as writer:
            for table in tables:
                writer.write_table(table)
                rows += table.num_rows
        os.replace(staged, path)
    finally:
        staged.unlink(missing_ok=True)
    return rows


def printed(tables: Iterable[pa.Table]) -> str:
    """What the fused head predicts of the first samples, as text; columns without any value are left out."""
    whole = pa.concat_tables(tables)
    columns = {name: whole[name] for name in whole.column_names if name.startswith(_PRINTED)}
    cells = {
        name: [name, *map(_cell, column.slice(0, PRINTED_ROWS).to_pylist())]
        for name, column in columns.items()
        if any(value not in (None, "") for value in column.to_pylist())
    }
    widths = {name: max(map(len, texts)) for name, texts in cells.items()}
    lines = [
        "  ".join(f"{text:<{widths[name]}}" for name, text in zip(cells, row, strict=True)).rstrip()
        for row in zip(*cells.values(), strict=True)
    ]
    more = whole.num_rows - PRINTED_ROWS
    return "\n".join([*lines, *([f"and {more} more, which --out FILE writes"] if more > 0 else [])])


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def check_suffix(path: Path) -> None:
    """Raise ValueError for a file that is neither Parquet nor CSV."""
    if path.suffix not in _SUFFIXES:
        raise ValueError(
            f"the output {path} ends in {path.suffix!r}; name a .parquet or a .csv file, or a directory, with a slash "
            "at its end"
        )


def is_directory(out: Place) -> bool:
    """Whether an output is a directory of parts (`dmd.inference.part_files`): it is there, or is named without a suffix
    or with a slash at its end, or is a URL.

    Raises:
        ValueError: a file of predictions at a URL.
    """
    suffix = PurePosixPath(out.address).suffix
    if out.address.endswith("/") or (not out.is_url and out.path.is_dir()):
        return True
    if out.is_url and suffix in _SUFFIXES:
        raise ValueError(f"the output {out} is a file at a URL; give a directory there, such as {out}/")
    return out.is_url or not suffix
