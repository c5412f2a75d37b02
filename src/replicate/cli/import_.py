"""`replicate import`: runs of other tools, and of other repositories."""

from __future__ import annotations

import sys
from typing import Any

import click

from replicate.cli import text
from replicate.cli.options import location
from replicate.cli.output import FAILED, Output
from replicate.cli.progress import counter
from replicate.interop import Imported, Outcome, bring_all, recognise
from replicate.project import Project


@click.command("import")
@click.argument("source")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@location
@click.pass_obj
def import_(output: Output, project: Project, source: str, as_json: bool) -> None:
    """Bring experiments from another tool or repository.

    SOURCE is a directory or a file: a Keepsake repository, an MLflow file store (mlruns), an
    MLflow SQLite database, another repository of Replicate, or a project's directory that has one
    of them. It is only read. Ids are kept. What is here already is not brought again, so an import
    that was interrupted is finished by another. The exit code is 1 if something could not be read;
    the rest is imported.

    \b
    Examples:
      replicate import ../old-project/.keepsake
      replicate import mlruns
      replicate import sqlite:///mlflow.db
    """
    repository = project.repository
    store = recognise(source, but=repository.url)
    output.note(f"From the {store.kind} {store.path} into {repository.url}")
    compress = repository.compresses(project.config.compression)
    with counter(sys.stderr, "importing") as progress:
        result = bring_all(store, repository, compress=compress, progress=progress)
    if as_json:
        output.json(imported_json(result))
    else:
        output.data([summary(result)])
    output.warn([*result.problems, *result.remarks])
    if result.problems:
        output.error(
            f"{text.count(len(result.problems), 'thing')} could not be imported",
            "mend or complete the source and import it again; what is imported stays as it is",
        )
        raise click.exceptions.Exit(FAILED)


def summary(result: Imported) -> str:
    """What was done, in a line."""
    counts = {outcome: len(ids) for outcome, ids in result.ids.items()}
    said = [f"{text.count(counts[Outcome.ADDED], 'experiment')} imported"]
    words = {
        Outcome.COMPLETED: "completed",
        Outcome.PRESENT: "here already",
        Outcome.DELETED: "deleted here before",
        Outcome.LEFT_OUT: "deleted there",
    }
    said += [f"{counts[outcome]:,} {word}" for outcome, word in words.items() if counts[outcome]]
    return ", ".join(said)


def imported_json(result: Imported) -> dict[str, Any]:
    """The result of an import as JSON: ids by what became of them."""
    return {
        "kind": result.kind,
        "source": result.source,
        **{outcome.value.replace(" ", "_"): ids for outcome, ids in result.ids.items()},
        "problems": list(result.problems),
        "remarks": list(result.remarks),
    }
