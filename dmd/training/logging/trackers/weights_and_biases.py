"""Weights & Biases: its own process, wandb-core, stores what it is given in RUN/wandb and uploads it from there."""

import io
import os
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING

from data_shards.places import redact
from dmd.training.logging.trackers.tracker import DEFAULT_PROJECT, About, Picture, SessionEnding, Step

if TYPE_CHECKING:
    import wandb

_INIT_SECONDS = 30.0
_LONGEST_TAG = 64
_STOPPED, _LOST = 75, 1
"""Exit codes that end a session otherwise than by itself."""
_UPLOAD_SHARE = 0.6
"""Share of the patience that an upload at the end gets; the rest is for wandb-core to end."""


class WeightsAndBiasesRun:
    """A run of Weights & Biases; see `Tracker`."""

    def __init__(self) -> None:
        self._run: wandb.Run | None = None
        self._last = 0
        self._new = uuid.uuid4().hex[:12]  # the same for every attempt to begin

    def failures(self) -> tuple[type[Exception], ...]:
        """Its own errors, and what its client lets through."""
        import wandb.errors

        return (wandb.errors.Error, OSError)

    def place(self) -> str:
        """Server, entity and project, and whether it is offline, from its environment variables."""
        get = os.environ.get
        parts = [get("WANDB_BASE_URL", "https://api.wandb.ai"), get("WANDB_ENTITY", ""), _project()]
        offline = " offline" if get("WANDB_MODE") == "offline" else ""
        return redact("/".join(filter(None, parts))) + offline

    def open(self, about: About, identity: str | None, *, patience: float) -> str:
        """See `Tracker`."""
        import wandb

        identity = identity or self._new
        self._run = wandb.init(
            project=_project(),
            id=identity,
            resume="allow",
            name=about.name,
            group=about.group,
            config=dict(about.config),
            tags=[f"{key}:{value}"[:_LONGEST_TAG] for key, value in about.tags.items()],
            dir=os.environ.get("WANDB_DIR", about.run),
            settings=wandb.Settings(
                console="off",
                disable_code=True,
                disable_git=True,
                finish_timeout=_UPLOAD_SHARE * patience,
                finish_timeout_raises=True,
                init_timeout=_INIT_SECONDS,
                silent=True,
                x_disable_stats=True,
            ),
        )
        return identity

    def describe(self, about: About) -> None:
        """See `Tracker`. What a resume has changed replaces what was there."""
        assert self._run is not None
        self._run.config.update(dict(about.config), allow_val_change=True)  # type: ignore[no-untyped-call]

    def send(self, steps: Sequence[Step]) -> None:
        """See `Tracker`."""
        assert self._run is not None
        for step in steps:
            self._last = step.step
            self._run.log(dict(step.numbers), step=step.step)

    def show(self, picture: Picture) -> None:
        """See `Tracker`. It goes to the last step, since Weights & Biases takes nothing for earlier ones."""
        import wandb
        from PIL import Image

        assert self._run is not None
        image = wandb.Image(Image.open(io.BytesIO(picture.png)), caption=f"step {picture.step}")
        self._run.log({picture.tag: image}, step=max(self._last, picture.step))

    def close(self, ending: SessionEnding) -> None:
        """See `Tracker`. Raises TimeoutError where the server does not take the rest in time: it is in RUN/wandb."""
        assert self._run is not None
        if ending == "stopped":
            self._run.mark_preempting()
        try:
            self._run.finish(exit_code={"finished": 0, "stopped": _STOPPED, "lost": _LOST}[ending])
        except TimeoutError as error:
            folder = os.path.dirname(self._run.dir)
            raise TimeoutError(f"the server has not taken all of it; `wandb sync {folder}` sends the rest") from error


def _project() -> str:
    return os.environ.get("WANDB_PROJECT") or DEFAULT_PROJECT
