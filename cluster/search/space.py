"""Search spaces: YAML files that say which config keys vary and how.

    train.learning_rate: {loguniform: [1.0e-5, 1.0e-3]}
    model.levels: {int: [2, 5]}
    train.clip: {choice: [value, none]}
    train.clip_at: {uniform: [0.02, 0.2], when: {train.clip: value}}

A key with `when` varies only where each key it names, higher up in the file, has the given value (or one of a list);
elsewhere the preset's value holds. Spaces for the presets are in `cluster/spaces`.
"""

import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cluster.search.values import Values, with_values
from dmd.config import Config
from dmd.config.loading import all_keys, config_from_dict, config_to_dict, hint_at, parse_yaml

Draw = Callable[["Parameter"], Any]
KINDS = ("uniform", "loguniform", "int", "choice")
FIXED = {
    "data": "the shards",
    "run": "the run directory",
    "train.seed": "the seed",
    "train.epochs": "the budget",
    "train.max_steps": "the budget",
}
"""Keys that no trial may vary: trials would not be comparable, or would overwrite each other."""
_CHECKED_DRAWS = 64


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One key and how it varies."""

    key: str
    kind: str
    low: float = 0.0
    high: float = 0.0
    choices: tuple[Any, ...] = ()
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def applies(self, values: Values) -> bool:
        """Whether this key varies, given the values of keys before it."""
        return all(key in values and values[key] in allowed for key, allowed in self.when.items())

    def takes(self, value: object) -> bool:
        """Whether a `choice` or an `int` can have this value."""
        if self.kind == "choice":
            return value in self.choices
        return isinstance(value, int) and self.low <= value <= self.high

    def extremes(self) -> tuple[Any, ...]:
        """Values that a check of the space must try."""
        if self.kind == "choice":
            return self.choices
        return (int(self.low), int(self.high)) if self.kind == "int" else (self.low, self.high)


@dataclass(frozen=True)
class Space:
    """Parameters, parents before their children."""

    parameters: tuple[Parameter, ...]

    def draw(self, draw: Draw) -> Values:
        """Values of the keys that apply, each taken from `draw`."""
        values: Values = {}
        for parameter in self.parameters:
            if parameter.applies(values):
                values[parameter.key] = draw(parameter)
        return values

    def random(self, seed: int, number: int) -> Values:
        """Draw `number` of a random search: the same for the same seed, whatever was drawn before."""
        generator = random.Random(f"{seed}/{number}")
        return self.draw(lambda parameter: _random_value(parameter, generator))

    def grid(self) -> Iterator[Values]:
        """Every combination of `choice` and `int` values, in the order of the file.

        Raises:
            ValueError: a continuous parameter.
        """
        for parameter in self.parameters:
            if parameter.kind in ("uniform", "loguniform"):
                raise ValueError(
                    f"{parameter.key} is {parameter.kind}: a grid needs choice or int; list values, or use another "
                    "--search"
                )
        yield from self._combinations(0, {})

    def _combinations(self, first: int, values: Values) -> Iterator[Values]:
        if first == len(self.parameters):
            yield values
            return
        parameter = self.parameters[first]
        if not parameter.applies(values):
            yield from self._combinations(first + 1, values)
            return
        options = parameter.choices or range(int(parameter.low), int(parameter.high) + 1)
        for value in options:
            yield from self._combinations(first + 1, {**values, parameter.key: value})

    def probes(self) -> Iterator[Values]:
        """Draws that together try every choice and every bound: what a check looks at."""
        for number in range(_CHECKED_DRAWS):
            yield self.random(0, number)
        for forced in self.parameters:
            for value in forced.extremes():
                generator = random.Random(str(value))
                yield self.draw(
                    lambda p, f=forced, v=value, g=generator: v if p is f else _random_value(p, g)  # type: ignore[misc]
                )


def _random_value(parameter: Parameter, generator: random.Random) -> Any:
    low, high = parameter.low, parameter.high
    if parameter.kind == "choice":
        return generator.choice(parameter.choices)
    if parameter.kind == "int":
        return generator.randint(int(low), int(high))
    if parameter.kind == "loguniform":
        return math.exp(generator.uniform(math.log(low), math.log(high)))
    return generator.uniform(low, high)


def load_space(path: Path, base: Config) -> Space:
    """The space in a YAML file, checked against the config tree and the config whose values it varies.

    Raises:
        ValueError: what is wrong with the file, the key, or a config that the space can draw.
    """
    try:
        content = parse_yaml(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ValueError(f"the space {path} cannot be read: {error.strerror}; shipped ones: {_shipped()}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"the space {path} is no text in UTF-8: {error}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"the space {path} is no valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not content:
        raise ValueError(f"the space {path} is no mapping of keys, such as train.learning_rate: {{uniform: [a, b]}}")
    parameters: list[Parameter] = []
    for key, entry in content.items():
        parameters.append(_parameter(str(key), entry, {p.key: p for p in parameters}))
    space = Space(tuple(parameters))
    for values in space.probes():
        try:
            apply(base, values)
        except ValueError as error:
            drawn = ", ".join(f"{key}={value}" for key, value in values.items())
            raise ValueError(f"the space {path} can draw an impossible config: {error} (drawn: {drawn})") from error
    return space


def apply(base: Config, values: Values) -> Config:
    """A config with a draw's values in it.

    Raises:
        ValueError: a combination that the config tree rejects.
    """
    return config_from_dict(with_values(config_to_dict(base), values))


def _parameter(key: str, entry: Any, before: Mapping[str, Parameter]) -> Parameter:
    fixed = FIXED.get(key) or FIXED.get(key.partition(".")[0])
    if fixed:
        raise ValueError(f"the space varies {key!r}, {fixed}, which is the same for every trial; remove it")
    if key not in all_keys():
        raise ValueError(f"unknown key {key!r} in the space{hint_at(key, all_keys())}")
    kinds = [kind for kind in KINDS if isinstance(entry, dict) and kind in entry]
    if len(kinds) != 1 or set(entry) - {*KINDS, "when"}:
        raise ValueError(f"{key} is {entry!r} in the space; give it one of {', '.join(KINDS)}, and when if it depends")
    kind = kinds[0]
    when = _conditions(key, entry.get("when", {}), before)
    if kind == "choice":
        return Parameter(key=key, kind=kind, choices=_choices(key, entry[kind]), when=when)
    low, high = _bounds(key, kind, entry[kind])
    return Parameter(key=key, kind=kind, low=low, high=high, when=when)


def _choices(key: str, values: Any) -> tuple[Any, ...]:
    if not isinstance(values, list) or not values:
        raise ValueError(f"{key} has the choice {values!r}; list at least one value")
    for value in values:
        if value is not None and not isinstance(value, bool | int | float | str):
            raise ValueError(f"{key} has the choice {value!r}; a choice is a number, a text, true, false or null")
    return tuple(values)


def _bounds(key: str, kind: str, bounds: Any) -> tuple[float, float]:
    numbers = [_number(bound) for bound in bounds] if isinstance(bounds, list) else []
    if len(numbers) != 2 or not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"{key} has {kind} {bounds!r}; give [min, max], two numbers")
    low, high = numbers
    if low > high:
        raise ValueError(f"{key} has {kind} [{low}, {high}]: min is above max; swap them")
    if kind == "loguniform" and low <= 0:
        raise ValueError(f"{key} has loguniform [{low}, {high}]; min must be above 0")
    if kind == "int" and not (low.is_integer() and high.is_integer()):
        raise ValueError(f"{key} has int [{low}, {high}]; give whole numbers")
    return low, high


def _number(value: Any) -> float:
    """A bound; YAML 1.1 reads 1e-4 as text, we as a number."""
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return math.nan


def _conditions(key: str, when: Any, before: Mapping[str, Parameter]) -> dict[str, tuple[Any, ...]]:
    if not isinstance(when, dict):
        raise ValueError(f"{key} has when: {when!r}; give a mapping such as {{train.clip: value}}")
    conditions = {}
    for parent, allowed in when.items():
        if parent not in before:
            raise ValueError(f"{key} depends on {parent!r}, which is not a key above it in the space; move it up")
        kind, extremes = before[parent].kind, before[parent].extremes()
        if kind in ("uniform", "loguniform"):
            raise ValueError(f"{key} depends on {parent}, which is {kind}; only on a choice or an int can it depend")
        conditions[parent] = tuple(allowed) if isinstance(allowed, list) else (allowed,)
        if not any(before[parent].takes(value) for value in conditions[parent]):
            raise ValueError(f"{key} never applies: {parent} is {allowed!r} in its when, of {kind} {list(extremes)}")
    return conditions


def _shipped() -> str:
    return ", ".join(sorted(str(path) for path in (Path(__file__).parents[1] / "spaces").glob("*.yaml")))
