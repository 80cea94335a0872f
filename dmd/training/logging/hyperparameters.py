"""What TensorBoard's hyperparameter page reads of a run: its config, and the validation of its best checkpoint."""

import json
from typing import Any

Hyperparameter = bool | int | float | str
"""What TensorBoard takes for one."""
BEST = "best_valid"
"""Kind of the numbers of the checkpoint that `dmd evaluate` takes."""
DESCRIPTION_SUFFIX = ".search"
"""How the name of an event file ends that describes the hyperparameters of all runs below its directory."""


def hyperparameter(value: object) -> Hyperparameter:
    """A config value as TensorBoard takes it: what is no number nor text is spelled as JSON."""
    return value if isinstance(value, (bool, int, float, str)) else json.dumps(value)


def hyperparameters(config: dict[str, Any], prefix: str = "") -> dict[str, Hyperparameter]:
    """A nested config as hyperparameters with dotted names."""
    flat: dict[str, Hyperparameter] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flat |= hyperparameters(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = hyperparameter(value)
    return flat
