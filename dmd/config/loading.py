"""Configs from presets, files and dotted overrides.

    load_config("mosi-aligned", ["train.learning_rate=5e-5", "model.levels=2"], file="mine.yaml")

An unknown key or an impossible value is a ValueError that names the key, the value and the nearest valid one.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from data_shards.command_line import did_you_mean
from dmd.config.preset_files import preset_names, preset_text
from dmd.config.schema import Config
from dmd.documents import DOCUMENT, parse_object

_YAML, _JSON = (".yaml", ".yml"), ".json"
_RUN_CONFIG = "config"
"""Key of a run's document that holds its config."""


_UNUSUAL = {
    "tag:yaml.org,2002:int": re.compile(r"^[-+]?0[0-9xb]|[:_]"),
    "tag:yaml.org,2002:float": re.compile("[:_]"),
}
"""Numbers on bases other than ten, and parts in them that are no digits, by the tag that YAML 1.1 gives them."""
_LARGEST_NUMBER = 2**63
"""Whole numbers are below that, and not below its negative: more is no 64-bit number."""


class _Loader(yaml.SafeLoader):
    """YAML's safe loader with the booleans of YAML 1.2: `off`, which YAML 1.1 reads as false, is a word here.

    A key that is there twice is an error, not the last one. So are numbers that YAML 1.1 reads otherwise than they
    look: `010`, which is 8 there, and `5:30`, which is 330. Aliases, by which a small file can mean a huge value, are
    none of our language.
    """

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        """The text of a scalar, of which a number is written in one way."""
        text = super().construct_scalar(node)
        if node.tag in _UNUSUAL and _UNUSUAL[node.tag].search(text):
            problem = f"{text} is a number in YAML's own notation; write it with decimal digits, or a text in quotes"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return text

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
"""Characters of a YAML file, at most; it is read by Python."""


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


def read_preset(name: str) -> dict[str, Any]:
    """The values that a shipped preset sets.

    Raises:
        ValueError: unknown name.
    """
    if name not in preset_names():
        if names_config_file(name):
            raise ValueError(f"--preset {name!r} is a file; give it as --config {name}, over a preset or without one")
        raise ValueError(f"unknown preset {name!r}{hint_at(name, preset_names())}; a file of yours is --config FILE")
    values = parse_yaml(preset_text(name))
    assert isinstance(values, dict)
    return values


def names_config_file(name: str | Path) -> bool:
    """Whether a name is that of a file with a config, and of no preset."""
    return Path(name).suffix in (*_YAML, _JSON)


def read_config_file(path: str | Path) -> dict[str, Any]:
    """The values that a file sets: YAML, or JSON such as the run.json of a run, whose config it then is.

    Raises:
        ValueError: a file that cannot be read, or no mapping of sections.
    """
    path = Path(path)
    if not names_config_file(path):
        run = f"; the config of a run is {path}/{DOCUMENT}" if path.is_dir() else ""
        raise ValueError(f"config file {str(path)!r} must end in .yaml, .yml or .json{run}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"config file {str(path)!r} is no text in UTF-8: {error}") from error
    except OSError as error:
        raise ValueError(f"config file {str(path)!r} cannot be read: {error.strerror}") from error
    values = _parse_json(path, text) if path.suffix == _JSON else _parse_file(path, text)
    if values is None:  # an empty file
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"config file {str(path)!r} holds a {type(values).__name__}, not a mapping of sections")
    return values


def _parse_file(path: Path, text: str) -> Any:
    if len(text) > _LARGEST_FILE:
        raise ValueError(f"config file {str(path)!r} has {len(text)} characters; a config has some thousand")
    try:
        return parse_yaml(text)
    except yaml.YAMLError as error:
        raise ValueError(f"config file {str(path)!r} is no valid YAML: {' '.join(str(error).split())}") from error


def _parse_json(path: Path, text: str) -> Any:
    """The value of a JSON file; of the document of a run, its config."""
    values = parse_object(text.encode())
    if values is None:
        raise ValueError(f"config file {str(path)!r} is no JSON object; a whole run.json has one")
    return with_task(values[_RUN_CONFIG]) if isinstance(values.get(_RUN_CONFIG), Mapping) else values


