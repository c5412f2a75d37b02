"""The storage contract: keys to bytes, in eight methods.

A backend knows nothing of experiments, hashes or JSON. `tests/backend_contract.py` is the same
contract as a test suite, and every implementation passes it.

Keys are relative POSIX paths such as `blobs/ab/ab12…`; see `validate_key`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import NamedTuple

from replicate.errors import UsageError

Content = bytes | memoryview

# One path component: no separators, no control characters, no drive letters or NTFS streams, no
# leading dot (so neither `..` nor a hidden temporary file of a backend can be named), no trailing
# dot or space (Windows drops them).
_COMPONENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*(?<!\.)")
MAX_KEY_LENGTH = 512


def validate_key(key: str) -> str:
    """Return `key`, or raise UsageError when it could name something outside the backend's root."""
    if len(key) > MAX_KEY_LENGTH or not all(_COMPONENT.fullmatch(c) for c in key.split("/")):
        raise UsageError(f"not a valid storage key: {key!r}")
    return key


def is_component(name: str) -> bool:
    """Whether `name` can stand between the slashes of a key."""
    return _COMPONENT.fullmatch(name) is not None


def validate_prefix(prefix: str, after: str) -> None:
    """Raise UsageError unless `prefix` is "" or a directory as `a/b/`, and `after` "" or a key."""
    if prefix:
        validate_key(prefix.removesuffix("/"))
        if not prefix.endswith("/"):
            raise UsageError(f"not a whole directory: {prefix!r}", hint=f"Did you mean {prefix}/ ?")
    if after:
        validate_key(after)


class Stat(NamedTuple):
    """What a backend knows of a key without reading it.

    `modified` is in seconds since the epoch by the *backend's* clock: compare it with
    `Backend.clock()`, never with this machine's. `version` changes whenever the bytes do
    (inode, mtime and size on disk, the etag in a bucket).
    """

    key: str
    size: int
    modified: float
    version: str


class Backend(ABC):
    """A root in some storage, holding immutable and appendable objects under keys.

    No key is also a directory of other keys: `a` and `a/b` exclude each other, as on a disk.
    Every key is checked with `validate_key` before anything is read or written.

    Every method raises StorageError (with the key and the cause) when the storage fails; none
    retries silently for ever, none prints. All are safe to call from several threads.
    """

    #: Where this is, as the user would write it in `repository:`.
    url: str
    #: Whether each call is a request over a network, so that several at once save time, few large
    #: objects cost less than many small ones, and the spool is elsewhere.
    remote: bool = False

    @property
    def identity(self) -> str:
        """What tells this place from every other in what is kept of it on this machine: the URL,
        and on a second line the server, where it is the environment that says which."""
        return self.url

    @abstractmethod
    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """The bytes of `key` from `start`, at most `length` of them (fewer at the end).

        Raises KeyNotFoundError when there is no such key.
        """

    @abstractmethod
    def put(self, key: str, content: Content) -> None:
        """Write or replace `key` whole. A reader sees the old bytes or the new, never a mixture."""

    @abstractmethod
    def put_if_absent(self, items: Mapping[str, Content], *, fresh: float = 0.0) -> set[str]:
        """Create every key that does not exist; return those that this call created.

        When it returns, all of `items` are durable. Each key appears whole or not at all; of
        several writers of one key at most one is told that it created it: exactly one, unless a
        network lost the answer. Keys that existed are
        *touched*: their modified time is then not older than this call, which is how a writer
        tells the collector of garbage that it still needs them. In a bucket that costs a request
        or two, so the caller may say that it is content with a time that is less than `fresh`
        seconds older than this call. No order between keys. Only the
        contents of keys that do not exist are asked of `items`, from any thread, perhaps more than
        once: who touches what is there need not have its bytes.
        """

    @abstractmethod
    def append(self, key: str, existing: Content, added: Content) -> None:
        """Make `key` hold `existing + added`, durably. Only for a key that has a single writer.

        `existing` is what that writer has put there so far. A disk appends and reads none of it;
        a bucket replaces the object. A reader sees `existing` and some prefix of `added`. A call
        that failed may be repeated. Raises DamagedError where the storage holds less than
        `existing`, if it can tell.
        """

    @abstractmethod
    def stat(self, key: str) -> Stat | None:
        """Size and time of `key`, or None when there is no such key."""

    @abstractmethod
    def list(self, prefix: str = "", after: str = "") -> Iterator[Stat]:
        """Every key that starts with `prefix` (a whole directory such as `blobs/`, or "") and sorts
        after `after`, in the order of the keys. Keys that come or go meanwhile may be missed."""

    def outline(self, prefix: str, aside: Container[str]) -> Iterator[Stat]:
        """As `list`, but that the directories with these names may be passed over where they stand
        beside a file: for who does not need them, and where to look into one costs."""
        return self.list(prefix)

    @abstractmethod
    def delete(self, keys: Iterable[str], unless_modified_since: float | None = None) -> set[str]:
        """Remove the keys; return those that are gone because of this call.

        A key that is not there is no error: somebody else removed it. With `unless_modified_since`
        (a time of `clock()`), a key that was written or touched at or after it is left, also when
        that happens while this call runs: what a writer touched is never lost to a collector.
        After a crash of the machine a removed key may be back.
        """

    @abstractmethod
    def clock(self) -> float:
        """Now, in seconds since the epoch, by the clock that gives `Stat.modified` its values."""
