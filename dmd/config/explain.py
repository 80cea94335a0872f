"""What config keys mean, for a terminal: the list of all, one key in full, a config with a comment above each value."""

import textwrap
from dataclasses import dataclass, fields
from typing import Any

import yaml

from dmd.config.loading import check_key, config_to_dict, read_preset
from dmd.config.preset_files import preset_names
from dmd.config.reference import field_documents, type_name
from dmd.config.schema import Config
from dmd.system.models import MODELS

WIDTH = 100
"""Columns of a comment."""
_INDENT = "  "


@dataclass(frozen=True, kw_only=True)
class Key:
    """A key of the config."""

    name: str
    """With its section."""
    type: str
    default: str
    """As YAML writes it."""
    document: str
    """On one line."""

    @property
    def summary(self) -> str:
        """The first sentence of its documentation."""
        return self.document.partition(". ")[0].rstrip(".")

    def wrapped(self) -> list[str]:
        """Its documentation in lines of `WIDTH`."""
        return textwrap.wrap(self.document, WIDTH)


def sections() -> dict[str, str]:
    """The sections of a config, each with what it is about."""
    return {section.name: " ".join((section.type.__doc__ or "").split()) for section in fields(Config)}


def keys(section: str) -> list[Key]:
    """The keys of a section that there is."""
    kind = next(field.type for field in fields(Config) if field.name == section)
    assert isinstance(kind, type)
    documents = field_documents(kind)
    return [
        Key(
            name=f"{section}.{field.name}",
            type=type_name(field.type),
            default=as_yaml(field.default),
            document=documents[field.name],
        )
        for field in fields(kind)
    ]


def key(name: str) -> Key:
    """One key.

    Raises:
        ValueError: an unknown key; the nearest is named.
    """
    check_key(name)
    return next(found for found in keys(name.partition(".")[0]) if found.name == name)


def set_by_presets(key: Key) -> dict[str, str]:
    """The presets that set a key, each with the value."""
    section, _, name = key.name.partition(".")
    own = {preset: read_preset(preset).get(section, {}) for preset in preset_names()}
    return {preset: as_yaml(values[name]) for preset, values in own.items() if name in values}


def read_by(key: Key) -> list[str]:
    """The models that read a key; empty where all do."""
    names = [name for name, row in MODELS.items() if row.reads_key(key.name)]
    return [] if len(names) == len(MODELS) else names


def as_yaml(value: Any) -> str:
    """A value as it is written behind a key."""
    plain = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(plain, default_flow_style=True, width=2**20).removesuffix("...\n").strip()


def annotated(config: Config) -> str:
    """A config as YAML: each value below what it means; those that are not the default say what that is."""
    values, defaults = config_to_dict(config), config_to_dict(Config())
    lines: list[str] = []
    for section, about in sections().items():
        lines += [*([""] if lines else []), *_comment(about, ""), f"{section}:"]
        for found in keys(section):
            name = found.name.partition(".")[2]
            value = values[section][name]
            changed = "" if value == defaults[section][name] else f"  # default: {found.default}"
            lines += [*_comment(found.document, _INDENT), f"{_INDENT}{name}: {as_yaml(value)}{changed}"]
    return "\n".join(lines) + "\n"


def _comment(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
