"""Whether everything that the experiments refer to is there, and is what was written.

It reads and never writes. What is damaged is named together with whom it hurts; what is to be done
about it is for others to say.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from replicate.backends.base import Backend
from replicate.blobs import blob_key, read_blob, tree_key
from replicate.compression import SUFFIXES
from replicate.errors import DamagedError
from replicate.maintenance.references import (
    Holder,
    Reference,
    backups,
    in_parallel,
    objects,
    records,
    references,
    stored,
    trees,
)
from replicate.model import ExperimentRecord, short
from replicate.packs import Directory, pack_key
from replicate.repository import Repository
from replicate.tree import Tree

#: Is told what is being checked, how many are done, and how many there are if that is known.
Progress = Callable[[str, int, int | None], None]
Kind = Literal["experiment", "tree", "blob", "pack", "checkout"]
#: By the packs of the trees that need them, the blobs by their hashes, and their sizes.
_Wanted = dict[tuple[str, ...], dict[str, int]]
_KINDS: dict[str, Kind] = {"trees": "tree", "blobs": "blob", "packs": "pack"}


@dataclass(frozen=True, slots=True)
class Damage:
    """Something that is missing or not what was written: a sentence with its file's name, and who
    cannot be had back, or not whole, because of it."""

    kind: Kind
    key: str
    problem: str
    hurts: tuple[Holder, ...]


@dataclass(frozen=True, slots=True)
class Unrecorded:
    """What a run could not record, and has said so then: it is not in the repository. Of files that
    a checkpoint lacks, which one, and their paths."""

    experiment: str
    problem: str
    checkpoint: str | None = None
    lost: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Verification:
    """How much was checked, and what was found. `bytes` are those of the blobs, uncompressed."""

    full: bool
    experiments: int
    checkpoints: int
    trees: int
    blobs: int
    bytes: int
    damage: tuple[Damage, ...]
    unrecorded: tuple[Unrecorded, ...] = ()


def silent(what: str, done: int, total: int | None) -> None:
    """Progress that nobody watches."""


@dataclass(slots=True)
class _Counts:
    experiments: int = 0
    checkpoints: int = 0
    trees: int = 0
    unrecorded: list[Unrecorded] = field(default_factory=list)


def check(
    repository: Repository,
    ids: Collection[str] = (),
    *,
    full: bool = False,
    progress: Progress = silent,
) -> Verification:
    """Check the repository, or the experiments and checkpoints with these whole ids.

    Every journal, every tree, and that every blob is there with a size that it can have; with
    `full` also every byte of the blobs. What is deleted while this runs is not called damaged.
    """
    counts = _Counts()
    damage: list[Damage] = []
    lost: dict[str, str] = {}
    wanted: _Wanted = defaultdict(dict)
    packs = _Packs(repository, full)
    needed = _needed(repository, ids, counts, damage)
    for reference, tree in trees(repository, needed):
        counts.trees += 1
        progress("trees", counts.trees, None)
        if isinstance(tree, Tree):
            blobs = wanted[reference.packs]
            blobs |= {hash: size for entry in tree.entries for hash, size in entry.blobs}
        else:
            lost |= packs.broken(reference.packs) or {tree_key(reference.tree): tree.message}
    lost |= _lost_blobs(repository, wanted, packs, progress)
    sizes = {hash: size for blobs in wanted.values() for hash, size in blobs.items()}
    if lost:
        damage += _hurt(repository, ids, lost)
    return Verification(
        full=full,
        experiments=counts.experiments,
        checkpoints=counts.checkpoints,
        trees=counts.trees,
        blobs=len(sizes),
        bytes=sum(sizes.values()),
        damage=tuple(damage),
        unrecorded=tuple(counts.unrecorded),
    )


# ---------------------------------------------------------------- experiments and checkouts


def _needed(
    repository: Repository, ids: Collection[str], counts: _Counts, damage: list[Damage]
) -> Iterator[Reference]:
    """What has to be there. Counts on the way, and notes what cannot be read."""
    for record in records(repository):
        wanted = _wanted(record, ids)
        if record.deleted or wanted is None:
            continue
        counts.experiments += 1
        counts.checkpoints += sum(_is_asked_for(ids, record.id, c.id) for c in record.checkpoints)
        damage += _record_damage(record)
        counts.unrecorded += _unrecorded(record, ids)
        yield from wanted
    if ids:
        return
    for backup in backups(repository):
        if backup.reference is not None:
            yield backup.reference
        elif backup.problem is not None:
            damage.append(Damage("checkout", backup.stat.key, backup.problem, ()))


def _wanted(record: ExperimentRecord, ids: Collection[str]) -> list[Reference] | None:
    """What is asked for of the experiment; None when it is not asked for at all."""
    if not _is_asked_for(ids, record.id, *(c.id for c in record.checkpoints)):
        return None
    # Its code is always needed: a checkpoint is of no use without it.
    held = ((reference, reference.holder.checkpoint) for reference in references(record))
    return [r for r, c in held if c is None or _is_asked_for(ids, record.id, c)]


def _unrecorded(record: ExperimentRecord, ids: Collection[str]) -> Iterator[Unrecorded]:
    for problem in record.problems:
        yield Unrecorded(record.id, problem)
    for made in record.checkpoints:
        if made.lost and _is_asked_for(ids, record.id, made.id):
            step = "" if made.step is None else f" (step {made.step})"
            problem = f"checkpoint {short(made.id)}{step} lacks {', '.join(made.lost)}"
            yield Unrecorded(record.id, problem, made.id, made.lost)


def _is_asked_for(ids: Collection[str], *any_of: str) -> bool:
    return not ids or any(id in ids for id in any_of)


def _record_damage(record: ExperimentRecord) -> Iterator[Damage]:
    for problem in record.damage:
        yield Damage("experiment", f"experiments/{record.id}/", problem, (Holder(record.id),))


# ---------------------------------------------------------------- packs and blobs


class _Packs:
    """What is in packs, each of which is looked at once; with `full` every byte of it is read."""

    def __init__(self, repository: Repository, full: bool) -> None:
        self.full = full
        self._repository = repository
        self._found: dict[str, Directory | str] = {}

    def broken(self, hashes: Iterable[str]) -> dict[str, str]:
        """Those of these packs that are not as they should be, by their keys, and why."""
        found = ((hash, self._look(hash)) for hash in hashes)
        return {pack_key(hash): why for hash, why in found if isinstance(why, str)}

    def holds(self, hashes: Iterable[str], blob: str, size: int) -> bool:
        """Whether one of these packs has the blob with a size that it can have."""
        name = blob_key(blob)
        for directory in map(self._look, hashes):
            place = None if isinstance(directory, str) else directory.places.get(name)
            if place is not None:
                return _is_plausible(place.key.removeprefix(name), place.length, size)
        return False

    def _look(self, hash: str) -> Directory | str:
        if hash not in self._found:
            try:
                self._found[hash] = self._repository.check_pack(hash, full=self.full)
            except DamagedError as error:
                self._found[hash] = error.message
        return self._found[hash]


def _lost_blobs(
    repository: Repository, wanted: _Wanted, packs: _Packs, progress: Progress
) -> dict[str, str]:
    """By its object's name, what is wrong with each of the blobs that is not as it should be. Where
    a pack is the reason, it is named in the place of what was in it."""
    lost: dict[str, str] = {}
    total, done = sum(map(len, wanted.values())), 0
    suspects: dict[str, int] = {}
    blame: dict[str, dict[str, str]] = {}
    for hashes, blobs in wanted.items():
        broken = packs.broken(hashes)
        if packs.full:
            for hash, problem in in_parallel(_reads(repository.objects(hashes)), blobs.items()):
                done += 1
                progress("blobs", done, total)
                if problem is not None:
                    lost |= broken or {blob_key(hash): problem}
            continue
        rest = {h: size for h, size in blobs.items() if not packs.holds(hashes, h, size)}
        suspects |= rest
        if broken:
            blame |= dict.fromkeys(rest, broken)
    for hash, problem in in_parallel(_looks(repository), _suspects(repository, suspects)):
        if problem is not None:
            lost |= blame.get(hash) or {blob_key(hash): problem}
    return lost


def _suspects(repository: Repository, sizes: dict[str, int]) -> list[tuple[str, int]]:
    """Blobs that a listing does not show with a plausible size. It may have missed some that come
    and go, so each wants a look of its own."""
    plausible: set[str] = set()
    names = {blob_key(hash): hash for hash in sizes}
    for name, stat in stored(repository, names.keys()):
        suffix = stat.key.removeprefix(name)
        if _is_plausible(suffix, stat.size, sizes[names[name]]):
            plausible.add(name)
        else:
            plausible.discard(name)
    return [(hash, sizes[hash]) for name, hash in names.items() if name not in plausible]


def _is_plausible(suffix: str, stored_size: int, size: int) -> bool:
    """Whether so many bytes can be a blob of `size` in this encoding; compressed it is smaller."""
    return 0 < stored_size < size if suffix else stored_size == size


def _looks(repository: Repository) -> Callable[[tuple[str, int]], tuple[str, str | None]]:
    def look(blob: tuple[str, int]) -> tuple[str, str | None]:
        hash, size = blob
        for suffix in SUFFIXES:  # in the order in which a reader tries them
            stat = repository.backend.stat(blob_key(hash, suffix))
            if stat is None:
                continue
            if _is_plausible(suffix, stat.size, size):
                return hash, None
            return hash, (
                f"{repository.url}/{stat.key} is damaged: it has {stat.size:,} bytes and cannot be "
                f"the {size:,} that were saved"
            )
        return hash, f"{repository.url}/{blob_key(hash)} is missing"

    return look


def _reads(backend: Backend) -> Callable[[tuple[str, int]], tuple[str, str | None]]:
    def read(blob: tuple[str, int]) -> tuple[str, str | None]:
        hash, size = blob
        try:
            read_blob(backend, hash, size)
        except DamagedError as error:
            return hash, error.message
        return hash, None

    return read


# ---------------------------------------------------------------- who is hurt


def _hurt(repository: Repository, ids: Collection[str], lost: dict[str, str]) -> Iterator[Damage]:
    """The losses with those who are hurt, read anew: a loss that hurts nobody any longer belonged
    to something that was deleted meanwhile, and is none."""
    needed = list(_needed(repository, ids, _Counts(), []))
    within = {r.ref: objects(r.ref, tree) & lost.keys() for r, tree in trees(repository, needed)}
    for name, problem in lost.items():
        hurts = tuple(r.holder for r in needed if name in within[r.ref])
        if hurts:
            yield Damage(_KINDS[name.partition("/")[0]], name, problem, hurts)
