"""Checking out, with nothing of the person's lost: what is overwritten is first kept in the
repository (of a remote one, in a local one beside its spools), as a *checkout* that can be undone.

A checkout is `checkouts/<id>.json`: the directory, what was written there, and the tree of what had
been there before. Undoing it is a checkout of that tree, so an undo can be undone as well.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from replicate import checks, ignore, maintenance
from replicate.backends.files import explained
from replicate.blobs import Recent
from replicate.errors import (
    AmbiguousIdError,
    DamagedError,
    KeyNotFoundError,
    NotFoundError,
    StorageError,
)
from replicate.model import CheckpointRecord, ExperimentRecord, TreeRef, all_packs, short
from replicate.readers import opened
from replicate.records import (
    decode_packs,
    decode_time,
    encode_time,
    new_id,
    now,
    seal_document,
    unseal,
)
from replicate.repository import Repository
from replicate.spool import make_spool_root
from replicate.tree import (
    Entry,
    Source,
    Tree,
    add_tree,
    same_file,
    stage,
    through_link,
    unsafe_path,
    validate,
)

CONFIG_FILES = frozenset({"replicate.yaml", "replicate.yml"})
#: Of the files that a checkpoint lacks, so many are named.
_NAMED = 5


@dataclass(frozen=True, slots=True)
class CheckoutPlan:
    """What a checkout would do. `id` is what is checked out; `entries` are written, `removes` are
    deleted, and `overwrites` names those files that are there already and are not the same."""

    id: str
    directory: Path
    entries: tuple[Entry, ...]
    overwrites: tuple[str, ...]
    removes: tuple[str, ...] = ()
    undoes: str | None = None
    packs: tuple[str, ...] = ()

    @property
    def writes(self) -> tuple[str, ...]:
        """The paths that are written."""
        return tuple(e.path for e in self.entries)

    @property
    def not_empty(self) -> bool:
        """Whether there is anything of the person's in the directory."""
        return self.directory.is_dir() and any(
            name != ".replicate" and not name.startswith(ignore.STAGING)
            for name in os.listdir(self.directory)
        )


@dataclass(frozen=True, slots=True)
class CheckedOut:
    """A checkout that was done. `backup_id` names what it replaced; None when that was nothing."""

    directory: Path
    files: int
    backup_id: str | None


@dataclass(frozen=True, slots=True)
class _Backup:
    id: str
    created: datetime
    directory: str
    replaced: str
    added: tuple[str, ...]
    undoes: str | None
    packs: tuple[str, ...] = ()


def plan(
    repository: Repository,
    id: str,
    trees: Sequence[TreeRef | None],
    directory: Path,
    paths: Sequence[str] = (),
    *,
    with_config: bool = False,
    lost: Sequence[str] = (),
    missing: NotFoundError | None = None,
) -> CheckoutPlan:
    """What checking out these trees would do, a later one on top of those before it.

    With `paths` only these files, or the files in these directories. The configuration of the
    directory is left as it is unless `with_config`. What is `lost` of the last tree is not taken
    from another. Raises UnsafeTreeError, DamagedError or NotFoundError, which is `missing` where
    that is what became of the files; nothing is changed.
    """
    merged: dict[str, Entry] = {}
    for ref in trees:
        if ref is not None:
            merged |= {entry.path: entry for entry in repository.tree(*ref).entries}
    validate(Tree(tuple(merged.values())))
    if missing is not None and not paths:
        raise missing
    merged = {p: entry for p, entry in merged.items() if not any(_is_at(p, at) for at in lost)}
    if not merged:
        raise missing or NotFoundError(
            f"{short(id)} has no files",
            hint="It was recorded with path=None, or with directories that had none.",
        )
    entries = [merged[p] for p in sorted(merged) if _wanted(p, paths, with_config)]
    for path in paths:
        if not any(_is_at(e.path, path) for e in entries):
            raise missing or NotFoundError(
                f"{short(id)} has no file {path!r}", hint=f"It has {', '.join(sorted(merged))}."
            )
    overwrites = _overwritten(directory, entries)
    return CheckoutPlan(id, directory, tuple(entries), overwrites, packs=all_packs(trees))


