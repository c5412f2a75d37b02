"""Content-addressed bytes on a backend: a blob's name is the BLAKE3 hash of its raw bytes.

It knows keys, hashes and encodings; it does not know which file a blob belongs to.
"""

from __future__ import annotations

import io
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from blake3 import blake3

from replicate import compression
from replicate.backends.base import Backend, Content
from replicate.backends.cached import forget
from replicate.backends.files import PIECE, open_no_link, several, write_at
from replicate.backends.local import LocalBackend
from replicate.backends.staging import Staging
from replicate.background import Background
from replicate.chunking import MAX_CHUNK
from replicate.errors import DamagedError, KeyNotFoundError
from replicate.packs import encode_pack, groups, object_name, pack_key

#: No blob is larger, so that any one fits in memory (bytes).
MAX_BLOB = MAX_CHUNK
#: A blob that was stored or touched less than this ago is safe from garbage collection while its
#: user is at work: half of a collector's grace (seconds).
FRESH = 1800.0
#: How much a batch holds before it is written (bytes), and how many such writes go on while more
#: is added: that bounds memory. In a bucket each is a request or more; a disk is kept busy by many
#: small ones.
_REMOTE_AHEAD, _LOCAL_AHEAD = (64 << 20, 1), (16 << 20, 3)
#: So many files are made durable together. As many again may be open meanwhile.
_TOGETHER = 128
#: How many blobs are compressed at once, each by a thread.
_ENCODERS = min(4, os.cpu_count() or 1)
#: What goes into packs, where there are any (bytes as stored): decision 8 has the measurements. A
#: tree is read by all who follow references, and none has it in common with another tree.
_SMALL_BLOB, _SMALL_TREE = 64 << 10, 256 << 10
#: What a batch refers to was touched before its journal line by no more than a collector's grace,
#: 2 * FRESH: so long ago when the batch before found it there, so long since then, and FRESH for
#: the batch itself (seconds).
TOUCHED, _RECENT = FRESH / 3, FRESH / 2
#: How many objects are remembered at most, as some hundred bytes each.
_REMEMBERED = 100_000


_OTHER_BYTES = "its bytes do not match its name"
_NEXT = "Restore it from a copy. `replicate verify` names the checkpoints that it hurts."


def hash_of(content: Content) -> str:
    """The BLAKE3 hash of `content`, 64 hex digits; what `b3sum` prints for the same bytes."""
    return blake3(content).hexdigest()


def blob_key(hash: str, suffix: str = "") -> str:
    return f"blobs/{hash[:2]}/{hash}{suffix}"


def tree_key(hash: str) -> str:
    return f"trees/{hash[:2]}/{hash}.json"


#: By key, what is to be written, and for whom.
_Items = dict[str, tuple[Content, Hashable]]


class Recent:
    """Where what this process has stored lies, for as long as no collector can take it: what has
    not changed since the last checkpoint is then neither sent nor asked for again."""

    def __init__(self) -> None:
        self._places: dict[str, tuple[float, str]] = {}

    def find(self, name: str) -> str | None:
        """The pack that holds the object, "" when it lies alone; None when that is not known."""
        stored, pack = self._places.get(name, (0.0, ""))
        return pack if 0 <= time.time() - stored < _RECENT else None

    def add(self, names: Iterable[str], pack: str, stored: float) -> None:
        """Take note of objects that were stored, or touched, not earlier than `stored`."""
        for name in names:
            self._places.pop(name, None)  # so that the oldest come first
            self._places[name] = (stored, pack)
        while len(self._places) > _REMEMBERED:
            del self._places[next(iter(self._places))]


