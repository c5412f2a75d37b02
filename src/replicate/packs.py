"""Packs: many small objects stored as one, because a bucket charges and waits for each.

A pack is a line of JSON, `{"objects":[[key, length], …]}`, and then their bytes one after another,
each as it would be stored under its own key. It is never changed. It knows keys and bounds; it
does not know what the objects are for, nor when somebody packs them.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, NoReturn

from blake3 import blake3

from replicate.backends.base import Backend, Content, Stat, validate_key
from replicate.compression import SUFFIXES
from replicate.errors import DamagedError, KeyNotFoundError, UsageError

#: What a writer puts into one pack at most: bytes, and objects.
PACK_BYTES, PACK_OBJECTS = 4 << 20, 2000
#: What a reader accepts at most: bytes of a whole pack, and of its first line.
MAX_PACK, MAX_HEADER = 8 << 20, 1 << 20
#: What is fetched of a pack at first: all of most of them; of others the first line and the trees,
#: which come first, so that who follows references need not read the rest.
_FIRST = 256 << 10
#: How much of packs stays in memory, what they say that they hold included (bytes), and how many.
_KEPT, _KEPT_PACKS, _PLACE = 32 << 20, 256, 400

_HASH = r"(?P<ab>[0-9a-f]{2})/(?P<hash>(?P=ab)[0-9a-f]{62})"
_BLOB = re.compile(rf"(?P<name>blobs/{_HASH})(?:{'|'.join(map(re.escape, SUFFIXES))})")
_TREE = re.compile(rf"(?P<name>trees/{_HASH}\.json)")
_PACK = re.compile(rf"packs/{_HASH}\.pack")
_NEXT = "Restore it from a copy. `replicate verify` names the checkpoints that it hurts."


def pack_key(hash: str) -> str:
    return f"packs/{hash[:2]}/{hash}.pack"


def is_pack(key: str) -> bool:
    """Whether a key is that of a pack."""
    return _PACK.fullmatch(key) is not None


def object_name(key: str) -> str | None:
    """The name of the tree or blob that is stored under `key`, in whatever encoding: the key of its
    raw form. None when the key is of something else."""
    found = _BLOB.fullmatch(key) or _TREE.fullmatch(key)
    return found["name"] if found else None


def encode_pack(objects: Mapping[str, Content]) -> tuple[str, bytes]:
    """The hash and the bytes of a pack of these objects: the same whatever their order."""
    keys = sorted(objects, key=lambda key: (not key.startswith("trees/"), key))
    index = [[key, len(objects[key])] for key in keys]
    head = json.dumps({"objects": index}, separators=(",", ":")).encode() + b"\n"
    data = b"".join([head, *(objects[key] for key in keys)])
    return blake3(data).hexdigest(), data


def groups(items: Mapping[str, Content]) -> Iterator[dict[str, Content]]:
    """What goes together into a pack, in the order in which it came: what is read together."""
    group: dict[str, Content] = {}
    size = 0
    for key, content in items.items():
        if group and (size + len(content) > PACK_BYTES or len(group) == PACK_OBJECTS):
            yield group
            group, size = {}, 0
        group[key] = content
        size += len(content)
    if group:
        yield group


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a pack an object lies, and under which key it would lie alone."""

    key: str
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class Directory:
    """What a pack says that it holds, by the names of the objects, and its size in bytes."""

    places: Mapping[str, Place]
    size: int


def decode_header(line: bytes, name: str) -> Directory:
    """What the first line of a pack says, its end of line included.

    Raises DamagedError, calling the pack `name`, for anything that no writer writes.
    """
    try:
        value = json.loads(line)["objects"]
        lengths = [(_checked_name(key), key, _checked_length(length)) for key, length in value]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        _damaged(name, f"its first line is not that of a pack ({error!r})"[:500])
    places: dict[str, Place] = {}
    start = len(line)
    for object, key, length in lengths:
        places[object] = Place(key, start, length)
        start += length
    if len(places) < len(lengths) or start > MAX_PACK:
        _damaged(name, "an object stands in it twice, or it would be too large")
    return Directory(places, start)


def _checked_name(key: Any) -> str:
    name = object_name(key)
    if name is None:
        raise ValueError(f"{key!r} is not the key of an object")
    return name


def _checked_length(length: Any) -> int:
    if type(length) is not int or not 0 <= length <= MAX_PACK:
        raise ValueError(f"{length!r} is not a length")
    return length


def _damaged(name: str, why: str) -> NoReturn:
    raise DamagedError(f"{name} is damaged: {why}", hint=_NEXT)


# ---------------------------------------------------------------- reading


@dataclass(slots=True)
class _Pack:
    """A pack, as far as it was read."""

    lock: Lock = field(default_factory=Lock)
    directory: Directory | None = None
    data: bytes = b""

    @property
    def memory(self) -> int:
        places = 0 if self.directory is None else len(self.directory.places)
        return len(self.data) + places * _PLACE