def missing(
    experiment: ExperimentRecord, checkpoint: CheckpointRecord | None
) -> NotFoundError | None:
    """What to say to who asks for files that `keep` has let go, that could not be saved, or that
    are not in the repository yet; None where that is not so."""
    wanted = checkpoint or experiment
    if not wanted.saved and wanted.path is not None and wanted.tree is None:
        return NotFoundError(
            f"The files of {short(wanted.id)} are only on this machine so far",
            hint="`replicate sync` saves what runs that have ended have left.",
        )
    if checkpoint is not None and checkpoint.lost:
        return _lost(experiment, checkpoint)
    if checkpoint is None or not checkpoint.dropped:
        return None
    with_files = ", ".join(short(c.id) for c in experiment.checkpoints if c.has_all_files)
    return NotFoundError(
        f"The files of checkpoint {short(checkpoint.id)} were let go, as `keep` says: its metrics "
        "are all that is left of it",
        hint=f"The checkpoints of this run that have files: {with_files or 'none'}.",
    )


def _lost(experiment: ExperimentRecord, checkpoint: CheckpointRecord) -> NotFoundError:
    more = len(checkpoint.lost) - _NAMED
    named = ", ".join(checkpoint.lost[:_NAMED]) + (f" and {more:,} more" if more > 0 else "")
    whole = [c for c in experiment.checkpoints if c.has_all_files]
    nearest = min(whole, key=lambda c: abs(c.created - checkpoint.created), default=None)
    hint = "No checkpoint of this run has all its files."
    if nearest is not None:
        step = "" if nearest.step is None else f" (step {nearest.step})"
        hint = f"The nearest that has all its files is {short(nearest.id)}{step}."
    if checkpoint.size:
        hint += " What there is of this one can be named with --path."
    return NotFoundError(
        f"Checkpoint {short(checkpoint.id)} lacks {named}, which could not be saved", hint=hint
    )


def _wanted(path: str, paths: Sequence[str], with_config: bool) -> bool:
    if paths:
        return any(_is_at(path, p) for p in paths)
    return with_config or path not in CONFIG_FILES


def _is_at(path: str, at: str) -> bool:
    """Whether `path` is `at`, or lies in it."""
    at = Path(at).as_posix()
    return at == "." or path == at or path.startswith(f"{at}/")


def _overwritten(directory: Path, entries: Sequence[Entry]) -> tuple[str, ...]:
    return tuple(
        entry.path
        for entry in entries
        if os.path.lexists(directory / entry.path) and not same_file(directory / entry.path, entry)
    )


def perform(
    repository: Repository,
    plan: CheckoutPlan,
    progress: Callable[[int, int], None] | None = None,
) -> CheckedOut:
    """Carry out a plan: stage and verify everything, keep what is there, then put it in place.

    Raises DamagedError or UnsafeTreeError before any of the person's files is touched, and
    StorageError when what is there cannot be kept.
    """
    objects = repository.objects(plan.packs)
    with stage(objects, plan.entries, plan.directory, progress) as staged:
        # Looked at again: there was a question in between, and the person may have gone on working.
        replaced = [*_overwritten(plan.directory, plan.entries), *plan.removes]
        added = [e.path for e in plan.entries if not os.path.lexists(plan.directory / e.path)]
        backup = _keep(repository, plan, replaced, added) if replaced or added else None
        staged.move_into_place()
        for path in plan.removes:
            (plan.directory / path).unlink(missing_ok=True)
            _remove_empty_parents(plan.directory, path)
    kept = replaced or plan.undoes is not None
    return CheckedOut(plan.directory, len(plan.entries), backup if kept else None)


def undo(repository: Repository, directory: Path, id: str | None = None) -> CheckedOut:
    """Put back what the last checkout into `directory`, or the one with this id, has replaced."""
    backup = _find(repository, directory, id)
    directory = Path(backup.directory)
    entries = repository.tree(backup.replaced, backup.packs).entries
    removes = tuple(
        p for p in backup.added if os.path.lexists(directory / p) and not through_link(directory, p)
    )
    overwrites = _overwritten(directory, entries)
    plan = CheckoutPlan(backup.id, directory, entries, overwrites, removes, backup.id, backup.packs)
    return perform(repository, plan)


def _find(repository: Repository, directory: Path, id: str | None) -> _Backup:
    damage: list[DamagedError] = []
    backups = sorted(_read_all(repository, damage), key=lambda b: b.created)
    if id is not None:
        found = [b for b in backups if b.id.startswith(id)]
        if len(found) > 1:
            matches = [f"{b.id[:12]} ({b.directory}, {b.created:%c})" for b in found]
            raise AmbiguousIdError(f"{id!r} matches {len(found)} checkouts", matches)
    else:
        undone = {b.undoes for b in backups}
        found = [
            b
            for b in backups
            if b.directory == str(directory) and b.undoes is None and b.id not in undone
        ][-1:]
    if not found and damage:
        raise damage[0]
    if not found:
        what = f"with the id {id!r}" if id else f'into "{directory}" that is not undone already'
        raise NotFoundError(f"There has been no checkout {what}")
    return found[0]


