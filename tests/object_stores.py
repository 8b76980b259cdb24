"""An S3 server on this machine, and a proxy before it that fails in the ways networks fail."""

from __future__ import annotations

import http.client
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

_SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()  # until who started this closes it, or is gone
server.stop()
"""
#: Code and text of S3's errors.
_STATUS = {"InternalError": 500, "SlowDown": 503, "AccessDenied": 403, "InvalidAccessKeyId": 403}


_ANYBODY = (
    "AWS4-HMAC-SHA256 Credential=anybody/20200101/us-east-1/s3/aws4_request, SignedHeaders=host, "
    "Signature=none"
)


class Request(NamedTuple):
    """What a client has asked for; ``range`` is "" where it wants all."""

    method: str
    path: str
    range: str


#: What happens to a request: None (it is passed on), "cut", "half" (of the answer), "slow", or the
#: code of an error of S3's.
Rule = Callable[[Request], str | None]


def is_of_networks(name: str) -> bool:
    """Whether a variable of the environment changes what clients of object storage do."""
    return name.upper().startswith(("AWS_", "FSSPEC_", "XTEC_RETRIES")) or name.upper().endswith(
        "_PROXY"
    )


def ask(port: int, method: str, path: str, body: bytes = b"") -> bytes:
    """Of the server itself, which lets everybody in: PUT /bucket makes one, say."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    try:
        connection.request(method, path, body, {"Authorization": _ANYBODY})
        answer = connection.getresponse()
        data = answer.read()
    finally:
        connection.close()
    if answer.status >= 300:
        raise OSError(f"{method} {path}: {answer.status} {data!r}")
    return data


@contextmanager
def s3_server() -> Iterator[int]:
    """The port of a server that keeps objects in memory, in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVER],
        env={name: value for name, value in os.environ.items() if not is_of_networks(name)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.terminate()


class Proxy(ThreadingHTTPServer):
    """Hands requests on to a server, notes them in ``seen``, and spoils some by its ``rule``."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, server: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind, self.seen, self.spoilt = server, list[Request](), 0
        self.rule: Rule = passed
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients go away: that is no news."""


def passed(request: Request) -> None:
    """The rule of a sound network."""


def flaky(seed: int, share: float, *faults: str) -> Rule:
    """So many of the requests fail in one of these ways."""
    rng = random.Random(seed)
    return lambda request: rng.choice(faults) if rng.random() < share else None


@contextmanager
def proxy(server: int) -> Iterator[Proxy]:
    with Proxy(server) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield running
        finally:
            running.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # an answer goes out in one piece
    server: Proxy

    def _serve(self) -> None:
        self.wfile.flush()  # "100 Continue", for which clients wait with their data
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        request = Request(self.command, self.path, self.headers.get("Range", ""))
        with self.server.lock:
            self.server.seen.append(request)
            fault = self.server.rule(request)
            self.server.spoilt += fault is not None
        if fault == "cut":
            self._cut()
        elif fault in _STATUS:
            text = f"<Error><Code>{fault}</Code><Message>{fault} of a test</Message></Error>"
            self._answer(_STATUS[fault], [("Content-Type", "application/xml")], text.encode())
        else:
            if fault == "slow":
                time.sleep(0.1)
            self._pass_on(body, fault == "half")

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve

    def _pass_on(self, body: bytes, half: bool) -> None:
        behind = http.client.HTTPConnection("127.0.0.1", self.server.behind)
        try:
            behind.request(self.command, self.path, body, dict(self.headers))
            answer = behind.getresponse()
            data = answer.read()
        finally:
            behind.close()
        skipped = ("transfer-encoding", "connection", "content-length", "date", "server")
        headers = [(k, v) for k, v in answer.getheaders() if k.lower() not in skipped]
        size = int(answer.headers.get("Content-Length") or len(data))
        self._answer(answer.status, headers, data[: len(data) // 2] if half else data, size)
        if half:
            self._cut()

    def _answer(
        self, status: int, headers: list[tuple[str, str]], data: bytes, size: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(data) if size is None else size))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _cut(self) -> None:
        """The client sees a connection reset."""
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: Any) -> None:
        """Nobody wants to read this."""
