"""Trees, blobs and packs of one repository brought into another: only what is missing is read, each
of them is verified before it is written, and what is there is touched, as by every writer.

It knows encodings, and how much goes on at once. It knows nothing of experiments.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby, islice
from threading import Event, Lock
from typing import NamedTuple

from replicate import compression
from replicate.backends.base import Backend, Content, Stat
from replicate.backends.files import several
from replicate.blobs import FRESH, TOUCHED, Recent, blob_key, hash_of, read_stored, tree_key
from replicate.compression import SUFFIXES
from replicate.errors import DamagedError, KeyNotFoundError, UnsafeTreeError
from replicate.maintenance.references import Reference, each, object_of
from replicate.packs import MAX_PACK, pack_key
from replicate.repository import Repository
from replicate.tree import Tree, read_manifest

#: So many trees are brought at a time, so many portions of their blobs at once, and in each of them
#: at most so many blobs, and bytes but for the last blob: bounds memory, and hides waiting.
_TREES, _PORTIONS, _BLOBS, _BYTES = 64, 4, 32, 4 << 20
#: A target with no more blobs is listed whole, in 20 requests: that saves one for each blob.
_FEW = 20_000
#: A listing that has passed so many keys in vain is begun anew further on: what one request yields.
_PAGE = 1000


class Lost(NamedTuple):
    """What cannot be read in the source: a sentence for each thing, once, and those for trees by
    the hash of the tree."""

    problems: dict[str, None]
    trees: dict[str, str]


class Objects:
    """Brings trees, with their blobs, from `source` to `target`. For use by several threads."""

    def __init__(
        self,
        source: Repository,
        target: Repository,
        *,
        compress: bool,
        dry_run: bool,
        count: Callable[[int], None],
    ) -> None:
        """With `dry_run` nothing is written, and what would be is counted, uncompressed. `count` is
        told now and again how many blobs were looked at."""
        self._source = source
        self._target = target
        self._backend = target.backend
        self._compress = compress
        self._dry_run = dry_run
        self._count = count
        self._looked_at = 0
        self._recent = Recent()
        self._counting, self._listing = Lock(), Lock()
        self._has_listed = False
        self._listed: dict[str, str] | None = None
        #: The blobs that a thread is bringing, and what it sets when it is done.
        self._claimed: dict[str, Event] = {}
        #: What was written: trees and blobs, and their bytes.
        self.objects = 0
        self.bytes = 0

    def bring(self, references: Collection[Reference]) -> Lost:
        """All that these trees consist of is durable in the target and was touched there so lately
        that no collector takes it before something refers to it, but for what cannot be read in
        the source. Raises StorageError."""
        while True:
            began = time.time()
            lost = Lost({}, {})
            for some in _groups(references, _TREES):
                self._bring(some, lost)
            # A pass that took longer is made once more: what it stored first may be old by now.
            if self._dry_run or 0 <= time.time() - began < FRESH:
                return lost

    def lacking(self, references: Iterable[Reference]) -> list[Reference]:
        """Those of these trees that are not in the target with all of their packs and blobs. It
        reads trees and the beginnings of packs there, and no blob."""
        found: list[Reference] = []
        for some in _groups(references, _TREES):
            loose = list(each(self._target, self._loose, some))
            places = self._places({hash for hashes in loose for hash in hashes or ()})
            found += [
                reference
                for reference, hashes in zip(some, loose, strict=True)
                if hashes is None or not hashes <= places.keys()
            ]
        return found

    def _loose(self, reference: Reference) -> set[str] | None:
        """The blobs that the target has to have outside of packs, but for those that were stored a
        moment ago; None when it has not even the tree."""
        try:
            _, tree = read_manifest(self._target.objects(reference.packs), reference.tree)
            packs = [self._target.check_pack(hash, full=False) for hash in reference.packs]
        except (DamagedError, UnsafeTreeError):
            return None
        held = set().union(*(pack.places for pack in packs))
        blobs = {hash: size for entry in tree.entries for hash, size in entry.blobs}
        return {hash for hash in self._missing(blobs) if blob_key(hash) not in held}

    def _bring(self, references: Sequence[Reference], lost: Lost) -> None:
        problems = lost.problems
        packed = self._bring_packs({hash for r in references for hash in r.packs}, problems)
        manifests: dict[str, Content] = {}
        blobs: dict[str, int] = {}
        read = each(self._source, self._read, references)
        for reference, found in zip(references, read, strict=True):
            if isinstance(found, str):
                problems[found] = None
                lost.trees[reference.tree] = found
                continue
            data, tree = found
            held = set().union(*(packed.get(hash, ()) for hash in reference.packs))
            if tree_key(reference.tree) not in held:
                manifests[tree_key(reference.tree)] = data
            loose = (blob for entry in tree.entries for blob in entry.blobs)
            blobs |= {hash: size for hash, size in loose if blob_key(hash) not in held}
        self._bring_blobs(blobs, problems)
        self._store(manifests)

    def _read(self, reference: Reference) -> tuple[bytes, Tree] | str:
        """A manifest and its tree, or why they cannot be had."""
        try:
            return read_manifest(self._source.objects(reference.packs), reference.tree)
        except (DamagedError, UnsafeTreeError) as error:
            return error.message

    # ------------------------------------------------------------ packs

    def _bring_packs(
        self, hashes: Collection[str], problems: dict[str, None]
    ) -> dict[str, Collection[str]]:
        """Store these packs, as they are: events name them. Returns what is in each."""
        held: dict[str, Collection[str]] = {}
        rest = iter(sorted(hashes))
        while some := list(islice(rest, _PORTIONS)):
            contents: dict[str, Content] = {}
            for hash, found in zip(some, several(self._read_pack, some), strict=True):
                if isinstance(found, str):
                    problems[found] = None
                else:
                    held[hash], data = found
                    if data is not None:
                        contents[pack_key(hash)] = data
            self._store(contents)
        return held

    def _read_pack(self, hash: str) -> tuple[Collection[str], bytes | None] | str:
        """What a pack holds, and its bytes unless it was stored a moment ago, or why not."""
        try:
            names = self._source.check_pack(hash, full=False).places.keys()
            if self._recent.find(pack_key(hash)) is not None:
                return names, None
            data = self._source.backend.get(pack_key(hash), 0, MAX_PACK + 1)
        except (DamagedError, KeyNotFoundError) as error:
            return error.message
        if hash_of(data) != hash:
            name = f"{self._source.url}/{pack_key(hash)}"
            return f"{name} is damaged: its bytes do not match its name"
        return names, data

    # ------------------------------------------------------------ blobs

    def _bring_blobs(self, blobs: Mapping[str, int], problems: dict[str, None]) -> None:
        """Bring blobs, but not those that another thread is bringing: for them we wait."""
        wanted = self._missing(blobs)
        while wanted:
            mine = Event()
            theirs = {hash: self._claimed.setdefault(hash, mine) for hash in wanted}
            claimed = {hash: size for hash, size in wanted.items() if theirs[hash] is mine}
            try:
                self._bring_claimed(claimed, problems)
            finally:
                for hash in claimed:
                    del self._claimed[hash]
                mine.set()
            others = {hash: size for hash, size in wanted.items() if hash not in claimed}
            for hash in others:
                theirs[hash].wait()
            wanted = self._missing(others)  # what the other has not got

    def _missing(self, blobs: Mapping[str, int]) -> dict[str, int]:
        return {h: size for h, size in blobs.items() if self._recent.find(blob_key(h)) is None}

    def _bring_claimed(self, blobs: Mapping[str, int], problems: dict[str, None]) -> None:
        work = partial(self._bring_portion, self._places(blobs))
        portions = _portions(blobs.items())
        while window := list(islice(portions, _PORTIONS)):
            for lost in several(work, window, _PORTIONS):
                problems |= dict.fromkeys(lost)
            self._looked_at += sum(map(len, window))
            self._count(self._looked_at)

    def _bring_portion(
        self, places: Mapping[str, str], blobs: Sequence[tuple[str, int]]
    ) -> list[str]:
        """Store blobs, or touch them at their `places`. Returns why those that are lost are."""
        absent = [(hash, size) for hash, size in blobs if hash not in places]
        if self._dry_run:
            self._recent.add((blob_key(hash) for hash, _ in absent), "", time.time())
            self._add(len(absent), sum(size for _, size in absent))
            return []
        loaded = several(lambda blob: self._attempt(*blob), absent)
        self._store(dict(found for found in loaded if not isinstance(found, str)))
        there = ((places[hash], hash, size) for hash, size in blobs if hash in places)
        self._store(_Later({k: partial(self._again, hash, size, k) for k, hash, size in there}))
        return [found for found in loaded if isinstance(found, str)]

    def _attempt(self, hash: str, size: int) -> tuple[str, Content] | str:
        """The key and the bytes of a blob as the target stores it, or why it cannot be had."""
        try:
            suffix, payload, data = read_stored(self._source.backend, hash, size)
        except DamagedError as error:
            return error.message
        if not self._compress:
            return blob_key(hash), data
        if suffix:
            return blob_key(hash, suffix), payload
        suffix, content = compression.encode(data)
        return blob_key(hash, suffix), content

    def _again(self, hash: str, size: int, key: str) -> Content:
        """The bytes of a blob that has gone from the target since we looked."""
        suffix = key.removeprefix(blob_key(hash))
        stored, payload, data = read_stored(self._source.backend, hash, size)
        return payload if stored == suffix else compression.encode_as(suffix, data)

    def _store(self, contents: Mapping[str, Content]) -> None:
        """Write what is absent, touch what is there, and take note of it."""
        if self._dry_run:
            self._pretend(contents)
        elif contents:
            sent = time.time()
            created = self._backend.put_if_absent(contents, fresh=TOUCHED)
            self._recent.add((object_of(key) or key for key in contents), "", sent)
            self._add(len(created), sum(len(contents[key]) for key in created))

    def _pretend(self, contents: Mapping[str, Content]) -> None:
        """Count what is absent, each once."""
        for key, content in contents.items():
            with self._counting:
                known = self._recent.find(key) is not None
                self._recent.add([key], "", time.time())
            if not known and self._backend.stat(key) is None:
                self._add(1, len(content))

    def _add(self, objects: int, size: int) -> None:
        with self._counting:
            self.objects += objects
            self.bytes += size

    # ------------------------------------------------------------ what is there

    def _places(self, hashes: Iterable[str]) -> dict[str, str]:
        """Under which key the target has each of these blobs that it has, in any encoding."""
        names = sorted(hashes)
        if not self._backend.remote:
            return {hash: key for hash in names if (key := self._place(hash)) is not None}
        if (known := self._known()) is not None:
            return {hash: known[blob_key(hash)] for hash in names if blob_key(hash) in known}
        shards = [list(shard) for _, shard in groupby(names, key=lambda hash: hash[:2])]
        found = several(partial(_scan, self._backend), shards)
        return {hash: key for places in found for hash, key in places.items()}

    def _known(self) -> dict[str, str] | None:
        """The keys of all blobs that the target had when this was first asked, by their names; None
        when they were too many. What has come or gone since, the writing of it finds out."""
        with self._listing:
            if not self._has_listed:
                first = list(islice(self._backend.list("blobs/"), _FEW + 1))
                if len(first) <= _FEW:
                    self._listed = {n: s.key for s in first if (n := object_of(s.key)) is not None}
                self._has_listed = True
            return self._listed

    def _place(self, hash: str) -> str | None:
        keys = (blob_key(hash, suffix) for suffix in SUFFIXES)
        return next((key for key in keys if self._backend.stat(key) is not None), None)


def _scan(backend: Backend, hashes: Sequence[str]) -> dict[str, str]:
    """The keys of those of these blobs of one shard that are stored: never more requests than it
    has blobs, nor than list the whole shard."""
    found: dict[str, str] = {}
    shard = f"blobs/{hashes[0][:2]}/"
    stats: Iterator[Stat] = iter(())
    passed, current = _PAGE, None
    for hash in hashes:
        name = blob_key(hash)
        while current is None or current.key < name:
            if passed >= _PAGE:
                # All but the last digit sorts before the whole, and before little else.
                stats, passed = backend.list(shard, after=name[:-1]), 0
            current = next(stats, None)
            passed += 1
            if current is None:
                return found
        while current is not None and current.key.startswith(name):
            if object_of(current.key) == name:
                found.setdefault(hash, current.key)
            current, passed = next(stats, None), 0
        if current is None:
            return found
    return found


class _Later(Mapping[str, Content]):
    """Contents that are only read when they are asked for, and then kept."""

    def __init__(self, read: Mapping[str, Callable[[], Content]]) -> None:
        self._read = read
        self._found: dict[str, Content] = {}

    def __getitem__(self, key: str) -> Content:
        if key not in self._found:
            self._found[key] = self._read[key]()
        return self._found[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read)

    def __len__(self) -> int:
        return len(self._read)


def _groups(items: Iterable[Reference], size: int) -> Iterator[list[Reference]]:
    rest = iter(items)
    while some := list(islice(rest, size)):
        yield some


def _portions(blobs: Iterable[tuple[str, int]]) -> Iterator[list[tuple[str, int]]]:
    """Blobs in portions that are worth a thread, and fit in memory."""
    portion: list[tuple[str, int]] = []
    total = 0
    for hash, size in blobs:
        portion.append((hash, size))
        total += size
        if total >= _BYTES or len(portion) == _BLOBS:
            yield portion
            portion, total = [], 0
    if portion:
        yield portion