class Packs:
    """The packs of a backend, those that were used last kept in memory. For use by many threads:
    none of them fetches what another is fetching."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._packs: OrderedDict[str, _Pack] = OrderedDict()
        self._lock = Lock()

    def directory(self, hash: str) -> Directory:
        """What a pack holds. Raises DamagedError when it is missing or not what was written, as far
        as was read of it; its objects are verified by who reads them."""
        name, pack = self._name(hash), self._pack(hash)
        with pack.lock:
            if pack.directory is None:
                data = self._fetch(hash, 0, _FIRST)
                if b"\n" not in data and len(data) == _FIRST:
                    data += self._fetch(hash, _FIRST, MAX_HEADER - _FIRST)
                line, newline, _ = data[:MAX_HEADER].partition(b"\n")
                if not newline:
                    _damaged(name, "its first line does not end")
                directory = decode_header(line + newline, name)
                if len(data) < _FIRST or len(data) >= directory.size:  # that is all there is
                    _verify(data, directory, hash, name)
                pack.directory, pack.data = directory, data
            directory = pack.directory
        self._bound()
        return directory

    def read(self, hash: str, place: Place) -> bytes:
        """The bytes of an object of a pack. Raises DamagedError."""
        directory, pack = self.directory(hash), self._pack(hash)
        with pack.lock:
            if len(pack.data) < place.start + place.length:
                pack.data = self._whole(hash, directory, pack.data)
            found = pack.data[place.start : place.start + place.length]
        self._bound()
        return found

    def check(self, hash: str, *, full: bool) -> Directory:
        """As `directory`. Raises DamagedError also when the pack has another size than it says;
        with `full` when any byte of it is not what was written."""
        directory, pack = self.directory(hash), self._pack(hash)
        with pack.lock:
            if len(pack.data) >= directory.size:
                return directory
            if full:
                pack.data = self._whole(hash, directory, pack.data)
            else:
                stat = self._backend.stat(pack_key(hash))
                if stat is None or stat.size != directory.size:
                    _damaged(self._name(hash), "it has not as many bytes as it should")
        self._bound()
        return directory

    def _whole(self, hash: str, directory: Directory, data: bytes) -> bytes:
        """All bytes of a pack, of which `data` is the beginning, verified."""
        # One byte more than there should be tells a longer pack from a right one.
        data += self._fetch(hash, len(data), directory.size - len(data) + 1)
        _verify(data, directory, hash, self._name(hash))
        return data

    def _fetch(self, hash: str, start: int, length: int) -> bytes:
        try:
            return self._backend.get(pack_key(hash), start, length)
        except KeyNotFoundError:
            raise DamagedError(f"{self._name(hash)} is missing", hint=_NEXT) from None

    def _name(self, hash: str) -> str:
        if not is_pack(pack_key(hash)):
            raise DamagedError(f"{hash!r} cannot name a pack of {self._backend.url}")
        return f"{self._backend.url}/{pack_key(hash)}"

    def _pack(self, hash: str) -> _Pack:
        with self._lock:
            pack = self._packs.setdefault(hash, _Pack())
            self._packs.move_to_end(hash)
            return pack

    def _bound(self) -> None:
        """Forget what was not used for longest. Who is reading it at this moment goes on."""
        with self._lock:
            size = sum(pack.memory for pack in self._packs.values())
            while len(self._packs) > 1 and (size > _KEPT or len(self._packs) > _KEPT_PACKS):
                size -= self._packs.popitem(last=False)[1].memory


def _verify(data: bytes, directory: Directory, hash: str, name: str) -> None:
    if len(data) != directory.size or blake3(data).hexdigest() != hash:
        _damaged(name, "its bytes do not match its name")


class PackedView(Backend):
    """A backend to read trees and blobs from, where those in `packs` lie as if under their own
    keys. It writes nothing."""

    def __init__(self, backend: Backend, packs: Packs, hashes: Sequence[str]) -> None:
        self.url = backend.url
        self.remote = backend.remote
        self.wrapped = self._backend = backend
        self._packs = packs
        self._hashes = tuple(hashes)
        #: What is wrong with a pack: it is not asked for again for each of its objects.
        self._problems: dict[str, DamagedError] = {}

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """As `Backend.get`. Raises DamagedError naming the pack, where one that may hold the object
        cannot be read and no other place has it."""
        name = object_name(validate_key(key))
        for hash in self._hashes if name else ():
            found = self._find(hash, name)
            if found is None:
                continue
            if found.key != key:  # it is there in another encoding, for which the reader asks next
                raise KeyNotFoundError(f"no {key} in {self.url}")
            content = self._packs.read(hash, found)
            return content[start : None if length is None else start + length]
        try:
            return self._backend.get(key, start, length)
        except KeyNotFoundError:
            if name is not None and self._problems and not self._is_alone(name):
                raise next(iter(self._problems.values())) from None
            raise

    def stat(self, key: str) -> Stat | None:
        """As `Backend.stat`: what is in a pack has its time."""
        name = object_name(validate_key(key))
        for hash in self._hashes if name else ():
            found = self._find(hash, name)
            if found is not None and found.key == key:
                pack = self._backend.stat(pack_key(hash))
                return pack and Stat(key, found.length, pack.modified, hash)
        return self._backend.stat(key)

    def _is_alone(self, name: str) -> bool:
        """Whether the object is stored under a key of its own, in any encoding."""
        keys = [name + s for s in SUFFIXES] if name.startswith("blobs/") else [name]
        return any(self._backend.stat(key) is not None for key in keys)

    def _find(self, hash: str, name: str | None) -> Place | None:
        """Where in this pack an object lies; None when it does not, or nobody can tell."""
        if hash in self._problems:
            return None
        try:
            return self._packs.directory(hash).places.get(name or "")
        except DamagedError as error:
            self._problems[hash] = error
            return None

    def list(self, prefix: str = "", after: str = "") -> Iterator[Stat]:
        """What is stored, packs as they are."""
        return self._backend.list(prefix, after)

    def clock(self) -> float:
        return self._backend.clock()

    def put(self, key: str, content: Content) -> None:
        self._refuse()

    def put_if_absent(self, items: Mapping[str, Content], *, fresh: float = 0.0) -> set[str]:
        self._refuse()

    def append(self, key: str, existing: Content, added: Content) -> None:
        self._refuse()

    def delete(self, keys: Iterable[str], unless_modified_since: float | None = None) -> set[str]:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise UsageError("what is in packs can only be read")
