"""The parser of every `dmd` command: a mistake is one line that names the nearest option.

    options = Parser(prog="dmd verify", description=..., examples=["dmd verify shards/mosi"]).parse_args(argv)

`parser_of` gives the parser of a command without running it, for whoever lists options (`dmd completion`).
"""

import argparse
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from difflib import get_close_matches
from typing import Any, NoReturn

USAGE_ERROR = 2
"""Exit code of a command line that cannot be parsed."""
_HELP = ("-h", "--help")

_only_parsers = ContextVar("_only_parsers", default=False)
"""Whether commands that are called now are to hand over their parsers instead of parsing."""


class Parser(argparse.ArgumentParser):
    """An `argparse` parser whose errors are one line.

    Args:
        prog: the command, such as `dmd train`; None: the script's name.
        description: what it does.
        epilog: what else is to be known.
        examples: whole commands, printed below the help as they are.
        hint: what to say about an unknown option, given what names the nearest of those that are known.
    """

    def __init__(
        self,
        *,
        prog: str | None = None,
        description: str | None = None,
        epilog: str | None = None,
        examples: Sequence[str] = (),
        hint: Callable[[str, str], str] = lambda option, nearest: nearest,
    ) -> None:
        super().__init__(prog=prog, description=description, epilog=epilog)
        self._examples = tuple(examples)
        self._hint = hint

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:  # type: ignore[override]
        """As argparse; positional arguments stand together."""
        self._begin(args)
        return self._checked(*self.parse_known_args(args, namespace))

    def parse_intermixed_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:  # type: ignore[override]
        """As argparse; positional arguments and options in any order."""
        self._begin(args)
        return self._checked(*self.parse_known_intermixed_args(args, namespace))

    def format_help(self) -> str:
        """As argparse, and the examples."""
        lines = [f"  {example}\n" for example in self._examples]
        return super().format_help() + ("\nexamples:\n" + "".join(lines) if lines else "")

    def error(self, message: str) -> NoReturn:
        """Say in one line what is wrong, and end with exit code 2."""
        self.exit(USAGE_ERROR, f"{self.prog}: error: {message}; see {self.prog} --help\n")

    def known_options(self) -> list[str]:
        """The option strings that help shows."""
        shown = (action for action in self._actions if action.help != argparse.SUPPRESS)
        return [option for action in shown for option in action.option_strings]

    def _begin(self, args: Sequence[str] | None) -> None:
        """What comes before parsing: a caller who wants the parser alone gets it; an unknown option is told before
        those that are missing, which it may stand for."""
        if _only_parsers.get():
            raise _Found(self)
        takes_rest = any(action.nargs in (argparse.REMAINDER, argparse.PARSER) for action in self._actions)
        if args is not None and not takes_rest and not set(_HELP).intersection(args):
            unknown = [word for word in _long_options(args) if not self._takes(word.partition("=")[0])]
            if unknown:
                self._reject(unknown)

    def _takes(self, option: str) -> bool:
        every = (name for action in self._actions for name in action.option_strings)
        return any(name.startswith(option) for name in every)

    def _checked(self, options: argparse.Namespace, unknown: list[str]) -> argparse.Namespace:
        if unknown:
            self._reject(unknown)
        return options

    def _reject(self, unknown: list[str]) -> NoReturn:
        names = [word.partition("=")[0] for word in unknown if word.startswith("-")]
        hints = [self._hint(name, did_you_mean(name, self.known_options())) for name in names]
        self.error(f"unrecognized arguments: {' '.join(unknown)}{''.join(dict.fromkeys(hints))}")


class _Found(BaseException):
    """Carries a parser out of the command that has made it."""

    def __init__(self, parser: Parser) -> None:
        super().__init__()
        self.parser = parser


def parser_of(command: Callable[[list[str]], object]) -> Parser:
    """The parser that a command makes: the command is called, and ends where it would parse.

    Args:
        command: a function of an argument list that does nothing of note before it parses it with a `Parser`.
    """
    token = _only_parsers.set(True)
    try:
        command([])
    except _Found as found:
        return found.parser
    except SystemExit as error:
        raise AssertionError(f"{command} parses with another parser than Parser") from error
    finally:
        _only_parsers.reset(token)
    raise AssertionError(f"{command} parses nothing with a Parser")


def nearest(name: str, known: Iterable[str], *, likeness: float = 0.6) -> list[str]:
    """The one that is nearest of what is known; empty where none is.

    Args:
        likeness: from which on a name is near, as `difflib.SequenceMatcher.ratio` measures it in [0, 1].
    """
    return get_close_matches(name, list(known), n=1, cutoff=likeness)


def did_you_mean(name: str, known: Iterable[str], *, meant: Sequence[str] = ()) -> str:
    """A hint that names the nearest of what is known, empty where none is near.

    Args:
        meant: what the name stands for; is named instead.
    """
    near = meant or nearest(name, known)
    return f" (did you mean {' or '.join(near)}?)" if near else ""


def _long_options(args: Sequence[str]) -> list[str]:
    """The words of a command line that begin with two dashes, up to a bare `--`; one with a space is a value."""
    words = list(args)
    end = words.index("--") if "--" in words else len(words)
    return [word for word in words[:end] if word.startswith("--") and " " not in word]