def load_config(preset: str | None = None, overrides: Sequence[str] = (), *, file: str | Path | None = None) -> Config:
    """A config from a preset (or the defaults), a file over it, and `section.key=value` overrides over both.

    Raises:
        ValueError: unknown preset or key, a file that cannot be read, or an impossible value.
    """
    values = {} if preset is None else read_preset(preset)
    for section, inner in ({} if file is None else read_config_file(file)).items():
        _check_section(section, inner)
        values[section] = {**values.get(section, {}), **inner}
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
    _check_keys(values)
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
            if isinstance(value, int) and not -_LARGEST_NUMBER <= value < _LARGEST_NUMBER:
                raise ValueError(f"{section}.{name} is {value!s:.40}; a whole number must fit into 64 bits")
    return config


def written_config(values: Mapping[str, Any]) -> Config:
    """The config that a run, a checkpoint or an export holds.

    Raises:
        ValueError: as `config_from_dict`.
    """
    return config_from_dict(with_task(values))


def with_task(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a config that was written. Where it names no task, it is older than other tasks than sentiments."""
    model = values.get("model", {})
    has_task = not isinstance(model, Mapping) or "task" in model
    return {**values} if has_task else {**values, "model": {**model, "task": "regression"}}


def config_to_dict(config: Config) -> dict[str, Any]:
    """Nested plain values, for JSON and YAML."""
    return asdict(config)


def all_keys() -> list[str]:
    """Every dotted key of the config tree."""
    return [f"{s.name}.{key}" for s in fields(Config) for key in _names(_section(s.name))]


def abbreviated(name: str, known: Iterable[str]) -> list[str]:
    """Those of the known names that a name ends or abbreviates: `learning_rate` and `lr` are train.learning_rate."""
    section, _, key = name.rpartition(".")
    return [
        candidate
        for candidate in known
        if candidate.rpartition(".")[0] == section or (not section and "." in candidate)
        if key in (candidate.rpartition(".")[2], "".join(word[0] for word in _words(candidate)))
    ]


def hint_at(name: str, known: Iterable[str]) -> str:
    """A hint for an unknown name: those that it abbreviates or ends, one that it begins, the nearest, else all."""
    known = list(known)
    meant = abbreviated(name, known) or [candidate for candidate in known if candidate.startswith(name)][:1]
    return did_you_mean(name, known, meant=meant) or f"; known: {', '.join(known)}"


def _words(key: str) -> list[str]:
    return key.rpartition(".")[2].split("_")


def _scalar(key: str, text: str) -> Any:
    """A value of the command line, read as YAML; 1e-4 is a number here too (YAML 1.1 asks for 1.0e-4)."""
    try:
        value = parse_yaml(text)
    except yaml.YAMLError as error:
        why = error.problem if isinstance(error, yaml.constructor.ConstructorError) else "it is no valid YAML"
        raise ValueError(f"the value of {key} is {text!r:.200}; {why}") from error
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
    check_key(key)
    assert dot
    values.setdefault(section, {})[name] = value


def check_key(key: str) -> None:
    """Raise ValueError, which names the nearest, for a dotted key that is not there."""
    if key not in all_keys():
        raise ValueError(f"unknown config key {key!r}{hint_at(key, all_keys())}")


def _check_section(name: str, values: Any) -> None:
    """Raise ValueError unless a top-level key of a file is a section that holds a mapping."""
    if name not in _names(Config):
        raise ValueError(f"unknown config key {str(name)!r}{hint_at(str(name), all_keys())}")
    if not isinstance(values, Mapping):
        raise ValueError(f"config section {name!r} is {values!r}, not a mapping")


def _check_keys(values: Mapping[str, Any], prefix: str = "") -> None:
    for key, value in values.items():
        if prefix:
            check_key(prefix + str(key))
        else:
            _check_section(key, value)
            _check_keys(value, f"{key}.")
