"""Changing an experiment's name, tags, notes and group: each change is an event, so that edits from
several machines merge."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from replicate.errors import UsageError
from replicate.model import Value
from replicate.records import new_id, now
from replicate.repository import Repository


def tagging(add: Iterable[Any] = (), remove: Iterable[Any] = ()) -> dict[str, Value]:
    """The change that adds tags, then removes others. Raises UsageError for what is no tag."""
    return {"add": [_tag(t) for t in add], "remove": [_tag(t) for t in remove]}


def text(kind: str, value: Any) -> str | None:
    """The value of a name, a note or a group. Raises UsageError when it is no text, or None."""
    if value is not None and not isinstance(value, str):
        raise UsageError(f"a {kind} must be text, not {value!r}")
    return value


def _tag(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UsageError(f"a tag must be text, not {value!r}")
    return value


def edit(
    repository: Repository, id: str, kind: str, author: str, change: Mapping[str, Value]
) -> None:
    """Commit a change of the experiment with this id, as an event of that kind."""
    journal = repository.journal(id, new_id()[:16])
    journal.append([(kind, now(), {"author": author, **change})])