class Batch:
    """Blobs and trees on their way into a backend, written many at a time.

    With `recent`, small ones go into packs, and what it knows is not stored again: see decision 8.

    What was added is durable only after `flush()`. `stored[owner]` then counts the bytes of blobs
    that were new to the repository, as they are stored, for whoever added them first. Contents
    must stay valid until the flush.
    """

    def __init__(self, backend: Backend, *, compress: bool, recent: Recent | None = None) -> None:
        self._backend = backend
        self._compress = compress
        self._recent = recent
        #: Of each tree, the names of its blobs; and of each object that is in a pack, which.
        self._trees: dict[str, tuple[str, ...]] = {}
        self._packed: dict[str, str] = {}
        self._items: _Items = {}
        self._writing: deque[Background[None]] = deque()
        self._group, self._ahead = _REMOTE_AHEAD if backend.remote else _LOCAL_AHEAD
        if compress:  # that takes as much memory again
            self._ahead = 1
        self._staging = Staging(backend) if isinstance(backend, LocalBackend) else None
        #: What was written, or is being written while more is added: whose it is, without a suffix.
        self._behind: dict[str, Hashable] = {}
        self._lock = threading.Lock()  # for `stored`
        self._size = 0
        self.stored: Counter[Hashable] = Counter()

    def add_blob(self, content: Content, owner: Hashable) -> str:
        """Queue one blob of at most MAX_BLOB bytes and return its hash."""
        hash = hash_of(content)
        self._add(hash, content, owner)
        return hash

    def add_tree(self, manifest: bytes, owner: Hashable, blobs: Iterable[str] = ()) -> str:
        """Queue a tree's manifest and return its hash. `blobs` are the hashes of all its blobs,
        which were added before."""
        hash = hash_of(manifest)
        if self._recent is not None:
            self._trees[hash] = tuple(map(blob_key, blobs))
        if not self._is_recent(tree_key(hash)):
            self._queue(tree_key(hash), manifest, owner)
        return hash

    def packs_of(self, tree: str) -> tuple[str, ...]:
        """The packs that hold the tree that was added here, or any blob of it. After `flush()`."""
        names = (tree_key(tree), *self._trees.get(tree, ()))
        return tuple(sorted({self._packed[name] for name in names if name in self._packed}))

    def flush(self) -> None:
        """Write all that was added. Trees and blobs may go together, because nothing refers to a
        tree before its journal line, and who adds a tree has added each of its blobs too."""
        with self._whole():
            self._settle(0)
            if self._staging:
                self._stage(self._take())
                self._publish()
            else:
                self._store(self._take())

    def _write_behind(self) -> None:
        """Write what was added, while the caller goes on adding: hashing need not wait for the
        disk. So many such writes at a time, which bounds what has to be held."""
        with self._whole():
            self._settle(self._ahead - 1)
        items = self._take()
        write = self._store if self._staging is None else self._stage
        self._writing.append(Background(lambda: write(items)))
        if self._staging is not None and len(self._staging) >= _TOGETHER:
            self._writing.append(Background(self._publish))

    def _settle(self, left: int) -> None:
        """Wait until no more than `left` writes are under way; their error is this call's."""
        while len(self._writing) > left:
            self._writing.popleft().result()

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Where this fails, nothing goes on and nothing is left half-written."""
        try:
            yield
        except BaseException:
            for writing in self._writing:
                with suppress(BaseException):  # the first failure is the one to tell
                    writing.result()
            self._writing.clear()
            if self._staging is not None:
                self._staging.discard()
            raise

    def _take(self) -> _Items:
        items, self._items, self._size = self._items, {}, 0
        self._behind.update((key.partition(".")[0], owner) for key, (_, owner) in items.items())
        return items

    def _encode(self, items: _Items) -> _Items:
        """The items as they are to be stored."""
        return dict(several(_encoded, items.items(), _ENCODERS)) if self._compress else items

    def _stage(self, items: _Items) -> None:
        """Begin to write these to a disk: `_publish` waits for it."""
        assert self._staging is not None
        for key, (content, _) in self._encode(items).items():
            self._staging.add(key, content)

    def _publish(self) -> None:
        assert self._staging is not None
        for key, size in self._staging.publish().items():
            self._count(key, size, self._behind[key.partition(".")[0]])

    def _count(self, key: str, size: int, owner: Hashable) -> None:
        if key.startswith("blobs/"):
            with self._lock:
                self.stored[owner] += size

    def _store(self, items: _Items) -> None:
        if not items:
            return
        items = self._encode(items)
        contents = {key: content for key, (content, _) in items.items()}
        packs = {} if self._recent is None else _packed(contents)
        sent = time.time()
        fresh = 0.0 if self._recent is None else TOUCHED
        created = self._backend.put_if_absent(contents, fresh=fresh)
        new = (key for name in created for key in packs.get(name, [name]))
        for key in new:
            content, owner = items[key]
            self._count(key, len(content), owner)
        for key in contents if self._recent is not None else ():
            self._remember(packs.get(key, [key]), key if key in packs else "", sent)

    def _remember(self, keys: Iterable[str], pack: str, sent: float) -> None:
        """Take note of where these were stored."""
        assert self._recent is not None
        names = [name for key in keys if (name := object_name(key))]
        hash = pack.rpartition("/")[2].removesuffix(".pack")
        self._recent.add(names, hash, sent)
        if hash:
            self._packed |= dict.fromkeys(names, hash)

    def _is_recent(self, name: str) -> bool:
        """Whether the object need not be stored again."""
        pack = None if self._recent is None else self._recent.find(name)
        if pack:
            self._packed[name] = pack
        return pack is not None

    def _add(self, hash: str, content: Content, owner: Hashable) -> None:
        if self._is_recent(blob_key(hash)):
            return
        asked = self._compress and self._recent is None  # else to ask costs more than to send
        if not (asked and self._is_fresh(hash)):
            self._queue(blob_key(hash), content, owner)

    def _is_fresh(self, hash: str) -> bool:
        """Whether the blob is stored, in any encoding, and so young that no collector will take it
        before this batch is committed: then it need not be compressed only to be found there."""
        for suffix in compression.SUFFIXES:
            stat = self._backend.stat(blob_key(hash, suffix))
            if stat is not None and self._backend.clock() - stat.modified < FRESH:
                return True
        return False

    def _queue(self, key: str, content: Content, owner: Hashable) -> None:
        if key not in self._items and key.partition(".")[0] not in self._behind:
            self._items[key] = (content, owner)
            self._size += len(content)
            if self._size >= self._group:
                self._write_behind()


def _encoded(item: tuple[str, tuple[Content, Hashable]]) -> tuple[str, tuple[Content, Hashable]]:
    """An item as it is to be stored."""
    key, (content, owner) = item
    if not key.startswith("blobs/"):
        return item
    suffix, payload = compression.encode(content)
    return key + suffix, (payload, owner)


def _packed(contents: dict[str, Content]) -> dict[str, list[str]]:
    """Put packs in the place of the small ones of `contents`; return what is in each of them."""
    packs: dict[str, list[str]] = {}
    for group in groups({k: c for k, c in contents.items() if _is_small(k, c)}):
        if len(group) < 2:  # a pack of one would save nothing
            continue
        for key in group:
            del contents[key]
        hash, content = encode_pack(group)
        contents[pack_key(hash)], packs[pack_key(hash)] = content, list(group)
    return packs


def _is_small(key: str, content: Content) -> bool:
    return len(content) <= (_SMALL_TREE if key.startswith("trees/") else _SMALL_BLOB)


def read_blob(backend: Backend, hash: str, size: int) -> bytes:
    """The raw bytes of a blob of `size` bytes, verified.

    Raises DamagedError naming the key when they are missing or not what was written.
    """
    return read_stored(backend, hash, size)[2]


def read_stored(backend: Backend, hash: str, size: int) -> tuple[str, bytes, bytes]:
    """As `read_blob`, with the encoding in which the blob is stored: its suffix, the bytes as they
    are stored, and the raw ones."""
    suffix, payload = _find(backend, hash)
    try:
        with _named(backend, hash, suffix):
            data = compression.decode(suffix, payload, size) if suffix else payload
            if len(data) != size or hash_of(data) != hash:
                raise DamagedError(_OTHER_BYTES)
    except DamagedError:
        if forget(backend, blob_key(hash, suffix)):  # it may be better there than it was here
            return read_stored(backend, hash, size)
        raise
    return suffix, payload, data


class _Usual:
    """In which order to look for an encoding, as each look costs a request, or calls of the system:
    most blobs of a file have that of the one before."""

    def __init__(self) -> None:
        self.first = compression.SUFFIXES

    def is_now(self, suffix: str) -> None:
        if self.first[0] != suffix:
            self.first = (suffix, *(other for other in compression.SUFFIXES if other != suffix))


_usual = _Usual()


def _find(backend: Backend, hash: str) -> tuple[str, bytes]:
    """The encoding in which a blob is stored, and the bytes as they are stored."""
    for suffix in _usual.first:
        with suppress(KeyNotFoundError):
            found = backend.get(blob_key(hash, suffix), 0, MAX_BLOB + 1)
            _usual.is_now(suffix)
            return suffix, found
    raise DamagedError(f"{backend.url}/{blob_key(hash)} is missing", hint=_NEXT)


@contextmanager
def _named(backend: Backend, hash: str, suffix: str) -> Iterator[None]:
    """Say of damage which object has it."""
    try:
        yield
    except DamagedError as error:
        name = f"{backend.url}/{blob_key(hash, suffix)}"
        raise DamagedError(f"{name} is damaged: {error}", hint=_NEXT) from error


def copy_blob(backend: Backend, hash: str, size: int, descriptor: int, offset: int) -> None:
    """Write the raw bytes of a blob at `offset` of an open file.

    They are verified while they are written. Raises like `read_blob`, and then what is there now is
    not the blob; OSError when the file cannot be written.
    """
    if isinstance(backend, LocalBackend) and size:
        path = backend.path_of(blob_key(hash))
        if _copy_in_place(path, hash, size, descriptor, offset):
            return
    suffix, payload = _find(backend, hash)
    try:
        with _named(backend, hash, suffix):
            data = compression.decoded(suffix, payload, size)
            if hash_of(data) != hash:
                raise DamagedError(_OTHER_BYTES)
            write_at(descriptor, data, offset)
    except DamagedError:
        if not forget(backend, blob_key(hash, suffix)):  # or it may be better there than here
            raise
        copy_blob(backend, hash, size, descriptor, offset)


class _Buffer(threading.local):
    """Memory of one thread, which stays in the processor's cache: bytes are read into it, hashed
    and written from there, and nothing is mapped or allocated for each blob."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(PIECE))


_buffer = _Buffer()


def _copy_in_place(path: Path, hash: str, size: int, descriptor: int, offset: int) -> bool:
    """Copy a raw blob from file to file; False when there is none that is whole, which `read_blob`
    can tell more of."""
    try:
        source = open_no_link(str(path), os.O_RDONLY | getattr(os, "O_BINARY", 0))
    except OSError:
        return False
    found, done = blake3(), 0
    with open(source, "rb", buffering=0) as file:
        if os.fstat(source).st_size != size:
            return False
        while piece := _read_piece(file, size - done):
            found.update(piece)
            write_at(descriptor, piece, offset + done)
            done += len(piece)
    return done == size and found.hexdigest() == hash


def _read_piece(file: io.FileIO, most: int) -> memoryview:
    """The next bytes of a file, valid until the next call; none at its end, or where it fails."""
    try:
        return _buffer.view[: file.readinto(_buffer.view[:most])]
    except OSError:
        return _buffer.view[:0]


def read_blobs(backend: Backend, chunks: Iterable[tuple[str, int]]) -> Iterable[bytes]:
    """The bytes of consecutive chunks, each verified, one at a time."""
    return (read_blob(backend, hash, size) for hash, size in chunks)
