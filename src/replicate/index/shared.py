"""What there is to list in a bucket that has a snapshot: what that tells, and what has changed
since. It knows in which order these are looked at, so that nothing is missed between them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from replicate.backends.base import Stat
from replicate.backends.files import several
from replicate.background import Background
from replicate.changes import marked
from replicate.errors import DamagedError
from replicate.model import CheckpointRecord, LazyCheckpoints
from replicate.repository import Listed, Reading, Repository
from replicate.snapshots import (
    Group,
    Manifest,
    Row,
    decode_row,
    find_checkpoints,
    latest_key,
    read_manifest,
    read_part,
    split_rows,
)
from replicate.together import THREADS

#: Each changed experiment is listed by itself, unless they are more than these, and more than one
#: in so many of all: then it is cheaper to list all that is stored.
_FEW, _ONE_IN = 2 * THREADS, 100
#: So many parts are fetched at once: bounds memory.
_PARTS = 4


@dataclass(frozen=True, slots=True)
class Shared:
    """A snapshot, and what is stored of the experiments that are `marked` as changed, if anything
    is: for those it does not speak."""

    manifest: Manifest
    marked: frozenset[str]
    changed: Mapping[str, Listed]


def look(repository: Repository) -> Shared | None:
    """What is to be listed, or None where that is all of the repository.

    An experiment is in the snapshot before its mark goes. So the marks are listed while a manifest
    is the last one: what has no mark then is in it, or nowhere.
    """
    backend = repository.backend
    key = latest_key(backend) if backend.remote else None
    while key is not None:
        reading = Background(partial(read_manifest, backend, key))
        marks = frozenset(marked(backend))
        last, key = key, latest_key(backend)
        if key == last:
            try:
                manifest = reading.result()
            except DamagedError:  # or of a later version: all that it says can be had without it
                return None
            return Shared(manifest, marks, _listed(repository, manifest, marks))
    return None


def _listed(
    repository: Repository, manifest: Manifest, marks: Collection[str]
) -> dict[str, Listed]:
    known = sum(group.experiments for group in manifest.groups)
    if len(marks) > max(_FEW, (known + len(marks)) // _ONE_IN):
        return {id: found for id, found in repository.listing().items() if id in marks}
    found = several(repository.listed, sorted(marks), THREADS)
    return {one.id: one for one in found if one.inputs or one.journals or one.heartbeat}


def rows(
    repository: Repository, groups: Collection[Group], but: Collection[str]
) -> Iterator[tuple[Group, bytes, list[Reading]]]:
    """For each of these groups the ids of its experiments, one a line, and what it says of those
    that are not in `but`. Raises DamagedError when a part is not what was written."""
    rest = list(groups)
    while window := rest[:_PARTS]:
        rest = rest[_PARTS:]
        parts = several(partial(_part, repository), window)
        for group, data in zip(window, parts, strict=True):
            name = f"{repository.url}/{group.rows.key}"
            ids, readings = [], []
            for head, lines in split_rows(data, name):
                if len(lines) == 1:  # it is deleted
                    continue
                ids.append(head["id"])
                if head["id"] not in but:
                    readings.append(_reading(repository, group, decode_row(head, lines, name)))
            yield group, "\n".join(ids).encode(), readings


def _part(repository: Repository, group: Group) -> bytes:
    return read_part(repository.backend, group.rows, compressed=True)


def _reading(repository: Repository, group: Group, row: Row) -> Reading:
    """A row as if its experiment had been read, with most of its checkpoints still to be had."""
    made = LazyCheckpoints(
        row.checkpoints,
        row.current,
        row.best,
        row.latest,
        row.primary_metric,
        partial(_checkpoints, repository, row.id),
    )
    record = replace(row.record, checkpoints=made if row.checkpoints else ())
    beat = None if row.beat is None else f"{row.beat!r}\n".encode()
    return Reading(inside(group, row.id, beat), record, row.events, record, ())


def _checkpoints(repository: Repository, id: str) -> Sequence[CheckpointRecord]:
    return repository.experiment(id).checkpoints


def inside(group: Group, id: str, beat: bytes | None) -> Listed:
    """What stands for the files of an experiment of that group: the part that tells of it. `beat`
    begins with a line that has the time of its heartbeat, if it had one."""
    part = Stat("snapshot", 0, 0.0, group.rows.hash)
    time = (beat or b"").partition(b"\n")[0].decode()
    heartbeat = Stat(f"experiments/{id}/heartbeat.json", 0, float(time), time) if time else None
    return Listed(id, part, (), heartbeat)


def row_of(group: Group) -> str:
    """The row of the cache that has the ids of a group. No experiment has such an id."""
    return f"group {group.rows.hash}"


def members(group: Group, kept: Mapping[str, tuple[bytes | None, ...]]) -> list[str]:
    """The ids of a group's experiments, as far as the cache has them."""
    head, *_ = kept.get(row_of(group), (None,))
    return (head or b"").decode().split()


def checkpoints(
    repository: Repository, manifest: Manifest, prefix: str, experiments: Collection[str]
) -> list[tuple[str, str]]:
    """Pairs of one of these experiments and one of its checkpoints' ids that begins with `prefix`.

    Raises DamagedError when the part that knows them is not what was written.
    """
    whole = {id[:16]: id for id in experiments}

    def find(group: Group) -> list[tuple[str, str]]:
        return list(find_checkpoints(repository.backend, group, prefix))

    found = several(find, manifest.groups)
    return [(whole[start], id) for some in found for id, start in some if start in whole]
