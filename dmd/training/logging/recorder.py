"""The record of a run, written by one rank: TensorBoard, the same numbers as JSON lines, and what the run was.

    RUN/events.out.tfevents.*   TensorBoard: scalars by tag `KIND/NAME`, hyperparameters, figures in the same file
    RUN/STEP/, RUN/projector_config.pbtxt   features for TensorBoard's projector
    RUN/metrics.jsonl           {"step": 42, "time": 1760000000.0, "kind": "train", "train/loss": 1.25, ...}
    RUN/run.json                config, data, versions, and one entry per session (start or resume)

Kinds are `train` (a step), `valid` and `valid_heads` (a validation on the valid split: fused head, all heads),
`best_valid` (the same numbers again where `dmd evaluate` takes that step's checkpoint: its last value is the best, and
what the hyperparameter page shows) and `final`. Acc and F1 are shares in [0, 1] in both logs.

A number that is not finite is null in the JSON lines. A resume at step s leaves what the log says up to s, and takes
up from there: no step is missing, none is there twice.
"""

import errno
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, cast

from torch import Tensor
from torch.utils.tensorboard.summary import hparams
from torch.utils.tensorboard.writer import FileWriter

from data_shards.durable import is_same_file, replace_file
from dmd.checkpoint.standing import STORED_UNTIL
from dmd.documents import DOCUMENT, LINES, encode, finite, read_document
from dmd.evaluation.evaluate import Evaluation
from dmd.training.logging.costs import CostMeter
from dmd.training.logging.hyperparameters import BEST, DESCRIPTION_SUFFIX, hyperparameters
from dmd.training.logging.provenance import provenance
from dmd.training.logging.record_files import cut_lines, draw, open_event_file
from dmd.training.logging.tensorboard_figures import Features, config_text, figures
from dmd.training.logging.tensorboard_layout import Layout

_DESCRIPTION_LEVELS = 2
"""How many directories above a run such a file may lie."""


