"""What trackers are told of a run: its run.json, and the search above it."""

import shlex
from pathlib import Path
from typing import Any

from dmd.documents import EXPERIMENT, read_document
from dmd.training.logging.hyperparameters import hyperparameters
from dmd.training.logging.trackers.tracker import About, SessionEnding

_LEVELS = 3
"""How many directories above a run that of its search may lie."""


def about(run: Path) -> About:
    """What the run.json of a run says. Raises ValueError for a damaged one, OSError where it cannot be read."""
    document = read_document(run)
    config, info, session = document["config"], document["info"], document["sessions"][-1]
    search = next((above for above in run.absolute().parents[:_LEVELS] if (above / EXPERIMENT).is_file()), None)
    tags = {
        "preset": _preset(str(session.get("command", ""))),
        "seed": config.get("train", {}).get("seed"),
        "data": info.get("data_name"),
        "generation": info.get("generation"),
        "commit": session.get("git_commit"),
    }
    return About(
        run=run.absolute(),
        name=run.absolute().name if search is None else str(run.absolute().relative_to(search)),
        group=None if search is None else search.name,
        config=config,
        parameters=hyperparameters(config),
        tags={name: str(value) for name, value in tags.items() if value is not None},
    )


def ending(run: Path) -> SessionEnding:
    """How the last session of a run ended; "lost" while it goes on, too. Raises as `about`."""
    session: dict[str, Any] = read_document(run)["sessions"][-1]
    if "ended" not in session:
        return "lost"
    return "finished" if session.get("finished") else "stopped"


def _preset(command: str) -> str | None:
    """The preset that a command line names; None where it names none, as that of a rank on a Ray cluster."""
    try:
        words = shlex.split(command)
    except ValueError:
        return None
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name == "--preset" and (value or following):
            return Path(value if equals else following).name
    return None
