"""Standard streams of a command: those that are closed are opened on nothing, one that fails is told as such, and where
work would be lost one without a reader is none."""

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

_NAMES = ("stdin", "stdout", "stderr")


def open_closed_streams() -> None:
    """Open the standard descriptors that are closed, as after `>&-`, on /dev/null, for this process and its children.

    Else the next file that is opened would be stdout, and `sys.stdout` is None.
    """
    for number, name in enumerate(_NAMES):
        try:
            os.fstat(number)
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            _open_on_nothing(number)
        if getattr(sys, name) is None:
            stream = open(number, "r" if name == "stdin" else "w", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


def stdout_error() -> OSError | None:
    """Why stdout cannot be written; None where it can, as far as that is seen without writing anything more to it.

    What is buffered is written again. Where Python buffers nothing, a device says it at a write of no bytes.
    """
    try:
        sys.stdout.flush()
        os.write(sys.stdout.fileno(), b"")
    except io.UnsupportedOperation:  # no descriptor: a stream of the caller
        return None
    except OSError as error:
        return error
    return None


def discard_stdout() -> None:
    """Send what is still written to stdout to /dev/null, so that no error follows at the end of the process."""
    _open_on_nothing(sys.stdout.fileno())


class LastingFile(io.FileIO):
    """A file for writing that loses its reader without an error: what is written then goes nowhere.

    Args:
        descriptor: closed with the file.
        told: what stderr says when the reader has gone; empty: nothing.
    """

    def __init__(self, descriptor: int, *, told: str = "", closefd: bool = True) -> None:
        super().__init__(descriptor, "wb", closefd=closefd)
        self._told = told

    def write(self, data: "bytes | memoryview") -> int:  # type: ignore[override]
        """As `io.FileIO`."""
        try:
            return super().write(data)
        except BrokenPipeError:
            _open_on_nothing(self.fileno())
            if self._told:
                print(self._told, file=sys.stderr, flush=True)
            return memoryview(data).nbytes


@contextmanager
def lasting_streams() -> Iterator[None]:
    """A block in which a reader of stdout or stderr may go, as `head` does, and nothing fails. Streams that are not the
    process's own, as in a notebook, stay what they are."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_lasting(stream, getattr(sys, f"__{stream}__")) for stream in ("stdout", "stderr"))
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


def _lasting(name: str, own: TextIO | None) -> TextIO:
    """One stream of such a block."""
    stream: TextIO = getattr(sys, name)
    if stream is not own or not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(LastingFile(stream.fileno(), closefd=False)),  # type: ignore[type-var]
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=True,
        write_through=stream.write_through,
    )


def _open_on_nothing(number: int) -> None:
    handle = os.open(os.devnull, os.O_RDWR)
    if handle == number:
        os.set_inheritable(handle, True)
    else:
        os.dup2(handle, number)
        os.close(handle)
