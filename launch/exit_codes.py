"""Exit codes of a training, of its launcher and of `dmd train`; 0 is done.

A rank that a signal killed ends with 128 + the signal's number, as in a shell.
"""

FAILED = 1
"""The device has no memory left or failed, or a bug; the message or a traceback says which."""
USER_ERROR = 2
"""The user's mistake, or a training that diverged: the same command would fail again."""
LOST = 69
"""EX_UNAVAILABLE: other ranks are gone, hang, or cannot be reached. The same command continues. Under NCCL torch aborts
such a rank (SIGABRT); its supervisor tells that from a crash by what torch says, and ends with this code."""
STORAGE = 74
"""EX_IOERR: the run directory cannot be written, or a checkpoint in it cannot be looked at. The same command continues
when the storage is well."""
STOPPED = 75
"""EX_TEMPFAIL: stopped on request after a checkpoint. The same command continues."""
SIGNALLED = 128
"""Added to the number of the signal that killed a rank."""
