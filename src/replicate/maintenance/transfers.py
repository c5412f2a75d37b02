"""Experiments of one repository brought into another, many at a time. Whatever cuts it off, the
next time goes on from there: what was brought is found by what is stored, and by nothing else.

It knows which experiments, and how many at once; how one is brought is up to `merge`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path

from replicate.backends.base import Stat
from replicate.backends.files import several
from replicate.errors import DamagedError, NotFoundError, UnsafeTreeError, UsageError
from replicate.maintenance.merge import Merge, Outcome, Pair
from replicate.maintenance.presence import announced
from replicate.maintenance.verify import Progress, silent
from replicate.model import short
from replicate.repository import Repository

_ID = re.compile(r"[0-9a-f]{64}")
#: So many experiments are worked on at once where that means waiting, of so many that are listed.
_AT_ONCE, _WINDOW = 4, 32


@dataclass(slots=True)
class Transferred:
    """What a transfer did: the ids of experiments by what became of them, how many objects were
    written with how many bytes, and a sentence for each thing that could not be brought."""

    source: str
    target: str
    ids: dict[Outcome, list[str]] = field(default_factory=lambda: {o: [] for o in Outcome})
    objects: int = 0
    bytes: int = 0
    problems: list[str] = field(default_factory=list)


def transfer(
    source: Repository,
    target: Repository,
    ids: Sequence[str] | None = None,
    *,
    compress: bool,
    deletions: bool = False,
    dry_run: bool = False,
    progress: Progress = silent,
) -> Transferred:
    """Bring the experiments with these whole ids, or all, into `target`, which is made if it is
    not there. With `deletions`, what is deleted in `source` is deleted there, too. Of experiments
    that are named, files are brought as well that the target should have and has lost.

    Raises NotFoundError where there is no source, and StorageError when one of the two fails;
    what was brought by then is whole, and is found by the next transfer.
    """
    refuse_same(source, target)
    if not source.exists():
        raise NotFoundError(f"There is no repository at {source.url}")
    result = Transferred(source.url, target.url)
    many = _Many(source, target, progress)
    merge = Merge(
        source,
        target,
        compress=compress,
        deletions=deletions,
        dry_run=dry_run,
        whole=ids is not None,
        count=many.count,
    )
    with ExitStack() as stack:
        if dry_run:
            target.exists()  # or it is none that can be written
        else:
            target.create()
            stack.enter_context(announced(target))
        for id, outcome, problems in many.bring(merge, ids):
            result.ids[outcome].append(id)
            result.problems += problems
    result.objects, result.bytes = merge.objects.objects, merge.objects.bytes
    return result


def refuse_same(source: Repository, target: Repository) -> None:
    """Raise UsageError when the two are one repository."""
    same = source.url == target.url
    if not same and not source.backend.remote and not target.backend.remote:
        same = Path(source.url).resolve() == Path(target.url).resolve()
    if same:
        raise UsageError(f"{source.url} is the repository that it would be copied into")


class _Many:
    """Goes through experiments, and says how far it is."""

    def __init__(self, source: Repository, target: Repository, progress: Progress) -> None:
        self._source = source
        self._target = target
        self._progress = progress
        self._doing = "objects"

    def bring(
        self, merge: Merge, ids: Sequence[str] | None
    ) -> Iterator[tuple[str, Outcome, list[str]]]:
        """Bring these experiments, or all; yield what became of each, and what was lost."""
        remote = self._source.backend.remote or self._target.backend.remote
        done, total = 0, None if ids is None else len(ids)
        found: Iterator[Pair | str] = self._all() if ids is None else iter(ids)

        def attempt(one: Pair | str) -> tuple[str, Outcome, list[str]]:
            return _attempt(merge, merge.look(one) if isinstance(one, str) else one)

        while window := list(islice(found, _WINDOW if remote else 1)):
            self._progress("experiments", done, total)
            of = "" if total is None else f" of {total:,}"
            self._doing = f"experiments: {done:,}{of}, objects"
            yield from several(attempt, window, _AT_ONCE)
            done += len(window)

    def count(self, objects: int) -> None:
        """Say how many objects of the present experiments were looked at."""
        self._progress(self._doing, objects, None)

    def _all(self) -> Iterator[Pair]:
        """All experiments of the source: two listings go along beside each other."""
        ours = _by_experiment(self._target)
        current = next(ours, None)
        for id, there in _by_experiment(self._source):
            while current is not None and current[0] < id:
                current = next(ours, None)
            yield Pair(id, there, current[1] if current and current[0] == id else [])


def _by_experiment(repository: Repository) -> Iterator[tuple[str, list[Stat]]]:
    """What is stored of each experiment, in the order of their ids."""
    stats = repository.backend.list("experiments/")
    for id, found in groupby(stats, key=lambda stat: stat.key.split("/")[1]):
        if _ID.fullmatch(id):
            yield id, list(found)


def _attempt(merge: Merge, pair: Pair) -> tuple[str, Outcome, list[str]]:
    try:
        return pair.id, *merge.bring(pair)
    except (DamagedError, UnsafeTreeError) as error:
        problem = f"experiment {short(pair.id)} was not copied: {error.message}"
        return pair.id, Outcome.FAILED, [problem]
