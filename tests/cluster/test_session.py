"""A connection that has ended, or could not be made: nothing of this process starts a cluster of its own."""

import pytest
import ray
from ray._private import auto_init_hook
from ray.exceptions import RaySystemError

from cluster.ray_runtime.session import cluster
from cluster.ray_runtime.stopping import stop_requests
from launch.network.ports import free_port

pytestmark = pytest.mark.ray


def test_no_call_to_ray_starts_a_cluster(monkeypatch):
    monkeypatch.setattr(auto_init_hook, "enable_auto_connect", True)  # as Ray is imported
    nowhere = f"127.0.0.1:{free_port()}"
    with pytest.raises(ValueError, match="no Ray cluster at"), stop_requests() as stop, cluster(nowhere, stop):
        pass
    try:
        with pytest.raises(RaySystemError, match="Ray has not been started yet"):
            ray.put(1)
    finally:
        ray.shutdown()
