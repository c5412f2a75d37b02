"""`replicate ls`: the experiments in a table."""

from __future__ import annotations

import click

from replicate.cli.options import location
from replicate.cli.output import Output
from replicate.cli.selection import Selection, selecting, show_experiments, why_none
from replicate.project import Project


@click.command()
@selecting
@location
@click.pass_obj
def ls(output: Output, project: Project, selection: Selection) -> None:
    """List experiments.

    A column is shown for each param that is not the same in all experiments.

    A filter is "NAME OPERATOR VALUE" with =, !=, <, <=, > or >=, of several all must hold. A name
    is a field (status, step, user, host, command, created, name, tags, group, notes, duration), a
    param (model.depth where nested) or a metric (of the best checkpoint, or else the latest). To
    sort with the greatest first, write NAME-desc; what has no value comes last. Times are such as
    2026-11-01, yesterday and 2 days ago; a duration is such as 90 min, or a number of seconds.

    \b
    Examples:
      replicate ls --filter "status = finished" --filter "val/loss < 0.2"
      replicate ls --filter "created > 2 days ago" --sort accuracy-desc --limit 5
      replicate ls --filter "duration > 1 hour"
      replicate ls --columns name,learning_rate,val/loss
      replicate ls --all | less -S
      replicate show $(replicate ls --quiet | tail -n 1)
    """
    records = project.records()
    if show_experiments(output, selection.of(records), selection):
        return
    if records:
        output.note(why_none(records, selection.filters))
        return
    output.note("No experiments found")
    url = project.repository.url
    output.note(f"hint: `replicate.init()` in a training script starts one; looked in {url}")
