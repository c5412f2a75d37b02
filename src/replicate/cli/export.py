"""`replicate export`: experiments as files that other programs read."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from replicate.cli import text
from replicate.cli.options import ID, filtering, location
from replicate.cli.output import FAILED, Output
from replicate.cli.progress import counter
from replicate.cli.schema import JsonObject, experiment_with_checkpoints_json, point_json
from replicate.cli.selection import matching
from replicate.errors import NotFoundError, UsageError
from replicate.interop import export as files
from replicate.interop import parquet
from replicate.model import ExperimentRecord
from replicate.project import Project
from replicate.query import Filter


@click.command()
@click.argument("target", metavar="DIR|FILE")
@click.argument("ids", type=ID, metavar="[ID]...", nargs=-1)
@filtering
@click.option(
    "--format",
    "kind",
    type=click.Choice(["directory", "jsonl", "parquet"]),
    help="By default jsonl for a name that ends with .jsonl and for -, else a directory.",
)
@location
@click.pass_obj
def export(
    output: Output,
    project: Project,
    target: str,
    ids: tuple[str, ...],
    filters: tuple[Filter, ...],
    kind: str | None,
) -> None:
    """Write experiments as files that other programs read.

    As a directory: one for each experiment, with experiment.json, checkpoints.jsonl,
    history.jsonl, its code and the files of its checkpoints. As jsonl: a line for each experiment,
    with its checkpoints and its history; - is standard output. As parquet: a directory with
    experiments.parquet and history.parquet. Without an ID, all experiments.

    \b
    Examples:
      replicate export backup
      replicate export best.jsonl --filter "accuracy > 0.9"
      replicate export tables --format parquet
      replicate export model 8ee945b
    """
    kind = kind or format_of(target)
    records = chosen(project, ids, filters)
    if kind == "jsonl" and target == "-":
        output.data(files.lines(project.repository, records, _FORMS))
        return
    problems = write(project, records, Path(target), kind)
    output.message(f"Exported {text.count(len(records), 'experiment')} to {target}")
    output.warn(problems)
    if problems:
        raise click.exceptions.Exit(FAILED)


def format_of(target: str) -> str:
    """The format that a name says. Raises UsageError for that of one table: there are two, and a
    directory of that name would be read as one table by other programs."""
    path = Path(target)
    if path.suffix.lower() == ".parquet":
        raise UsageError(
            f"{target} would be one table, and there are two: experiments and their history",
            hint=f"`replicate export {path.with_suffix('')} --format parquet` writes a directory "
            "with both",
        )
    return "jsonl" if target == "-" or path.suffix.lower() == ".jsonl" else "directory"


def whole_json(record: ExperimentRecord) -> JsonObject:
    """An experiment with all that is its own; its children say themselves whose they are."""
    value = experiment_with_checkpoints_json(record)
    del value["children"]
    return value


def chosen(
    project: Project, ids: Sequence[str], filters: Sequence[Filter]
) -> list[ExperimentRecord]:
    """The experiments with these ids, or all, for which the filters hold."""
    if ids:
        found = dict.fromkeys(project.find(id).id for id in ids)
        records = [record for record in project.records() if record.id in found]
    else:
        records = project.records()
    records = matching(records, filters)
    if not records:
        raise NotFoundError(f"there is nothing to export from {project.repository.url}")
    return records


def write(
    project: Project, records: Sequence[ExperimentRecord], target: Path, kind: str
) -> list[str]:
    """Write the experiments in one of the formats; return what is lost."""
    repository = project.repository
    with counter(sys.stderr, "exporting") as progress:
        if kind == "directory":
            return files.export_directory(repository, records, target, _FORMS, progress)
        if kind == "parquet":
            parquet.export_parquet(repository, records, target, progress)
        else:
            if target.exists():
                raise UsageError(f"{target} is there already", hint="Name a new file.")
            files.write_lines(target, files.lines(repository, records, _FORMS))
    return []


_FORMS = files.Forms(whole_json, point_json)
