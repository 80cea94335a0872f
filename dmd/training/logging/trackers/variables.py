"""Environment variables of trackers: what of them goes to ranks on a Ray cluster, and to the processes that send."""

from collections.abc import Mapping, Sequence

_PREFIXES = ("MLFLOW_", "WANDB_")
_OF_ONE_PROCESS = ("WANDB_RUN_ID", "WANDB_SERVICE")
"""They would make one run of many, or tie processes to another one."""


def without_ties(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment for a process that sends."""
    return {name: value for name, value in environment.items() if name not in _OF_ONE_PROCESS}


def tracker_variables(trackers: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """The variables by which a command's user has set up the trackers of its config; keys of an API are among them."""
    if not trackers:
        return {}
    return {name: value for name, value in without_ties(environment).items() if name.startswith(_PREFIXES)}
