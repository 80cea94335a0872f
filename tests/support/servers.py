"""Real servers on loopback for the tests: files over HTTP with ranges, and a proxy, both of which fail on command.

A fault is put into `FaultyServer.faults` and used up by the next answer that it fits:
    "500"    that status, or another      "stall"  no answer for a while, then the connection is closed
    "truncate"  half of the body          "flip"   one wrong bit in the body
"""

import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from data_shards.storage.remote import RemoteOptions

STALL = 3.0
QUICK = RemoteOptions(timeout=1.5, attempts=5, pause=0.02, chunk_bytes=4096, streams=3)
"""For servers that are near and fail on purpose."""
Answer = tuple[int, list[tuple[str, str]], bytes]


class FaultyServer:
    """The requests to a server, and the faults of its next answers."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.method = "GET"
        """Requests that faults apply to."""
        self.part = ".tar"
        """Only paths with this text fail."""
        self.log: list[tuple[str, str, int]] = []
        """(method, path, bytes of the answer) of every request."""
        self.url = ""
        self.bucket = ""
        self._lock = threading.Lock()

    def next_fault(self, method: str, path: str) -> str:
        with self._lock:
            return self.faults.pop(0) if self.faults and method == self.method and self.part in path else ""

    def served(self, part: str) -> int:
        """Bytes of answers to GETs of paths with a text."""
        return sum(size for method, path, size in self.log if method == "GET" and part in path)


@contextmanager
def serve_files(root: Path) -> Iterator[FaultyServer]:
    """The files of a directory over HTTP, whatever the query."""

    def answer(method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        file = root / path.partition("?")[0].lstrip("/")
        if not file.is_file():
            return 404, [], b""
        raw = file.read_bytes()
        common = [("Accept-Ranges", "bytes"), ("Content-Type", "application/octet-stream")]
        if "range" not in headers:
            return 200, [*common, ("Content-Length", str(len(raw)))], raw
        first, last = headers["range"].removeprefix("bytes=").split("-")
        start, stop = int(first), min(int(last or len(raw) - 1) + 1, len(raw))
        common.append(("Content-Range", f"bytes {start}-{stop - 1}/{len(raw)}"))
        return 206, [*common, ("Content-Length", str(stop - start))], raw[start:stop]

    with serve(answer) as state:
        yield state


@contextmanager
def proxy(host: str, port: int) -> Iterator[FaultyServer]:
    """Everything that another server answers."""

    def answer(method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        connection = http.client.HTTPConnection(host, port, timeout=30)
        connection.request(method, path, body=body, headers=headers)
        response = connection.getresponse()
        raw = response.read()
        headers_sent = [(name, value) for name, value in response.getheaders() if name.lower() != "connection"]
        connection.close()
        return response.status, headers_sent, raw

    with serve(answer) as state:
        yield state


@contextmanager
def serve(answer: Callable[[str, str, dict[str, str], bytes], Answer]) -> Iterator[FaultyServer]:
    state = FaultyServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            fault = state.next_fault(self.command, self.path)
            if fault == "stall":
                time.sleep(STALL)
                self.close_connection = True
                return
            status, found, raw = (
                (int(fault), [("Content-Length", "0")], b"")
                if fault.isdecimal()
                else answer(self.command, self.path, headers, body)
            )
            if fault == "flip":
                raw = bytes([raw[0] ^ 16]) + raw[1:]
            state.log.append((self.command, self.path, len(raw)))
            self.send_response_only(status)
            for name, value in found:
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(raw[: len(raw) // 2] if fault == "truncate" else raw)
            self.close_connection = fault == "truncate"

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # clients that gave up

    server = Server(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def silent_server() -> Iterator[str]:
    """A server that takes connections and never answers; yields its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
