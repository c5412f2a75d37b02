"""What `push`, `pull` and `cp` share: their options, and bringing experiments with a word on it."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

from replicate.cli import text
from replicate.cli.options import filtering
from replicate.cli.output import FAILED, Output
from replicate.cli.progress import counter
from replicate.errors import NotFoundError
from replicate.maintenance import Outcome, Transferred
from replicate.project import Experiment, ExperimentList, Project
from replicate.query import Filter

#: What becomes of experiments that are new, that were there in part, and that are deleted here.
_DID, _WOULD = ("Copied", "completed", "deleted"), ("Would copy", "complete", "delete")
_REST = {
    Outcome.PRESENT: "there already",
    Outcome.DELETED: "deleted there before",
    Outcome.FAILED: "not copied",
}


def moving(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of a transfer, and pass them on as `options`."""

    @filtering
    @click.option("--delete", "deletions", is_flag=True, help="Delete what is deleted there, too.")
    @click.option("-n", "--dry-run", is_flag=True, help="Only say what would be copied.")
    @click.option("--json", "as_json", is_flag=True, help="Print JSON.")
    @functools.wraps(command)
    def with_options(*args: Any, **options: Any) -> Any:
        names = ("filters", "deletions", "dry_run", "as_json")
        chosen = {name: options.pop(name) for name in names}
        return command(*args, options=chosen, **options)

    return with_options


def move(
    output: Output,
    source: Project,
    target: Project,
    ids: Sequence[str],
    options: dict[str, Any],
) -> None:
    """Bring the experiments that were asked for from one to the other, and say what was done."""
    as_json, dry_run = options["as_json"], options["dry_run"]
    output.note(f"From {source.repository.url} to {target.repository.url}")
    experiments = chosen(source, ids, options["filters"])
    with counter(sys.stderr, "copying") as progress:
        done = source.push(
            target,
            experiments,
            deletions=options["deletions"],
            dry_run=dry_run,
            progress=progress,
        )
    if as_json:
        output.json(transferred_json(done, dry_run=dry_run))
    else:
        output.data([summary(done, dry_run=dry_run)])
    output.warn(done.problems)
    if done.problems:
        output.error(
            f"{text.count(len(done.problems), 'thing')} could not be copied",
            "what was copied is whole; mend or complete the source and do it again",
        )
        raise click.exceptions.Exit(FAILED)


def chosen(
    source: Project, ids: Sequence[str], filters: Sequence[Filter]
) -> list[Experiment] | ExperimentList | None:
    """The experiments with these ids for which the filters hold; None for all."""
    if not ids and not filters:
        return None
    if not source.repository.exists():
        raise NotFoundError(f"There is no repository at {source.repository.url}")
    found = ExperimentList(source.find_all(ids)) if ids else source.experiments.list()
    matching = found.filter([one.text for one in filters]) if filters else found
    if not matching:
        raise NotFoundError(f"no experiment in {source.repository.url} matches")
    return matching


def summary(done: Transferred, *, dry_run: bool) -> str:
    """What was done, or would be, in a line."""
    counts = {outcome: len(ids) for outcome, ids in done.ids.items()}
    first, *verbs = _WOULD if dry_run else _DID
    said = [f"{first} {text.count(counts[Outcome.ADDED], 'experiment')}"]
    changed = zip((Outcome.COMPLETED, Outcome.REMOVED), verbs, strict=True)
    said += [f"{verb} {counts[outcome]:,}" for outcome, verb in changed if counts[outcome]]
    said.append(f"{text.count(done.objects, 'object')} ({text.size(done.bytes)})")
    said += [f"{counts[outcome]:,} {word}" for outcome, word in _REST.items() if counts[outcome]]
    return ", ".join(said)


def transferred_json(done: Transferred, *, dry_run: bool) -> dict[str, Any]:
    """The result for a program: ids by what became of them."""
    return {
        "source": done.source,
        "target": done.target,
        "dry_run": dry_run,
        **{outcome.value.replace(" ", "_"): ids for outcome, ids in done.ids.items()},
        "objects": done.objects,
        "bytes": done.bytes,
        "problems": list(done.problems),
    }
