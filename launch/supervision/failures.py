"""The ending that an error stands for, by its type or by where it was raised."""

import errno
import re
import resource
import traceback
from pathlib import Path

import psutil
import torch

from data_shards.places import redact
from dmd.config import Config
from dmd.distributed.errors import OnEveryRank, StorageFailed
from dmd.errors import first_line
from dmd.exit_codes import FAILED, LOST, MEMORY, STORAGE, USER_ERROR
from launch.supervision.ending import Ending
from launch.supervision.lost import lost_peers
from launch.supervision.supervise import lost_message, rank_name

_NO_HOST_MEMORY = re.compile(r"DefaultCPUAllocator: can't allocate memory: you tried to allocate (\d+) bytes")
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_GIB = 2**30


def ending_of(error: Exception, rank: int, config: Config | None, *, alone: bool) -> Ending:
    """The ending of a rank over an error; prints the traceback of a bug.

    Args:
        config: of the training; None where the rank failed before it was read.
        alone: only this rank may know of a mistake of the user's, so its name belongs to the message.
    """

    def ending(code: int, message: str) -> Ending:
        return Ending(code=code, message=redact(message), origin=rank)

    reason = first_line(error)
    if (memory := _memory_shortage(error, reason)) is not None:
        return ending(MEMORY, f"{rank_name()} {memory}; {_suggested_fix(config)}")
    if isinstance(error, ValueError):
        named = alone and not isinstance(error, OnEveryRank) and rank != 0
        return ending(USER_ERROR, f"{rank_name()}: {error}" if named else str(error))
    if isinstance(error, OSError):
        where = "" if isinstance(error, StorageFailed) else f"{rank_name()}: "
        return ending(STORAGE, f"{where}{error}; the same command continues when the storage works again")
    if isinstance(error, torch.AcceleratorError):
        traceback.print_exception(error)
        return ending(FAILED, f"the device of {rank_name()} failed ({reason}); its traceback is above")
    if isinstance(error, RuntimeError) and lost_peers(error):
        return ending(LOST, lost_message(reason))
    traceback.print_exception(error)
    return ending(FAILED, f"{rank_name()} failed over {type(error).__name__}: {reason}; its traceback is above")


def _memory_shortage(error: Exception, reason: str) -> str | None:
    """What was requested and what is free, if an error means that memory is short; None for any other error."""
    if isinstance(error, torch.OutOfMemoryError):
        return f"has no memory left on its device ({reason})"
    bytes_requested = _NO_HOST_MEMORY.search(str(error)) if isinstance(error, RuntimeError) else None
    if bytes_requested is not None:
        requested = f"{int(bytes_requested[1]) / _GIB:.2f} GiB were asked for"
    elif isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        requested = reason
    else:
        return None
    return f"has no memory left on its host ({requested}; {_host_memory()})"


def _host_memory() -> str:
    """Memory of this host that is free, and the limits that this process has."""
    facts = [f"{psutil.virtual_memory().available / _GIB:.2f} GiB are free"]
    for path in map(Path, _CGROUP_LIMITS):
        limit = path.read_text().strip() if path.exists() else "max"
        if limit.isdecimal() and int(limit) < psutil.virtual_memory().total:
            facts.append(f"the cgroup's limit is {int(limit) / _GIB:.2f} GiB")
    limit_of_process = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit_of_process != resource.RLIM_INFINITY:
        facts.append(f"the process's limit (ulimit -v) is {limit_of_process / _GIB:.2f} GiB")
    return ", ".join(facts)


def _suggested_fix(config: Config | None) -> str:
    """Which config key lowers the memory of a rank."""
    if config is not None and config.train.ghost_batches_per_forward == 1:
        stage = config.train.zero_stage
        key = f"with several ranks raise train.zero_stage (now {stage})" if stage < 3 else "use more ranks"
        return f"train.ghost_batches_per_forward is 1 already: {key}, or give it more memory"
    now = "" if config is None else f" (now {config.train.ghost_batches_per_forward})"
    return f"lower train.ghost_batches_per_forward{now}, which changes memory and speed only; then it continues"
