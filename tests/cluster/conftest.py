"""The token of the tests' clusters: in the environment before Ray is imported, since Ray reads it once."""

import os

os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="of-the-cluster-tests" * 2, RAY_USAGE_STATS_ENABLED="0")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
