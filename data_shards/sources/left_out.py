"""How sources name what they leave out: entries of `DatasetInfo.ignored`, each with its count."""

from collections.abc import Mapping, Sequence

_MAX_NAMED = 8


def counted(what: str, count: int) -> dict[str, int]:
    """An entry with a count; none where there is nothing to count."""
    return {what: count} if count else {}


def named(what: str, names: Sequence[str]) -> dict[str, int]:
    """An entry that counts some things and names the first of them; none where there are none."""
    return counted(f"{what}: {some(names)}", len(names))


def some(names: Sequence[str]) -> str:
    """The first of some names."""
    return ", ".join(names[:_MAX_NAMED]) + (", ..." if len(names) > _MAX_NAMED else "") or "none"


def add_counts(mine: dict[str, int], theirs: Mapping[str, int]) -> None:
    """Add counts to others, by name."""
    for name, count in theirs.items():
        mine[name] = mine.get(name, 0) + count
