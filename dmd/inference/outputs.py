"""What `dmd predict` writes: one row per sample, as Parquet or CSV, batch after batch, or as text; a directory of parts
has `dmd.inference.part_files`."""

import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow.csv import CSVWriter
from pyarrow.parquet import ParquetWriter

from data_shards.places import Place
from dmd.checkpoint.select import AVERAGED
from dmd.inference.ensemble import Ensemble
from dmd.inference.inputs import Samples
from dmd.metrics import Scoring
from dmd.model.graph import PAIRS
from dmd.model.network import FUSED
from dmd.system.trained_model import Prediction, TrainedModel
from dmd.text_tables import table_text

_SUFFIXES = (".parquet", ".csv")
PRINTED_ROWS = 50
"""Of a table on the terminal."""
_PRINTED = ("split", "id", "label", "prediction", "probability", "spread", "uncertainty")
"""How the columns begin that are printed."""
_NUMBER = "_number"
"""How columns of class numbers end."""


def schema(scoring: Scoring, *, heads: Iterable[str], spaces: Iterable[str], of_ensemble: bool = False) -> pa.Schema:
    """Columns of the predictions of a model, or of an ensemble.

    Args:
        scoring: what its heads say.
        heads: their names.
        spaces: the names of its GD-Units.

    `label` and `prediction`, of the fused head, are sentiments in the units of the model's data, or names of classes
    (`Scoring.titles`), whose numbers are in `label_number` and `prediction_number`; the other heads follow under their
    names. Of emotions there are `label_NAME`, `prediction_NAME` and `HEAD_NAME`, 0 or 1,
    for each. `probability_NAME`, or `probability_0`, ... of classes without names, are those of the fused head; the
    six edges of each GD-Unit are last.

    Of an ensemble there are `spread`, or `spread_NAME` of each probability, and `uncertainty`, or `uncertainty_NAME` of
    each emotion, which is null where the ensemble is not calibrated (`dmd.system.trained_model.Prediction`).
    """
    answer = {"regression": pa.float32(), "classes": pa.string(), "multilabel": pa.uint8()}[scoring.kind]
    label = pa.float64() if scoring.kind == "regression" else answer
    return pa.schema(
        [
            *((name, pa.string()) for name in ("split", "id", "text")),
            *((name, label) for name in _answer_columns("label", scoring)),
            *((name, answer) for name in _answer_columns("prediction", scoring)),
            *((name, pa.int64()) for name in _number_columns(scoring)),
            *((name, pa.float32()) for name in _probability_columns(scoring)),
            *((name, pa.float32()) for name in (*_spreads(scoring), *_uncertainties(scoring)) if of_ensemble),
            *((name, answer) for head in heads if head != FUSED for name in _answer_columns(head, scoring)),
            *((name, pa.float32()) for space in spaces for name in _edge_columns(space)),
        ]
    )


def checkpoint_text(sources: Sequence[Mapping[str, Any]]) -> str:
    """What a line about predictions ends with: whose they are.

    Args:
        sources: of a model, or of each member of an ensemble: `step`, which an export may lack, and `averaged` where
            the weights are a mean, as in `ModelCard.source`.
    """
    if len(sources) == 1:
        return _one_checkpoint(sources[0])
    if any(source.get(AVERAGED) for source in sources):
        return f"ensemble of {'; '.join(map(_one_checkpoint, sources))}"
    steps = sorted(source["step"] for source in sources if source.get("step") is not None)
    return f"ensemble of checkpoints of steps {', '.join(map(str, steps)) or 'that are unknown'}"


def _one_checkpoint(source: Mapping[str, Any]) -> str:
    averaged, step = source.get(AVERAGED), source.get("step")
    if averaged:
        return f"mean of the checkpoints of steps {', '.join(map(str, averaged))}"
    return "a checkpoint of unknown step" if step is None else f"checkpoint of step {step}"


def _answer_columns(what: str, scoring: Scoring) -> list[str]:
    """The column of a label or an answer; of emotions one for each."""
    return [f"{what}_{name}" for name in scoring.titles] if scoring.kind == "multilabel" else [what]


