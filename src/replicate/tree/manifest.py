"""A tree: a directory's files as a manifest of paths, modes, sizes and hashes.

A manifest comes from a repository that somebody else may have written, so it is refused whole when
any path in it could reach outside the directory it is meant for. This module touches no file.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from replicate import checks
from replicate.backends.base import Backend
from replicate.blobs import MAX_BLOB, hash_of, tree_key
from replicate.errors import DamagedError, KeyNotFoundError, UnsafeTreeError
from replicate.records import dump

Kind = Literal["file", "link"]
#: The repository's own directory, and what git keeps: no manifest may write there.
_RESERVED = {".replicate", ".git"}


#: Characters of the longest path that a system takes.
_LONGEST_PATH = 4000


@dataclass(frozen=True, slots=True)
class Entry:
    """One path of a tree, relative, with forward slashes.

    A file has `hash` (BLAKE3 of all its bytes), `size` in bytes, permission bits `mode`, and
    `chunks` (hash and size of each, in order) when it is more than one blob. A link has `target`.
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


# ---------------------------------------------------------------- manifests


def encode_tree(tree: Tree) -> bytes:
    """The manifest's bytes: JSON with one entry a line. Its hash names the tree."""
    lines = [dump(_encode_entry(e)) for e in tree.entries]
    return b'{"entries":[\n' + b",\n".join(lines) + b"\n]}\n"


def _encode_entry(entry: Entry) -> dict[str, Any]:
    value: dict[str, Any] = {"path": entry.path}
    if entry.kind == "link":
        return {**value, "kind": "link", "target": entry.target}
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
    if kind not in ("file", "link"):
        raise UnsafeTreeError(f"{value['path']!r} is a {kind!r}, which is never checked out")
    entry = Entry(
        path=checks.text(value["path"]),
        kind=kind,
        mode=_mode(value.get("mode", "0777")),
        size=checks.whole(value.get("size", 0)),
        hash=checks.id(value["hash"]) if kind == "file" else "",
        chunks=tuple((checks.id(h), checks.whole(s)) for h, s in value.get("chunks", ())),
        target=checks.text(value.get("target", "")),
    )
    sizes = [size for _, size in entry.blobs]
    if any(not 0 <= s <= MAX_BLOB for s in sizes) or sum(sizes) != entry.size:
        raise ValueError(f"the chunks of {entry.path!r} do not add up to its size")
    return entry


def _mode(value: Any) -> int:
    if not re.fullmatch("[0-7]{1,6}", checks.text(value)):
        raise ValueError(f"{value!r:.80} is not a mode")
    return int(value, 8)


def read_tree(backend: Backend, hash: str) -> Tree:
    """The tree named `hash`. Raises DamagedError naming the key when it is missing or altered."""
    return read_manifest(backend, hash)[1]


def read_manifest(backend: Backend, hash: str) -> tuple[bytes, Tree]:
    """The bytes of the tree named `hash`, verified, and the tree. Raises like `read_tree`, and
    UnsafeTreeError."""
    key = tree_key(checks.id(hash))
    name = f"{backend.url}/{key}"
    try:
        data = backend.get(key, 0, checks.MAX_TREE)
    except KeyNotFoundError:
        raise DamagedError(f"{name} is missing") from None
    if hash_of(data) != hash:
        raise DamagedError(f"{name} is damaged: its bytes do not match its name")
    return data, decode_tree(data, name)


def validate(tree: Tree) -> None:
    """Raise UnsafeTreeError unless every path stays inside the directory it is checked out to."""
    kinds: dict[str, Kind] = {}
    links = {entry.path.casefold() for entry in tree.entries if entry.kind == "link"}
    for entry in tree.entries:
        problem = unsafe_path(entry.path)
        if problem:
            raise UnsafeTreeError(f"the path {entry.path!r} is refused: {problem}")
        if entry.path in kinds:
            raise UnsafeTreeError(f"the path {entry.path!r} stands twice in the manifest")
        if entry.mode & ~0o777:
            raise UnsafeTreeError(f"{entry.path!r} has set-id or other special mode bits")
        kinds[entry.path] = entry.kind
    for entry in tree.entries:
        for parent in _parents(entry.path):
            if parent in kinds:
                raise UnsafeTreeError(f"{entry.path!r} lies beneath {parent!r}, a {kinds[parent]}")
            if links and parent.casefold() in links:
                raise UnsafeTreeError(f"{entry.path!r} may lie beneath the link {parent!r}")
        if entry.kind == "link" and (
            not link_stays_inside(entry.path, entry.target) or _turns_back(entry, links)
        ):
            raise UnsafeTreeError(f"the link {entry.path!r} leads outside, to {entry.target!r}")


def _turns_back(entry: Entry, links: set[str]) -> bool:
    """Whether a link goes through another link and then up: nobody can tell where that leads."""
    place = posixpath.dirname(entry.path).casefold()
    through_link = False
    for part in entry.target.casefold().split("/"):
        if part == ".." and through_link:
            return True
        place = posixpath.normpath(posixpath.join(place, part))
        through_link = through_link or place in links
    return False


def unsafe_path(path: str) -> str | None:
    """Why `path` cannot stand in a tree, or None when it can."""
    parts = path.split("/")
    if len(path) > _LONGEST_PATH or any(len(part.encode(errors="replace")) > 255 for part in parts):
        return "no system takes so long a name"
    if not path.isascii() and path.encode(errors="replace").decode() != path:
        return "its name is not text"
    if "\0" in path or "\\" in path or path[1:2] == ":":
        return "its name means something else on another system"
    if any(part in ("", ".", "..") for part in parts):
        return "it is not a plain relative path"
    if any(_as_any_system_reads(part) in _RESERVED for part in parts):
        return f"it lies in {' or '.join(sorted(_RESERVED))}"
    return None


def _as_any_system_reads(name: str) -> str:
    """The name as a system takes it that ignores case, dots at the end, or invisible characters."""
    if "." not in name and "~" not in name:
        return ""
    plain = "".join(c for c in name if c.isprintable()) if not name.isascii() else name
    plain = plain.partition(":")[0].rstrip(". ").casefold()
    return ".git" if plain == "git~1" else plain


def _parents(path: str) -> Iterator[str]:
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path


def link_stays_inside(path: str, target: str) -> bool:
    """Whether a link at `path` to `target` leads to somewhere in the same tree."""
    try:
        too_long = len(target.encode(errors="surrogateescape")) > _LONGEST_PATH
    except UnicodeEncodeError:
        return False
    if too_long:
        return False
    if not target or target.startswith("/") or "\\" in target or "\0" in target:
        return False
    resolved = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
    return resolved != ".." and not resolved.startswith("../")


def permission_bits(mode: int) -> int:
    """The bits of a file's mode that a manifest keeps."""
    return mode & 0o777
