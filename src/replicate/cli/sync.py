"""`replicate sync`: what is only on this machine, into the repository."""

from __future__ import annotations

import sys
from collections import Counter

import click

from replicate.cli import text
from replicate.cli.options import location
from replicate.cli.output import Output
from replicate.cli.progress import counter
from replicate.errors import ReplicateError
from replicate.project import Project

#: What says which server is meant by a bucket's URL.
_LEADS = {
    "s3": "AWS_ENDPOINT_URL",
    "gs": "STORAGE_EMULATOR_HOST",
    "az": "AZURE_STORAGE_CONNECTION_STRING or AZURE_STORAGE_ACCOUNT_NAME",
}


@click.command()
@click.option("--all", "every", is_flag=True, help="Of every repository that runs wait for here.")
@location
@click.pass_obj
def sync(output: Output, project: Project, every: bool) -> None:
    """Finish saving what is only on this machine.

    That is what runs have left that were cut off, that were recorded with REPLICATE_MODE=offline,
    or that could not reach the repository until they ended. Runs that are being recorded save
    themselves; one that pauses after a failure is told to try now. What cannot be saved stays, and
    the exit code is 1; so it is when a crash of the machine has left only a part of something,
    which is named, and lost.

    \b
    Examples:
      replicate sync
      replicate sync --all
    """
    urls = project.others_with_spools() if every else []
    projects = [project, *(Project(repository=url, directory=project.directory) for url in urls)]
    found: Counter[str] = Counter()
    for one in projects:
        try:
            found += _sync(output, one)
        except ReplicateError as error:
            output.error(error.message, error.hint)
            found["failed"] += 1
    for url, server in project.out_of_reach():
        if every or url == project.repository.url:
            output.error(*elsewhere(url, server))
            found["failed"] += 1
    if found["lost"] and not (found["failed"] or found["live"]):
        output.message("All is saved but what was lost")
    if found["failed"] or found["lost"]:
        raise click.exceptions.Exit(1)
    if not found:
        output.message("Nothing was left to save")
    elif not found["live"]:
        output.message("All is saved")


def elsewhere(url: str, server: str) -> tuple[str, str]:
    """What a person has to know of runs that wait for another server than the environment's."""
    variables = _LEADS.get(url.partition(":")[0], "the environment")
    return (
        f"runs wait for {url} at {server or 'the usual server'}, and the environment leads to "
        "another one",
        f"Set {variables} as it was when they were recorded, then run `replicate sync` again.",
    )


def _sync(output: Output, project: Project) -> Counter[str]:
    """Save what waits for one repository; how many runs have come to which end."""
    found: Counter[str] = Counter()
    with counter(sys.stderr, f"saving to {text.escape(project.repository.url)},") as show:
        for outcome in project.sync(lambda n, of: show("MB", n // 1_000_000, of // 1_000_000)):
            found[outcome.state] += 1
            if outcome.state in ("failed", "lost"):
                output.error(outcome.message)
            else:
                output.message(outcome.message)
    return found
