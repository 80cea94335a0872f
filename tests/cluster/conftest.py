"""The environment of the tests' clusters, before Ray is imported, since Ray reads it once: a token, workers that are as
urgent as other processes (Ray's niceness of 15 starves them beside any), and the `python` of this environment first,
which jobs start, as in an activated one.
"""

import os
import sys
from pathlib import Path

os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="of-the-cluster-tests" * 2, RAY_USAGE_STATS_ENABLED="0",
                  RAY_worker_niceness="0")  # fmt: skip
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
