"""A training's process keeps the memory that its steps free."""

import subprocess
import sys

FAULTS = """
import resource, torch
from launch.trainer.host_tuning import keep_freed_memory
if {keep}:
    keep_freed_memory()
counts = []
for _ in range(24):
    torch.ones(2**24)  # 64 MiB
    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(counts[-1] - counts[7])
"""


def faults(keep: bool) -> int:
    """Pages that come in anew while 64 MiB are taken and freed sixteen times, after eight times that do not count.

    In the first ones small allocations may still settle in what has just been freed, which then no longer fits.
    """
    command = [sys.executable, "-c", FAULTS.format(keep=keep)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_freed_memory_is_used_again():
    assert faults(keep=True) * 4 < faults(keep=False)
