"""`replicate recover`: what a crash has left in the spool, into the repository."""

from __future__ import annotations

import click

from replicate.cli.options import location
from replicate.cli.output import Output
from replicate.project import Project


@click.command()
@location
@click.pass_obj
def recover(output: Output, project: Project) -> None:
    """Finish saving what a run had not saved when it was cut off.

    The next run in the project does this too. Runs that are being recorded are left alone.

    \b
    Examples:
      replicate recover
    """
    messages = list(project.recover())
    for message in messages:
        output.message(message)
    if not messages:
        output.message("Nothing was left to save")