def _read_all(repository: Repository, damage: list[DamagedError]) -> Iterator[_Backup]:
    """All that can be read; what cannot goes into `damage`, and hides none of the others."""
    for stat in repository.backend.list("checkouts/"):
        name = f"{repository.url}/{stat.key}"
        try:
            data = repository.backend.get(stat.key, 0, checks.MAX_DOCUMENT)
            yield _decode(unseal(data, name))
        except KeyNotFoundError:
            continue
        except DamagedError as error:
            damage.append(error)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            damage.append(DamagedError(f"{name} is not in the format this version reads ({error})"))


def _decode(value: Mapping[str, Any]) -> _Backup:
    """Raises KeyError, TypeError or ValueError, also when it would delete files elsewhere."""
    added = tuple(checks.texts(value["added"]))
    if any(unsafe_path(path) for path in added):
        raise ValueError("it names files that lie outside of its directory")
    return _Backup(
        id=checks.id(value["id"]),
        created=decode_time(value["created"]),
        directory=checks.text(value["directory"]),
        replaced=checks.id(value["replaced"]),
        added=added,
        undoes=checks.optional(checks.id, value["undoes"]),
        packs=decode_packs(value),
    )


def _backups(repository: Repository) -> Repository:
    """Where what this repository's checkouts overwrite is kept, ready to be written to."""
    backups = repository.backups
    if backups is not repository and repository.spools is not None:
        with explained("make", repository.spools):
            make_spool_root(repository.spools, repository.backend.identity)
    return backups


def _keep(
    repository: Repository, plan: CheckoutPlan, replaced: Sequence[str], added: Sequence[str]
) -> str | None:
    """Keep what is about to go, and return the id by which it comes back. None where nothing goes
    and the repository cannot be written, as on a full disk: a checkout that only adds files loses
    nothing, and only its undo is not to be had."""
    try:
        backups = _backups(repository)
        with maintenance.announced(backups):
            return _store(backups, plan, replaced, added)
    except _NotKeptError:
        raise
    except StorageError as error:
        if not replaced:
            return None
        raise _NotKeptError(
            f"Cannot keep what is there before it is overwritten: {error.message}",
            hint="Nothing was changed. Check out into a new directory with -o.",
        ) from error


def _store(
    repository: Repository, plan: CheckoutPlan, replaced: Sequence[str], added: Sequence[str]
) -> str:
    """Store what is about to go, and a record that says where it belongs; return its id."""
    id = new_id()
    repository.create()
    batch = repository.batch(recent=Recent())

    def lost(source: Source, error: OSError) -> None:
        raise _not_kept(plan.directory / source.path, error) from error

    tree, _ = add_tree(batch, _sources(plan.directory, replaced), None, lost)
    batch.flush()
    document = {
        "id": id,
        "created": encode_time(now()),
        "directory": str(plan.directory),
        "checked_out": plan.id,
        "replaced": tree,
        "added": list(added),
        "undoes": plan.undoes,
    }
    if packs := batch.packs_of(tree):
        document["packs"] = list(packs)
    repository.backend.put_if_absent({f"checkouts/{id}.json": seal_document(document)})
    return id


def _sources(directory: Path, paths: Sequence[str]) -> Iterator[Source]:
    for path in paths:
        place = directory / path
        try:
            if place.is_symlink():
                yield Source(path, "link", target=os.readlink(place))
                continue
            mode = place.stat().st_mode & 0o777
            with opened(place) as reader:
                yield Source(path, "file", mode, reader=reader)
        except OSError as error:
            raise _not_kept(place, error) from error


class _NotKeptError(StorageError):
    """What would be overwritten cannot be kept, so it stays."""


def _not_kept(place: Path, error: OSError) -> StorageError:
    return _NotKeptError(
        f"Cannot keep {place} before it is overwritten: {error.strerror}",
        hint="Nothing was changed. Move it away, or check out into another directory with -o.",
    )


def _remove_empty_parents(directory: Path, path: str) -> None:
    """Remove the directories that a checkout had made for a file which is gone again."""
    for parent in Path(path).parents:
        place = directory / parent
        if place == directory or os.listdir(place):
            return
        place.rmdir()
