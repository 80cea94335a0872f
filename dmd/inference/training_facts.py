"""What is known of a model's training beside its weights: samples, commit, and what was measured of its checkpoint.

An export keeps it in its `model.json` (`ModelCard.source`), so that the README of a model that was downloaded and saved
again says the same. It belongs to certain weights: of others nothing is claimed.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from dmd.checkpoint.standing import standing
from dmd.data.targets import scoring_of
from dmd.documents import TEST_RESULT, finite, parse_object, read_document
from dmd.errors import first_line
from dmd.metrics import known_metrics
from dmd.system.trained_model import ModelCard, config_of

_log = logging.getLogger(__name__)
TRAINING = "training"
"""Key of `ModelCard.source` under which an export has the facts."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Metrics of the fused head on one split."""

    data: str
    generation: str
    split: str
    protocol: str
    samples: int | None
    metrics: dict[str, float | None]
    """Acc and F1 as shares; None: not defined."""


@dataclass(frozen=True, kw_only=True)
class TrainingFacts:
    """What a run says about one of its checkpoints."""

    counts: dict[str, int] = field(default_factory=dict)
    """Samples of each split; empty: unknown."""
    commit: str | None = None
    """Of the code, with `-dirty` where it was changed."""
    epochs: int | None = None
    """Done at the checkpoint, where it was validated."""
    published: bool = False
    """Whether the weights were imported from a file of the published code."""
    measured: tuple[Measured, ...] = ()
    """On the validation split, by the log; on the test split, where the user has evaluated it into RUN/test.json."""


def read_facts(card: ModelCard) -> TrainingFacts:
    """What the run that a model was read from says about it. What cannot be read is a warning in the log."""
    run, step = Path(card.source["run"]), card.source["step"]
    found: dict[str, Any] = {"measured": []}
    try:
        document = read_document(run)
        info = document["info"]
        found |= {"counts": info.get("counts", {}), "published": "published" in info}
        found["commit"] = _commit(document["sessions"], step)
        stands = standing(run)
        validations = () if stands is None or card.averaged else stands.validations
        valid = next((v for v in validations if v.step == step), None)
        if valid is not None:
            counts = found["counts"]
            samples = counts.get("valid") if isinstance(counts, dict) else None
            found["epochs"] = valid.epoch
            found["measured"].append(_measured(card, "valid", valid.metrics, samples=samples))
    except (ValueError, OSError) as error:
        _log.warning("warning: the model's README lacks what its run says: %s", first_line(error))
    facts = facts_from(found, str(run))
    test = _test_result(run, card)
    return facts if test is None else replace(facts, measured=(*facts.measured, test))


def facts_from(values: object, where: str) -> TrainingFacts:
    """Facts of plain values, as JSON has them, which may come from anybody.

    Raises:
        ValueError: they are of other types.
    """
    try:
        facts: TrainingFacts = TypeAdapter(TrainingFacts).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ValueError(
            f"{where}: {key or 'what it says'} of the training is damaged; export the run again, or mend its run.json"
        ) from error
    return facts


def facts_to_dict(facts: TrainingFacts) -> dict[str, Any]:
    """Plain values, for JSON."""
    content: dict[str, Any] = finite(asdict(facts))
    return content


def _measured(
    card: ModelCard, split: str, metrics: Mapping[str, float | None], *, samples: int | None
) -> dict[str, Any]:
    values = {name: metrics[name] for name in known_metrics(metrics)}
    return {
        "data": card.data["name"],
        "generation": card.data["generation"],
        "split": split,
        "protocol": scoring_of(config_of(card), card.data).protocol,
        "samples": samples,
        "metrics": {
            name: value if value is not None and math.isfinite(value) else None for name, value in values.items()
        },
    }


def _commit(sessions: list[dict[str, Any]], step: int) -> str | None:
    """The commit of the session that wrote the checkpoint of a step: the last that began before it."""
    begun = [session for session in sessions if (session.get("resume_step") or 0) < step] or sessions
    return begun[-1].get("git_commit") if begun else None


def _test_result(run: Path, card: ModelCard) -> Measured | None:
    """The test result of this checkpoint that the user has put into the run's directory."""
    path = run / TEST_RESULT
    if not path.is_file():
        return None
    result = parse_object(path.read_bytes()) or {}
    is_same = (result.get("step"), result.get("averaged", [])) == (card.source["step"], card.averaged)
    if result.get("split") != "test" or not is_same:
        _log.warning("warning: %s is of another checkpoint or split; the model's README leaves it out", path)
        return None
    metrics = result.get("metrics")
    about = {name: result.get(name) for name in ("data", "generation", "split", "protocol", "samples")}
    try:
        fused = finite(metrics.get("fused")) if isinstance(metrics, dict) else None
        measured: Measured = TypeAdapter(Measured).validate_python({**about, "metrics": fused})
    except ValidationError:
        _log.warning("warning: %s is not what `dmd evaluate` writes; the model's README leaves it out", path)
        return None
    return measured
