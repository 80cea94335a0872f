"""Options that mean something on a Ray cluster only."""

import argparse
from collections.abc import Iterable


def require_address(options: argparse.Namespace, names: Iterable[str], *, what: str) -> None:
    """Reject options for what runs on a cluster where the command line names none.

    Args:
        options: with `address` None. The options' defaults are None, or False of a flag.
        names: of the options, as in `options`.
        what: runs on a cluster, such as "actors".

    Raises:
        ValueError: one of them is given.
    """
    assert options.address is None
    for name in names:
        value = getattr(options, name)
        if value is not None and value is not False:
            raise ValueError(f"--{name.replace('_', '-')} is for {what} on a Ray cluster; name one with --address")