class Recorder:
    """Writes the record of a run from its start or a resume until `close`."""

    def __init__(
        self,
        run: Path,
        *,
        config: dict[str, Any],
        info: dict[str, Any],
        resume_step: int | None,
        compare: Sequence[str] = (f"{BEST}/loss",),
        stored_losses_until: int | None = None,
        layout: Layout | None = None,
    ) -> None:
        """Open the record of the run directory `run`, which is made if it is missing.

        `config` (nested, JSON-able) becomes the hyperparameters; `info` (data generation, ranks, ...) goes to run.json
        beside it; `compare` names the tags that TensorBoard's hyperparameter page shows as metrics, `layout` is that of
        its page of custom scalars. With `resume_step` None the record starts empty, whatever an earlier start left in
        `run`. A run below the directory of a search adds its values to the search's page and describes none of its own:
        TensorBoard shows the first description that it meets, in no certain order. `stored_losses_until` is the step up
        to which an older program logged losses on the scale of the shards (`dmd.checkpoint.standing`); None: it did
        nowhere.

        Raises ValueError for a damaged metrics.jsonl or run.json, OSError if the storage fails.
        """
        run.mkdir(parents=True, exist_ok=True)
        self._document_path = run / DOCUMENT
        self._lines_path = run / LINES
        self._resume_step = resume_step
        self._last_step = resume_step or 0
        earlier = _earlier(self._document_path)
        changed = {} if resume_step is None else _changes(earlier.get("config", {}), config)
        session = {"started": _now(), "resume_step": resume_step, "changed": changed, **provenance()}
        if stored_losses_until is not None:
            session[STORED_UNTIL] = stored_losses_until
        self._costs = CostMeter(str(info.get("device", "cpu")))
        sessions = [*earlier.get("sessions", []), session]
        self._document: dict[str, Any] = {"config": config, "info": info, "sessions": sessions}
        self._write_document()
        at_resume = cut_lines(self._lines_path, resume_step)
        self._present = {tag for line in at_resume for tag in line if "/" in tag}
        self._lines = os.open(self._lines_path, os.O_WRONLY | os.O_APPEND)
        former = set(run.glob("events.out.tfevents.*"))
        self._event_file = open_event_file(run, resume_step)
        self._events = cast(FileWriter, self._event_file.file_writer)
        experiment, session_start, self._session_end = hparams(hyperparameters(config), dict.fromkeys(compare, 0.0))
        for summary in (session_start,) if _described(run) else (experiment, session_start):
            self._events.add_summary(summary)
        if layout is not None:
            self._event_file.add_custom_scalars(layout)
        if resume_step is None:
            self._event_file.add_text("config", config_text(config, info))
        for line in at_resume:
            draw(self._event_file, line)
        self._event_file.flush()
        events = set(run.glob("events.out.tfevents.*")) - former
        self._open = {path: os.open(path, os.O_RDONLY) for path in (run, *events)} | {self._lines_path: self._lines}

    def look(self) -> None:
        """Raise OSError where the run directory or a log is gone, or is not what its name leads to any more."""
        for path, handle in self._open.items():
            if not is_same_file(handle, path):
                what = "replaced by another" if path.exists() else "removed"
                raise OSError(errno.ESTALE, f"{path} was {what} while this training writes to it")

    def abandon(self) -> None:
        """Let go of the files as they are, and of TensorBoard's thread."""
        self._close_files()
        with suppress(OSError):
            self._event_file.close()

    def scalars(self, step: int, values: dict[str, float], *, kind: str) -> None:
        """Record numbers of one step, durable against the death of this process when the call returns.

        `kind` is "train", "valid", "epoch", ...; a number's tag is `KIND/NAME`. What the log of a resumed run already
        holds of the resume step itself is not written again. Raises OSError, naming the file, if the storage fails.
        """
        tags = {f"{kind}/{name}": float(value) for name, value in values.items()}
        if step == self._resume_step:
            tags = {tag: value for tag, value in tags.items() if tag not in self._present}
        if not tags:
            return
        self._last_step = max(self._last_step, step)
        self._costs.look()
        line = {"step": step, "time": time.time(), "kind": kind, **tags}
        self._append(encode(line) + b"\n")
        draw(self._event_file, line)
        self._event_file.flush()

    def pictures(self, step: int, edges: dict[str, Tensor], evaluation: Evaluation) -> None:
        """Show mean edges {space: [6]} beside their prior, and a validation. Raises OSError if the storage fails."""
        prior = str(self._document["config"]["objective"]["prior"])
        for tag, figure in figures(edges, prior, evaluation).items():
            self._event_file.add_figure(tag, figure, step)
        self._event_file.flush()

    def features(self, step: int, features: Sequence[Features]) -> None:
        """Give points to the projector. Raises OSError if the storage fails."""
        for space, points, about in features:
            header, rows = list(about), list(zip(*about.values(), strict=True))
            self._event_file.add_embedding(points, metadata=rows, metadata_header=header, global_step=step, tag=space)

    def close(self, metrics: dict[str, float] | None) -> None:
        """End the session: finished, with these final metrics (kind "final"), or with None to be resumed later."""
        if metrics is not None:
            self.scalars(self._last_step, metrics, kind="final")
            self._events.add_summary(self._session_end)
            self._document["metrics"] = metrics
        ended = {
            "ended": _now(),
            "last_step": self._last_step,
            "finished": metrics is not None,
            "costs": self._costs.facts(),
        }
        self._document["sessions"][-1] |= ended
        os.fsync(self._lines)
        self._close_files()
        self._event_file.close()
        self._write_document()

    def _close_files(self) -> None:
        """Close what is open, each once: where this or what follows fails, `abandon` is called."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _write_document(self) -> None:
        replace_file(self._document_path, encode(self._document, indent=1))

    def _append(self, line: bytes) -> None:
        """Append a line, or nothing of it."""
        size = os.fstat(self._lines).st_size
        try:
            if os.write(self._lines, line) < len(line):  # a full disk takes what still fits
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            os.ftruncate(self._lines, size)
            raise OSError(error.errno, f"cannot append to {self._lines_path}: {error.strerror}") from error


def _described(run: Path) -> bool:
    """Whether a search above the run says what TensorBoard's hyperparameter page shows."""
    above = list(run.absolute().parents)[:_DESCRIPTION_LEVELS]
    return any(next(folder.glob(f"events.out.tfevents.*{DESCRIPTION_SUFFIX}"), None) for folder in above)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _earlier(path: Path) -> dict[str, Any]:
    """What an earlier session wrote to run.json."""
    if not path.exists():
        return {}
    try:
        return read_document(path.parent)
    except ValueError as error:
        raise ValueError(f"{error}; or move it away, a new one will be written") from error


def _changes(before: dict[str, Any], now: dict[str, Any]) -> dict[str, list[Any]]:
    """{dotted key: [before, now]} of the config values that a resume changed; keys of newer programs do not count."""
    old, new = hyperparameters(before), hyperparameters(finite(now))
    return {key: [old[key], new[key]] for key in new if key in old and old[key] != new[key]}
