"""One attempt at a time per run directory: a later attempt shuts out an earlier one that may still be alive.

A node that lost its link goes on training for a while; its trial is meanwhile started elsewhere, from the same run
directory. Each attempt leaves its token there, and asks at every step whether it is still the one.
"""

import uuid
from pathlib import Path

from dmd.training.durable import replace_file


class Fence:
    """The right to write to a run directory, until someone else takes it."""

    def __init__(self, run: Path) -> None:
        run.mkdir(parents=True, exist_ok=True)
        self._path, self._token = run / "attempt", uuid.uuid4().hex.encode()
        replace_file(self._path, self._token)

    def check(self) -> None:
        """Raise RuntimeError if a later attempt has taken over."""
        if self._path.read_bytes() != self._token:
            raise RuntimeError(f"a later attempt has taken over {self._path.parent}; this one ends")
