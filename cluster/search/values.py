"""What a search draws for one trial, and a config's tree with it. No torch: a trial's driver reads this module."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

Values = dict[str, Any]
"""By dotted key."""


def with_values(tree: Mapping[str, Any], values: Values) -> dict[str, Any]:
    """A copy of a config, as `config_to_dict` gives it, with other values of some keys."""
    changed = deepcopy(dict(tree))
    for key, value in values.items():
        section, _, name = key.partition(".")
        changed[section][name] = value
    return changed
