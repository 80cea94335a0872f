"""The features of clips as rows of Parquet files, and a record of each clip that says of what it was made.

A file holds the records of its rows in the metadata of its schema, so which clips are there is known without reading
features. Files appear whole or not at all.
"""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_shards.clip_sets.jobs import ClipJob
from data_shards.durable import read_entry, replace_file
from data_shards.extraction.clip import ExtractedClip
from data_shards.format.extraction_files import SETTINGS_KEY
from data_shards.format.schema import MODALITIES

RECORDS_KEY = b"dmd.extraction.clips"
"""Key of a schema's metadata: the records of the rows, as JSON."""
_NUMBERS = {"features": pa.float32(), "tokens": pa.int32()}
_FEATURES = {"id", "raw_text", "text_bert", *MODALITIES, *(f"{modality}_length" for modality in MODALITIES)}
_CACHED_FILES = 4


@dataclass(frozen=True, kw_only=True)
class ClipRecord:
    """Of what a clip's features were made."""

    id: str
    media: str = ""
    """Path of the media file in the folder of the clips."""
    size: int
    """Bytes of the media file."""
    modified: int
    """Its modification time in nanoseconds."""
    sha256: str
    transcript: str
    """Digest of the transcript, as text or as a file; empty: there was none."""
    start: float
    stop: float | None
    warnings: tuple[tuple[str, str], ...] = ()
    """Kind and text of each."""

    def fits(self, job: ClipJob) -> bool:
        """Whether the features are those that the job would give. Raises OSError."""
        if (self.transcript, self.start, self.stop) != (transcript_digest(job), job.start, job.stop):
            return False
        status = job.media.stat()
        if self.size != status.st_size:
            return False
        is_same_file = self.media == job.place and self.modified == status.st_mtime_ns
        return is_same_file or self.sha256 == _digest(job.media, status.st_mtime_ns)


@dataclass(frozen=True, kw_only=True)
class KnownClip:
    """A clip whose features are there."""

    file: Path
    row: int
    record: ClipRecord


def record_of(job: ClipJob) -> ClipRecord:
    """The record of a clip whose features are made next, still without warnings; of a file that changes meanwhile it
    does not say what it became. Raises OSError."""
    status = job.media.stat()
    return ClipRecord(
        id=job.id,
        media=job.place,
        size=status.st_size,
        modified=status.st_mtime_ns,
        sha256=_digest(job.media, status.st_mtime_ns),
        transcript=transcript_digest(job),
        start=job.start,
        stop=job.stop,
    )


def transcript_digest(job: ClipJob) -> str:
    """Digest of what is said in a clip, as it is given. Raises OSError."""
    if job.transcript is None and job.transcript_file is None:
        return ""
    digest = hashlib.sha256(repr(job.transcript).encode())
    if job.transcript_file is not None:
        digest.update(job.transcript_file.read_bytes())
    return digest.hexdigest()


def to_table(clips: Sequence[ExtractedClip]) -> pa.Table:
    """Rows of clips that were extracted with the same settings, at least one. A modality that the settings leave out is
    one step of a zero, since DMD has three; of a clip without a transcript `raw_text` is null."""
    columns: dict[str, Any] = {"id": pa.array([clip.id for clip in clips], pa.string())}
    columns["raw_text"] = pa.array([clip.said for clip in clips], pa.string())
    for modality in MODALITIES:
        arrays = [getattr(clip, modality) for clip in clips]
        if arrays[0] is None and modality == "text":
            continue
        if arrays[0] is None:
            arrays = [np.zeros((1, 1), dtype=np.float32)] * len(clips)
        is_tokens = arrays[0].dtype == np.int32
        columns["text_bert" if is_tokens else modality] = _nested(arrays, "tokens" if is_tokens else "features")
        lengths = [clip.lengths.get(modality, 1) for clip in clips]
        columns[f"{modality}_length"] = pa.array(lengths, pa.int32())
    return pa.table(columns)


def write_rows(path: Path, table: pa.Table, records: Sequence[ClipRecord], settings: dict[str, Any]) -> None:
    """Write a file of rows and their records. Raises OSError."""
    assert table.num_rows == len(records)
    metadata = {
        SETTINGS_KEY: json.dumps(settings, sort_keys=True).encode(),
        RECORDS_KEY: json.dumps([asdict(record) for record in records]).encode(),
    }
    content = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(metadata), content, compression="zstd")
    replace_file(path, content.getvalue().to_pybytes())


def has_records(path: Path) -> bool:
    """Whether a Parquet file holds clips and their records. Raises ValueError or OSError for one that is damaged."""
    return RECORDS_KEY in (pq.read_schema(path).metadata or {})


def read_records(path: Path) -> Iterator[KnownClip]:
    """The clips of a file, in the order of its rows.

    Raises:
        ValueError: the file is damaged, or is none of ours.
    """
    try:
        written = (pq.read_schema(path).metadata or {}).get(RECORDS_KEY)
        if written is None:
            raise ValueError("it has no records of clips")
        for row, values in enumerate(json.loads(written)):
            warnings = tuple((kind, text) for kind, text in values.pop("warnings"))
            yield KnownClip(file=path, row=row, record=ClipRecord(**values, warnings=warnings))
    except (pa.ArrowException, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} was not written by `dmd extract`, or is damaged ({error}); remove it, and its clips are extracted "
            "again"
        ) from error


class RowReader:
    """Reads rows of some files; a few of them are in memory at once."""

    def __init__(self) -> None:
        self._tables: OrderedDict[Path, pa.Table] = OrderedDict()

    def read(self, known: Sequence[KnownClip]) -> pa.Table:
        """The rows of some clips, at least one, in their order, with the columns of `to_table`. Raises OSError."""
        files: dict[Path, list[int]] = {}
        for position, clip in enumerate(known):
            files.setdefault(clip.file, []).append(position)
        tables, order = [], []
        for file, positions in files.items():
            rows = pa.array([known[position].row for position in positions], pa.int64())
            tables.append(self._features(file).take(rows))
            order += positions
        return pa.concat_tables(tables).take(pa.array(np.argsort(order), pa.int64())).combine_chunks()

    def _features(self, file: Path) -> pa.Table:
        if file not in self._tables:
            while len(self._tables) >= _CACHED_FILES:
                self._tables.popitem(last=False)
            table = pq.read_table(file, partitioning=None).replace_schema_metadata(None)
            self._tables[file] = table.select([name for name in table.column_names if name in _FEATURES])
        self._tables.move_to_end(file)
        return self._tables[file]


@lru_cache(maxsize=1)
def _digest(path: Path, modified: int) -> str:
    """sha256 of a media file; many clips in a row may be parts of it. Raises OSError."""
    return read_entry(path).sha256


def _nested(arrays: Sequence[NDArray[Any]], kind: str) -> pa.ListArray:
    """Arrays [T, D] as lists of lists; T may differ."""
    values = pa.array(np.concatenate([array.reshape(-1) for array in arrays]), _NUMBERS[kind])
    widths = np.concatenate([np.full(len(array), array.shape[1], dtype=np.int32) for array in arrays])
    inner = pa.ListArray.from_arrays(pa.array(_offsets(widths)), values)
    return pa.ListArray.from_arrays(pa.array(_offsets([len(array) for array in arrays])), inner)


def _offsets(sizes: Sequence[int] | NDArray[np.int32]) -> NDArray[np.int32]:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
