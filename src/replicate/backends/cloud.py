"""The storage contract on a bucket: one object per key below a root, and no server of our own.

Knows requests, and what each kind of storage does differently. Knows nothing of what the keys are
for. Hidden objects in the root, which no key can name, are its own: `.condemned` (see that
module), `.clock/…` to learn the storage's time, and `.touch/<token>` while an object is touched.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from math import floor
from threading import Lock
from typing import Any
from uuid import uuid4

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError

from replicate.backends.base import (
    MAX_KEY_LENGTH,
    Backend,
    Content,
    Stat,
    is_component,
    validate_key,
    validate_prefix,
)
from replicate.backends.condemned import Condemned, Sentence
from replicate.backends.failures import (
    PAUSES,
    asked,
    explained,
    is_past_the_end,
    is_refused_copy,
)
from replicate.backends.files import several
from replicate.backends.listing import Listing
from replicate.backends.stores import Store, Stores, connect, parse_location, server_of
from replicate.config import CloudSettings
from replicate.errors import KeyNotFoundError, RefusedError, StorageError

Keys = list[str]
#: How many requests are under way at once; how many bytes they carry at most is this times 16 MiB.
THREADS = 16
#: Larger contents are asked for before they are sent: an answer costs less than a useless upload.
ASK_FIRST = 64 << 10
#: A bulk delete takes so many keys at most.
_BATCH = 1000
#: For how long an answer to "what time is it" is good (seconds).
_CLOCK_GOOD_FOR = 300.0
_CLOCK = ".clock/"
_TOUCH = ".touch/"
#: What is left over there is older than this when its process has certainly crashed (seconds).
_STALE = 3600.0


class CloudBackend(Backend):
    """A root in a bucket of S3, Google Cloud Storage or Azure, or of what speaks like one.

    Opening one asks nothing of the network. Times are whole seconds of the storage's clock.
    """

    remote = True

    def __init__(self, url: str, settings: CloudSettings) -> None:
        scheme, bucket, root = parse_location(url)
        self.url = "/".join(filter(None, (f"{scheme}://{bucket}", root)))
        self._settings = settings
        self._lock = Lock()
        self._connected: tuple[int, Stores] | None = None
        self._condemned = Condemned(self._stores, url, self.clock)
        self._known: Sentence | None = None
        self._copies_onto_itself = True
        # The storage's time minus the monotonic clock's, and when that was asked.
        self._offset: tuple[float, float] | None = None

    @property
    def identity(self) -> str:
        return "\n".join(filter(None, (self.url, server_of(self.url, self._settings))))

    def _stores(self) -> Stores:
        with self._lock:
            if self._connected is None or self._connected[0] != os.getpid():
                self._connected = os.getpid(), connect(self.url, self._settings)
            return self._connected[1]

    # Reading

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        validate_key(key)
        if length == 0:
            return self._nothing_of(key)
        options: Any = {}
        if length is not None:
            options = {"range": (start, start + length)}
        elif start:
            options = {"range": {"offset": start}}
        store = self._stores().for_size(length)

        def ask() -> bytes:
            try:
                return obstore.get(store, key, options=options).bytes().to_bytes()
            except BaseError as error:
                if is_past_the_end(error):
                    return b""
                raise

        return asked("read", self.url, key, ask)

    def _nothing_of(self, key: str) -> bytes:
        """No bytes, of a key that is there."""
        if self.stat(key) is None:
            raise KeyNotFoundError(f"no {key} in {self.url}")
        return b""

    def stat(self, key: str) -> Stat | None:
        return self._head(validate_key(key))

    def _head(self, key: str) -> Stat | None:
        try:
            store = self._stores().quick
            return _stat(key, asked("read", self.url, key, lambda: obstore.head(store, key)))
        except KeyNotFoundError:
            return None
        except RefusedError:
            self.get(key, 0, 1)  # the answer to a HEAD has no body that could say why: this one has
            raise

    def list(self, prefix: str = "", after: str = "") -> Iterator[Stat]:
        validate_prefix(prefix, after)
        found = Listing(self._stores, self.url).list(prefix, after)
        return (_stat(meta["path"], meta) for meta in found if _is_key(meta["path"]))

    # Writing

    def put(self, key: str, content: Content) -> None:
        validate_key(key)
        self._safely([key], lambda: self._put(key, content))

    def append(self, key: str, existing: Content, added: Content) -> None:
        self.put(key, b"".join((existing, added)))

    def put_if_absent(self, items: Mapping[str, Content], *, fresh: float = 0.0) -> set[str]:
        for key in items:
            validate_key(key)
        created: set[str] = set()

        def create(key: str) -> None:
            if self._create(key, items, fresh):
                created.add(key)

        self._safely(items, lambda: several(create, items, threads=THREADS))
        return created

    def _safely(self, keys: Collection[str], write: Callable[[], object]) -> None:
        """Write `keys`, so that no collector that judged them by their time before deletes one."""
        if not keys:
            return
        known = self._known or self._condemned.read()
        while True:
            write()
            now = self._condemned.read()
            if now.version == known.version and now.keys.isdisjoint(keys):
                break
            known = self._condemned.wait(keys)
        self._known = known

    def _put(self, key: str, content: Content) -> None:
        store, plain = self._stores().for_size(len(content)), _plain(content)
        asked("write", self.url, key, lambda: obstore.put(store, key, plain))

    def _create(self, key: str, items: Mapping[str, Content], fresh: float) -> bool:
        """`key` is there and fresh; True when this call created it."""
        # Contents that are at hand and small are sent without a question.
        ask = type(items) is not dict or len(items[key]) > ASK_FIRST
        while True:
            found = self._head(key) if ask else None
            if found is None and self._put_new(key, items[key]):
                return True
            if fresh and (found := found or self._head(key)) and self._is_fresh(found, fresh):
                return False
            if self._touch(key):
                return False

    def _is_fresh(self, found: Stat, fresh: float) -> bool:
        return self.clock() - found.modified < fresh

    def _put_new(self, key: str, content: Content) -> bool:
        store, plain = self._stores().for_size(len(content)), _plain(content)

        def ask() -> None:
            obstore.put(store, key, plain, mode="create", use_multipart=False)

        try:
            asked("write", self.url, key, ask)
        except AlreadyExistsError:
            return False
        return True

    def _touch(self, key: str) -> bool:
        """True if `key` is there, and modified now with the content that it has."""
        try:
            asked("touch", self.url, key, lambda: self._copy_onto_itself(key))
        except KeyNotFoundError:
            return False
        return True

    def _copy_onto_itself(self, key: str) -> None:
        store = self._stores().quick
        if self._copies_onto_itself:
            try:
                obstore.copy(store, key, key)
                return
            except BaseError as error:
                if not is_refused_copy(error):
                    raise
                self._copies_onto_itself = False
        self._copy_there_and_back(store, key)

    def _copy_there_and_back(self, store: Store, key: str) -> None:
        """Touch where a storage refuses to copy an object onto itself, with no byte sent."""
        aside = _TOUCH + uuid4().hex
        obstore.copy(store, key, aside)
        try:
            obstore.copy(store, aside, key)
        finally:
            with suppress(BaseError, FileNotFoundError):  # what is left, a collector sweeps away
                obstore.delete(store, aside)

    # Deleting

    def delete(self, keys: Iterable[str], unless_modified_since: float | None = None) -> set[str]:
        wanted = sorted({validate_key(key) for key in keys})
        gone: set[str] = set()
        if unless_modified_since is not None:
            self._sweep()
        for start in range(0, len(wanted), _BATCH):
            there = self._heads(wanted[start : start + _BATCH])
            if unless_modified_since is None:
                gone |= self._purge(list(there), float("inf"), lambda: True)
            elif old := self._old(there, unless_modified_since):
                with self._condemned.judging(old) as has_time:
                    old = self._old(self._heads(old), unless_modified_since)
                    gone |= self._purge(old, unless_modified_since, has_time)
        return gone

    def _sweep(self) -> None:
        """Remove the copies of those who have crashed while they touched something."""
        limit = self.clock() - _STALE
        for meta in Listing(self._stores, self.url).list(_TOUCH, ""):
            if meta["last_modified"].timestamp() < limit:
                self._remove_one(self._stores().quick, meta["path"])

    def _purge(self, keys: Keys, limit: float, has_time: Callable[[], bool]) -> set[str]:
        """Delete the keys; those that are gone by it. Before it tries again it looks again."""
        gone: set[str] = set()
        for pause in PAUSES:
            try:
                return gone | self._remove(keys, has_time)
            except RefusedError:
                raise
            except StorageError:  # it may have happened, or not
                time.sleep(pause)
            there = self._heads(keys)
            gone |= {key for key in keys if key not in there}
            keys = self._old(there, limit)
        return gone | self._remove(keys, has_time)

    def _remove(self, keys: Keys, has_time: Callable[[], bool]) -> set[str]:
        """None of the keys is there any longer. One request, which is not repeated: an old one must
        not come late."""
        store = self._stores().once
        if keys and not has_time():
            raise StorageError(f"cannot delete in {self.url}: the storage is too slow")
        with explained("delete in", self.url):
            try:
                if keys:
                    obstore.delete(store, keys)
            except FileNotFoundError:  # one was gone; nobody knows how far it came
                several(lambda key: self._remove_one(store, key), keys, threads=THREADS)
        return set(keys)

    def _heads(self, keys: Collection[str]) -> dict[str, Stat]:
        """What is known of those of `keys` that are there."""
        found = several(self._head, keys, threads=THREADS)
        return {stat.key: stat for stat in found if stat is not None}

    def _old(self, found: Mapping[str, Stat], limit: float) -> Keys:
        return [key for key, stat in found.items() if stat.modified < limit]

    def _remove_one(self, store: Store, key: str) -> None:
        with explained("delete", self.url, key), suppress(FileNotFoundError):
            obstore.delete(store, key)

    # Time

    def clock(self) -> float:
        """The storage's time in whole seconds; never ahead of it, and behind by a second or two.

        Whoever may not write there is told this machine's.
        """
        if self._offset is None or time.monotonic() - self._offset[1] > _CLOCK_GOOD_FOR:
            key = _CLOCK + uuid4().hex[0]  # one of a few: no object takes many writes a second
            try:
                with explained("write", self.url, key):
                    obstore.put(self._stores().quick, key, b"", use_multipart=False)
                found = self._head(key)
            except StorageError:
                found = None
            now = time.monotonic()
            self._offset = ((found.modified if found else time.time()) - now, now)
        return floor(time.monotonic() + self._offset[0])


def _plain(content: Content) -> Content:
    """One dimension of bytes, as obstore wants it."""
    return content.cast("B") if isinstance(content, memoryview) else content


def _is_key(path: str) -> bool:
    """Whether this can be a key: what is hidden, or of somebody else, cannot."""
    return len(path) <= MAX_KEY_LENGTH and all(map(is_component, path.split("/")))


def _stat(key: str, meta: Any) -> Stat:
    """Times are cut to whole seconds: listings tell more than that, and single looks do not. Nor
    do all quote an etag in both."""
    modified = floor(meta["last_modified"].timestamp())
    version = (meta["e_tag"] or "").strip('"') or f"{meta['size']}-{modified}"
    return Stat(key, meta["size"], modified, version)
