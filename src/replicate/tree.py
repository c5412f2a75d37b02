"""A directory as a manifest: which files there are, and which blobs hold them.

It turns files into manifests and manifests into files. A manifest comes from a repository that
somebody else may have written, so it is refused whole when any path in it could reach outside the
directory it is meant for.
"""

from __future__ import annotations

import json
import os
import posixpath
import stat as stat_module
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from blake3 import blake3

from replicate import chunking
from replicate.backends.base import Backend
from replicate.blobs import Batch, hash_of, read_blobs, tree_key
from replicate.errors import DamagedError, KeyNotFoundError, UnsafeTreeError
from replicate.records import dump

Kind = Literal["file", "link", "directory"]
#: The repository's own directory, and what git keeps: no manifest may write there.
_RESERVED = {".replicate", ".git"}
_EMPTY = memoryview(b"")


@dataclass(frozen=True, slots=True)
class Entry:
    """One path of a tree, relative, with forward slashes.

    A file has `hash` (BLAKE3 of all its bytes), `size` in bytes, permission bits `mode`, and
    `chunks` (hash and size of each, in order) when it is more than one blob. A link has `target`.
    A directory is listed only when it is empty.
    """

    path: str
    kind: Kind = "file"
    mode: int = 0o644
    size: int = 0
    hash: str = ""
    chunks: tuple[tuple[str, int], ...] = ()
    target: str = ""

    @property
    def blobs(self) -> tuple[tuple[str, int], ...]:
        """Hash and size of the blobs that, one after another, are the file."""
        if self.kind != "file":
            return ()
        return self.chunks or ((self.hash, self.size),)


