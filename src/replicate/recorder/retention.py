"""Which checkpoints of a run keep their files, decided as it goes. Their metrics always stay."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from replicate.backends.files import explained
from replicate.backends.local import LocalBackend
from replicate.config import Keep
from replicate.maintenance import collect, objects_of
from replicate.model import CheckpointRecord, ranking
from replicate.repository import Repository

#: Following all references takes time, so space is freed when this much waits, or as much as there
#: is left on the disk, and at the end (bytes, as they were when saved).
_WORTH_COLLECTING = 64 << 20


def to_drop(keep: Keep, checkpoints: Sequence[CheckpointRecord]) -> list[CheckpointRecord]:
    """The checkpoints whose files `keep` does not name, and that still have them.

    Those without files do not count, so that metrics alone take no file's place; nor do those that
    a later attempt has superseded, as long as there are others. The latest one with files always
    keeps them. While none has a value of the primary metric, `best` cannot tell which to let go,
    and all stay. One of which files were lost takes the place of no other that has them.
    """
    candidates = [c for c in checkpoints if c.tree is not None and (c.size or not c.lost)]
    if not any(c.lost for c in candidates):
        return _unnamed(keep, candidates)
    dropped = set()
    for lost in {frozenset(c.lost) for c in candidates}:
        rivals = [c for c in candidates if lost.issuperset(c.lost)]
        dropped |= {c.id for c in _unnamed(keep, rivals) if lost == set(c.lost)}
    return [c for c in candidates if c.id in dropped]


def _unnamed(keep: Keep, candidates: Sequence[CheckpointRecord]) -> list[CheckpointRecord]:
    """Those of the candidates that `keep` does not name, when these are all there are."""
    ranked = ranking(candidates)
    if keep.best is not None and not ranked:
        return []
    current = [c for c in candidates if not c.superseded] or candidates
    kept = {c.id for c in current[-(keep.last or 1) :]}
    kept |= {c.id for c in ranked[: keep.best or 0]}
    if keep.every is not None:
        kept |= {c.id for c in candidates if c.step is not None and c.step % keep.every == 0}
    return [c for c in candidates if c.id not in kept]


class Retention:
    """Applies `keep` to one run that this process records."""

    def __init__(self, repository: Repository, experiment: str, keep: Keep) -> None:
        self._repository = repository
        self._experiment = experiment
        self._keep = keep
        self._checkpoints: dict[str, CheckpointRecord] = {}
        self._doomed: set[str] = set()
        self._waiting = 0
        #: Whether somebody before us may have left what dropped checkpoints needed.
        self._inherited = False
        if repository.has(experiment):  # a helper that died has begun, or an earlier attempt
            self.reload()
            self._inherited = any(c.dropped for c in self._checkpoints.values())

    def reload(self) -> None:
        """Read again which checkpoints there are, and which of them are superseded by now."""
        record = self._repository.experiment(self._experiment)
        self._checkpoints = {c.id: c for c in record.checkpoints}

    def add(self, checkpoints: Sequence[CheckpointRecord]) -> list[CheckpointRecord]:
        """Take note of new checkpoints; return those whose files are to go now."""
        for checkpoint in checkpoints:
            self._checkpoints.setdefault(checkpoint.id, checkpoint)
        return to_drop(self._keep, list(self._checkpoints.values()))

    def let_go(self, dropped: Sequence[CheckpointRecord]) -> None:
        """The journal says that these have no files any more: what they needed may be removed."""
        for checkpoint in dropped:
            assert checkpoint.tree_ref is not None
            self._doomed |= objects_of(checkpoint.tree_ref, self._repository)
            self._waiting += checkpoint.stored or 0
            # Its tree is forgotten only here: `to_drop` must not name it twice.
            self._checkpoints[checkpoint.id] = replace(
                checkpoint, tree=None, packs=(), dropped=True
            )

    def free(self, *, all: bool = False) -> None:
        """Remove what only dropped checkpoints needed, once that is worth the time, or `all`.

        What another run may be about to use stays for a later collection. In a bucket that is all
        of it: nobody can see there who may be. Raises DamagedError and StorageError.
        """
        if self._repository.backend.remote:
            self._doomed.clear()
        if self._doomed and (all or self._waiting >= min(_WORTH_COLLECTING, self._room())):
            doomed, self._doomed, self._waiting = self._doomed, set(), 0
            collect(self._repository, among=doomed, recording=self._experiment)

    def make_room(self) -> bool:
        """Remove at once what only dropped checkpoints needed, also those that a helper before this
        one has dropped; whether anything went. Nothing may be stored meanwhile. Raises
        DamagedError and StorageError."""
        if self._repository.backend.remote or not (self._doomed or self._inherited):
            return False
        among = None if self._inherited else self._doomed
        found = collect(self._repository, among=among, recording=self._experiment)
        if not found.later_objects:  # else another run may be about to use them, but not for long
            self._doomed, self._waiting, self._inherited = set(), 0, False
        return found.objects > 0

    def _room(self) -> int:
        """Bytes that are free on the disk of the repository."""
        backend = self._repository.backend
        if not isinstance(backend, LocalBackend):
            return _WORTH_COLLECTING
        with explained("read", Path(backend.url)):
            return shutil.disk_usage(backend.url).free
