"""A request to stop that takes longer than the command allows."""

import subprocess
import sys

import pytest

from dmd.exit_codes import STOPPED

SLOW = """
import os, signal, time
from cluster.ray_runtime.stopping import stop_requests
with stop_requests(longest_end=0.5, outlook="shards may be left"):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    except KeyboardInterrupt:
        print("asked", flush=True)
        time.sleep(60)
"""


@pytest.mark.slow
def test_a_command_that_does_not_end_says_what_it_leaves():
    done = subprocess.run([sys.executable, "-c", SLOW], capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stdout) == (STOPPED, "asked\n")
    assert done.stderr == "the command has not ended within 0.5 s of the request to stop; shards may be left\n"
