"""What an experiment has become: the fold of its events. The same events give the same experiment
in whatever order they are read, so copies of a repository merge by union."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from replicate import checks
from replicate.model import (
    Attempt,
    CheckpointRecord,
    Edit,
    ExperimentRecord,
    Stop,
    Value,
    with_inputs,
)
from replicate.records import (
    Event,
    decode_attempt,
    decode_checkpoint,
    decode_stop,
    decode_value,
)

#: The field that an edit of each of these kinds sets, and the member of the event that has it.
_LABELS = {"note": ("notes", "text"), "name": ("name", "name"), "group": ("group", "group")}


def fold(inputs: ExperimentRecord, events: Iterable[Event]) -> ExperimentRecord:
    """The experiment that `inputs` became through `events`: the same in whatever order they come.

    Events of a kind that this version does not know are passed over: a later version wrote them.
    One that is known but malformed is named in `damage`.
    """
    folding = _Folding(inputs)
    for event in sorted(events, key=lambda e: (e.time, e.writer, e.number)):
        try:
            folding.apply(event)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            folding.damage.append(
                f"event {event.number} of journal {event.writer} of experiment {inputs.id} "
                f"is not in the format this version reads ({error!r})"
            )
    return folding.result()


class _Folding:
    """The state of a fold. Deletions are a set, so they hold whenever they come; what belongs to an
    attempt is told by its number, so that the clocks of two machines are not compared."""

    def __init__(self, inputs: ExperimentRecord) -> None:
        self.inputs = inputs
        self.checkpoints: dict[str, CheckpointRecord] = {}
        self.removed: set[str] = set()
        self.dropped: set[str] = set()
        self.packages: dict[int, dict[str, str]] = defaultdict(dict)
        self.attempts: dict[str, Attempt] = {}
        self.stops: dict[int, Stop] = {}
        self.logged: dict[int, Mapping[str, Value]] = {}
        self.problems: list[str] = []
        self.edits: list[Edit] = []
        self.tags = dict.fromkeys(inputs.tags)
        self.labels: dict[str, Any] = {}
        self.damage = list(inputs.damage)
        self.deleted = False

    def apply(self, event: Event) -> None:
        data = event.data
        if event.kind == "checkpoint":
            # Recovery after a crash may write the same checkpoint again: the first stands.
            record = decode_checkpoint(self.inputs.id, event.time, data)
            self.checkpoints.setdefault(record.id, record)
        elif event.kind == "attempt":
            self.attempts.setdefault(data["id"], decode_attempt(event.time, data))
        elif event.kind == "summary":
            self.logged[event.attempt] = decode_value(checks.members(data["metrics"]))
        elif event.kind == "packages":
            self.packages[event.attempt].update(checks.named_texts(data["packages"]))
        elif event.kind == "stop":
            self.stops[event.attempt] = decode_stop(event.time, data)
        elif event.kind == "problem":
            self.problems.append(checks.text(data["message"]))
        elif event.kind == "drop":
            self.dropped.update(checks.texts(data["checkpoints"]))
        elif event.kind == "delete":
            self.removed.update(checks.texts(data.get("checkpoints", [])))
            self.deleted = self.deleted or "checkpoints" not in data
        elif event.kind == "tag" or event.kind in _LABELS:
            self._edit(event, data)

    def _edit(self, event: Event, data: Mapping[str, Any]) -> None:
        author = checks.text(data["author"])
        change: dict[str, Value]
        if event.kind == "tag":
            change = {key: checks.texts(data[key]) for key in ("add", "remove")}
            self.tags.update(dict.fromkeys(change["add"]))
            for tag in change["remove"]:
                self.tags.pop(tag, None)
        else:
            field, member = _LABELS[event.kind]
            change = {member: checks.optional(checks.text, data[member])}
            self.labels[field] = change[member]
        edit = Edit(event.time, author, event.kind, change)
        if edit not in self.edits:  # as recovery may have written it again
            self.edits.append(edit)

    # ------------------------------------------------------------ the whole

    def result(self) -> ExperimentRecord:
        attempts = self._attempts()
        record = replace(self.inputs, attempts=attempts, **self.labels)
        if attempts:
            record = with_inputs(record, attempts[-1])
        else:
            record = replace(record, packages={**record.packages, **self.packages[1]})
        return replace(
            record,
            checkpoints=self._checkpoints(record),
            stop=self.stops.get(record.attempt),
            logged=self._logged(),
            problems=tuple(self.problems),
            tags=tuple(self.tags),
            edits=tuple(self.edits),
            deleted=self.deleted,
            damage=tuple(self.damage),
        )

    def _logged(self) -> Mapping[str, Value]:
        """What each logged metric came to: in the last attempt that has logged it."""
        return {k: v for number in sorted(self.logged) for k, v in self.logged[number].items()}

    def _attempts(self) -> tuple[Attempt, ...]:
        """All attempts of a run that was resumed, in their order."""
        if not self.attempts:
            return ()
        found = [
            _first_attempt(self.inputs),
            *sorted(self.attempts.values(), key=lambda a: a.number),
        ]
        return tuple(
            replace(
                attempt,
                packages={**attempt.packages, **self.packages[attempt.number]},
                stop=self.stops.get(attempt.number),
            )
            for attempt in found
        )

    def _checkpoints(self, record: ExperimentRecord) -> tuple[CheckpointRecord, ...]:
        """Those that are not deleted, attempt by attempt in the order they were made."""
        found = [c for id, c in self.checkpoints.items() if id not in self.removed]
        if self.dropped or record.attempts:
            found = [self._checkpoint(c, record) for c in found]
        return tuple(sorted(found, key=lambda c: c.attempt) if record.attempts else found)

    def _checkpoint(self, made: CheckpointRecord, record: ExperimentRecord) -> CheckpointRecord:
        if made.id in self.dropped:
            made = replace(made, tree=None, packs=(), dropped=True)
        if record.supersedes(made.attempt, made.created, made.step):
            made = replace(made, superseded=True)
        return made


def _first_attempt(inputs: ExperimentRecord) -> Attempt:
    return Attempt(
        number=1,
        created=inputs.created,
        params=inputs.params,
        user=inputs.user,
        host=inputs.host,
        command=inputs.command,
        path=inputs.path,
        tree=inputs.tree,
        size=inputs.size,
        stored=inputs.stored,
        packs=inputs.packs,
        environment=inputs.environment,
        packages=inputs.packages,
    )
