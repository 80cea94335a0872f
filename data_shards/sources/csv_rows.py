"""Text tables (csv) that people write: with or without a byte order mark, separated by commas, semicolons or tabs.

Two read label files with it, by the same spellings: `label_file` for `dmd shard --labels`, where a wrong row is an
error, and `label_table` for `dmd extract --labels`, where it costs its clip.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_shards.file_kinds import UTF16_NAME, check_file_kind

SPLIT_COLUMNS = ("split", "mode")
"""What a label file may call the column of splits; the first that is there counts."""
NO_NUMBER = frozenset({"", "nan", "na", "n/a", "none", "null"})
"""What stands for no number, in lower case."""
NO_NAME = frozenset({"", "nan"})
"""What stands for no class, in lower case: a class may be called `none`."""
_SEPARATORS = ",;\t"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def read_csv(path: str | Path, what: str, needed: Sequence[str]) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The columns of a table, and its rows, each with the number of its last line; blank lines are left out.

    Args:
        path: the user's file.
        what: what errors call such a file, as in "a label file (csv)".
        needed: columns of which one must be there.

    Raises:
        ValueError: no such table; while rows are taken, one with another number of fields than the header.
    """
    check_file_kind(path, what, allowed=(UTF16_NAME,))
    text = decode(path)
    separator = separator_of(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        columns = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise ValueError(f"{path}: line 1 is no row of a csv file: {error}") from error
    if not set(needed) & {name.lower() for name in columns}:
        raise ValueError(
            f"{path} is not {what}: it lacks the column {' or '.join(needed)}; it has {', '.join(columns)}"
        )
    twice = next((name for name in columns if columns.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{path} has the column {twice!r} twice; leave one")
    return columns, _rows(reader, columns, path)


def separator_of(text: str) -> str:
    """What separates the values of a table, by its first line."""
    return max(_SEPARATORS, key=text.partition("\n")[0].count)


def decode(path: str | Path) -> str:
    """The text of a file, in UTF-8 or UTF-16. Raises ValueError for any other."""
    raw = Path(path).read_bytes()
    encoding = "utf-16" if raw.startswith(_UTF16_MARKS) else "utf-8-sig"
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path} is not UTF-8: line {line} has the byte {raw[error.start]:#04x}; save it as UTF-8 (for Chinese "
            "text: iconv -f GB18030 -t UTF-8)"
        ) from error


def _rows(reader: Iterator[list[str]], columns: Sequence[str], path: str | Path) -> Iterator[tuple[int, list[str]]]:
    try:
        for row in reader:
            if row and len(row) != len(columns):
                raise ValueError(
                    f"{path}: line {reader.line_num} has {len(row)} fields and the header {len(columns)}; put fields "  # type: ignore[attr-defined]
                    "with the separator in them (sentences, decimal commas) into double quotes"
                )
            if any(map(str.strip, row)):
                yield reader.line_num, row  # type: ignore[attr-defined]
    except csv.Error as error:
        raise ValueError(f"{path}: line {reader.line_num} is no row of a csv file: {error}") from error  # type: ignore[attr-defined]
