"""A training's process keeps the memory that its steps free."""

import subprocess
import sys

FAULTS = """
import resource, torch
from launch.setup import keep_freed_memory
if {keep}:
    keep_freed_memory()
torch.ones(2**24)  # 64 MiB
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep: bool) -> int:
    """Pages that come in anew while 64 MiB are taken and freed eight times."""
    command = [sys.executable, "-c", FAULTS.format(keep=keep)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_freed_memory_is_used_again():
    assert faults(keep=True) * 4 < faults(keep=False)
