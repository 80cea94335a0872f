"""A training's process keeps the memory that its steps free."""

import platform
import subprocess
import sys

import pytest

MEBIBYTE = 2**20
MEASURE = """
import resource
from pathlib import Path
import torch
from launch.trainer.host_tuning import keep_freed_memory
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
if {keep}:
    keep_freed_memory()
torch.ones(1)
before = resident()
torch.ones(2**24)  # 64 MiB, free again at once
print(resident() - before)
"""


def memory_kept(keep: bool) -> int:
    """Bytes that stay with a process which has freed 64 MiB."""
    result = subprocess.run([sys.executable, "-c", MEASURE.format(keep=keep)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return int(result.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc's options are glibc's")
def test_freed_memory_stays_for_the_next_step():
    assert memory_kept(keep=True) > 60 * MEBIBYTE
    assert memory_kept(keep=False) < 8 * MEBIBYTE, "what happens by itself"
