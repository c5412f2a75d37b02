"""The experiments of a repository, without reading again what has not changed.

Knows what a listing costs: the record of an experiment is kept in a cache on this machine, and is
good as long as the backend gives its files the versions that they were read at. In a bucket a
snapshot that all share tells of those that are over. The truth stays in the experiments: whatever
is wrong with the cache or the snapshot, the answer is the same, only slower.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from blake3 import blake3

from replicate.backends.base import Stat
from replicate.backends.files import several
from replicate.cache import Cache
from replicate.errors import DamagedError
from replicate.index.apart import Made, processes_for, read_apart
from replicate.index.entries import (
    Damaged,
    Entry,
    Kept,
    ids_of,
    is_racy,
    kept_ids,
    packed,
    packed_beat,
)
from replicate.index.shared import Shared, checkpoints, inside, look, members, row_of, rows
from replicate.model import ExperimentRecord, Heartbeat
from replicate.repository import Listed, Reading, Repository
from replicate.snapshots import Group
from replicate.together import THREADS, read_together

#: So many experiments are read, and then kept, at a time.
_WINDOW = 128
#: The code that decides what a record is: when it changes, what was kept before is worth nothing.
_DECIDES = (
    *("model", "outputs", "records", "fold", "repository", "positional", "together"),
    *("snapshots/rows", "index/entries", "index/listing", "index/shared", "index/worker"),
)
#: Told what is read, how many of them are done, and how many there are.
Progress = Callable[[str, int, int], None]
_Rows = dict[str, tuple[bytes | None, ...]]
_Clock = Callable[[], float]


def unseen(what: str, done: int, total: int) -> None:
    """Where nobody looks."""


@dataclass(frozen=True, slots=True)
class Match:
    """An id that starts with what was asked for: an experiment's, or one of its checkpoints'."""

    experiment: str
    checkpoint: str | None = None


class Index:
    """The experiments of a repository, with what is kept of them below `directory`, if any."""

    def __init__(
        self,
        repository: Repository,
        directory: Path | None,
        progress: Progress = unseen,
        processes: int | None = None,
    ) -> None:
        """`processes` are so many that decode what has to be read: by default those that pay."""
        self._repository = repository
        self._progress = progress
        self._processes = processes
        place = repository.backend.identity.encode("utf-8", "surrogatepass")
        name = blake3(place).hexdigest(length=16)
        file = directory / "index" / f"{name}.sqlite" if directory else None
        self._cache = Cache(file, _version())

    def records(self) -> list[ExperimentRecord]:
        """As `Repository.experiments`; checkpoints and packages are decoded once asked for, and in
        a bucket a run that is over has no heartbeat."""
        entries = self._entries(look(self._repository))
        found = [entry.record() for entry in entries if not entry.deleted]
        return sorted(found, key=lambda e: (e.created, e.id))

    def matches(self, prefixes: Sequence[str]) -> list[list[Match]]:
        """For each of the prefixes, the ids that start with it: of experiments that are not
        deleted, and of their checkpoints."""
        try:
            return self._matches(prefixes, look(self._repository))
        except DamagedError:  # the ids of the snapshot: those of the experiments are the truth
            return self._matches(prefixes, None)

    def _matches(self, prefixes: Sequence[str], shared: Shared | None) -> list[list[Match]]:
        entries = [entry for entry in self._entries(shared) if not entry.deleted]
        kept = self._cache.read("ids")
        found: list[list[Match]] = [[] for _ in prefixes]
        for entry in entries:
            ids = "" if entry.shared else kept_ids(kept.get(entry.id), entry.fingerprint)
            if ids is None:  # it was not kept, or is another by now
                ids = ids_of(self._repository.read(entry.listed).record)
            for prefix, matches in zip(prefixes, found, strict=True):
                if prefix and entry.id.startswith(prefix):
                    matches.append(Match(entry.id))
                if prefix and f"\n{prefix}" in ids:
                    matches += (Match(entry.id, i) for i in ids.split() if i.startswith(prefix))
        of_snapshot = {entry.id for entry in entries if entry.shared}
        for prefix, matches in zip(prefixes, found, strict=True):
            if prefix and shared and of_snapshot:
                pairs = checkpoints(self._repository, shared.manifest, prefix, of_snapshot)
                matches += (Match(experiment, id) for experiment, id in pairs)
        return found

    # ------------------------------------------------------------ what is kept, and what is read

    def _entries(self, shared: Shared | None) -> Iterator[Entry]:
        """Every experiment, deleted ones too, in no order."""
        kept = self._cache.read("head", "beat")
        clock = cache(self._repository.backend.clock)  # of this listing: asked once, if at all
        found: dict[str, Kept] = {}
        try:
            if shared is not None:
                found = self._inside(shared, kept, clock)
        except DamagedError:  # a part of the snapshot
            shared = None
        listing = self._repository.listing() if shared is None else shared.changed
        groups = [row_of(group) for group in shared.manifest.groups] if shared else []
        self._cache.forget(kept.keys() - listing.keys() - found.keys() - set(groups))
        yield from found.values()
        yield from self._listed(listing, kept, clock)

    def _inside(self, shared: Shared, kept: _Rows, clock: _Clock) -> dict[str, Kept]:
        """The experiments that only the snapshot tells of. Raises DamagedError."""
        found: dict[str, Kept] = {}
        missing: list[Group] = []
        for group in shared.manifest.groups:
            ids = [id for id in members(group, kept) if id not in shared.marked]
            entries = [self._kept_inside(group, id, kept.get(id), clock) for id in ids]
            found.update((entry.id, entry) for entry in entries if entry)
            if row_of(group) not in kept or None in entries:
                missing.append(group)
        total = sum(group.experiments for group in missing)
        done = 0
        for group, names, readings in rows(self._repository, missing, shared.marked):
            made = {one.record.id: packed(one, "") for one in readings}
            everyone = {"head": names, "beat": b"", "ids": b""}
            self._cache.write([(row_of(group), everyone), *made.items()])
            for id, row in made.items():
                entry = self._kept_inside(group, id, (row["head"], row["beat"]), clock)
                assert entry is not None
                found[id] = entry
            done += group.experiments
            self._progress("experiments", done, total)
        return found

    def _kept_inside(
        self, group: Group, id: str, row: tuple[bytes | None, ...] | None, clock: _Clock
    ) -> Kept | None:
        """What is kept of an experiment of that group, or None when that is not what it says."""
        head, beat = row or (None, None)
        listed = inside(group, id, beat)
        entry = Kept.of(listed, head, self._repository, clock)
        if entry is not None:
            entry.shared = True
            if listed.heartbeat is not None:
                entry.knows(listed.heartbeat, beat)
        return entry

    def _listed(self, listing: Mapping[str, Listed], kept: _Rows, clock: _Clock) -> Iterator[Entry]:
        """The experiments of which these files are stored."""
        remote = self._repository.backend.remote
        stale: list[Listed] = []
        alive: list[tuple[Kept, Stat]] = []
        for id, listed in listing.items():
            head, beat = kept.pop(id, (None, None))  # what is decoded takes its place in memory
            entry = Kept.of(listed, head, self._repository, clock)
            if entry is None:
                stale.append(listed)
                continue
            over = remote and entry.stopped
            if over or listed.heartbeat is None or entry.knows(listed.heartbeat, beat):
                yield entry
            else:
                alive.append((entry, listed.heartbeat))
        stale += [entry.listed for entry in self._refresh(alive)]
        yield from (entry for entry, _ in alive if entry.heartbeat is not None)
        yield from self._read(stale, clock)

    def _refresh(self, alive: Sequence[tuple[Kept, Stat]]) -> list[Kept]:
        """Read the heartbeats with these numbers. Returns those that there is more to say of: the
        heartbeat is damaged, or counts more events than we have."""
        odd, beats = [], []
        heartbeats = self._heartbeats([stat for _, stat in alive])
        for (entry, stat), heartbeat in zip(alive, heartbeats, strict=True):
            if heartbeat is None or not entry.accept(heartbeat):
                odd.append(entry)
            else:
                beats.append((entry.id, {"beat": packed_beat(stat, heartbeat)}))
        self._cache.write(beats)
        return odd

    def _heartbeats(self, stats: Sequence[Stat]) -> Iterable[Heartbeat | None]:
        read = self._repository.heartbeat
        remote = self._repository.backend.remote
        return several(read, stats, THREADS) if remote else map(read, stats)

    def _read(self, stale: Sequence[Listed], clock: _Clock) -> Iterator[Entry]:
        """Read these from the repository, and keep those that are whole."""
        if not stale:
            return
        # In a bucket other bytes always have another version.
        now = None if self._repository.backend.remote else self._repository.backend.clock()
        fresh: list[tuple[str, dict[str, bytes]]] = []
        for number, made in enumerate(self._made(stale), 1):
            self._progress("experiments", number, len(stale))
            if isinstance(made, Reading) and made.record.damage:
                yield Damaged(made.listed, made.record)
                continue
            entry, row = self._whole(made, clock)
            if now is None or not is_racy(entry.listed, now):
                fresh.append((entry.id, row))
            if len(fresh) >= _WINDOW:
                self._cache.write(fresh)
                fresh = []
            yield entry
        self._cache.write(fresh)

    def _whole(self, made: Made, clock: _Clock) -> tuple[Kept, dict[str, bytes]]:
        if isinstance(made, Reading):
            listed, row = made.listed, packed(made, ids_of(made.record))
        else:
            listed, row = made
        entry = Kept.of(listed, row["head"], self._repository, clock)
        assert entry is not None
        if isinstance(made, Reading):
            entry.heartbeat = made.record.heartbeat
        elif listed.heartbeat is not None:
            entry.knows(listed.heartbeat, row["beat"])
        return entry, row

    def _made(self, listed: Sequence[Listed]) -> Iterable[Made]:
        processes = processes_for(listed) if self._processes is None else self._processes
        if processes:
            return read_apart(self._repository, listed, processes)
        if self._repository.backend.remote:
            return read_together(self._repository, listed)
        return map(self._repository.read, listed)


@cache
def _version() -> bytes:
    """A hash of the code that decides what a record is."""
    hashed = blake3()
    root = Path(__file__).parent.parent
    for name in _DECIDES:
        for file in (root / f"{name}.py", *sorted((root / name).glob("*.py"))):  # or a package
            if file.is_file():
                hashed.update(file.read_bytes())
    return hashed.digest()
