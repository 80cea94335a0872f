"""Tokens: where they stand, who may read them, what a head that wants none, or is none, says."""

import os
import socket
import stat
import threading
from pathlib import Path

import pytest
from ray._private.authentication.authentication_token_setup import generate_and_save_token

from cluster.jobs.submit import connect
from cluster.ray_runtime.access import agree_on_token, find_token, make_token
from launch.network.ports import free_port
from tests.support.clusters import Node, wait_for

pytestmark = pytest.mark.ray


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """Where a user's token is, before there is one."""
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / ".ray" / "auth_token"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_token_is_made_once_and_for_its_owner_alone(fresh):
    assert find_token() is None
    makers = [threading.Thread(target=make_token) for _ in range(8)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    token = fresh.read_text()
    assert (len(token), mode(fresh), mode(fresh.parent)) == (64, 0o600, 0o700)
    assert list(fresh.parent.iterdir()) == [fresh]
    make_token()
    assert find_token() == (token, str(fresh))


def test_rays_own_file_is_closed(fresh):
    generate_and_save_token()
    assert mode(fresh) == 0o644, "what Ray 2.60 leaves"
    assert find_token() == (fresh.read_text(), str(fresh))
    assert mode(fresh) == 0o600


def test_where_a_token_is_looked_for(fresh, tmp_path, monkeypatch):
    make_token()
    (tmp_path / "mounted").write_text("of-the-mount\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "mounted"))
    assert find_token() == ("of-the-mount", str(tmp_path / "mounted"))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of-the-environment")
    assert find_token() == ("of-the-environment", "RAY_AUTH_TOKEN")


@pytest.mark.parametrize("name, value", [("RAY_AUTH_MODE", "disabled"), ("RAY_AUTH_TOKEN", "x" * 64)])
def test_no_file_where_none_is_needed(fresh, name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    make_token()
    assert not fresh.parent.exists()


def test_no_place_for_a_token(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    with pytest.raises(ValueError, match=r"no token can be kept in ~/.ray/auth_token: .*; set RAY_AUTH_TOKEN to one"):
        make_token()


def test_a_head_that_wants_no_token_is_sent_none(fresh, tmp_path_factory, monkeypatch):
    """A process that sends one would never hear of its actors there."""
    make_token()
    port, temp = free_port(), tmp_path_factory.mktemp("o") / "r"  # short: Ray's sockets have long names
    node = Node(
        temp,
        "--head",
        "--port",
        str(port),
        "--include-dashboard",
        "false",
        "--num-cpus",
        "1",
        "--temp-dir",
        str(temp),
        RAY_AUTH_MODE="disabled",
    )
    try:
        wait_for(lambda: "Ray runtime started" in (temp.parent / "r.log").read_text(), "the head node", 120)
        agree_on_token(f"127.0.0.1:{port}")
        assert "RAY_AUTH_MODE" not in os.environ
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        with pytest.raises(ValueError, match="wants no token, but RAY_AUTH_MODE=token would send one; unset it"):
            agree_on_token(f"127.0.0.1:{port}")
    finally:
        node.kill()


def test_what_listens_there_is_silent(monkeypatch):
    """It takes connections and answers nothing, as a process that is stopped."""
    monkeypatch.setattr("cluster.ray_runtime.access.PROBE_SECONDS", 1)
    monkeypatch.setattr("cluster.jobs.submit.ANSWER_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ValueError, match=f"no Ray cluster at {address}: Deadline Exceeded; start one"):
            agree_on_token(address)
        with pytest.raises(ValueError, match=f"no Ray dashboard for jobs at http://{address}: .*timed out"):
            connect(f"http://{address}")
