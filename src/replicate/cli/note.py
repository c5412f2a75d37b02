"""`replicate note`: the notes of an experiment are read and written."""

from __future__ import annotations

import click

from replicate.cli import text
from replicate.cli.options import ID, location
from replicate.cli.output import Output
from replicate.errors import UsageError
from replicate.project import Project


@click.command()
@click.argument("id", type=ID, metavar="ID")
@click.argument("words", metavar="[TEXT]", nargs=-1)
@click.option("-a", "--append", is_flag=True, help="Add a line to the notes that there are.")
@click.option("-e", "--edit", is_flag=True, help="Write them in the editor, $EDITOR.")
@click.option("--clear", is_flag=True, help="Remove the notes.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: the notes of the experiment.")
@location
@click.pass_obj
def note(
    output: Output,
    project: Project,
    id: str,
    words: tuple[str, ...],
    append: bool,
    edit: bool,
    clear: bool,
    as_json: bool,
) -> None:
    """Write the notes of an experiment, or print them.

    \b
    Examples:
      replicate note f1b4d2b "the loss explodes at step 300"
      replicate note f1b4d2b --append "gradient clipping helps"
      replicate note f1b4d2b
    """
    if sum((bool(words), edit, clear)) > 1:
        raise UsageError("TEXT, --edit and --clear exclude each other")
    if append and not words:
        raise UsageError("--append needs a text")
    (experiment,) = project.find_all([id])
    old = experiment.notes
    if words or edit or clear:
        new = " ".join(words) if words else _edited(output, old) if edit else None
        experiment.note(f"{old}\n{new}" if append and old else new or None)
    if as_json:
        output.json({"id": experiment.id, "notes": experiment.notes})
    elif words or edit or clear:
        verb = "changed" if experiment.notes else "removed"
        output.message(f"Notes of {experiment.short_id} {verb}")
    elif old:
        output.data([text.escape(old, keep="\n")])
    else:
        output.note(f"{experiment.short_id} has no notes")


def _edited(output: Output, notes: str | None) -> str | None:
    """What a person makes of the notes in the editor; unchanged when they do not save."""
    if not output.terminal:
        raise UsageError("--edit needs a terminal", hint="pass the text as an argument")
    written = click.edit(notes or "")
    return notes if written is None else written.strip()
