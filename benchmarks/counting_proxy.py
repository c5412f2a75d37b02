"""A proxy in front of an S3 server that counts requests as Amazon's bill does."""

from __future__ import annotations

import http.client
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

#: Dollars for 1,000 requests, S3 Standard in us-east-1. Deleting costs nothing.
PRICES = {"PUT": 0.005, "LIST": 0.005, "GET": 0.0004, "DELETE": 0.0}
_OWN_HEADERS = {"connection", "transfer-encoding", "keep-alive", "content-length"}


class Requests:
    """What has passed so far: requests by the class that they are billed in, and bytes."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.url = ""
        self.kinds: Counter[str] = Counter()
        self.sent = self.received = 0
        self.keys: list[str] = []
        self.lock = threading.Lock()

    def clear(self) -> None:
        with self.lock:
            self.kinds.clear()
            self.keys.clear()
            self.sent = self.received = 0

    def add(self, kind: str, line: str, sent: int, received: int) -> None:
        with self.lock:
            self.kinds[kind] += 1
            self.keys.append(f"{kind} {line}")
            self.sent += sent
            self.received += received


def dollars(kinds: Mapping[str, int]) -> float:
    """What these requests cost."""
    return sum(PRICES[kind] * number for kind, number in kinds.items()) / 1000


def billed(method: str, path: str) -> str:
    """The class of a request in the bill: copies and the parts of an upload are PUTs."""
    query = parse_qs(urlsplit(path).query, keep_blank_values=True)
    if method == "DELETE" or "delete" in query:
        return "DELETE"
    if method == "GET" and ("list-type" in query or "uploads" in query):
        return "LIST"
    return "GET" if method in ("GET", "HEAD") else "PUT"


@contextmanager
def counting(endpoint: str) -> Iterator[Requests]:
    """A proxy to `endpoint`; `url` of what is yielded leads to it."""
    requests = Requests(endpoint)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(requests))
    server.daemon_threads = True
    requests.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(requests: Requests) -> type[BaseHTTPRequestHandler]:
    place = urlsplit(requests.endpoint)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        upstream: http.client.HTTPConnection | None = None

        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.upstream is None:
                self.upstream = http.client.HTTPConnection(place.hostname or "", place.port)
            headers = {k: v for k, v in self.headers.items() if k.lower() != "connection"}
            self.upstream.request(self.command, self.path, body, headers)
            with self.upstream.getresponse() as answer:
                data = answer.read()
                # Before the answer, so that who has it finds it counted.
                requests.add(billed(self.command, self.path), self.path, len(body), len(data))
                self.send_response_only(answer.status, answer.reason)
                for name, value in answer.getheaders():
                    if name.lower() not in _OWN_HEADERS:
                        self.send_header(name, value)
                length = answer.getheader("Content-Length") or "0"
                self.send_header(
                    "Content-Length", length if self.command == "HEAD" else str(len(data))
                )
                self.end_headers()
                self.wfile.write(data)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = forward

        def log_message(self, format: str, *args: object) -> None:
            """Nothing is printed: what counts is counted."""

    return Handler
