"""`replicate cp`: experiments from one repository to another."""

from __future__ import annotations

from typing import Any

import click

from replicate.cli.moving import move, moving
from replicate.cli.options import ID
from replicate.cli.output import Output
from replicate.project import Project


@click.command()
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST")
@click.argument("ids", type=ID, metavar="[ID]...", nargs=-1)
@moving
@click.pass_obj
def cp(
    output: Output, source: str, target: str, ids: tuple[str, ...], options: dict[str, Any]
) -> None:
    """Copy experiments from one repository to another.

    SRC and DST are paths or URLs such as s3://bucket/root. Without an ID, all experiments. The same
    as `replicate push`, for any two repositories.

    \b
    Examples:
      replicate cp s3://bucket/root /mnt/backup
      replicate cp gs://old/root s3://new/root --filter "created > 30 days ago"
    """
    here = Project()
    move(output, here.elsewhere(source), here.elsewhere(target), ids, options)
