"""Block sizes of a launch on a card: measured ones where `measured_sizes.csv` has a row for it, else those of the rule.

`python -m benchmarks.block_sizes` measures on a GPU and writes the rows. A row belongs to a compute capability, a
kernel, a padded width and the bits of a product's operands; that of the attention also to the padded number of rows and
keys, and to the heads of a tile. So every rank with such a card takes the same sizes, and no training measures at its
start. Other sizes add up in another order: a run continues bitwise on the same card with the same table, whose commit
`run.json` names.
"""

import csv
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from dmd.kernels.common.block_sizes import MAX_HEAD, MAX_WIDTH, MIN_SIDE, attention_sizes, padded, row_sizes
from dmd.kernels.common.cards import SHARED_MEMORY

TABLE = Path(__file__).with_name("measured_sizes.csv")
ROW_KERNELS = (
    "project",
    "residual_mlp",
    "residual_mlp_backward",
    "project_backward",
    "weight_shares",
)
"""Kernels over rows of an encoder."""
ATTENTION_KERNELS = ("forward", "backward_query", "backward_key")
BITS = (16, 32)
MAX_SIDE = 256
"""Largest side of a block."""
MAX_WARPS = 32
"""Warps of the largest block of threads that a card runs."""
MAX_STAGES = 8
OPTIONS = {"num_warps": MAX_WARPS, "num_stages": MAX_STAGES}
"""Triton's options, and the most of each."""
TILES = {"rows": "BLOCK_M", "keys": "BLOCK_N"}
"""Lengths that a row of the attention belongs to, and the sides of a tile over them."""
PACK = "pack"
"""Heads of a tile of the attention, which its rows are of, too."""
BLOCKS = ("M", "CHUNK")
"""Sides of a block of the kernels over rows."""
COLUMNS = (
    "capability",
    "kernel",
    "width",
    "bits",
    *TILES,
    PACK,
    *BLOCKS,
    *TILES.values(),
    *OPTIONS,
    "shared_bytes",
    "card",
    "commit",
)


class Place(NamedTuple):
    """What a row belongs to."""

    capability: int
    """Compute capability, 90 for 9.0."""
    kernel: str
    width: int
    """Channels of an encoder, or of a head of the attention, padded."""
    bits: int
    """Of the operands of products."""
    rows: int = 0
    """Of the attention: steps of the longest query sequence, padded; `keys`: of the longest key sequence."""
    keys: int = 0
    pack: int = 1
    """Of the attention: heads of a tile."""


@cache
def row_sizes_on(capability: int | None, kernel: str, dim: int, *, half: bool) -> Mapping[str, int]:
    """Constants of a kernel over rows of an encoder, as `row_sizes`, on a card of this compute capability.

    Raises:
        ValueError: the table has a row that cannot be right.
    """
    assert kernel in ROW_KERNELS, kernel
    return _on(capability, kernel, row_sizes(kernel, dim, half=half), half=half)


@cache
def attention_sizes_on(
    capability: int | None, kernel: str, head: int, rows: int, keys: int, *, heads: int, half: bool
) -> Mapping[str, int]:
    """Constants of one of the attention's kernels, as `attention_sizes`, on a card of this compute capability.

    Raises:
        ValueError: the table has a row that cannot be right.
    """
    assert kernel in ATTENTION_KERNELS, kernel
    rule = attention_sizes(head, rows, keys, heads=heads, half=half)
    return _on(capability, kernel, rule, half=half, rows=padded(rows), keys=padded(keys), pack=rule["PACK"])


def _on(
    capability: int | None,
    kernel: str,
    rule: Mapping[str, int],
    *,
    half: bool,
    rows: int = 0,
    keys: int = 0,
    pack: int = 1,
) -> Mapping[str, int]:
    """The rule's sizes, with the table's in their place."""
    measured: Mapping[str, int] = {}
    if capability is not None:
        place = Place(capability, kernel, rule["WIDTH"], 16 if half else 32, rows, keys, pack)
        measured = _table_in(TABLE).get(place, {})
    return MappingProxyType({**rule, **measured})


