"""`replicate compact`: one listing of a bucket's old experiments, for all who list it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict

import click

from replicate.cli import text
from replicate.cli.options import location
from replicate.cli.output import Output
from replicate.cli.progress import counter
from replicate.maintenance import Compacted
from replicate.project import Project


@click.command()
@click.option("-n", "--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@location
@click.pass_obj
def compact(output: Output, project: Project, dry_run: bool, as_json: bool) -> None:
    """Make listing a bucket fast for everybody.

    Writes what a listing shows of all experiments that are over into a few objects that everybody
    reads, so that the first `replicate ls` on a machine takes a handful of requests, and not some
    for each experiment. Run it now and then, such as once a day: whatever has changed since is
    listed as it is all the same. It is safe while others train, list or compact. A repository on
    a disk needs none of it.

    \b
    Examples:
      replicate compact
      replicate compact --dry-run
    """
    with counter(sys.stderr, "compacting") as progress:
        done = project.compact(dry_run=dry_run, progress=progress)
    if as_json:
        output.json({"dry_run": dry_run, **asdict(done)})
    else:
        output.data(compacted_lines(done, dry_run=dry_run))


def compacted_lines(done: Compacted, *, dry_run: bool) -> Iterator[str]:
    """What was done or would be, and what stays as it is."""
    if not done.needed:
        yield "Nothing to do: a repository on a disk is listed fast as it is"
        return
    would = "would be added now" if dry_run else "added now"
    listed = text.count(done.experiments, "experiment")
    left = f", {done.left:,} removed" if done.left else ""
    yield f"The shared listing has {listed}: {done.added:,} {would}{left}"
    if done.waiting == 1:
        yield (
            "1 experiment is not in it: it goes on, has changed within the hour, or is damaged. "
            "`replicate ls` reads that one by itself."
        )
    elif done.waiting:
        yield (
            f"{done.waiting:,} experiments are not in it: they go on, have changed within the "
            "hour, or are damaged. `replicate ls` reads those one by one."
        )
