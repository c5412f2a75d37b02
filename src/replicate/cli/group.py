"""`replicate group`: the group of experiments is read and changed."""

from __future__ import annotations

import click

from replicate.cli import text
from replicate.cli.options import ID, location
from replicate.cli.output import Output
from replicate.errors import UsageError
from replicate.project import Project


@click.command()
@click.argument("id", type=ID, metavar="ID")
@click.argument("new", metavar="[GROUP]", required=False)
@click.option("--clear", is_flag=True, help="Take it out of its group.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: the group of the experiment.")
@location
@click.pass_obj
def group(
    output: Output, project: Project, id: str, new: str | None, clear: bool, as_json: bool
) -> None:
    """Put an experiment in a group, or print its group.

    \b
    Examples:
      replicate group f1b4d2b sweep-3
      replicate group f1b4d2b
      replicate group f1b4d2b --clear
    """
    if clear and new is not None:
        raise UsageError("GROUP and --clear exclude each other")
    (experiment,) = project.find_all([id])
    if new is not None or clear:
        experiment.regroup(new or None)
    if as_json:
        output.json({"id": experiment.id, "group": experiment.group})
    elif new is not None or clear:
        output.message(f"Group of {experiment.short_id}: {experiment.group or 'none'}")
    elif experiment.group:
        output.data([text.escape(experiment.group)])
    else:
        output.note(f"{experiment.short_id} is in no group")