@dataclass(frozen=True, slots=True)
class Tree:
    """Entries in the order of their paths."""

    entries: tuple[Entry, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(e.size for e in self.entries)

    @property
    def files(self) -> dict[str, Entry]:
        """Files by path (no links, no directories)."""
        return {e.path: e for e in self.entries if e.kind == "file"}


@dataclass(frozen=True, slots=True)
class Source:
    """Something to put into a tree. `view` is a file's bytes; `target` is a link's."""

    path: str
    kind: Kind = "file"
    mode: int = 0o644
    view: memoryview = _EMPTY
    target: str = ""


def add_tree(batch: Batch, sources: Iterable[Source], owner: Hashable) -> tuple[str, int]:
    """Queue the blobs and the manifest of `sources`; return the tree's hash and size in bytes.

    The same files give the same hash, whatever their order and wherever they were read from.
    """
    entries = tuple(sorted((_entry(batch, s, owner) for s in sources), key=lambda e: e.path))
    tree = Tree(entries)
    validate(tree)
    return batch.add_tree(encode_tree(tree), owner), tree.size


def _entry(batch: Batch, source: Source, owner: Hashable) -> Entry:
    if source.kind != "file":
        return Entry(source.path, source.kind, source.mode, target=source.target)
    view = source.view
    ends = chunking.cut(view)
    if len(ends) <= 1:
        hash = batch.add_blob(view, owner)
        return Entry(source.path, mode=source.mode, size=len(view), hash=hash)
    hasher, chunks, start = blake3(), [], 0
    for end in ends:
        chunk = view[start:end]
        hasher.update(chunk)
        chunks.append((batch.add_blob(chunk, owner), end - start))
        start = end
    return Entry(
        source.path,
        mode=source.mode,
        size=len(view),
        hash=hasher.hexdigest(),
        chunks=tuple(chunks),
    )


# ---------------------------------------------------------------- manifests


def encode_tree(tree: Tree) -> bytes:
    """The manifest's bytes: JSON with one entry a line. Its hash names the tree."""
    lines = [dump(_encode_entry(e)) for e in tree.entries]
    return b'{"entries":[\n' + b",\n".join(lines) + b"\n]}\n"


def _encode_entry(entry: Entry) -> dict[str, Any]:
    value: dict[str, Any] = {"path": entry.path}
    if entry.kind == "link":
        return {**value, "kind": "link", "target": entry.target}
    if entry.kind == "directory":
        return {**value, "kind": "directory", "mode": f"{entry.mode:04o}"}
    value |= {"mode": f"{entry.mode:04o}", "size": entry.size, "hash": entry.hash}
    return {**value, "chunks": [list(c) for c in entry.chunks]} if entry.chunks else value


def decode_tree(data: bytes, name: str) -> Tree:
    """The tree of a manifest, safe to check out. Raises DamagedError or UnsafeTreeError."""
    try:
        tree = Tree(tuple(_decode_entry(v) for v in json.loads(data)["entries"]))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{name} is not a manifest this version reads ({error!r})") from error
    validate(tree)
    return tree


def _decode_entry(value: dict[str, Any]) -> Entry:
    kind = value.get("kind", "file")
    if kind not in ("file", "link", "directory"):
        raise UnsafeTreeError(f"{value['path']!r} is a {kind!r}, which is never checked out")
    entry = Entry(
        path=_text(value["path"]),
        kind=kind,
        mode=int(value.get("mode", "0777"), 8),
        size=int(value.get("size", 0)),
        hash=_hash(value["hash"]) if kind == "file" else "",
        chunks=tuple((_hash(h), int(s)) for h, s in value.get("chunks", ())),
        target=_text(value.get("target", "")),
    )
    sizes = [size for _, size in entry.blobs]
    if any(s < 0 for s in sizes) or sum(sizes) != entry.size:
        raise ValueError(f"the chunks of {entry.path!r} do not add up to its size")
    return entry


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value


def _hash(value: Any) -> str:
    if not (isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")):
        raise ValueError(f"{value!r} is not a hash")
    return value


def read_tree(backend: Backend, hash: str) -> Tree:
    """The tree named `hash`. Raises DamagedError naming the key when it is missing or altered."""
    key = tree_key(_hash(hash))
    name = f"{backend.url}/{key}"
    try:
        data = backend.get(key)
    except KeyNotFoundError:
        raise DamagedError(f"{name} is missing") from None
    if hash_of(data) != hash:
        raise DamagedError(f"{name} is damaged: its bytes do not match its name")
    return decode_tree(data, name)


def validate(tree: Tree) -> None:
    """Raise UnsafeTreeError unless every path stays inside the directory it is checked out to."""
    kinds: dict[str, Kind] = {}
    for entry in tree.entries:
        _validate_path(entry.path)
        if entry.path in kinds:
            raise UnsafeTreeError(f"the path {entry.path!r} stands twice in the manifest")
        if entry.mode & ~0o777:
            raise UnsafeTreeError(f"{entry.path!r} has set-id or other special mode bits")
        kinds[entry.path] = entry.kind
    for entry in tree.entries:
        for parent in _parents(entry.path):
            if parent in kinds:
                raise UnsafeTreeError(f"{entry.path!r} lies beneath {parent!r}, a {kinds[parent]}")
        if entry.kind == "link" and not link_stays_inside(entry.path, entry.target):
            raise UnsafeTreeError(f"the link {entry.path!r} leads outside, to {entry.target!r}")


def _validate_path(path: str) -> None:
    parts = path.split("/")
    unsafe = "\0" in path or "\\" in path or (len(path) > 1 and path[1] == ":")
    if unsafe or any(part in ("", ".", "..") for part in parts):
        raise UnsafeTreeError(f"the path {path!r} is not a plain relative path")
    if any(part.lower() in _RESERVED for part in parts):
        raise UnsafeTreeError(f"the path {path!r} would write into {'/'.join(sorted(_RESERVED))}")


def _parents(path: str) -> Iterator[str]:
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path


def link_stays_inside(path: str, target: str) -> bool:
    """Whether a link at `path` to `target` leads to somewhere in the same tree."""
    if not target or target.startswith("/") or "\\" in target or "\0" in target:
        return False
    resolved = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
    return resolved != ".." and not resolved.startswith("../")


# ---------------------------------------------------------------- checkout


def write_entry(backend: Backend, entry: Entry, destination: Path) -> None:
    """Write one entry to `destination`, which must not exist, in a directory that does.

    Every byte is verified as it is written. Raises DamagedError naming what is lost.
    """
    if entry.kind == "link":
        destination.symlink_to(entry.target)
    elif entry.kind == "directory":
        destination.mkdir()
        destination.chmod(entry.mode)
    else:
        _write_file(backend, entry, destination)


def _write_file(backend: Backend, entry: Entry, destination: Path) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    descriptor = os.open(destination, flags | getattr(os, "O_BINARY", 0), 0o600)
    with open(descriptor, "wb") as file:
        whole = blake3()
        for chunk in read_blobs(backend, entry.blobs):
            whole.update(chunk)
            file.write(chunk)
    if whole.hexdigest() != entry.hash:
        raise DamagedError(f"{entry.path} is damaged: its chunks do not make up the file's hash")
    destination.chmod(entry.mode)


def permission_bits(mode: int) -> int:
    """The bits of a file's mode that a manifest keeps."""
    return stat_module.S_IMODE(mode) & 0o777


Reader = Callable[[], bytes]


def reader(backend: Backend, entry: Entry) -> Reader:
    """A function that reads the whole of a file, verified, when it is called."""
    return lambda: b"".join(read_blobs(backend, entry.blobs))
