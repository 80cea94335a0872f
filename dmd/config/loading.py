"""Configs from YAML presets and dotted overrides.

    load_config("mosi-aligned", ["train.learning_rate=5e-5", "model.levels=2"])

An unknown key or an impossible value is a ValueError that names the key, the value and the nearest valid one.
"""

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from importlib.resources import files
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from dmd.config.schema import Config

_PRESETS = files("dmd.config").joinpath("presets")


class _Loader(yaml.SafeLoader):
    """YAML's safe loader with the booleans of YAML 1.2: `off`, which YAML 1.1 reads as false, is a word here.

    A key that is there twice is an error, not the last one; aliases, by which a small file can mean a huge value, are
    none of our language.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping whose keys differ."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                problem = f"the key {key.value!r} is there twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """A node that is written out."""
        if self.check_event(yaml.events.AliasEvent):
            problem, mark = "an alias; write the value out", self.get_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, problem, mark)
        return super().compose_node(parent, index)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


_LARGEST_FILE = 1 << 20
"""Characters of a preset that are read."""


def parse_yaml(text: str) -> Any:
    """The value of a YAML text, plain values only. Switches of a config take `on`, `off`, `yes` and `no` as well.

    Raises:
        yaml.YAMLError: no YAML, or tags that name other types.
    """
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    except (RecursionError, ValueError, TypeError) as error:  # such as a date of month 13
        reason = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise yaml.YAMLError(reason) from error
    finally:
        loader.dispose()


def preset_names() -> list[str]:
    """Names that `load_config` knows."""
    return sorted(p.name.removesuffix(".yaml") for p in _PRESETS.iterdir() if p.name.endswith(".yaml"))


def preset_comment(name: str) -> str:
    """The first line of a shipped preset: what it is for and where its values come from."""
    with _PRESETS.joinpath(f"{name}.yaml").open(encoding="utf-8") as stream:
        return stream.readline().removeprefix("#").strip()


def read_preset(name: str) -> dict[str, Any]:
    """The values that a preset sets: a shipped one by name, or a YAML file by path.

    Raises:
        ValueError: unknown name, or a file that is not a YAML mapping.
    """
    if name.endswith((".yaml", ".yml")):
        try:
            with open(name, encoding="utf-8-sig") as stream:
                text = stream.read(_LARGEST_FILE)
        except UnicodeDecodeError as error:
            raise ValueError(f"preset file {name!r} is no text in UTF-8: {error}") from error
        except OSError as error:
            raise ValueError(f"preset file {name!r} cannot be read: {error.strerror}") from error
    elif name in preset_names():
        text = _PRESETS.joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    else:
        raise ValueError(f"unknown preset {name!r}{nearest(name, preset_names())}; a path must end in .yaml")
    try:
        values = parse_yaml(text)
    except yaml.YAMLError as error:
        raise ValueError(f"preset {name!r} is no valid YAML: {' '.join(str(error).split())}") from error
    if values is None:  # an empty file
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"preset {name!r} holds a {type(values).__name__}, not a mapping of sections")
    return values


def load_config(preset: str | None = None, overrides: Sequence[str] = ()) -> Config:
    """A config from a preset (or the defaults) and `section.key=value` overrides; later ones win.

    Raises:
        ValueError: unknown preset or key, or an impossible value.
    """
    values = {} if preset is None else read_preset(preset)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ValueError(f"override {override!r} is not of the form section.key=value")
        _set(values, key.strip(), _scalar(key, text))
    return config_from_dict(values)


def config_from_dict(values: Mapping[str, Any]) -> Config:
    """A config from nested values, as `config_to_dict` gives them.

    Raises:
        ValueError: unknown key or impossible value.
    """
    _check_keys(values, Config, "")
    try:
        config: Config = TypeAdapter(Config).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "value_error":
            raise ValueError(str(first["ctx"]["error"])) from error
        key = ".".join(str(part) for part in first["loc"] if part in _all_names())
        raise ValueError(f"{key} is {first['input']!r:.200}; {first['msg'][0].lower()}{first['msg'][1:]}") from error
    for section, inner in config_to_dict(config).items():
        for name, value in inner.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{section}.{name} is {value}; it must be a finite number")
    return config


def written_config(values: Mapping[str, Any]) -> Config:
    """The config that a run, a checkpoint or an export holds. Where it names no task, it is older than other tasks than
    sentiments.

    Raises:
        ValueError: as `config_from_dict`.
    """
    model = values.get("model", {})
    has_task = not isinstance(model, Mapping) or "task" in model
    return config_from_dict(values if has_task else {**values, "model": {**model, "task": "regression"}})


def config_to_dict(config: Config) -> dict[str, Any]:
    """Nested plain values, for JSON and YAML."""
    return asdict(config)


def all_keys() -> list[str]:
    """Every dotted key of the config tree."""
    return [f"{s.name}.{key}" for s in fields(Config) for key in _names(_section(s.name))]


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for an unknown name: those that it abbreviates or ends, one that it begins, the nearest, else all."""
    known = list(known)
    section, _, key = name.rpartition(".")
    meant = [
        candidate
        for candidate in known
        if candidate.rpartition(".")[0] == section or (not section and "." in candidate)
        if key in (candidate.rpartition(".")[2], "".join(word[0] for word in _words(candidate)))
    ]
    if meant:
        return f", did you mean {' or '.join(map(repr, meant))}?"
    begun = [candidate for candidate in known if candidate.startswith(name)]
    close = begun or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


def _words(key: str) -> list[str]:
    return key.rpartition(".")[2].split("_")


def _scalar(key: str, text: str) -> Any:
    """A value of the command line, read as YAML; 1e-4 is a number here too (YAML 1.1 asks for 1.0e-4)."""
    try:
        value = parse_yaml(text)
    except yaml.YAMLError as error:
        raise ValueError(f"the value of {key}, {text!r}, is no valid YAML") from error
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _section(name: str) -> type:
    section = Config.__dataclass_fields__[name].type
    assert isinstance(section, type)
    return section


def _names(section: type) -> list[str]:
    assert is_dataclass(section)
    return [f.name for f in fields(section)]


def _all_names() -> set[str]:
    return {part for key in all_keys() for part in key.split(".")}


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    section, dot, name = key.partition(".")
    if key not in all_keys():
        raise ValueError(f"unknown config key {key!r}{nearest(key, all_keys())}")
    assert dot
    inner = values.setdefault(section, {})
    if not isinstance(inner, dict):
        raise ValueError(f"config section {section!r} is {inner!r}, not a mapping")
    inner[name] = value


def _check_keys(values: Mapping[str, Any], kind: type, prefix: str) -> None:
    for key, value in values.items():
        if key not in _names(kind):
            raise ValueError(f"unknown config key {prefix + str(key)!r}{nearest(prefix + str(key), all_keys())}")
        if not prefix:
            if not isinstance(value, Mapping):
                raise ValueError(f"config section {key!r} is {value!r}, not a mapping")
            _check_keys(value, _section(key), f"{key}.")
