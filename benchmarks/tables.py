"""Tables of results as CSV files, and where their numbers come from."""

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dmd.training.logging.provenance import git_commit


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> None:
    """Write rows, all with the given columns, or those of the first."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns or list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


class Table:
    """A CSV file that holds every row as soon as it is added, whatever ends the program; None: no file.

    Columns are those of the first row, or the given ones, where several processes add rows.
    """

    def __init__(self, path: Path | None, columns: Sequence[str] = ()) -> None:
        self._path = path
        self._columns = list(columns)
        if columns:
            self._write(self._columns, "w")

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a row."""
        if not self._columns:
            self._columns = list(row)
            self._write(self._columns, "w")
        assert set(row) <= set(self._columns), sorted(set(row) - set(self._columns))
        self._write([row.get(name, "") for name in self._columns], "a")

    def _write(self, values: Sequence[Any], mode: str) -> None:
        if self._path is None:
            return
        with self._path.open(mode, newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerow(values)


def commit() -> str:
    """The commit that is measured: what a visit says, whose checkout may have a .git that is older, else git's."""
    return os.environ.get("VISIT_COMMIT") or git_commit() or ""


def processor() -> str:
    """What this machine's processors are called."""
    with open("/proc/cpuinfo") as file:
        return next((line.split(":")[1].strip() for line in file if line.startswith("model name")), "unknown")
