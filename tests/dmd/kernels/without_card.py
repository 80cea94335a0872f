"""How kernels are checked for a card that is not there: in a process of its own, which defines them for compilation."""

import os
import subprocess
import sys


def without_card(module: str, check: str, *arguments: object) -> None:
    """Run a check of a module; the driver (`benchmarks.offline_driver`) comes before any kernel is defined."""
    call = f"checks.{check}({', '.join(map(repr, arguments))})"
    code = f"import benchmarks.offline_driver; import {module} as checks; {call}"
    command = [sys.executable, "-W", "ignore", "-c", code]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
