"""Who may talk to a cluster: its token. Ray 2.60 starts clusters with one, but sends it only where it is configured to.

The token is RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH, or ~/.ray/auth_token; RAY_AUTH_MODE, where it is set, is
obeyed.
"""

import os
import secrets
from pathlib import Path
from typing import Literal, cast

import grpc
from ray._raylet import Config  # type: ignore[attr-defined]

_MODE = "RAY_AUTH_MODE"
PROBE_SECONDS = 10
_QUESTION = "/ray.rpc.NodeInfoGcsService/GetClusterId"
"""The first thing that any client asks of a head, with an empty message."""
PLACES = "RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"

Answer = Literal["taken", "rejected"]


def find_token() -> tuple[str, str] | None:
    """A token and where it stands; None: there is none. A token in the home directory is made readable for its owner
    alone.

    Raises:
        OSError: a file that cannot be read.
    """
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token, "RAY_AUTH_TOKEN"
    if name := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return Path(name).read_text(encoding="utf-8").strip(), name
    path = _path_at_home()
    if path is None or not path.is_file():
        return None
    status = path.stat()
    if status.st_uid == os.getuid() and status.st_mode & 0o077:
        path.chmod(0o600)
    return path.read_text(encoding="utf-8").strip(), str(path)


def make_token() -> None:
    """See to a token for a cluster of this user's own; a new one is written as Ray would, but for its owner alone.

    Raises:
        ValueError: no place for it.
    """
    if os.environ.get(_MODE, "token") != "token" or find_token() is not None:
        return
    path = _path_at_home()
    try:
        if path is None:
            raise OSError("there is no home directory")
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
        with open(os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="ascii") as file:
            file.write(secrets.token_hex(32))
        try:
            os.link(fresh, path)  # unlike a rename it replaces no token that another search has just written
        except FileExistsError:
            pass
        finally:
            fresh.unlink()
    except OSError as error:
        raise ValueError(f"no token can be kept in ~/.ray/auth_token: {error}; set RAY_AUTH_TOKEN to one") from error


def send_token() -> None:
    """Let this process send its token, where it has one and RAY_AUTH_MODE does not say otherwise."""
    if _MODE not in os.environ and find_token() is not None:
        os.environ[_MODE] = "token"
        Config.initialize("")  # as Ray does: what it read when it was imported is read again


def agree_on_token(address: str) -> None:
    """Ask the head at host:port whether it wants a token, and send it there if so.

    It is asked, since a process that sends a token wants one from each that calls it: a cluster without cannot then
    start an actor for it.

    Raises:
        ValueError: not the head of a Ray cluster; or one that wants a token that this process has not, or none.
    """
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return  # Ray's own certificates: whoever sets those names the mode, too
    mode, token = os.environ.get(_MODE), find_token()
    if _ask(address, None) == "taken":
        if mode == "token":
            raise ValueError(f"the cluster at {address} wants no token, but {_MODE}=token would send one; unset it")
        return
    if mode not in (None, "token"):
        raise ValueError(f"the cluster at {address} wants a token, but {_MODE}={mode} sends none; unset it")
    if token is None:
        raise ValueError(f"the cluster at {address} wants a token and there is none; put the cluster's into {PLACES}")
    if _ask(address, token[0]) == "rejected":
        raise ValueError(f"the cluster at {address} refuses the token in {token[1]}; put the cluster's into {PLACES}")
    send_token()


def _ask(address: str, token: str | None) -> Answer:
    """What a head says to a question with a token, or with none."""
    metadata = [("authorization", f"Bearer {token}")] if token else []
    with grpc.insecure_channel(address) as channel:
        try:
            channel.unary_unary(_QUESTION)(b"", timeout=PROBE_SECONDS, metadata=metadata)
        except grpc.RpcError as rejection:
            error = cast("grpc.Call", rejection)
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                return "rejected"
            raise ValueError(
                f"no Ray cluster at {address}: {str(error.details()).splitlines()[0]}; start one with `ray start "
                "--head`, or leave --address out for a local one"
            ) from rejection
    return "taken"


def _path_at_home() -> Path | None:
    """Where Ray keeps a token."""
    try:
        return Path.home() / ".ray" / "auth_token"
    except RuntimeError:
        return None
