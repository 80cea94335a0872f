"""The hosts of a training: DeepSpeed's hostfile, one `NAME slots=RANKS` per line."""

import re
from dataclasses import dataclass
from pathlib import Path

_LINE = re.compile(r"(\S+)\s+slots=(\d+)")


@dataclass(frozen=True, kw_only=True)
class Hosts:
    """Hosts in the order of their ranks; the first one holds rank 0."""

    path: Path
    slots: dict[str, int]
    """Ranks by host name or address."""

    @property
    def num_ranks(self) -> int:
        """Ranks over all hosts."""
        return sum(self.slots.values())

    @property
    def first(self) -> str:
        """Name or address of the host that holds rank 0."""
        return next(iter(self.slots))


def read_hosts(path: Path) -> Hosts:
    """Read a hostfile; empty lines and lines that begin with # are skipped.

    Raises:
        ValueError: a file that cannot be read, a line of another form, a host twice, no slot, no host.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ValueError(f"the hostfile {path} cannot be read: {error.strerror}") from error
    slots: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None or match[2] == "0":
            raise ValueError(f"{path}: line {number} is {line[:80]!r}; write NAME slots=RANKS, such as node1 slots=4")
        if match[1] in slots:
            raise ValueError(f"{path}: line {number} names {match[1]} again; give each host one line")
        slots[match[1]] = int(match[2])
    if not slots:
        raise ValueError(f"{path} names no host; write one NAME slots=RANKS per line")
    return Hosts(path=path.absolute(), slots=slots)
