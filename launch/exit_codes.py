"""Exit codes of a training, of its launcher and of `dmd train`; 0 is done.

A rank that a signal killed ends with 128 + the signal's number, as in a shell.
"""

USER_ERROR = 2
"""The user's mistake, or a training that diverged: the same command would fail again."""
LOST = 69
"""EX_UNAVAILABLE: other ranks are gone, hang, or cannot be reached. The same command continues."""
STORAGE = 74
"""EX_IOERR: the run directory cannot be written. The same command continues when it can."""
STOPPED = 75
"""EX_TEMPFAIL: stopped on request after a checkpoint. The same command continues."""
SIGNALLED = 128
"""Added to the number of the signal that killed a rank."""
