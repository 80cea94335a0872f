"""Where a run's numbers come from: versions of libraries, host, git commit, command line."""

import os
import platform
import shlex
import socket
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from data_shards.places import redact

_PACKAGES = (
    "dmd-cluster",
    "torch",
    "triton",
    "deepspeed",
    "ray",
    "numpy",
    "pyarrow",
    "webdataset",
    "transformers",
    "peft",
    "bitsandbytes",
    "safetensors",
    "tensorboard",
)

COMMAND = "DMD_COMMAND"
"""Environment variable: the user's command, which started the ranks; unset where that is this process."""
RESTART = "DMD_RESTART"
"""Environment variable: which restart of a command a session is, and why, in one line; unset in the first one."""


def versions() -> dict[str, str]:
    """Versions of Python and of those packages of ours that are installed; reads metadata, imports none of them."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """The commit that this code is checked out from, with `-dirty` if it was changed; None outside a git checkout."""
    here = Path(__file__).resolve()
    git = ["git", "--no-optional-locks", "-C", str(here.parent)]
    try:
        tracked = subprocess.run([*git, "ls-files", "--error-unmatch", here.name], capture_output=True, timeout=10)
        if tracked.returncode:
            return None
        describe = [*git, "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
        described = subprocess.run(describe, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None


def provenance() -> dict[str, Any]:
    """What run.json says about one session of a run."""
    restart, asked = os.environ.get(RESTART), os.environ.get(COMMAND)
    return {
        **({} if restart is None else {"restart": restart}),
        **({} if asked is None else {"user_command": redact(asked)}),
        "host": socket.gethostname(),
        "command": redact(shlex.join([sys.executable, *sys.argv])),
        "git_commit": git_commit(),
        "versions": versions(),
    }
