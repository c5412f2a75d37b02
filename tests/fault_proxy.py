"""What a bad network and a bad day of a storage do to S3, between a client and a real server.

The fixture `s3_proxy` is a proxy in front of an S3 server; the environment leads through it, and
`s3_proxy.url` is a repository in a new bucket behind it. It counts requests by kind:

    with s3_proxy.counting() as requests:
        ...
    assert requests["PUT"] <= 3          # PUT, COPY, GET, HEAD, LIST, DELETE, POST

and it breaks what it is told to, as often as it is told to, until `heal()`:

    s3_proxy.inject(status(503, "SlowDown"), times=3)
    s3_proxy.inject(lost, kinds={"PUT"}, key="journal/", times=1)
    s3_proxy.inject(EXPIRED)
    s3_proxy.inject(skewed(86400.0))

Where there is no network at all, so that not even a connection is made, is in `gate`.
"""

from __future__ import annotations

import re
import socket
import struct
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from email.utils import formatdate, parsedate_to_datetime
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Lock, Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from servers import Server, enter, s3_environment

_HOP = {"connection", "transfer-encoding", "content-length", "keep-alive"}


@dataclass(frozen=True)
class Request:
    """One request as the storage would bill it: `kind` is PUT, COPY, GET, HEAD, LIST, DELETE (also
    of many keys at once) or POST (a step of an upload in parts)."""

    kind: str
    key: str
    user: str
    size: int


@dataclass
class Answer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes


#: What a fault does: with the handler of a request, and a call that asks the real server. It
#: returns an answer to send in the usual way, or None when it has done its own.
Fault = Callable[["Handler", Callable[[], Answer]], Answer | None]


@dataclass
class Rule:
    fault: Fault
    kinds: Collection[str] | None
    key: str
    left: int | None
    #: Set when the fault has struck for the first time.
    struck: Event = field(default_factory=Event)

    def strikes(self, request: Request) -> bool:
        """Whether it is this request's turn; counts down."""
        if self.left == 0 or (self.kinds is not None and request.kind not in self.kinds):
            return False
        if not re.search(self.key, request.key):
            return False
        if self.left is not None:
            self.left -= 1
        self.struck.set()
        return True


# Faults


def status(number: int, code: str) -> Fault:
    """The storage answers with an error, and does nothing."""

    def answer(handler: Handler, ask: Callable[[], Answer]) -> Answer:
        text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>"
        return Answer(number, [("Content-Type", "application/xml")], text.encode())

    return answer


EXPIRED = status(403, "ExpiredToken")


def reset(handler: Handler, ask: Callable[[], Answer]) -> None:
    """The connection is cut before the storage has seen the request."""
    handler.cut()


def lost(handler: Handler, ask: Callable[[], Answer]) -> None:
    """The storage does what it was asked, and the answer never arrives."""
    ask()
    handler.cut()


