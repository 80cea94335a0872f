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
from launch.trainer.host_tuning import freed_memory_kept, keep_freed_memory
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
def kept():
    before = resident()
    torch.ones(2**24)  # 64 MiB, free again at once
    return resident() - before
torch.ones(1)
first = kept()
with freed_memory_kept():
    inside = kept()
after = kept()
keep_freed_memory()
print(first, inside, after, kept())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc's options are glibc's")
def test_freed_memory_stays_for_the_next_step():
    result = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    by_itself, inside, after, for_good = (int(word) / MEBIBYTE for word in result.stdout.split())
    assert by_itself < 8
    assert inside > 60
    assert after < 8
    assert for_good > 60
