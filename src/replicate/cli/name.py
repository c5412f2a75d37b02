"""`replicate name`: the name of an experiment is read and changed."""

from __future__ import annotations

import click

from replicate.cli import text
from replicate.cli.options import ID, location
from replicate.cli.output import Output
from replicate.errors import UsageError
from replicate.project import Project


@click.command()
@click.argument("id", type=ID, metavar="ID")
@click.argument("new", metavar="[NAME]", required=False)
@click.option("--clear", is_flag=True, help="Take the name away.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: the name of the experiment.")
@location
@click.pass_obj
def name(
    output: Output, project: Project, id: str, new: str | None, clear: bool, as_json: bool
) -> None:
    """Name an experiment, or print its name.

    \b
    Examples:
      replicate name f1b4d2b "resnet, cosine schedule"
      replicate name f1b4d2b
      replicate name f1b4d2b --clear
    """
    if clear and new is not None:
        raise UsageError("NAME and --clear exclude each other")
    (experiment,) = project.find_all([id])
    if new is not None or clear:
        experiment.rename(new or None)
    if as_json:
        output.json({"id": experiment.id, "name": experiment.name})
    elif new is not None or clear:
        output.message(f"Name of {experiment.short_id}: {experiment.name or 'none'}")
    elif experiment.name:
        output.data([text.escape(experiment.name)])
    else:
        output.note(f"{experiment.short_id} has no name")
