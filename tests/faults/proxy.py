"""A proxy before an S3 server that does to requests what stores do on a bad night."""

import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

Misdeed = Callable[["Exchange"], None]

_STALL = 65  # seconds; clients wait 60
_HOP = {"connection", "transfer-encoding", "keep-alive"}


class Proxy(ThreadingHTTPServer):
    """Passes requests on to a server, or does `misdeed` to them.

    Attributes:
        misdeed: what is done to a request; None for passing all on.
        fetched: how often each image was given out whole.
    """

    daemon_threads = True

    def __init__(self, server: str):
        super().__init__(("127.0.0.1", 0), Exchange)
        self.upstream = urlsplit(server).netloc
        self.misdeed: Misdeed | None = None
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
        """Clients hang up here by design."""


class Exchange(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    server: Proxy
    sent: bytes

    def pass_on(self) -> None:
        """Ask the server, and answer with what it says."""
        answer, data = self.ask()
        self.answer(answer.status, answer.getheaders(), data)
        if self.is_image and answer.status == 200:
            self.server.fetched[unquote(self.path)] += 1

    @property
    def is_image(self) -> bool:
        """Whether an image is read."""
        return self.command == "GET" and urlsplit(self.path).path.endswith(".png")

    def ask(self) -> tuple[http.client.HTTPResponse, bytes]:
        """Ask the server."""
        connection = http.client.HTTPConnection(self.server.upstream, timeout=60)
        try:
            connection.request(self.command, self.path, self.sent, dict(self.headers.items()))
            answer = connection.getresponse()
            return answer, answer.read()
        finally:
            connection.close()

    def answer(self, status: int, headers: list[tuple[str, str]], data: bytes) -> None:
        """Answer the client with all of it."""
        self.begin(status, headers, len(data))
        self.wfile.write(data)

    def begin(self, status: int, headers: list[tuple[str, str]], length: int) -> None:
        """Answer the client with a header."""
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in _HOP and (
                name.lower() != "content-length" or self.command == "HEAD"
            ):
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def refuse(self, status: int, code: str) -> None:
        """Answer with an error of S3."""
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>"
        data = b"" if self.command == "HEAD" else body.encode()
        self.answer(status, [("Content-Type", "application/xml")], data)

    def hang_up(self) -> None:
        """End the connection with a reset."""
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = True
        self.connection.close()

    def handle_any(self) -> None:
        """Take a request."""
        self.sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        misdeed = self.server.misdeed
        try:
            if misdeed is None:
                self.pass_on()
            else:
                misdeed(self)
        except OSError:
            self.close_connection = True

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Quiet."""


def sometimes(misdeed: Misdeed, share: float, seed: int, *, images_only: bool = True) -> Misdeed:
    """Do it to a share of the requests."""
    dice = random.Random(seed)
    lock = threading.Lock()

    def act(exchange: Exchange) -> None:
        with lock:
            hit = dice.random() < share
        if hit and (exchange.is_image or not images_only):
            misdeed(exchange)
        else:
            exchange.pass_on()

    return act


def from_then_on(misdeed: Misdeed, images: int, more: int = 0) -> Misdeed:
    """Do it to all requests, once so many images were asked for and so many requests after that."""
    left = [images, more]
    lock = threading.Lock()

    def act(exchange: Exchange) -> None:
        with lock:
            passes = any(left)
            if left[0]:
                left[0] -= exchange.is_image
            elif left[1]:
                left[1] -= 1
        if passes:
            exchange.pass_on()
        else:
            misdeed(exchange)

    return act


def times(misdeed: Misdeed, count: int) -> tuple[Misdeed, list[str]]:
    """Do it so often, then no more; and what was asked so far."""
    asked: list[str] = []

    def act(exchange: Exchange) -> None:
        asked.append(exchange.command)
        if len(asked) <= count:
            misdeed(exchange)
        else:
            exchange.pass_on()

    return act, asked


def slow_down(exchange: Exchange) -> None:
    """503, as a store answers that is asked too much."""
    exchange.refuse(503, "SlowDown")


def denied(exchange: Exchange) -> None:
    """403."""
    exchange.refuse(403, "AccessDenied")


def expired(exchange: Exchange) -> None:
    """403, as for credentials whose time has run out."""
    exchange.refuse(403, "ExpiredToken")


def gone(exchange: Exchange) -> None:
    """404, as for an object that was deleted after it was listed."""
    exchange.refuse(404, "NoSuchKey")


def stalled(exchange: Exchange) -> None:
    """No answer until the client has given up."""
    time.sleep(_STALL)
    exchange.hang_up()


def unanswered(exchange: Exchange) -> None:
    """A write is done, or not, and the connection ends before its answer; the rest is passed on."""
    if exchange.command != "PUT":
        exchange.pass_on()
        return
    if random.random() < 0.5:
        exchange.ask()
    exchange.hang_up()


def reset(exchange: Exchange) -> None:
    """The connection ends in the middle of the body."""
    answer, data = exchange.ask()
    exchange.begin(answer.status, answer.getheaders(), len(data))
    exchange.wfile.write(data[: len(data) // 2])
    exchange.wfile.flush()
    exchange.hang_up()


def cut_short(exchange: Exchange) -> None:
    """The body ends early, and the connection with it."""
    answer, data = exchange.ask()
    exchange.begin(answer.status, answer.getheaders(), len(data))
    exchange.wfile.write(data[: len(data) // 2])
    exchange.close_connection = True


def wrong_length(exchange: Exchange) -> None:
    """Half of the body, told as if it were the whole."""
    answer, data = exchange.ask()
    exchange.answer(answer.status, answer.getheaders(), data[: len(data) // 2])


def away(exchange: Exchange) -> None:
    """Nobody there."""
    exchange.hang_up()
