"""What a run directory says in JSON, written with null for what is not finite, and read as input from elsewhere: parsed
is validated.

Whoever reads run.json, a line of metrics.jsonl or the state of a checkpoint gets it from here, whole and of the right
types, or a `ValueError` of one line.
"""

import json
import math
from pathlib import Path
from typing import Any, get_args

from data_shards.durable import Unreadable, read_regular
from data_shards.format.schema import names_tokenizer
from data_shards.labels import Protocol

RUNS = Path("runs")
"""Folder of runs whose names nobody has given, in the working directory."""
DOCUMENT = "run.json"
NONFINITE = "nonfinite"
"""Folder of a run: which samples the steps had that could not be applied."""
TRIAL = "trial.json"
"""In the run of a trial: what its search knows of it."""
TEST_RESULT = "test.json"
"""What `dmd evaluate RUN --split test --json RUN/test.json`, and an experiment, writes beside it."""
LINES = "metrics.jsonl"
"""The log of a run as JSON lines."""
EXPORTED, EXPORTED_ENSEMBLE = "model.json", "ensemble.json"
"""In what `dmd export` writes (`dmd.inference.export`, `dmd.inference.model_files`)."""
EXPERIMENT = "experiment.json"
"""What a search or an experiment was asked for, in the directory above its runs."""
STATE_PARTS: dict[str, type | tuple[type, ...]] = {
    "version": int,
    "cursor": dict,
    "config": dict,
    "schedule": dict,
    "best_step": (int, type(None)),
    "data": dict,
    "text_encoder": (dict, type(None)),
}
DATA_PARTS: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "generation": str,
    "text_kind": str,
    "dims": dict,
    "lengths": dict,
}
_OR_NONE = (int, type(None))
_LARGEST = 1 << 31
"""Elements of one sample of a modality that a model may be declared for."""


def finite(value: Any) -> Any:
    """The same JSON value with null for every number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value


def encode(content: Any, *, indent: int | None = None) -> bytes:
    """JSON as we write it, with null for every number that is not finite."""
    return json.dumps(finite(content), indent=indent, allow_nan=False).encode()


def parse_object(text: bytes | str) -> dict[str, Any] | None:
    """A JSON object, or None for anything else: no JSON, another value, nested too deep."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def parse_line(text: bytes | str) -> dict[str, Any] | None:
    """A line of metrics.jsonl: a step, and a number or null by tag; None for anything else."""
    line = parse_object(text)
    if line is None or not _is_count(line.get("step")):
        return None
    tags = {tag: value for tag, value in line.items() if "/" in tag}
    numeric = all(value is None or _is_number(value) for value in tags.values()) and _is_number(line.get("time", 0))
    return line if numeric else None


def read_document(run: Path) -> dict[str, Any]:
    """The run.json of a run, with its `config`, `info` and `sessions` of the types that they have.

    Raises:
        ValueError: none, a damaged one, or that of something else.
        Unreadable: it cannot be looked at.
    """
    path = run / DOCUMENT
    try:
        with read_regular(path) as file:
            document = parse_object(file.read())
    except (FileNotFoundError, NotADirectoryError) as error:
        what = "an export, which `dmd predict` reads" if is_exported(run) else "not the directory of a run"
        raise ValueError(
            f"{run} has no readable {DOCUMENT}: {what}; give a directory that `dmd train --run` was given"
        ) from error
    except OSError as error:
        raise Unreadable(f"{path} cannot be read: {error.strerror}; nothing was decided over it or changed") from error
    if document is None:
        raise ValueError(f"{path} is not a JSON object; name the directory of a run, or restore the file")
    _check_parts(document, {"config": dict, "info": dict, "sessions": list}, str(path))
    if not all(isinstance(session, dict) for session in document["sessions"]):
        raise ValueError(f"{path} has sessions that are no objects; restore the file")
    if any(session.get("finished") and not _is_count(session.get("last_step")) for session in document["sessions"]):
        raise ValueError(f"{path} has a session that was finished at no step; restore the file")
    return document


def is_exported(path: Path) -> bool:
    """Whether a directory looks like one that `dmd export` wrote, of a model or of an ensemble."""
    return any((path / name).exists() for name in (EXPORTED, EXPORTED_ENSEMBLE))


def check_state(state: dict[str, Any], where: str) -> None:
    """Raise ValueError unless the state of a checkpoint has all that a model is built of."""
    _check_parts(state, STATE_PARTS, where)
    check_data(state["data"], where)
    check_text_base(state.get("text_base"), where)


