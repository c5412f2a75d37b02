"""Making the snapshot of a bucket: one listing, in a few objects, of the experiments that are over.

It knows the order of the steps that loses nothing beside writers, readers and other compactions;
`docs/format.md` says why. What a listing needs of an experiment is the affair of `snapshots`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

from replicate.backends.base import Stat
from replicate.backends.files import several
from replicate.changes import STALE, marked, marker
from replicate.errors import DamagedError, RepositoryError, StorageError
from replicate.records import new_id, now
from replicate.repository import Listed, Reading, Repository
from replicate.snapshots import (
    GROUP_IDS,
    LAST_NUMBER,
    MANIFESTS,
    PART_BYTES,
    PARTS,
    Group,
    Manifest,
    UnknownVersionError,
    encode_deleted,
    encode_group,
    encode_manifest,
    encode_row,
    find_checkpoints,
    latest_key,
    manifest_number,
    read_manifest,
    read_part,
    split_rows,
)
from replicate.together import read_together

#: What nobody refers to any more stays so long: for those who began to read before, and for whoever
#: is about to refer to it (seconds).
KEPT = 86_400.0
_TRIES = 5
Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True, slots=True)
class Compacted:
    """What a compaction did, or would do.

    The snapshot has `experiments`, of which `added` are new in it or have changed; `left` have left
    it, and `waiting` cannot be in it: they go on, ended within the hour, or are damaged. `marks`
    counts marks that went, and `written` the bytes of what was stored. Where it is not `needed`, as
    on a disk, nothing is done.
    """

    needed: bool
    experiments: int = 0
    added: int = 0
    left: int = 0
    waiting: int = 0
    marks: int = 0
    written: int = 0


def compact(
    repository: Repository, *, dry_run: bool = False, progress: Progress | None = None
) -> Compacted:
    """Bring the snapshot up to date, and take away the marks of what it has.

    Raises StorageError when others do the same all the time.
    """
    if not repository.backend.remote:
        return Compacted(needed=False)
    afresh = False
    for _ in range(_TRIES):
        try:
            done = _Compaction(repository, progress, afresh=afresh).run(dry_run)
        except DamagedError:  # a part of the old one: all of it can be had again
            afresh = True
            continue
        if done is not None:
            return done
    raise StorageError(
        f"{repository.url} is being compacted by others all the time", hint="Try again later."
    )


@dataclass(slots=True)
class _Old:
    """What the snapshot has so far: of each experiment the group and the head of its row."""

    groups: tuple[Group, ...] = ()
    rows: dict[str, tuple[Group, dict[str, Any]]] = field(default_factory=dict)


@dataclass(slots=True)
class _Made:
    """Rows that become a group: their bytes, and pairs of a checkpoint's and its experiment's id.
    Those of deleted experiments are not counted in `experiments`."""

    rows: list[bytes] = field(default_factory=list)
    ids: list[tuple[str, str]] = field(default_factory=list)
    experiments: int = 0
    size: int = 0


class _Compaction:
    """One attempt. It comes to nothing when another compaction is faster."""

    def __init__(self, repository: Repository, progress: Progress | None, *, afresh: bool) -> None:
        self._repository = repository
        self._backend = repository.backend
        self._progress = progress
        self._afresh = afresh
        self._written = 0
        # The order matters. What is committed after the marks were listed has a mark that is
        # younger than the limit; what was committed before is in the listing that follows.
        self._start = self._backend.clock()
        self._limit = self._start - STALE
        self._key = latest_key(self._backend)
        self._old = self._read_old()
        self._marks = marked(self._backend)
        self._listing = repository.listing()
        #: Of these the new snapshot says what is stored: they need no mark.
        self._settled: set[str] = set()
        #: Of them, those that are not deleted.
        self._living: set[str] = set()

    def run(self, dry_run: bool) -> Compacted | None:
        """What was done, or would be; None when nothing was, as another compaction was faster."""
        stale = [listed for listed in self._listing.values() if self._is_to_be_read(listed)]
        gone = {id for id in self._old.rows if id not in self._listing and not self._is_young(id)}
        replaced = gone | {listed.id for listed in stale}
        opened = self._opened(replaced)
        groups = [group for group in self._old.groups if group not in opened]
        if dry_run:
            self._settled |= {listed.id for listed in stale}
            self._living |= self._settled
        else:
            groups += self._write(opened, replaced, stale)
            self._mark()
            if (self._afresh or opened or stale) and not self._publish(groups):
                return None
        marks = self._absorbed()
        if not dry_run:
            marks = self._backend.delete(marks, unless_modified_since=self._limit)
            tidy(self._repository, self._start)
        return Compacted(
            needed=True,
            experiments=len(self._living),
            added=sum(listed.id in self._settled for listed in stale),
            left=len(gone),
            waiting=len(self._listing.keys() - self._settled),
            marks=len(marks),
            written=self._written,
        )

    # ------------------------------------------------------------ what is to be done

    def _read_old(self) -> _Old:
        if self._key is None or self._afresh:
            return _Old()
        try:
            manifest = read_manifest(self._backend, self._key)
        except UnknownVersionError as error:
            hint = "Nothing was changed. Upgrade replicate to compact this repository."
            raise RepositoryError(error.message, hint=hint) from error
        old = _Old(manifest.groups)
        for group in old.groups:
            old.rows.update((head["id"], (group, head)) for head, _ in self._rows(group))
        return old

    def _rows(self, group: Group) -> Iterator[tuple[dict[str, Any], list[bytes]]]:
        data = read_part(self._backend, group.rows, compressed=True)
        return split_rows(data, f"{self._repository.url}/{group.rows.key}")

    def _is_young(self, id: str) -> bool:
        """Whether somebody may be writing to the experiment: its mark stays."""
        return id in self._marks and self._marks[id].modified >= self._limit

    def _is_to_be_read(self, listed: Listed) -> bool:
        """Whether the snapshot should tell of the experiment, and does not or not rightly."""
        _, head = self._old.rows.get(listed.id, (None, None))
        if head is not None and head.get("files") == _sizes(listed):
            self._settled.add(listed.id)
            if "deleted" not in head:
                self._living.add(listed.id)
            return False
        stats = [*_files(listed), *([listed.heartbeat] if listed.heartbeat else [])]
        quiet = all(stat.modified < self._limit for stat in stats)
        return quiet and not self._is_young(listed.id)

    def _opened(self, replaced: set[str]) -> set[Group]:
        """The groups that are written anew: those with such rows and, as there is something to
        write, small ones."""
        opened = {group for id, (group, _) in self._old.rows.items() if id in replaced}
        if replaced:
            opened |= {g for g in self._old.groups if g.rows.size < PART_BYTES // 2}
        return opened

    # ------------------------------------------------------------ writing

    def _write(
        self, opened: set[Group], replaced: set[str], stale: list[Listed]
    ) -> Iterator[Group]:
        """Store what `opened` had but for what is replaced, and what is read now, as new groups."""
        made = _Made()
        for row, ids, lives in self._all_rows(opened, replaced, stale):
            full = made.size + len(row) > PART_BYTES or len(made.ids) + len(ids) > GROUP_IDS
            if made.rows and full:
                yield self._store(made)
                made = _Made()
            made.rows.append(row)
            made.ids += ids
            made.experiments += lives
            made.size += len(row)
        if made.rows:
            yield self._store(made)

    def _all_rows(
        self, opened: set[Group], replaced: set[str], stale: list[Listed]
    ) -> Iterator[tuple[bytes, list[tuple[str, str]], bool]]:
        """Each row, the ids that belong to it, and whether its experiment is there."""
        for group in opened:
            ids: dict[str, list[tuple[str, str]]] = defaultdict(list)
            for id, start in find_checkpoints(self._backend, group, ""):
                ids[start].append((id, start))
            for head, lines in self._rows(group):
                if head["id"] not in replaced:
                    row = b"".join(line + b"\n" for line in lines)
                    yield row, ids[head["id"][:16]], len(lines) > 1
        for number, reading in enumerate(read_together(self._repository, stale), 1):
            if self._progress is not None:
                self._progress("experiments", number, len(stale))
            new = _row(reading)
            if new is not None:
                self._settled.add(reading.listed.id)
                if not reading.record.deleted:
                    self._living.add(reading.listed.id)
                yield new, _ids(reading), not reading.record.deleted

    def _store(self, made: _Made) -> Group:
        group, contents = encode_group(made.rows, made.ids, made.experiments)
        parts = zip(group.parts, contents, strict=True)
        self._backend.put_if_absent({part.key: content for part, content in parts})
        self._written += sum(map(len, contents))
        return group

    def _mark(self) -> None:
        """Mark all that the snapshot does not tell of: what was copied here by hand has no mark."""
        ids = [id for id in self._listing if id not in self._settled and id not in self._marks]
        self._backend.put_if_absent({marker(id): b"" for id in ids})

    def _publish(self, groups: list[Group]) -> bool:
        """Make this the snapshot. False when there is another since the one that it is made of."""
        if self._backend.clock() - self._start > KEPT / 2:
            raise StorageError(f"compacting {self._repository.url} took too long; try again")
        number = manifest_number(self._key) + 1 if self._key else 0
        if number > LAST_NUMBER:  # nobody has counted so far
            raise RepositoryError(
                f"{self._repository.url}/{self._key} leaves no number for another snapshot",
                hint="Remove snapshots/ from the bucket: all of it can be had again.",
            )
        manifest = Manifest(number, now(), new_id()[:16], tuple(groups))
        content = encode_manifest(manifest)
        self._written += len(content)
        if self._backend.put_if_absent({manifest.key: content}):
            return True
        # Who was not told that it was the first may be it all the same: an answer can get lost.
        return self._backend.get(manifest.key) == content

    def _absorbed(self) -> set[str]:
        """The marks that nobody needs any more, unless they are touched meanwhile."""
        return {
            stat.key
            for id, stat in self._marks.items()
            if not self._is_young(id) and (id in self._settled or id not in self._listing)
        }


def _row(reading: Reading) -> bytes | None:
    """What the snapshot says of an experiment; None when it cannot be in it."""
    listed, record = reading.listed, reading.record
    if record.deleted:
        return encode_deleted(listed.id, _sizes(listed))
    if record.damage or len(record.checkpoints) > GROUP_IDS:
        return None
    beat = listed.heartbeat.modified if listed.heartbeat else None
    return encode_row(record, reading.inputs, reading.journal, _sizes(listed), beat)


def _ids(reading: Reading) -> list[tuple[str, str]]:
    record = reading.record
    return [] if record.deleted else [(c.id, record.id) for c in record.checkpoints]


def _files(listed: Listed) -> tuple[Stat, ...]:
    return (listed.inputs, *listed.journals) if listed.inputs else listed.journals


def _sizes(listed: Listed) -> dict[str, int]:
    """What tells whether anything was written since: inputs never change, and journals grow."""
    start = len(f"experiments/{listed.id}/")
    return {stat.key[start:]: stat.size for stat in _files(listed)}


def tidy(repository: Repository, start: float) -> None:
    """Remove manifests and parts of earlier snapshots, a day after anything referred to them.
    `start` is a time of the storage's clock, not later than this call."""
    backend, limit = repository.backend, start - KEPT
    # Whatever becomes the last one after this is made of those that we see, or of new parts.
    parts = [stat for stat in backend.list(PARTS) if stat.modified < limit]
    manifests = sorted(backend.list(MANIFESTS), key=lambda stat: stat.key)
    # Each was the last one until the next was written.
    old = {one.key for one, after in pairwise(manifests) if after.modified < limit}
    others = [stat.key for stat in manifests if stat.key not in old]
    try:
        read = several(partial(read_manifest, backend), others)
    except DamagedError:  # what it refers to cannot be told
        return
    used = {part.key for manifest in read for part in manifest.parts}
    unused = [stat.key for stat in parts if stat.key not in used]
    backend.delete(unused, unless_modified_since=limit)
    backend.delete(old, unless_modified_since=limit)
