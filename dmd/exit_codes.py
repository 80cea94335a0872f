"""Exit codes of `dmd`, of a training and of its launcher; 0 is done.

A rank that a signal killed ends with 128 + the signal's number, as in a shell. Where ranks end differently, one of them
is the cause: `severity` says which code explains most.
"""

FAILED = 1
"""The device failed, or a bug; the message or a traceback says which."""
USER_ERROR = 2
"""The user's mistake (bad input, bad config, a file that is not there), or a training that diverged: the same command
would fail again."""
LOST = 69
"""EX_UNAVAILABLE: other ranks are gone, hang, or cannot be reached. The same command continues. Under NCCL torch aborts
such a rank (SIGABRT); its supervisor distinguishes that from a crash by what torch says, and ends with this code."""
MEMORY = 71
"""EX_OSERR: the device or the host has no memory left. The same command would fail again; the message names the key."""
STORAGE = 74
"""EX_IOERR: the run directory cannot be written, or a checkpoint in it cannot be read. The same command continues when
the storage works again."""
STOPPED = 75
"""EX_TEMPFAIL: stopped on request, after a checkpoint if there was a step. The same command continues."""
SIGNALLED = 128
"""Added to the number of the signal that killed a rank."""

_BY_SEVERITY = (0, STOPPED, LOST, SIGNALLED, FAILED, MEMORY, STORAGE, USER_ERROR)


def severity(code: int) -> int:
    """How much an exit code says about why a training ended; of several the most severe one is its cause.

    What the same command would meet again comes before what it would not, and a rank's own end before that of those
    who lost it.
    """
    known = SIGNALLED if code > SIGNALLED else code
    return _BY_SEVERITY.index(known if known in _BY_SEVERITY else FAILED)


def restart_mends(code: int) -> bool:
    """Whether a restart from the last checkpoint can mend what a training ended with: a rank or a host that was lost.

    Nothing else: the same command would meet a mistake, a bug or a lack of memory again, somebody has to repair the
    storage, and a stop was asked for.
    """
    return code == LOST or code > SIGNALLED
