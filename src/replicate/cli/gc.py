"""`replicate gc`: remove what nothing refers to any more."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

import click

from replicate.cli import text
from replicate.cli.options import location
from replicate.cli.output import Output
from replicate.maintenance import Collected
from replicate.project import Project


@click.command()
@click.option("-n", "--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option(
    "--alone",
    is_flag=True,
    help="In a bucket: nobody else is about to record, so do not wait for a day.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@location
@click.pass_obj
def gc(output: Output, project: Project, dry_run: bool, alone: bool, as_json: bool) -> None:
    """Remove what no experiment needs any more.

    `replicate rm` does this for what it deletes; this finds the rest, such as what a crash has left
    behind. It is safe while others are training: what is younger than an hour then stays, and in a
    bucket, where nobody can see who is about to record, always what is younger than a day unless
    you say that you are alone. After 30 days a checkout can no longer be undone, and
    what was kept for that goes too.

    \b
    Examples:
      replicate gc
      replicate gc --dry-run
      replicate gc --alone
    """
    done = project.gc(dry_run=dry_run, alone=alone)
    if as_json:
        output.json({"dry_run": dry_run, **asdict(done)})
    else:
        output.data(collected_lines(done, dry_run=dry_run))


def collected_lines(done: Collected, *, dry_run: bool) -> Iterator[str]:
    """What came free or would, and what stays for now."""
    would = "Would remove" if dry_run else "Removed"
    yield f"{would} {text.count(done.objects, 'object')} ({text.size(done.bytes)})"
    if done.experiments:
        yield f"{would} what was left of {text.count(done.experiments, 'deleted experiment')}"
    if done.backups:
        yield f"{would} what {text.count(done.backups, 'old checkout')} had overwritten"
    if done.later_objects:
        yield (
            f"Kept {text.count(done.later_objects, 'object')} ({text.size(done.later_bytes)}) that "
            f"nothing refers to yet: somebody may be saving, and {text.wait(done.grace)} have "
            "not passed"
        )
