"""What the repository and this machine know of experiments, and what an id stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from replicate.config import Config
from replicate.errors import AmbiguousIdError, NotFoundError, StorageError
from replicate.index import Index, Match, Progress
from replicate.model import CheckpointRecord, ExperimentRecord, ranking, short
from replicate.project import pending as waiting
from replicate.recorder.client import live_recorders
from replicate.repository import Repository

#: Of ids that a prefix might mean, so many are described.
_DESCRIBED = 20

Found = ExperimentRecord | tuple[ExperimentRecord, CheckpointRecord]


@dataclass(frozen=True, slots=True)
class Picked:
    """What an id stands for: a checkpoint, and how it was chosen when the id is an experiment's.
    An experiment that has no checkpoint is picked with none. Its inputs are those of the attempt
    that made the checkpoint."""

    experiment: ExperimentRecord
    checkpoint: CheckpointRecord | None
    how: Literal["named", "best", "latest", "none"]
    #: One that comes before it and was passed over, because not all of its files can be had.
    passed_over: CheckpointRecord | None = None


class Lookup:
    """Finds experiments and checkpoints. `progress` is told what is read of the repository."""

    def __init__(self, repository: Repository, config: Config, progress: Progress) -> None:
        self._repository = repository
        self._config = config
        self._progress = progress

    @property
    def online(self) -> bool:
        """Whether the repository may be asked."""
        return self._config.mode != "offline" or not self._repository.backend.remote

    def records(self) -> list[ExperimentRecord]:
        """All experiments that are not deleted, the oldest first.

        What this process has recorded so far is in it, and what waits on this machine for a
        remote repository. No repository yet means no experiments.
        """
        # Before the rest: what is saved meanwhile is there.
        left = waiting.pending(self._repository)
        index = self._index(left)
        records = index.records() if index else []
        if not left:
            return records
        found = [waits.added_to(r) if (waits := left.pop(r.id, None)) else r for r in records]
        found += [record for one in left.values() if (record := one.alone(online=self.online))]
        return sorted(found, key=lambda e: (e.created, e.id))

    def matches(self, prefix: str) -> list[Match]:
        """The ids of experiments and checkpoints that start with `prefix`; none for no prefix."""
        return self._matches([prefix])[0]

    def resolve_all(self, prefixes: Sequence[str]) -> list[Found]:
        """What each of these prefixes stands for. Raises like `resolve`."""
        found = self._matches(prefixes)
        return [self._resolve(*pair) for pair in zip(prefixes, found, strict=True)]

    def _index(self, here: Mapping[str, waiting.Pending]) -> Index | None:
        """What is in the repository; in one that is not remote, with all that this process has
        recorded so far. None where there is none, or the network is not to be used."""
        if not self.online:
            return None
        for recorder in live_recorders():
            if not recorder.remote:
                recorder.wait()
        try:
            there = self._repository.exists()
        except StorageError as error:
            if here:
                more = "REPLICATE_MODE=offline shows what waits for it on this machine."
                error.hint = f"{error.hint} {more}" if error.hint else more
            raise
        return Index(self._repository, self._config.cache, self._progress) if there else None

    def _matches(self, prefixes: Sequence[str]) -> list[list[Match]]:
        left = waiting.pending(self._repository)  # first, as in `records`
        index = self._index(left)
        found = index.matches(prefixes) if index else [[] for _ in prefixes]
        here = [Match(*ids) for one in left.values() for ids in one.ids()]
        for prefix, matches in zip(prefixes, found, strict=True):
            new = [m for m in here if prefix and (m.checkpoint or m.experiment).startswith(prefix)]
            matches += [match for match in new if match not in matches]
        return found

    def _resolve(self, prefix: str, matches: Sequence[Match]) -> Found:
        if len(matches) == 1:
            return self._found(matches[0])
        if not prefix:
            raise NotFoundError(
                "An id is needed here, or the first characters of one",
                hint=f"`replicate ls` lists those in {self._repository.url}",
            )
        if not matches:
            listed = f"`replicate ls` lists those in {self._repository.url}"
            waits = "`replicate ls` lists those on this machine: REPLICATE_MODE is offline"
            raise NotFoundError(
                f"No experiment or checkpoint has an id that starts with {prefix!r}",
                hint=listed if self.online else waits,
            )
        raise AmbiguousIdError(
            f"{prefix!r} matches {len(matches)} ids; give more of its digits",
            [_describe(self._found(match)) for match in matches[:_DESCRIBED]],
        )

    def _found(self, match: Match) -> Found:
        record = waiting.current(self._repository, match.experiment, online=self.online)
        if match.checkpoint is None:
            return record
        return record, next(c for c in record.checkpoints if c.id == match.checkpoint)


def pick(found: Found, *, with_files: bool = False) -> Picked:
    """The checkpoint that was found; for an experiment its best, else its latest. With `with_files`
    the best, or latest, of those whose files can all be had, where there is one."""
    if not isinstance(found, ExperimentRecord):
        return Picked(found[0].at(found[1]), found[1], "named")
    best, latest = found.best(), found.latest()
    picked = best or latest
    if picked is None:
        return Picked(found, None, "none")
    instead = None
    if with_files and (picked.dropped or picked.lost):  # without another the error says why
        left = [c for c in found.current if c.has_all_files]
        instead = next(iter(ranking(left) if best else reversed(left)), None)
    how: Literal["best", "latest"] = "best" if best else "latest"
    if instead is None:
        return Picked(found.at(picked), picked, how)
    return Picked(found.at(instead), instead, how, passed_over=picked)


def _describe(found: Found) -> str:
    if isinstance(found, ExperimentRecord):
        return f"experiment {found.id[:12]} ({found.command})"
    experiment, checkpoint = found
    step = "" if checkpoint.step is None else f", step {checkpoint.step}"
    return f"checkpoint {checkpoint.id[:12]} (experiment {short(experiment.id)}{step})"
