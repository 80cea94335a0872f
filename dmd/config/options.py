"""How a command line sets a config: `--preset`, `--config`, and `section.key=value` words. Needs no torch to parse.

add_config_options(parser)
options = parser.parse_intermixed_args(argv)
config = config_of(options)
"""

import argparse
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from data_shards.command_line import Parser, nearest
from dmd.config.preset_files import preset_names

if TYPE_CHECKING:
    from dmd.config.schema import Config

_KEY = re.compile(r"[a-z]+\.[a-z0-9_]+")
_LIKENESS = 0.7
"""Likeness from which on an unknown option is taken for a key."""


def add_config_options(parser: Parser, *, words: str = "config values, such as train.seed=7") -> None:
    """Add `--preset`, `--config` and the overrides.

    Args:
        words: help of the overrides.
    """
    parser.add_argument("--preset", metavar="NAME", help=f"one of {', '.join(preset_names())}; none: the defaults")
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="values over those of the preset: a .yaml file, what --print-config wrote, or the run.json of a run",
    )
    parser.add_argument(
        "overrides", nargs="*", action=_Overrides, metavar="section.key=value", help=f"{words} (`dmd config` lists all)"
    )


def add_print_config(parser: Parser) -> None:
    """Add `--print-config`, for a command that has the options above."""
    parser.add_argument(
        "--print-config",
        action="store_true",
        help="print the whole config as YAML, with what each value means, and do nothing else",
    )


def config_of(options: argparse.Namespace) -> "Config":
    """The config that a command line asks for.

    Raises:
        ValueError: as `dmd.config.loading.load_config`.
    """
    from dmd.config.loading import load_config

    return load_config(options.preset, options.overrides, file=options.config)


def print_config(options: argparse.Namespace) -> int:
    """What `--print-config` does; returns the exit code."""
    from dmd.config.explain import annotated

    print(annotated(config_of(options)), end="")
    return 0


def require_options(parser: Parser, options: argparse.Namespace, names: Iterable[str]) -> None:
    """End as argparse does where an option is missing that everything but `--print-config` needs.

    Args:
        names: as in `options`.
    """
    missing = [f"--{name.replace('_', '-')}" for name in names if getattr(options, name) is None]
    if missing and not getattr(options, "print_config", False):
        parser.error(f"the following arguments are required: {', '.join(missing)}")


def key_hint(option: str, hint: str) -> str:
    """What to say about an unknown option: the config keys that it abbreviates, else the hint at the nearest option,
    else the key that is nearest."""
    from dmd.config.loading import abbreviated, all_keys

    asked = option.lstrip("-").replace("-", "_")
    meant = abbreviated(asked, all_keys())
    if not meant and "." in asked:
        meant = nearest(asked, all_keys(), likeness=_LIKENESS)
    elif not meant and not hint:
        near = nearest(asked, {key.partition(".")[2] for key in all_keys()}, likeness=_LIKENESS)
        meant = [key for key in all_keys() if key.partition(".")[2] in near]
    return f" (config values have no dashes: {' or '.join(f'{key}=VALUE' for key in meant)})" if meant else hint


def joined(words: Sequence[str]) -> list[str]:
    """`key=value` words, also of those that were written with spaces around the `=`.

    Raises:
        ValueError: a `=` that lacks its key or its value.
    """
    found: list[str] = []
    for word in words:
        if found and found[-1].endswith("="):
            key = found[-1][:-1]
            if "=" in word and _KEY.match(word):
                raise ValueError(_without_value(key))
            found[-1] += word
        elif word.startswith("="):
            if not found or "=" in found[-1]:
                raise ValueError(f"{word!r} has no key before it; write section.key=value")
            found[-1] += word
        else:
            found.append(word)
    if found and found[-1].endswith("=") and found[-1].count("=") == 1:
        raise ValueError(_without_value(found[-1][:-1]))
    return found


def _without_value(key: str) -> str:
    return f"{key}= has no value; write {key}=VALUE, or {key}=null for none"


class _Overrides(argparse.Action):
    """Stores `joined` words."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        try:
            setattr(namespace, self.dest, joined(values))
        except ValueError as error:
            parser.error(str(error))