def read_table(path: Path) -> Mapping[Place, Mapping[str, int]]:
    """The sizes of every row.

    Raises:
        ValueError: a row that cannot be right, by its line.
    """
    found: dict[Place, Mapping[str, int]] = {}
    with path.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ValueError(f"{path}: its columns are {reader.fieldnames}; they must be {','.join(COLUMNS)}")
        for row in reader:
            try:
                place, sizes = read_row(row)
                if place in found:
                    raise ValueError("an earlier row is about the same launches")
            except ValueError as error:
                described = ",".join(f"{value}" for value in row.values())
                raise ValueError(
                    f"{path}, line {reader.line_num} ({described}): {error}; correct it or take it out"
                ) from error
            found[place] = sizes
    return found


_table_in = cache(read_table)


def read_row(row: Mapping[str, str | None]) -> tuple[Place, dict[str, int]]:
    """What a row belongs to, and its block sizes and options.

    Raises:
        ValueError: a value that cannot be right.
    """
    kernel = row["kernel"] or ""
    attention = kernel in ATTENTION_KERNELS
    if not attention and kernel not in ROW_KERNELS:
        raise ValueError(f"kernel is {kernel!r}; known: {' '.join(ROW_KERNELS + ATTENTION_KERNELS)}")
    lengths = {name: _side(row, name, most=None) for name in TILES if attention}
    pack = _power_of_two(row, PACK, least=1, most=MIN_SIDE) if attention else 1
    place = Place(
        capability=_one_of(row, "capability", tuple(SHARED_MEMORY)),
        kernel=kernel,
        width=_side(row, "width", most=MAX_HEAD if attention else MAX_WIDTH),
        bits=_one_of(row, "bits", BITS),
        **lengths,
        pack=pack,
    )
    if attention:
        longest = {**lengths, "rows": pack * lengths["rows"]}
        sizes = {side: _side(row, side, most=min(MAX_SIDE, longest[name])) for name, side in TILES.items()}
    else:
        sizes = {side: _side(row, side, most=MAX_SIDE) for side in BLOCKS}
    own = (*lengths, *sizes, *([PACK] if attention else []))
    for name in (*TILES, PACK, *BLOCKS, *TILES.values()):
        if name not in own and row[name]:
            raise ValueError(f"{name} is {row[name]!r}; {kernel} has none, leave it empty")
    sizes["num_warps"] = _power_of_two(row, "num_warps", least=1, most=MAX_WARPS)
    sizes["num_stages"] = _number(row, "num_stages", least=1, most=MAX_STAGES)
    _number(row, "shared_bytes", least=0, most=SHARED_MEMORY[place.capability])
    return place, sizes


def _number(row: Mapping[str, str | None], name: str, *, least: int, most: int | None) -> int:
    value = row[name] or ""
    number = int(value) if value.isdecimal() else -1
    if number < least or (most is not None and number > most):
        raise ValueError(f"{name} is {value!r}; at least {least}" + ("" if most is None else f" and at most {most}"))
    return number


def _power_of_two(row: Mapping[str, str | None], name: str, *, least: int, most: int | None) -> int:
    number = _number(row, name, least=least, most=most)
    if number & (number - 1):
        raise ValueError(f"{name} is {number}; it must be a power of two")
    return number


def _side(row: Mapping[str, str | None], name: str, *, most: int | None) -> int:
    return _power_of_two(row, name, least=MIN_SIDE, most=most)


def _one_of(row: Mapping[str, str | None], name: str, known: tuple[int, ...]) -> int:
    number = _number(row, name, least=0, most=None)
    if number not in known:
        raise ValueError(f"{name} is {number}; known: {' '.join(map(str, known))}")
    return number
