"""`replicate ps`: the experiments that are running, in a table."""

from __future__ import annotations

from dataclasses import replace

import click

from replicate.cli.options import location
from replicate.cli.output import Output
from replicate.cli.selection import Selection, selecting, show_experiments
from replicate.project import Project
from replicate.query import parse_filter


@click.command()
@selecting
@location
@click.pass_obj
def ps(output: Output, project: Project, selection: Selection) -> None:
    """List experiments that are running.

    It takes the options of `replicate ls`, and says the same of them.

    \b
    Examples:
      replicate ps
      replicate ps --filter "host = gpu-7" --json
    """
    running = replace(selection, filters=(*selection.filters, parse_filter("status = running")))
    if not show_experiments(output, running.of(project.records()), running):
        matching = " and matches" if selection.filters else ""
        output.note(f"No experiment is running{matching}")