def truncated(handler: Handler, ask: Callable[[], Answer]) -> Answer | None:
    """The body ends in the middle, and the connection with it."""
    answer = ask()
    if len(answer.body) < 2:
        return answer
    handler.send_head(answer, len(answer.body))
    handler.wfile.write(answer.body[: len(answer.body) // 2])
    handler.wfile.flush()
    handler.cut()
    return None


def slow(handler: Handler, ask: Callable[[], Answer]) -> None:
    """The body arrives in small pieces, each with a pause before it."""
    answer = ask()
    handler.send_head(answer, len(answer.body))
    if handler.command == "HEAD":
        return
    step = max(1, len(answer.body) // 8)
    for start in range(0, len(answer.body), step):
        handler.proxy.closing.wait(0.02)
        handler.wfile.write(answer.body[start : start + step])
        handler.wfile.flush()


def skewed(seconds: float) -> Fault:
    """The storage's clock, in all that it says, is this much ahead of the real time."""
    shift = timedelta(seconds=seconds)

    def answer(handler: Handler, ask: Callable[[], Answer]) -> Answer:
        real = ask()
        headers = [
            (name, _shifted(value, shift) if name.lower() in ("date", "last-modified") else value)
            for name, value in real.headers
        ]
        return Answer(real.status, headers, _TIME.sub(lambda m: _later(m, shift), real.body))

    return answer


_TIME = re.compile(rb"<LastModified>([^<]+)</LastModified>")


def _shifted(value: str, shift: timedelta) -> str:
    return formatdate((parsedate_to_datetime(value) + shift).timestamp(), usegmt=True)


def _later(match: re.Match[bytes], shift: timedelta) -> bytes:
    time = datetime.fromisoformat(match[1].decode().replace("Z", "+00:00")) + shift
    return f"<LastModified>{time.strftime('%Y-%m-%dT%H:%M:%S.000Z')}</LastModified>".encode()


def lagging(hidden: str) -> Fault:
    """Lists do not show yet the keys that match."""

    def answer(handler: Handler, ask: Callable[[], Answer]) -> Answer:
        real = ask()
        body = _ENTRY.sub(lambda m: b"" if re.search(hidden, m[1].decode()) else m[0], real.body)
        return Answer(real.status, real.headers, body)

    return answer


_ENTRY = re.compile(rb"<Contents>.*?<Key>([^<]+)</Key>.*?</Contents>", re.DOTALL)


# The proxy


class FaultProxy:
    """A proxy in front of `upstream`. `url` is a new repository behind it, as a user writes it."""

    def __init__(self, upstream: str) -> None:
        self.upstream = urlsplit(upstream).netloc
        self.requests: list[Request] = []
        self.closing = Event()
        self.url = ""
        self._rules: list[Rule] = []
        self._lock = Lock()
        proxy = self

        class Bound(Handler):
            pass

        Bound.proxy = proxy
        self._server = _Quiet(("127.0.0.1", 0), Bound)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def inject(
        self,
        fault: Fault,
        *,
        kinds: Collection[str] | None = None,
        key: str = "",
        times: int | None = None,
    ) -> Rule:
        """From now on the fault meets requests of these kinds (any) whose key matches `key`."""
        rule = Rule(fault, kinds, key, times)
        with self._lock:
            self._rules.append(rule)
        return rule

    def heal(self) -> None:
        """All is well again."""
        with self._lock:
            self._rules.clear()

    @contextmanager
    def counting(self) -> Iterator[Counter[str]]:
        """How many requests of each kind were sent in the block, known at its end."""
        first = len(self.requests)
        counts: Counter[str] = Counter()
        yield counts
        counts.update(request.kind for request in self.requests[first:])

    def rule_for(self, request: Request) -> Rule | None:
        with self._lock:
            self.requests.append(request)
            return next((rule for rule in self._rules if rule.strikes(request)), None)

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: clients hang up, which is what these tests are about."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    proxy: FaultProxy

    def pass_on(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        rule = self.proxy.rule_for(self.described())
        answer = rule.fault(self, self.ask) if rule else self.ask()
        if answer is not None:
            self.send_head(answer, len(answer.body))
            self.wfile.write(answer.body if self.command != "HEAD" else b"")

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = pass_on

    def described(self) -> Request:
        url = urlsplit(self.path)
        query = parse_qs(url.query, keep_blank_values=True)
        key = unquote(url.path).partition("/")[2].partition("/")[2]
        kind = self.command
        if "list-type" in query:
            kind, key = "LIST", query.get("prefix", [""])[0]
        elif "delete" in query:
            kind, key = "DELETE", ""
        elif "x-amz-copy-source" in self.headers:
            kind = "COPY"
        user = re.search(r"Credential=([^/]+)/", self.headers.get("Authorization", ""))
        return Request(kind, key, user[1] if user else "", len(self.body))

    def ask(self) -> Answer:
        """What the real server answers."""
        connection = HTTPConnection(self.proxy.upstream, timeout=60)
        try:
            headers = {n: v for n, v in self.headers.items() if n.lower() not in _HOP}
            connection.request(self.command, self.path, body=self.body, headers=headers)
            response = connection.getresponse()
            return Answer(response.status, response.getheaders(), response.read())
        finally:
            connection.close()

    def send_head(self, answer: Answer, size: int) -> None:
        self.send_response_only(answer.status)
        skipped = _HOP - {"content-length"} if self.command == "HEAD" else _HOP
        for name, value in answer.headers:
            if name.lower() not in skipped:
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(size))
        self.end_headers()

    def cut(self) -> None:
        """The other side sees a reset, not an orderly end."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.wfile.close()
        self.rfile.close()
        self.connection.close()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the tests have their own reports."""


@pytest.fixture
def s3_proxy(ministack: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    proxy = FaultProxy(ministack.endpoint)
    proxy.url = enter(ministack, monkeypatch)
    for name, value in s3_environment(proxy.endpoint).items():
        monkeypatch.setenv(name, value)
    yield proxy
    proxy.close()
