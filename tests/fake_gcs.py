"""A small Google Cloud Storage: the part of its XML API that clients of object stores use.

It honours `x-goog-if-generation-match`, ranges, copies, multipart uploads and paged lists, answers
404 to the deletion of what is not there, and asks for a token without looking at it. Everything is
in memory. Run as a program it says where it listens.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from threading import RLock
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

PAGE = 1000


@dataclass(frozen=True)
class Object:
    content: bytes
    generation: int
    modified: float = field(default_factory=time.time)

    @property
    def headers(self) -> dict[str, str]:
        return {
            "ETag": f'"{self.generation}"',
            "Last-Modified": formatdate(self.modified, usegmt=True),
            "x-goog-generation": str(self.generation),
        }


class Failure(Exception):
    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status, self.code = status, code


NO_BUCKET = Failure(404, "NoSuchBucket")
NO_KEY = Failure(404, "NoSuchKey")
#: By bucket and key, and by the id of an upload the parts by their numbers.
buckets: dict[str, dict[str, Object]] = {}
uploads: dict[str, dict[int, bytes]] = {}
lock = RLock()
numbers = count(1)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def answer(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        bucket, _, key = unquote(url.path[1:]).partition("/")
        query = {k: v[0] for k, v in parse_qs(url.query, keep_blank_values=True).items()}
        try:
            with lock:
                status, headers, content = self.act(bucket, key, query)
        except Failure as failure:
            text = f"<Error><Code>{failure.code}</Code></Error>"
            status, headers, content = failure.status, {}, text.encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

    def act(self, bucket: str, key: str, query: dict[str, str]) -> Any:
        if not key and self.command == "PUT":
            buckets.setdefault(bucket, {})
            return 200, {}, b""
        if self.headers.get("Authorization") is None:
            raise Failure(401, "AuthenticationRequired")
        if bucket not in buckets:
            raise NO_BUCKET
        objects = buckets[bucket]
        if not key:
            return 200, {}, listing(objects, query)
        if "uploads" in query or "uploadId" in query:
            return self.upload(objects, key, query)
        if self.command == "PUT":
            return 200, self.write(objects, key, self.content_of_put()).headers, b""
        if key not in objects:
            raise NO_KEY
        if self.command == "DELETE":
            self.check_generation(objects, key)
            del objects[key]
            return 204, {}, b""
        return self.read(objects[key])

    def content_of_put(self) -> bytes:
        source = self.headers.get("x-goog-copy-source")
        if source is None:
            return self.body
        bucket, _, key = unquote(source).partition("/")
        if key not in buckets.get(bucket, {}):
            raise NO_KEY
        return buckets[bucket][key].content

    def check_generation(self, objects: dict[str, Object], key: str) -> None:
        wanted = self.headers.get("x-goog-if-generation-match")
        found = objects[key].generation if key in objects else 0
        if wanted is not None and int(wanted) != found:
            raise Failure(412, "PreconditionFailed")

    def write(self, objects: dict[str, Object], key: str, content: bytes) -> Object:
        self.check_generation(objects, key)
        objects[key] = Object(content, next(numbers))
        return objects[key]

    def read(self, found: Object) -> Any:
        size = len(found.content)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            length = {"Content-Length": str(size)}
            return 200, found.headers | length, b"" if self.command == "HEAD" else found.content
        start, end = int(wanted[1]), min(int(wanted[2] or size), size - 1)
        if start >= size:
            raise Failure(416, "InvalidRange")
        part = {"Content-Range": f"bytes {start}-{end}/{size}"}
        return 206, found.headers | part, found.content[start : end + 1]

    def upload(self, objects: dict[str, Object], key: str, query: dict[str, str]) -> Any:
        """One step of an upload in parts."""
        if "uploads" in query:
            name = f"upload-{next(numbers)}"
            uploads[name] = {}
            return 200, {}, f"<R><UploadId>{name}</UploadId></R>".encode()
        name = query["uploadId"]
        if self.command == "PUT":
            uploads[name][int(query["partNumber"])] = self.body
            return 200, {"ETag": f'"{query["partNumber"]}"'}, b""
        parts = uploads.pop(name, {})
        if self.command == "DELETE":
            return 204, {}, b""
        content = b"".join(parts[number] for number in sorted(parts))
        found = self.write(objects, key, content)
        return 200, found.headers, f"<R><ETag>{found.generation}</ETag></R>".encode()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the tests have their own reports."""


def listing(objects: dict[str, Object], query: dict[str, str]) -> bytes:
    """One page of the keys in their order, those below a delimiter as one prefix."""
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    after = query.get("continuation-token") or query.get("start-after", "")
    entries: dict[str, str] = {}
    for key in sorted(objects):
        if not key.startswith(prefix):
            continue
        rest, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
        name = prefix + rest + delimiter if found else key
        if name > after:
            entries.setdefault(name, "prefix" if found else "key")
    page = list(entries)[:PAGE]
    more = len(entries) > len(page)
    text = "".join(_entry(name, entries[name], objects) for name in page)
    token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
    truncated = f"<IsTruncated>{str(more).lower()}</IsTruncated>"
    return f"<ListBucketResult>{text}{truncated}{token}</ListBucketResult>".encode()


def _entry(name: str, kind: str, objects: dict[str, Object]) -> str:
    if kind == "prefix":
        return f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>"
    found = objects[name]
    time_ = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(found.modified))
    milliseconds = int(found.modified % 1 * 1000)
    return (
        f"<Contents><Key>{escape(name)}</Key><Size>{len(found.content)}</Size>"
        f"<LastModified>{time_}.{milliseconds:03}Z</LastModified>"
        f'<ETag>"{found.generation}"</ETag></Contents>'
    )


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(f"Listens on http://127.0.0.1:{server.server_port}")
    server.serve_forever()
