"""The options and arguments that commands share: where the project and its repository are, and the
kinds of words that a shell can complete from what is stored there."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import click
from click.shell_completion import CompletionItem

from replicate.cli import text
from replicate.cli.progress import counter
from replicate.model import SHORT_ID, CheckpointRecord, ExperimentRecord, short
from replicate.project import Project
from replicate.query import (
    OPERATORS,
    Filter,
    Sort,
    metric_names,
    names,
    param_names,
    parse_filter,
    parse_sort,
)

#: So many ids are offered before their first digit is typed: more than a person looks through.
_MAX_IDS = 100
#: What is read for longer than this is counted on the terminal.
_PATIENCE_SECONDS = 1.0
#: So many ids are told apart by more than their digits.
_MAX_TOLD = 20


def location(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command -R and -D, and pass it the project that they name as `project`."""

    @click.option("-R", "--repository", metavar="URL", help="The repository, if not the project's.")
    @click.option(
        "-D",
        "--directory",
        metavar="DIR",
        shell_complete=lambda *where: [CompletionItem(where[-1], type="dir")],
        help="The project's directory, if not found from here.",
    )
    @functools.wraps(command)
    def with_project(
        *args: Any, repository: str | None, directory: str | None, **options: Any
    ) -> Any:
        with counter(sys.stderr, "reading", _PATIENCE_SECONDS) as progress:
            project = Project(repository=repository, directory=directory, progress=progress)
            return command(*args, project=project, **options)

    return with_project


def _project(context: click.Context) -> Project:
    """The project that the words before the one being completed point to: of what is copied from
    another repository, that one."""
    where = context.params
    project = Project(repository=where.get("repository"), directory=where.get("directory"))
    if "source" not in where:
        return project
    # Before the value of an option click has not told the arguments apart yet.
    source = where["source"] or next(iter(context.args), None)
    return project.elsewhere(source) if source else project


class _Word(click.ParamType):  # type: ignore[type-arg]  # generic in later versions only
    """A word with a meaning of its own, which a shell can complete."""


class _Id(_Word):
    """The beginning of an id of an experiment or a checkpoint."""

    name = "id"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Experiments with their command, then checkpoints with their step, the newest first."""
        known = [*(_ids(_project(ctx), incomplete) if incomplete else _newest(_project(ctx)))]
        brief = {short(id) for id, _ in known}
        whole = len(incomplete) >= SHORT_ID or len(brief) < len(known)
        return [CompletionItem(id if whole else short(id), help=help) for id, help in known]


def _newest(project: Project) -> Iterator[tuple[str, str]]:
    """The newest experiments, and their best and latest checkpoints."""
    records = project.records()[: -_MAX_IDS - 1 : -1]
    yield from ((experiment.id, _about(experiment)) for experiment in records)
    for experiment in records:
        ends = {c.id: c for c in (experiment.best(), experiment.latest()) if c}
        yield from ((id, _about_checkpoint(c)) for id, c in ends.items())


def _ids(project: Project, prefix: str) -> Iterator[tuple[str, str]]:
    """The ids that start so. Only of a few is told what they are: it has to be read."""
    matches = project.matches(prefix)
    if len(matches) > _MAX_TOLD:
        yield from ((m.checkpoint or m.experiment, "") for m in matches)
        return
    found = [project.resolve(m.checkpoint or m.experiment) for m in matches]
    experiments = [f for f in found if isinstance(f, ExperimentRecord)]
    checkpoints = [f[1] for f in found if not isinstance(f, ExperimentRecord)]
    for experiment in sorted(experiments, key=lambda e: e.created, reverse=True):
        yield experiment.id, _about(experiment)
    for checkpoint in sorted(checkpoints, key=lambda c: c.created, reverse=True):
        yield checkpoint.id, _about_checkpoint(checkpoint)


def _about(experiment: ExperimentRecord) -> str:
    return text.escape(experiment.name or experiment.command)


def _about_checkpoint(checkpoint: CheckpointRecord) -> str:
    step = "" if checkpoint.step is None else f", step {text.step(checkpoint.step)}"
    return f"checkpoint of {short(checkpoint.experiment)}{step}"


def _items(values: Iterable[str], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(value) for value in values if value.startswith(incomplete)]


class _Filter(_Word):
    """A filter, `name operator value`."""

    name = "filter"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The filter. Raises UsageError."""
        return value if isinstance(value, Filter) else parse_filter(value)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Names, and when it is clear which one is meant its operators."""
        known = names(_project(ctx).records())
        meant = [name for name in known if name.startswith(incomplete)]
        if len(meant) > 1:
            return _items(meant, incomplete)
        return _items((f"{name} {sign}" for name in known for sign in OPERATORS), incomplete)


class _Sort(_Word):
    """A name to sort by, with -desc or -asc or neither."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The order. Raises UsageError."""
        return value if isinstance(value, Sort) else parse_sort(value)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Names, and when it is clear which one is meant its two directions."""
        known = names(_project(ctx).records())
        meant = _items(known, incomplete)
        return meant if len(meant) > 1 else _items(_directions(known), incomplete)


def _directions(known: Iterable[str]) -> Iterator[str]:
    for name in known:
        yield from (name, f"{name}-desc")


class _Columns(_Word):
    """Names with commas between them."""

    name = "name,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The names, as a tuple."""
        if isinstance(value, tuple):
            return value
        return tuple(name for name in map(str.strip, value.split(",")) if name)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The names that are not among those before the last comma."""
        before, comma, _ = incomplete.rpartition(",")
        more = [name for name in names(_project(ctx).records()) if name not in before.split(",")]
        return _items((f"{before}{comma}{name}" for name in more), incomplete)


class _Metric(_Word):
    """The name of a metric."""

    name = "metric"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The metrics of all experiments."""
        return _items(metric_names(_project(ctx).records()), incomplete)


class _Param(_Word):
    """The name of a param."""

    name = "param"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The params of all experiments."""
        return _items(param_names(_project(ctx).records()), incomplete)


ID, FILTER, SORT, COLUMNS = _Id(), _Filter(), _Sort(), _Columns()
METRIC, PARAM = _Metric(), _Param()

#: Gives a command the option `--filter`, and passes what is given as `filters`.
filtering = click.option(
    "-f",
    "--filter",
    "filters",
    type=FILTER,
    multiple=True,
    help='Only those for which it holds, such as "val/loss < 0.2"; may be repeated.',
)
