"""The subcommand `dmd config`."""

import sys
from typing import TYPE_CHECKING

from data_shards.command_line import Parser
from dmd.text_tables import table_text

if TYPE_CHECKING:
    from dmd.config.explain import Key


def config(argv: list[str]) -> int:
    """List every config key with its default, or explain some in full."""
    parser = Parser(
        prog="dmd config", description=config.__doc__, examples=["dmd config train", "dmd config train.learning_rate"]
    )
    parser.add_argument("keys", nargs="*", metavar="KEY", help="section.key, or a section; none: all keys")
    options = parser.parse_args(argv)

    from dmd.config.explain import key, keys, sections

    asked = options.keys or list(sections())
    found = [keys(name) if name in sections() else key(name) for name in asked]
    for number, (name, there) in enumerate(zip(asked, found, strict=True)):
        if number:
            print()
        if isinstance(there, list):
            _print_section(name, sections()[name], there)
        else:
            _print_key(there)
    return 0


def _print_section(name: str, about: str, keys: "list[Key]") -> None:
    """Key, default and first sentence, a line each."""
    print(f"{name}: {about}")
    print(table_text(["key", "default", "meaning"], [[key.name, key.default, key.summary] for key in keys]))


def _print_key(key: "Key") -> None:
    """All that is known of a key."""
    from dmd.config.explain import read_by, set_by_presets

    lines = [f"type: {key.type}", f"default: {key.default}"]
    lines += [f"read by: {', '.join(names)}"] if (names := read_by(key)) else []
    lines += [f"preset {preset}: {value}" for preset, value in set_by_presets(key).items()]
    if not sys.stdout.isatty():
        print("\n  ".join([key.name, *lines, *key.wrapped()]))
        return
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    console = Console()
    console.print(Text(key.name, style="bold cyan"))
    for text in (*(Text(line, style="green") for line in lines), Text(key.document)):
        console.print(Padding(text, (0, 0, 0, 2)))
