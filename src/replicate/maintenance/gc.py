"""Removing what nothing refers to, beside writers that know nothing of it.

It knows the order of the steps that makes this safe; `docs/garbage-collection.md` says why. It
knows nothing of people, and of what the references mean.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

from replicate.backends.base import Stat
from replicate.backends.local import LocalBackend
from replicate.backends.reserve import reserve_released
from replicate.errors import DamagedError, KeyNotFoundError
from replicate.maintenance.compaction import tidy
from replicate.maintenance.presence import has_spool, somebody_may_write
from replicate.maintenance.references import (
    Backup,
    Reference,
    backups,
    each,
    objects,
    records,
    references,
    stored,
    trees,
)
from replicate.model import Status, TreeRef, short
from replicate.records import decode_event
from replicate.repository import Repository
from replicate.tree import Tree

#: How long an object that nothing refers to stays while somebody may be writing (seconds): longer
#: than from the moment a writer has stored it, or touched it, until its journal line is there.
GRACE = 3600.0
#: The same for a bucket, which is written over lines on which a large file takes hours, and where
#: nobody can see who is about to.
REMOTE_GRACE = 24 * 3600.0
#: How long what a checkout has overwritten can be put back (seconds).
UNDO_KEPT = 30 * 86_400.0
#: So many experiments and checkpoints a refusal names.
_NAMED = 5


@dataclass(frozen=True, slots=True)
class Collected:
    """What came free, or would have: blobs, trees and packs, files that were only half written
    when their process ended, and the bytes of all.

    `later_bytes` belong to objects that nothing refers to either, but that are younger than
    `grace` seconds. `experiments` counts deleted ones whose last files went, `backups` checkouts
    that can no longer be undone.
    """

    objects: int
    bytes: int
    later_objects: int
    later_bytes: int
    experiments: int
    backups: int
    grace: float

    def with_backups(self, other: Collected) -> Collected:
        """This, and what came free in the repository that has the backups of this one."""
        return replace(
            self,
            objects=self.objects + other.objects,
            bytes=self.bytes + other.bytes,
            later_objects=self.later_objects + other.later_objects,
            later_bytes=self.later_bytes + other.later_bytes,
            backups=self.backups + other.backups,
        )


@dataclass(slots=True)
class _Marked:
    """What was seen while the references were followed."""

    recording: str | None = None
    running: bool = False
    deleted: list[str] = field(default_factory=list)
    expired: list[Backup] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    #: The experiments and checkpoints that could be deleted to be rid of the problems.
    hurt: dict[str, None] = field(default_factory=dict)


def collect(
    repository: Repository,
    *,
    dry_run: bool = False,
    among: Collection[str] | None = None,
    grace: float | None = None,
    recording: str | None = None,
    alone: bool = False,
) -> Collected:
    """Remove every object, or those of `among`, that nothing refers to and that is old enough.

    `grace` is how old, in seconds; by default GRACE, of a bucket REMOTE_GRACE, or 0 when nobody
    else can be writing. What a writer stores or touches meanwhile stays. `recording` is the
    experiment that the caller itself records; it must not store anything until this returns.
    `alone` says of a bucket what nobody can see there: that no run is about to write to it, but for
    those whose heartbeat shows it. Raises DamagedError, with nothing removed, when something that
    may refer to objects cannot be read.
    """
    backend = repository.backend
    # The order matters. Whoever writes without having been seen starts after `start`, so all that
    # they store or touch is younger. And what is copied into the repository, with times that are
    # older, comes after the listing.
    start = backend.clock()
    writers = somebody_may_write(repository, but=recording)
    if backend.remote and alone:
        writers = False
    candidates: dict[str, list[Stat]] = defaultdict(list)
    for name, stat in stored(repository, among):
        candidates[name].append(stat)
    marked = _mark(repository, candidates, start, recording)
    _refuse_damage(repository, marked)
    usual = REMOTE_GRACE if backend.remote else GRACE
    longest = usual if grace is None else grace
    kept_for = longest if grace is not None or writers or marked.running else 0.0
    limit, metadata = start - kept_for, start - longest
    old, young = _by_age(candidates, limit, start)
    found = each(repository, partial(_remains, repository, metadata), marked.deleted)
    remains = [key for keys in found for key in keys]
    gone = set(old)
    half, half_bytes = 0, 0
    if isinstance(backend, LocalBackend) and among is None and recording is None:
        half, half_bytes = backend.remove_temporary(limit, dry_run=dry_run)
    if not dry_run:
        with reserve_released(backend):
            gone = backend.delete(old, unless_modified_since=limit)
            backend.delete(remains, unless_modified_since=metadata)
            expired = [backup.stat.key for backup in marked.expired]
            backend.delete(expired, unless_modified_since=start - UNDO_KEPT)
        if backend.remote and among is None:
            tidy(repository, start)
    return Collected(
        objects=len(gone) + half,
        bytes=sum(old[key] for key in gone) + half_bytes,
        later_objects=len(young),
        later_bytes=sum(young.values()),
        experiments=len({key.split("/")[1] for key in remains}),
        backups=len(marked.expired),
        grace=kept_for,
    )


def _mark(
    repository: Repository,
    candidates: dict[str, list[Stat]],
    start: float,
    recording: str | None,
) -> _Marked:
    """Take all that is referred to away from `candidates`."""
    marked = _Marked(recording)
    unreadable: dict[TreeRef, str] = {}
    for reference, tree in trees(repository, _needed(repository, marked, start)):
        for name in objects(reference.ref, tree):
            candidates.pop(name, None)
        if not isinstance(tree, Tree):
            unreadable[reference.ref] = tree.message
    if unreadable:  # what was deleted and collected by others, while we were reading, is no damage
        still = [r for r in _needed(repository, _Marked(), start) if r.ref in unreadable]
        marked.problems += [unreadable[ref] for ref in dict.fromkeys(r.ref for r in still)]
        holders = (reference.holder for reference in still)
        marked.hurt |= {h.checkpoint or h.experiment or "": None for h in holders if not h.checkout}
    return marked


def _needed(repository: Repository, marked: _Marked, start: float) -> Iterator[Reference]:
    for record in records(repository):
        # Also of a deleted one: that its run goes on storing things shows that somebody writes.
        if record.id != marked.recording:
            marked.running = marked.running or record.status is Status.RUNNING
        if record.deleted:
            marked.deleted.append(record.id)
            continue
        marked.problems += record.damage
        marked.hurt |= dict.fromkeys([record.id] if record.damage else [])
        yield from references(record)
    for backup in backups(repository):
        if backup.stat.modified < start - UNDO_KEPT:
            marked.expired.append(backup)
        elif backup.reference is not None:
            yield backup.reference
        elif backup.problem is not None:
            marked.problems.append(backup.problem)


def _refuse_damage(repository: Repository, marked: _Marked) -> None:
    if not (problems := marked.problems):
        return
    more = f" (and {len(problems) - 1:,} more like this)" if len(problems) > 1 else ""
    raise DamagedError(
        f"Nothing was removed from {repository.url}: what the damaged part refers to cannot be "
        f"told, and it may still be needed. {problems[0]}{more}",
        hint=_way_out(list(marked.hurt)),
    )


def _way_out(hurt: list[str]) -> str:
    """What a person can do, who has to name what is to be given up."""
    named = " ".join(map(short, hurt[:_NAMED])) + (" …" if len(hurt) > _NAMED else "")
    give_up = f", or give up what it hurts with `replicate rm {named}`" if hurt else ""
    return f"`replicate verify` names all that is damaged. Restore it from a copy{give_up}."


def _by_age(
    candidates: dict[str, list[Stat]], limit: float, start: float
) -> tuple[dict[str, int], dict[str, int]]:
    """Keys and sizes of what was modified before `limit`, and of what was after it."""
    every = [stat for stats in candidates.values() for stat in stats if stat.modified < start]
    old = {stat.key: stat.size for stat in every if stat.modified < limit}
    return old, {stat.key: stat.size for stat in every if stat.modified >= limit}


def _remains(repository: Repository, limit: float, id: str) -> list[str]:
    """The files of a deleted experiment that can go, once the last of them is older than `limit`:
    a run that goes on has a heartbeat that is younger.

    The journals that say that it is deleted stay for good. So it stays deleted whatever else is
    there: when only a part of it was removed, when its spool is committed after all, when a copy
    of the repository that still has it is merged with this one.
    """
    stats = list(repository.backend.list(f"experiments/{id}/"))
    if has_spool(repository, id) or any(stat.modified >= limit for stat in stats):
        return []
    keys = (stat.key for stat in stats)
    return [key for key in keys if not ("/journal/" in key and _says_deleted(repository, key))]


def _says_deleted(repository: Repository, key: str) -> bool:
    try:
        lines: Iterable[bytes] = repository.backend.get(key).split(b"\n")[:-1]
    except KeyNotFoundError:
        return False
    return any(_deletes(line, key) for line in lines)


def _deletes(line: bytes, key: str) -> bool:
    try:
        event = decode_event(line, "", key)
    except DamagedError:
        return False
    return event.kind == "delete" and "checkpoints" not in event.data
