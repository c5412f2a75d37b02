"""As much of an experiment's files of events as is whole: what a copy may be made of.

A file is taken up to the first line that a reader could not make sense of, because one damaged
line would keep the copy, too, from being cleared of garbage. It reads bytes that others fetch.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime

from replicate.errors import DamagedError
from replicate.fold import fold
from replicate.model import ExperimentRecord
from replicate.records import Event, decode_event

#: Files of events: experiments/<id>/<stream>/<writer>-<n>.jsonl
FILE = re.compile(
    r"experiments/[0-9a-f]{64}/(?P<stream>[a-z]+)/(?P<writer>[0-9a-f]{16})-(?P<number>\d{1,9})\.jsonl"
)

#: Events that have a tree.
_REFER = ("checkpoint", "attempt")

_NOBODY = ExperimentRecord(
    id="",
    created=datetime.fromisoformat("1970-01-01T00:00:00Z"),
    params={},
    user="",
    host="",
    command="",
    path=None,
    tree=None,
)


@dataclass(frozen=True, slots=True)
class Sound:
    """The lines of a file that can be copied, their events, and why the rest cannot, if so."""

    data: bytes
    events: tuple[Event, ...]
    problem: str | None = None


def segment_number(key: str) -> int:
    """Which of its writer's files this is, from 0."""
    found = FILE.fullmatch(key)
    assert found is not None
    return int(found["number"])


def sound_stream(data: bytes, key: str, name: str) -> Sound:
    """What is sound of a file of `log`, `console` or another stream beside the journal."""
    return _sound(data, key, name, None)


def sound_journals(contents: Mapping[str, bytes], url: str) -> dict[str, Sound]:
    """What is sound of all journal files of an experiment, given by their keys. Behind an event
    that is missing nothing of its writer is."""
    found: dict[str, Sound] = {}
    expected: dict[str, int] = {}
    broken: set[str] = set()
    for key in sorted(contents, key=segment_number):
        writer = _writer(key)
        if writer in broken:
            continue
        sound = _sound(contents[key], key, f"{url}/{key}", expected.get(writer, 0))
        found[key] = sound
        expected[writer] = expected.get(writer, 0) + len(sound.events)
        if sound.problem is not None:
            broken.add(writer)
    return found


def journals_without(journals: Mapping[str, Sound], trees: Collection[str]) -> dict[str, Sound]:
    """These journals, of each writer up to the first event that refers to one of `trees`: whoever
    has the event and not the tree cannot tell what it refers to, and can remove nothing."""
    found: dict[str, Sound] = {}
    broken: set[str] = set()
    for key in sorted(journals, key=segment_number):
        sound, writer = journals[key], _writer(key)
        if writer in broken:
            continue
        refers = [e.kind in _REFER and e.data.get("tree") in trees for e in sound.events]
        if any(refers):
            broken.add(writer)
            first = refers.index(True)
            lines = sound.data.split(b"\n")[:first]
            data = b"".join(line + b"\n" for line in lines)
            sound = Sound(data, sound.events[:first], sound.problem)
        found[key] = sound
    return found


def _sound(data: bytes, key: str, name: str, expected: int | None) -> Sound:
    """The events of a file up to the first that is damaged; with `expected`, which is the number of
    the first, also up to the first that cannot be an event of a journal at this place."""
    writer = _writer(key)
    events: list[Event] = []
    end = 0
    # What stands behind the last newline is not committed.
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        try:
            event = decode_event(line, writer, name)
            if expected is not None:
                _check(event, expected + len(events), name)
        except DamagedError as error:
            problem = f"line {number} of {error.message}: from there on it was not copied"
            return Sound(data[:end], tuple(events), problem)
        events.append(event)
        end += len(line) + 1
    return Sound(data[:end], tuple(events))


def _check(event: Event, expected: int, name: str) -> None:
    """Raise DamagedError unless this is the event of that number, of a form that can be read."""
    if event.number != expected:
        raise DamagedError(f"{name} has event {event.number!r} where {expected} should be")
    if problems := fold(_NOBODY, [event]).damage:
        raise DamagedError(f"{name} is damaged: {problems[0]}")


def _writer(key: str) -> str:
    found = FILE.fullmatch(key)
    assert found is not None
    return found["writer"]
