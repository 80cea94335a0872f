"""MLflow: a server, a database or a directory, by MLFLOW_TRACKING_URI."""

import io
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from data_shards.places import redact
from dmd.training.logging.trackers.tracker import DEFAULT_PROJECT, About, Picture, SessionEnding, Step

if TYPE_CHECKING:
    from mlflow import MlflowClient

_METRICS_AT_ONCE, _PARAMETERS_AT_ONCE = 1000, 100
"""Limits of MLflow's interface."""
_LONGEST_PARAMETER = 6000
_NO_NAME = re.compile(r"[^/\w.\- :]")
"""Characters that MLflow takes in no name."""
_PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
"""For one request, unless the user has set it: the sender tries again by itself."""
_STATUS: dict[SessionEnding, str] = {"finished": "FINISHED", "stopped": "KILLED", "lost": "FAILED"}


class MLflowRun:
    """A run of MLflow; see `Tracker`."""

    def __init__(self) -> None:
        self._client: MlflowClient | None = None
        self._identity = ""

    def failures(self) -> tuple[type[Exception], ...]:
        """Its own errors, those of the network, and a database's library that is missing."""
        from mlflow.exceptions import MlflowException

        return (MlflowException, OSError, ImportError)

    def place(self) -> str:
        """The tracking URI."""
        import mlflow

        return redact(mlflow.get_tracking_uri())

    def open(self, about: About, identity: str | None, *, patience: float) -> str:
        """See `Tracker`."""
        for name, value in _PATIENCE.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        self._client = client = MlflowClient()
        if identity is None:
            identity = client.create_run(self._experiment(), run_name=about.name).info.run_id
        else:
            client.update_run(identity, status="RUNNING")
        self._identity = identity
        return identity

    def describe(self, about: About) -> None:
        """See `Tracker`."""
        from mlflow.entities import Param, RunTag

        assert self._client is not None
        client, identity = self._client, self._identity
        known = client.get_run(identity).data.params
        parameters = {
            _NO_NAME.sub("_", key): str(value)[:_LONGEST_PARAMETER] for key, value in about.parameters.items()
        }
        tags = {**about.tags, **({} if about.group is None else {"group": about.group})}
        new = [Param(key, value) for key, value in parameters.items() if key not in known]
        for first in range(0, len(new), _PARAMETERS_AT_ONCE):
            client.log_batch(identity, params=new[first : first + _PARAMETERS_AT_ONCE])
        # A parameter never changes; what a resume has changed is a tag.
        tags |= {key: value for key, value in parameters.items() if known.get(key, value) != value}
        client.log_batch(identity, tags=[RunTag(key, value) for key, value in tags.items()])

    def _experiment(self) -> str:
        """The identity of the experiment, which is made where there is none."""
        from mlflow.exceptions import MlflowException

        assert self._client is not None
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or DEFAULT_PROJECT
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return self._client.create_experiment(name)
            except MlflowException:  # another trial has just made it
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        return found.experiment_id

    def send(self, steps: Sequence[Step]) -> None:
        """See `Tracker`. Numbers keep their time, so that a server stores none twice that is sent again."""
        from mlflow.entities import Metric

        assert self._client is not None
        metrics = [
            Metric(_NO_NAME.sub("_", tag), value, int(1000 * step.time), step.step)
            for step in steps
            for tag, value in step.numbers.items()
        ]
        for first in range(0, len(metrics), _METRICS_AT_ONCE):
            self._client.log_batch(self._identity, metrics=metrics[first : first + _METRICS_AT_ONCE])

    def show(self, picture: Picture) -> None:
        """See `Tracker`."""
        from PIL import Image

        assert self._client is not None
        image = Image.open(io.BytesIO(picture.png))
        self._client.log_image(self._identity, image, key=picture.tag, step=picture.step)

    def close(self, ending: SessionEnding) -> None:
        """See `Tracker`."""
        assert self._client is not None
        self._client.set_terminated(self._identity, status=_STATUS[ending])