def _number_columns(scoring: Scoring) -> list[str]:
    """The columns of class numbers."""
    return [f"label{_NUMBER}", f"prediction{_NUMBER}"] if scoring.kind == "classes" else []


def _probability_columns(scoring: Scoring) -> list[str]:
    return [] if scoring.kind == "regression" else [f"probability_{name}" for name in scoring.column_names]


def _spreads(scoring: Scoring) -> list[str]:
    return ["spread"] if scoring.kind == "regression" else [f"spread_{name}" for name in scoring.column_names]


def _uncertainties(scoring: Scoring) -> list[str]:
    return _answer_columns("uncertainty", scoring)


def _edge_columns(space: str) -> list[str]:
    return [f"edge_{space}_{to}_from_{source}" for to, source in PAIRS]


def predictions(model: TrainedModel | Ensemble, batches: Iterable[Samples]) -> Iterator[tuple[Samples, Prediction]]:
    """Predict batch after batch."""
    for samples in batches:
        yield samples, model.answer(samples.inputs)


def to_table(samples: Samples, prediction: Prediction) -> pa.Table:
    """One batch as a table of `schema`; a missing label is null."""
    scoring, of_ensemble = prediction.scoring, prediction.spread is not None
    wanted = schema(scoring, heads=prediction.heads, spaces=prediction.edges, of_ensemble=of_ensemble)
    columns: dict[str, pa.Array] = {
        "split": pa.array([samples.split] * len(samples.ids)),
        "id": pa.array(samples.ids),
        "text": pa.array(samples.texts),
    }

    def add(names: Sequence[str], values: NDArray[Any], *, may_lack: bool = False) -> None:
        """One column [N], or one for each of the emotions, classes or edges [N, n]; `may_lack`: NaN is no value."""
        for name, column in zip(names, values.reshape(len(values), -1).T, strict=True):
            columns[name] = pa.array(column, from_pandas=may_lack).cast(wanted.field(name).type)

    answers = {"label": samples.labels}
    answers |= {"prediction" if head == FUSED else head: prediction.answers(head).numpy() for head in prediction.heads}
    for what, values in answers.items():
        shown = _named(values, scoring.titles) if scoring.kind == "classes" else values
        add(_answer_columns(what, scoring), shown, may_lack=True)
    for name in _number_columns(scoring):
        add([name], answers[name.removesuffix(_NUMBER)], may_lack=True)
    if scoring.kind != "regression":
        add(_probability_columns(scoring), prediction.probabilities.numpy())
    if prediction.spread is not None:
        add(_spreads(scoring), prediction.spread.numpy())
        known = prediction.uncertainty
        none = np.full((len(samples.ids), len(_uncertainties(scoring))), np.nan)
        add(_uncertainties(scoring), none if known is None else known.numpy(), may_lack=True)
    for space, edges in prediction.edges.items():
        add(_edge_columns(space), edges.numpy())
    return pa.table(columns, schema=wanted)


def _named(numbers: NDArray[Any], titles: Sequence[str]) -> NDArray[Any]:
    """The names of class numbers [N]; None where there is none (NaN)."""
    return np.array([None if np.isnan(number) else titles[int(number)] for number in numbers], dtype=object)


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
    there = [
        name
        for name in whole.column_names
        if name.startswith(_PRINTED) and not name.endswith(_NUMBER) and _has_value(whole[name])
    ]
    first = whole.select(there).slice(0, PRINTED_ROWS)
    more = whole.num_rows - PRINTED_ROWS
    return table_text(
        there,
        [[_cell(value) for value in row.values()] for row in first.to_pylist()],
        numbers=[place for place, name in enumerate(there) if not pa.types.is_string(whole.schema.field(name).type)],
        notes=[f"and {more} more, which --out FILE writes"] if more > 0 else [],
    )


def _has_value(column: pa.ChunkedArray) -> bool:
    return any(value not in (None, "") for value in column.to_pylist())


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
