"""Test mode: a record of what each rank of a training did.

With `DMD_AUDIT=DIR` every rank appends a line `{"step", "epoch", "rank", "ids"}` per step that it made to a file of its
session in DIR, and `Audit.same` compares values over all ranks. Without the variable nothing is written and nothing is
compared.
"""

import json
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

from dmd.distributed.collectives import from_first_rank
from dmd.distributed.engine import Engine


class Audit:
    """The test mode of one rank's session.

    Args:
        resumed: step that the session continues from; the records of earlier sessions count up to there.
    """

    def __init__(self, engine: Engine, resumed: int) -> None:
        self._engine = engine
        folder = os.environ.get("DMD_AUDIT")
        self._path = None
        if folder:
            session = from_first_rank(engine, f"{len(list(Path(folder).iterdir())):05d}-{uuid.uuid4().hex}")
            self._path = Path(folder) / f"{session}-rank{engine.rank}.jsonl"
            self._append({"resumed": resumed})

    @property
    def on(self) -> bool:
        """Whether there is something to write to."""
        return self._path is not None

    def step(self, *, epoch: int, step: int, ids: Sequence[str]) -> None:
        """Note the samples that this rank consumed in a step."""
        self._append({"step": step, "epoch": epoch, "rank": self._engine.rank, "ids": list(ids)})

    def same(self, **values: Any) -> None:
        """Assert that every rank holds the same values."""
        if self.on and self._engine.num_ranks > 1:
            everyone: list[Any] = [None] * self._engine.num_ranks
            dist.all_gather_object(everyone, values)
            assert all(other == values for other in everyone), f"ranks disagree: {everyone}"

    def _append(self, line: dict[str, Any]) -> None:
        assert self._path is not None
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
