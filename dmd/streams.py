"""Standard streams of a command: those that are closed are opened on nothing, and one that fails is told as such."""

import errno
import io
import os
import sys

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


def _open_on_nothing(number: int) -> None:
    handle = os.open(os.devnull, os.O_RDWR)
    if handle == number:
        os.set_inheritable(handle, True)
    else:
        os.dup2(handle, number)
        os.close(handle)
