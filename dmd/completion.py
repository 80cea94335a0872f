"""The subcommand `dmd completion`: a script that completes commands, options, paths, presets and config keys."""

import argparse
import re
from pathlib import Path
from typing import Any

from data_shards.command_line import Parser, parser_of
from data_shards.places import place_option

SHELLS = ("bash", "zsh", "fish")
_PATHS = re.compile(r"FILE|DIR|PATH|PLACE|RUN|SHARDS|CLIP|FEATURES|OUT|EXPERIMENT|\.csv")
"""Names of arguments that stand for a file or a directory."""
_HOW = {
    "bash": "mkdir -p ~/.local/share/bash-completion/completions && "
    "dmd completion bash > ~/.local/share/bash-completion/completions/dmd",
    "zsh": "mkdir -p ~/.zfunc && dmd completion zsh > ~/.zfunc/_dmd  # in ~/.zshrc, before compinit: fpath+=~/.zfunc",
    "fish": "dmd completion fish > ~/.config/fish/completions/dmd.fish",
}
"""How a shell finds the script, which takes seconds to make: it is written once, and again after an upgrade."""
_BASH_KEYS = """
# A key ends with "=", behind which its value is to be typed: no space. Where "=" divides words, as by default, bash has
# the key and the "=" as words of their own, and nothing is completed behind them.
_dmd() {
  if [[ ${COMP_WORDS[COMP_CWORD]} == = || ${COMP_WORDS[COMP_CWORD-1]} == = ]]; then
    COMPREPLY=()
    return
  fi
  _shtab_dmd "$@"
  if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *= ]]; then
    compopt -o nospace 2>/dev/null || :
  fi
}
complete -o bashdefault -F _dmd dmd
"""


def completion(argv: list[str]) -> int:
    """Print a script by which a shell completes commands, options, paths, presets and config keys."""
    parser = Parser(prog="dmd completion", description=completion.__doc__, examples=list(_HOW.values()))
    parser.add_argument("shell", choices=SHELLS)
    options = parser.parse_args(argv)
    print(script(options.shell))
    return 0


def script(shell: str) -> str:
    """The script for one of `SHELLS`."""
    import shtab

    text: str = shtab.complete(all_parsers(), shell)
    return text + _BASH_KEYS if shell == "bash" else text


def all_parsers() -> argparse.ArgumentParser:
    """A parser of `dmd` with the parsers of all commands below it, whose arguments say how they are completed."""
    from dmd.cli import commands, summary

    root = argparse.ArgumentParser(prog="dmd")
    root.add_argument("--version", action="store_true", help="print the version")
    below = root.add_subparsers(dest="command")
    for name, point in commands().items():
        parser = parser_of(point.load())
        for action in parser._actions:
            _complete(action)
        below.add_parser(name, parents=[parser], add_help=False, help=summary(point))
    return root


def _complete(action: Any) -> None:
    """Say how an argument is completed; one that is neither a choice, a preset, a key nor a path is not."""
    from shtab import FILE

    from dmd.config.loading import all_keys
    from dmd.config.preset_files import preset_names

    metavar = action.metavar if isinstance(action.metavar, str) else ""
    if action.nargs == 0 or action.choices:
        return
    if action.dest == "preset" or (metavar == "NAME" and action.dest == "name" and not action.option_strings):
        action.choices = preset_names()
    elif action.dest == "overrides":
        action.choices = [f"{key}=" for key in all_keys()]
    elif action.dest == "keys":
        action.choices = all_keys()
    elif action.type in (Path, place_option) or _PATHS.search(metavar):
        action.complete = FILE
