"""`replicate checkout`: the code and files of a checkpoint in a directory, and the way back."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from replicate.cli import text
from replicate.cli.options import ID, location
from replicate.cli.output import Output
from replicate.cli.progress import counter
from replicate.errors import UsageError
from replicate.model import short
from replicate.project import CheckedOut, Project

_MAX_NAMES = 3


@click.command()
@click.argument("id", type=ID, metavar="[ID]", required=False)
@click.option("-o", "--output", "target", metavar="DIR", help="Where to, if not into the project.")
@click.option("--path", "paths", metavar="FILE", multiple=True, help="Only this; may be repeated.")
@click.option("-f", "--force", is_flag=True, help="Overwrite without asking.")
@click.option("--with-config", is_flag=True, help="Overwrite replicate.yaml, too.")
@click.option("--undo", is_flag=True, help="Put back what the last checkout overwrote.")
@location
@click.pass_obj
def checkout(
    output: Output,
    project: Project,
    id: str | None,
    target: str | None,
    paths: tuple[str, ...],
    force: bool,
    with_config: bool,
    undo: bool,
) -> None:
    """Copy the code and files of a checkpoint into a directory.

    For an experiment, its best checkpoint is taken, or the latest one if none is best. Where the
    files of that one were let go, as `keep` says, or could not all be saved, it is the best, or
    latest, of those that have their files. Files that are overwritten are kept in the repository
    first, and --undo puts them back: those of the last checkout, or of the one whose id is given.

    \b
    Examples:
      replicate checkout 8ee945b
      replicate checkout 8ee945b -o /tmp/iris --path model.pth
      replicate checkout --undo
    """
    if undo:
        if paths or with_config:
            raise UsageError("--undo takes no --path or --with-config")
        undone = project.undo_checkout(id, directory=target)
        lines = [f'Put back {text.count(undone.files, "file")} in "{undone.directory}"']
        if undone.backup_id is not None:
            lines.append(f"To undo that: replicate checkout --undo {short(undone.backup_id)}")
        output.message(*lines)
        return
    if id is None:
        raise UsageError("which checkpoint?", hint="`replicate ls` and `replicate show` name them")
    picked = project.pick(id, with_files=True)
    plan = project.plan_checkout(picked, directory=target, paths=paths, with_config=with_config)
    note = text.picked_note(
        picked.experiment.id, picked.checkpoint, picked.how, passed_over=picked.passed_over
    )
    if note:
        output.note(note)
    if plan.not_empty and not force:
        for line in question_lines(plan.directory, plan.writes, plan.overwrites):
            output.message(*line)
        if not output.confirm("Do you want to continue?"):
            output.message("Nothing was changed")
            raise click.exceptions.Exit(1)
    with counter(sys.stderr, "checking out") as show:
        done = project.checkout(plan, lambda n, of: show("MB", n // 1_000_000, of // 1_000_000))
    output.message(*done_lines(plan.id, done, target))


def question_lines(
    directory: Path, writes: Sequence[str], overwrites: Sequence[str]
) -> list[list[str]]:
    """What is to be known before saying yes: messages of a line and lines that continue it."""
    messages = [[f'The directory "{directory}" is not empty.']]
    if not overwrites:
        count = text.count(len(writes), "file")
        return [*messages, [f"This checkout writes {count}, and changes none that is there."]]
    return [
        *messages,
        [
            f"This checkout overwrites {text.count(len(overwrites), 'file')}: "
            + text.shortened_list(overwrites, _MAX_NAMES),
            "What is there is kept in the repository: `replicate checkout --undo` puts it back.",
        ],
    ]


def done_lines(id: str, done: CheckedOut, target: str | None) -> list[str]:
    """What was done, and how to undo it where something was overwritten."""
    lines = [f'Checked out {short(id)} to "{done.directory}"']
    if done.backup_id is not None:
        where = f" -o {shlex.quote(target)}" if target else ""
        lines.append(f"To undo: replicate checkout --undo{where}")
    return lines