def check_course(state: dict[str, Any], where: str) -> None:
    """Raise ValueError unless the state of a checkpoint also says, as a resume needs it, how far the training is."""
    check_state(state, where)
    _check_parts({"averaged_steps": None, **state}, {"nonfinite_in_a_row": int, "averaged_steps": _OR_NONE}, where)
    cursor, schedule = state["cursor"], state["schedule"]
    if set(cursor) != {"epoch", "step"} or not all(_is_count(value) for value in cursor.values()):
        raise ValueError(f"{where}: cursor is {cursor!r:.80}; it must be an epoch and a step")
    numbers: dict[str, Any] = {"best_loss": (int, float), "best_epoch": int, "best_step": int}
    _check_parts(schedule, {**numbers, "plateau": dict, "learning_rates": list}, f"{where}, schedule")
    for name, value in schedule["plateau"].items():
        parts = value if isinstance(value, list) else [value]
        if not all(isinstance(part, str) or _is_number(part) for part in parts):
            raise ValueError(f"{where}: {name} of the schedule is {value!r:.40}, of another type than it must be")
    if not all(map(_is_number, [*schedule["learning_rates"], *(schedule[name] for name in numbers)])):
        raise ValueError(f"{where}: the schedule holds {schedule['learning_rates']!r:.40} as learning rates")


def check_data(data: dict[str, Any], where: str) -> None:
    """Raise ValueError unless this says of which shapes a model's input is."""
    _check_parts(data, DATA_PARTS, where)
    if data["text_kind"] not in ("features", "tokens"):
        raise ValueError(f"{where}: text_kind is {data['text_kind']!r:.40}; it must be features or tokens")
    if data.get("tokenizer") and not names_tokenizer(data["tokenizer"]):
        raise ValueError(f"{where}: tokenizer is {data['tokenizer']!r:.80}; it must have name and digest")
    _check_labels(data, where)
    for name in ("dims", "lengths"):
        for modality in ("text", "audio", "vision"):
            least = 0 if name == "dims" and modality == "text" and data["text_kind"] == "tokens" else 1
            size = data[name].get(modality)
            if type(size) is not int or not least <= size < _LARGEST:
                raise ValueError(f"{where}: {name} of {modality} is {size!r:.40}; it must be at least {least}")
    for modality in ("text", "audio", "vision"):
        if data["dims"][modality] * data["lengths"][modality] >= _LARGEST:
            raise ValueError(f"{where}: a sample of {modality} would have {_LARGEST} numbers or more")


def _check_labels(data: dict[str, Any], where: str) -> None:
    """Raise ValueError unless what this says of labels, of which older programs say less, can be read."""
    scale, offset = data.get("label_scale", 1.0), data.get("label_offset", 0.0)
    if not (_is_number(scale) and 0 < scale < math.inf and _is_number(offset) and math.isfinite(offset)):
        raise ValueError(f"{where}: labels have the scale {scale!r:.40} and the offset {offset!r:.40}, which are none")
    for name in ("class_names", "emotions"):
        names = data.get(name, [])
        if not isinstance(names, list | tuple) or not all(isinstance(word, str) for word in names):
            raise ValueError(f"{where}: {name} is {names!r:.40}; it must be a list of names")
    known = get_args(Protocol)
    if data.get("protocol", "") not in ("", *known):
        raise ValueError(f"{where}: protocol is {data['protocol']!r:.40}; it must be one of {', '.join(known)}")


def check_text_base(base: object, where: str) -> None:
    """Raise ValueError unless this names the weights of a text encoder, or is None."""
    if base is not None and not isinstance(base, dict):
        raise ValueError(f"{where}: text_base is {base!r:.40}, of another type than it must be")
    if base is not None:
        _check_parts(base, {"name": str, "sha256": str}, f"{where}, text_base")
        if set(base) != {"name", "sha256"}:
            raise ValueError(f"{where}: text_base has the parts {sorted(base)!r:.80}; it must have name and sha256")


def _check_parts(content: dict[str, Any], parts: dict[str, Any], where: str) -> None:
    for name, kind in parts.items():
        if name not in content:
            raise ValueError(f"{where} lacks {name!r}; it is damaged or of another program")
        if not isinstance(content[name], kind) or isinstance(content[name], bool):
            raise ValueError(f"{where}: {name} is {content[name]!r:.40}, of another type than it must be")


def _is_count(value: object) -> bool:
    """Whether a value is a number of steps, epochs or the like, as numpy and TensorBoard hold it."""
    return type(value) is int and 0 <= value < 1 << 63


def _is_number(value: object) -> bool:
    """Whether a value is a number that a float holds."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, float) or abs(value) < 1 << 1023
