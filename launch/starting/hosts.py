"""The hosts of a training: DeepSpeed's hostfile, one `NAME slots=RANKS` per line."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

_LINE = re.compile(r"(\S+)\s+slots=([0-9]+)")


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


def write_hosts(hosts: Hosts, names: Collection[str], path: Path) -> Hosts:
    """A hostfile at `path` with these of the hosts, in their order."""
    slots = {name: ranks for name, ranks in hosts.slots.items() if name in names}
    path.write_text("".join(f"{name} slots={ranks}\n" for name, ranks in slots.items()), encoding="utf-8")
    return Hosts(path=path, slots=slots)


def read_hosts(path: Path) -> Hosts:
    """Read a hostfile; empty lines and lines that begin with # are skipped. DeepSpeed's launcher reads it, too, so
    what that would read differently is rejected.

    Raises:
        ValueError: a file that cannot be read or is no plain text, a line of another form, a host twice, no slot, no
            host.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"the hostfile {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"the hostfile {path} is not UTF-8 text; save it as plain text") from error
    if text.startswith("\ufeff"):
        raise ValueError(f"the hostfile {path} begins with a byte order mark; save it as UTF-8 without one")
    slots: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None or int(match[2]) == 0:
            note = "; a comment needs a line of its own" if "#" in line else ""
            raise ValueError(
                f"{path}: line {number} is {line.strip()[:80]!r}; write NAME slots=RANKS, such as node1 slots=4{note}"
            )
        if match[1].lower() in (name.lower() for name in slots):
            raise ValueError(f"{path}: line {number} names {match[1]} again; give each host one line")
        slots[match[1]] = int(match[2])
    if not slots:
        raise ValueError(f"{path} names no host; write one NAME slots=RANKS per line")
    return Hosts(path=path.absolute(), slots=slots)
