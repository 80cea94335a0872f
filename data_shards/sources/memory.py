"""How much memory a source takes. A small file may declare any size, so that is asked before it is unpacked."""

import os
from typing import Any

SURVEY_MEMORY = 1 << 30
"""Bytes that looking at one file takes, for an executor that reserves memory before anything is known of the file."""


def free_memory() -> int:
    """Bytes that this machine could give now, without swapping."""
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def check_memory(row_group: Any, path: str) -> None:
    """Raise ValueError for a row group that unpacks to more than half of the memory that is free.

    Args:
        row_group: a fragment of a dataset; only those of Parquet declare their sizes.
        path: what errors call the table.
    """
    size = sum(group.total_byte_size for group in getattr(row_group, "row_groups", ()))
    free = free_memory()
    if size > free // 2:
        raise ValueError(
            f"{path} has a row group that unpacks to {size / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB of memory are "
            "free; write it with smaller row groups"
        )
