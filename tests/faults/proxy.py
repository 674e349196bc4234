"""A proxy in front of an S3 server that injects faults into requests."""

import http.client
import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

Fault = Callable[["Exchange"], None]

_STALL_S = 65  # clients wait 60 s
_HELD_S = 300  # a held request of a failing test
_HOP_BY_HOP = {"connection", "transfer-encoding", "keep-alive"}


class Proxy(ThreadingHTTPServer):
    """Forwards requests to a server, or answers them with `fault`.

    Attributes:
        fault: what handles a request; None forwards all.
        fetched: how often each image was sent whole, by its path.
    """

    daemon_threads = True

    def __init__(self, server: str):
        super().__init__(("127.0.0.1", 0), Exchange)
        self.upstream = urlsplit(server).netloc
        self.fault: Fault | None = None
        self.fetched: Counter[str] = Counter()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        """Where clients reach it."""
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> "Proxy":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        """Clients hang up by design: not worth a traceback."""


class Exchange(BaseHTTPRequestHandler):
    """A request of a client, and the means to answer it."""

    protocol_version = "HTTP/1.1"
    server: Proxy
    sent: bytes

    def forward(self) -> None:
        """Answer as the server does."""
        answer, data = self.ask()
        self.answer(answer.status, answer.getheaders(), data)
        if self.is_image and answer.status == 200:
            self.server.fetched[unquote(self.path)] += 1

    @property
    def is_image(self) -> bool:
        """Whether it reads an image."""
        return self.command == "GET" and urlsplit(self.path).path.endswith(".png")

    def ask(self) -> tuple[http.client.HTTPResponse, bytes]:
        """Send the request to the server; returns its answer and the body."""
        connection = http.client.HTTPConnection(self.server.upstream, timeout=60)
        try:
            connection.request(self.command, self.path, self.sent, dict(self.headers.items()))
            answer = connection.getresponse()
            return answer, answer.read()
        finally:
            connection.close()

    def answer(self, status: int, headers: list[tuple[str, str]], data: bytes) -> None:
        """Answer with headers and body."""
        self.begin(status, headers, len(data))
        self.wfile.write(data)

    def begin(self, status: int, headers: list[tuple[str, str]], length: int) -> None:
        """Answer with headers alone."""
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in _HOP_BY_HOP and (
                name.lower() != "content-length" or self.command == "HEAD"
            ):
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def refuse(self, status: int, code: str) -> None:
        """Answer with an S3 error."""
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>"
        data = b"" if self.command == "HEAD" else body.encode()
        self.answer(status, [("Content-Type", "application/xml")], data)

    def hang_up(self) -> None:
        """Reset the connection."""
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = True
        self.connection.close()

    def handle_any(self) -> None:
        """Handle a request."""
        self.sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.server.fault
        try:
            if fault is None:
                self.forward()
            else:
                fault(self)
        except OSError:
            self.close_connection = True

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Quiet."""


def sometimes(fault: Fault, fraction: float, seed: int, *, images_only: bool = True) -> Fault:
    """The fault, for a fraction of the requests."""
    rng = random.Random(seed)
    lock = threading.Lock()

    def act(exchange: Exchange) -> None:
        with lock:
            hit = rng.random() < fraction
        if hit and (exchange.is_image or not images_only):
            fault(exchange)
        else:
            exchange.forward()

    return act


def from_then_on(fault: Fault, images: int, requests: int = 0) -> Fault:
    """The fault, after so many requests for images and then so many requests of any kind."""
    remaining = [images, requests]
    lock = threading.Lock()

    def act(exchange: Exchange) -> None:
        with lock:
            passes = any(remaining)
            if remaining[0]:
                remaining[0] -= exchange.is_image
            elif remaining[1]:
                remaining[1] -= 1
        if passes:
            exchange.forward()
        else:
            fault(exchange)

    return act


def times(fault: Fault, count: int) -> tuple[Fault, list[str]]:
    """The fault, for the first `count` requests; and the methods of the requests so far."""
    asked: list[str] = []

    def act(exchange: Exchange) -> None:
        asked.append(exchange.command)
        if len(asked) <= count:
            fault(exchange)
        else:
            exchange.forward()

    return act, asked


class Hold:
    """Holds one request until it is released, whether or not its client still waits.

    Attributes:
        reached: set when the request has come.
        passed: set when it has gone through.
    """

    def __init__(self, path: str, occurrence: int = 1):
        """Hold the PUT request of that occurrence whose path matches a regular expression."""
        self.reached, self.passed = threading.Event(), threading.Event()
        self._path, self._before = re.compile(path), occurrence - 1
        self._released = threading.Event()
        self._lock = threading.Lock()

    def __call__(self, exchange: Exchange) -> None:
        """As a fault of the proxy."""
        if exchange.command != "PUT" or not self.wait(unquote(urlsplit(exchange.path).path)):
            exchange.forward()
            return
        answer, data = exchange.ask()
        self.passed.set()
        exchange.answer(answer.status, answer.getheaders(), data)

    def wait(self, path: str) -> bool:
        """Wait for the release if this is the write to hold; returns whether it is."""
        with self._lock:
            if self.reached.is_set() or not self._path.search(path):
                return False
            if self._before:
                self._before -= 1
                return False
            self.reached.set()
        self._released.wait(_HELD_S)
        return True

    def release(self) -> None:
        """Let the request go through."""
        self._released.set()


def slow_down(exchange: Exchange) -> None:
    """503: too many requests."""
    exchange.refuse(503, "SlowDown")


def denied(exchange: Exchange) -> None:
    """403: access denied."""
    exchange.refuse(403, "AccessDenied")


def expired(exchange: Exchange) -> None:
    """403: the credentials have expired."""
    exchange.refuse(403, "ExpiredToken")


def gone(exchange: Exchange) -> None:
    """404: deleted after it was listed."""
    exchange.refuse(404, "NoSuchKey")


def stalled(exchange: Exchange) -> None:
    """No answer until the client has given up."""
    time.sleep(_STALL_S)
    exchange.hang_up()


def unanswered(exchange: Exchange) -> None:
    """A write succeeds or not, but its answer never comes; other requests are forwarded."""
    if exchange.command != "PUT":
        exchange.forward()
        return
    if random.random() < 0.5:
        exchange.ask()
    exchange.hang_up()


def reset(exchange: Exchange) -> None:
    """The connection is reset in the middle of the body."""
    answer, data = exchange.ask()
    exchange.begin(answer.status, answer.getheaders(), len(data))
    exchange.wfile.write(data[: len(data) // 2])
    exchange.wfile.flush()
    exchange.hang_up()


def cut_short(exchange: Exchange) -> None:
    """The connection is closed in the middle of the body."""
    answer, data = exchange.ask()
    exchange.begin(answer.status, answer.getheaders(), len(data))
    exchange.wfile.write(data[: len(data) // 2])
    exchange.close_connection = True


def wrong_length(exchange: Exchange) -> None:
    """Half of the body, with a Content-Length to match."""
    answer, data = exchange.ask()
    exchange.answer(answer.status, answer.getheaders(), data[: len(data) // 2])


def away(exchange: Exchange) -> None:
    """The server is down."""
    exchange.hang_up()
