"""Lines at the bottom of a terminal that are drawn again and again, below what is printed meanwhile.

Several processes print to the terminal of a training: its ranks, their supervisors, `dmd train`. So the cursor stays at
the beginning of the drawn lines. What any process prints takes their place, and they are drawn again below it. Nothing
is drawn while the command is in the background.
"""

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.text import Text

WRAPPER_PID = "DMD_WRAPPER_PID"
"""Environment variable: process id of the command on this host, such as `dmd train`, that this process works for."""
CLEAR = "\r\x1b[J"
"""Takes away what is drawn from the cursor's line on."""
REFRESH_SECONDS = 0.5
_GAP = "  "


def is_terminal(stream: TextIO) -> bool:
    """Whether a stream is a terminal on which lines can be drawn again."""
    return stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown", "")


def in_foreground(stream: TextIO) -> bool:
    """Whether a terminal is that of the command this process works for. After `&` or Ctrl-Z it is another's: the
    shell's prompt is at its bottom.

    The kernel tells of a terminal what its own sessions ask (`tcgetpgrp`), and ranks have another one, so it is read
    from the command's process (proc_pid_stat(5)). A terminal that does not control that command takes everything.
    """
    try:
        stat = Path(f"/proc/{os.environ.get(WRAPPER_PID, 'self')}/stat").read_text()
        terminal = os.fstat(stream.fileno()).st_rdev
    except OSError:
        return WRAPPER_PID not in os.environ  # else the command has ended
    group, _, controlling, foreground = map(int, stat.rpartition(")")[2].split()[2:6])
    major, minor = controlling >> 8 & 0xFFF, controlling & 0xFF | controlling >> 12 & 0xFFF00
    return (major, minor) != (os.major(terminal), os.minor(terminal)) or group == foreground


def clear(stream: TextIO) -> str:
    """What to write before a line, so that it is not printed over lines that another process draws."""
    return CLEAR if is_terminal(stream) and in_foreground(stream) else ""


def drawing_stream() -> TextIO | None:
    """Where lines may be drawn: stdout, or stderr; None where neither is a terminal, or stdout is a pipe, whose reader
    may print to the same terminal, or lines are drawn already."""
    if isinstance(sys.stdout, _Above) or isinstance(sys.stderr, _Above):
        return None
    if is_terminal(sys.stdout):
        return sys.stdout
    return sys.stderr if is_terminal(sys.stderr) and not _is_pipe(sys.stdout) else None


def _is_pipe(stream: TextIO) -> bool:
    try:
        return not (os.path.isfile(path := f"/dev/fd/{stream.fileno()}") or os.path.samefile(path, os.devnull))
    except OSError:  # also a stream without a descriptor
        return True


class DrawnLines:
    """Lines at the bottom of a terminal, for the length of a block. One at a time has a terminal.

    Args:
        stream: the terminal, as `drawing_stream` gives it.
        render: gives what is to be drawn, at any time and from another thread.
        ticks: draw every REFRESH_SECONDS, in a thread; else only where `draw` is called.
    """

    def __init__(self, stream: TextIO, render: "Callable[[], RenderableType]", *, ticks: bool) -> None:
        from rich.console import Console

        assert not isinstance(stream, _Above)
        self._stream = stream
        self._render = render
        self._lock = threading.RLock()
        self._console = Console(file=stream, force_terminal=True, highlight=False)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._tick, name="drawn lines", daemon=True) if ticks else None
        self._replaced: dict[str, TextIO] = {}

    def __enter__(self) -> "DrawnLines":
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if is_terminal(stream):
                self._replaced[name] = stream
                setattr(sys, name, _Above(stream, self._lock))
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join()
        for name, stream in self._replaced.items():
            getattr(sys, name).end_line()
            setattr(sys, name, stream)
        self._write(clear(self._stream))

    @property
    def shown(self) -> bool:
        """Whether they are drawn at present."""
        return in_foreground(self._stream)

    @property
    def columns(self) -> int:
        """Characters that a line may have; one that is full would move the cursor."""
        return max(os.get_terminal_size(self._stream.fileno()).columns - 1, 1)

    def draw(self) -> None:
        """Draw the lines as they are now, where the terminal is ours."""
        if not self.shown:
            return
        with self._console.capture() as drawn:
            self._console.print(self._render(), width=self.columns)
        lines = drawn.get().rstrip("\n").split("\n")[: max(os.get_terminal_size(self._stream.fileno()).lines - 1, 1)]
        up = f"\x1b[{len(lines) - 1}A" if len(lines) > 1 else ""
        self._write(CLEAR + "\n".join(lines) + up + "\r")

    def _write(self, text: str) -> None:
        with self._lock:
            self._stream.write(text)
            self._stream.flush()

    def _tick(self) -> None:
        while not self._done.wait(REFRESH_SECONDS):
            self.draw()


class Items:
    """Short texts side by side, on as many lines as they need, none of them broken."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = list(texts)

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "Iterator[Text]":
        from rich.text import Text

        lines: list[str] = []
        for text in self._texts:
            if lines and len(lines[-1]) + len(_GAP) + len(text) <= options.max_width:
                lines[-1] += _GAP + text
            else:
                lines.append(text)
        yield from map(Text, lines)


class _Above:
    """A terminal whose lines are printed in the place of drawn ones, whole lines at a time."""

    def __init__(self, stream: TextIO, lock: threading.RLock) -> None:
        self._stream = stream
        self._lock = lock
        self._line = ""

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._lock:
            whole, newline, self._line = (self._line + text).rpartition("\n")
            if newline:
                self._stream.write(f"{clear(self._stream)}{whole}\n")
        return len(text)

    def end_line(self) -> None:
        """Write what has no newline yet."""
        if self._line:
            self.write("\n")
