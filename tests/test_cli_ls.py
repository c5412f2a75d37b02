"""`replicate ls` and `ps` as a person types them: which experiments, in which order, shown how."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import replicate
from conftest import ProjectDirectory
from replicate.cli import main
from replicate.cli.output import Output
from replicate.errors import UsageError
from replicate.model import CheckpointRecord, ExperimentRecord, PrimaryMetric, Status, Stop
from replicate.project import Project
from replicate.records import checkpoint_data, new_id, now, stop_data
from replicate.repository import Repository
from saving import local

LOSS = PrimaryMetric("val/loss", "minimize")


def keep(
    repository: Repository, name: str, params: dict[str, Any], *metrics: dict[str, Any]
) -> str:
    """Record an experiment with a checkpoint for each of the metrics; without any it runs still."""
    first = min((e.created for e in repository.experiments()), default=now())
    number = len(repository.ids())
    record = ExperimentRecord(
        id=new_id(),
        created=first + timedelta(seconds=number),
        name=name,
        params=params,
        user="ada",
        host="gpu-7",
        command="train.py",
        path=None,
        tree=None,
    )
    repository.create_experiment(record)
    journal = repository.journal(record.id, new_id()[:16])
    for step, values in enumerate(metrics):
        checkpoint = CheckpointRecord(
            id=new_id(),
            experiment=record.id,
            created=record.created + timedelta(seconds=step + 1),
            step=step,
            path=None,
            tree=None,
            metrics=values,
            primary_metric=LOSS,
        )
        journal.append([("checkpoint", checkpoint.created, checkpoint_data(checkpoint))])
    if metrics:
        stop = Stop(record.created + timedelta(minutes=3), Status.FINISHED)
        journal.append([("stop", stop.time, stop_data(stop))])
    else:
        repository.beat(record.id, 10.0, {journal.writer: journal.count})
    return record.id


@pytest.fixture
def kept(project: ProjectDirectory) -> Path:
    """Four experiments, of which the last is running."""
    repository = local(project.repository)
    keep(repository, "one", {"lr": 1, "opt": "adam"}, {"val/loss": 0.5}, {"val/loss": 0.1})
    keep(repository, "two", {"lr": 0.5, "opt": "sgd"}, {"val/loss": 0.3, "train loss": 1})
    keep(repository, "three", {"lr": "auto"}, {"val/loss": float("nan")})
    keep(repository, "four", {"lr": 2, "model": {"depth": 3}})
    return project.path


def run(*words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [*words])
    assert result.exit_code == code, result.output
    return result


def found(*words: str, command: str = "ls") -> list[str]:
    """The names of the experiments that are listed."""
    return [e["name"] for e in json.loads(run(command, *words, "--json").stdout)]


# ---------------------------------------------------------------- which


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        (["lr >= 1.0"], ["one", "four"]),
        (["lr = 0.5"], ["two"]),
        (["lr = auto"], ["three"]),
        (["val/loss < 0.2"], ["one"]),
        (["train loss >= 1"], ["two"]),
        (["model.depth = 3"], ["four"]),
        (["opt = adam", "lr > 0"], ["one"]),
        (["opt = null", "lr > 0"], ["four"]),
        (["status = running"], ["four"]),
        (["created > 1 hour ago"], ["one", "two", "three", "four"]),
        (["created < 2020-01-01"], []),
    ],
)
def test_filters_choose_experiments_and_all_must_hold(
    kept: Path, filters: list[str], names: list[str]
) -> None:
    words = [word for text in filters for word in ("--filter", text)]
    assert found(*words) == names


def test_ps_lists_what_is_running(kept: Path) -> None:
    assert found(command="ps") == ["four"]
    assert found("-f", "lr > 1", command="processes") == ["four"]
    result = run("ps", "-f", "lr < 1")
    assert (result.stdout, result.stderr) == ("", "No experiment is running and matches\n")


def test_a_name_that_no_experiment_has_is_wrong_use(kept: Path) -> None:
    for option, word in (
        ("--filter", "val_loss < 1"),
        ("--sort", "val_loss"),
        ("--columns", "lrr"),
    ):
        result = run("ls", option, word, code=2)
        assert result.stdout == ""
        assert "; did you mean " in result.stderr


def test_what_is_no_filter_is_wrong_use(kept: Path) -> None:
    result = run("ls", "--filter", "lr == 1", code=2)
    assert result.stderr == (
        'error: "lr == 1" is no filter: there is no operator "=="\n'
        'hint: operators are = != < <= > >=, as in --filter "val/loss < 0.2"\n'
    )


@pytest.mark.parametrize(
    ("filters", "said"),
    [
        (["val/loss > 2"], '"val/loss > 2" is true of none; val/loss is 0.1, 0.3, nan, not set'),
        (["opt = adan"], '"opt = adan" is true of none; opt is "adam", "sgd", not set'),
        (["step > 9", "lr > 0"], '"step > 9" is true of none; step is 1, 0, not set'),
        (["lr = 1", "opt = sgd"], "each filter is true of some experiments, but all of them are"),
    ],
)
def test_when_nothing_matches_it_says_what_there_is_instead(
    kept: Path, filters: list[str], said: str
) -> None:
    result = run("ls", *(word for text in filters for word in ("-f", text)))
    assert result.stdout == ""
    assert result.stderr.startswith(f"No experiment matches: {said}")


def test_times_and_durations_that_match_nothing_are_told_as_a_range(kept: Path) -> None:
    said = run("ls", "-f", "created < 2001").stderr
    assert re.search(r"created is from \w+, .* UTC to \w+, ", said), said
    assert re.search(r"duration is .*[0-9] ?s", run("ls", "-f", "duration > 300 days").stderr)


# ---------------------------------------------------------------- in which order


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ([], ["one", "two", "three", "four"]),
        (["--sort", "created-desc"], ["four", "three", "two", "one"]),
        (["--sort", "val/loss"], ["one", "two", "three", "four"]),
        (["--sort", "val/loss-desc"], ["two", "one", "three", "four"]),
        (["--sort", "lr"], ["two", "one", "four", "three"]),
        (["--sort", "lr-desc"], ["three", "four", "one", "two"]),
        (["--sort", "opt"], ["one", "two", "three", "four"]),
        (["--limit", "2"], ["three", "four"]),
        (["--limit", "9"], ["one", "two", "three", "four"]),
        (["--sort", "created", "--limit", "2"], ["one", "two"]),
        (["--sort", "lr-desc", "-n", "1", "-f", "lr > 0"], ["four"]),
    ],
)
def test_sort_and_limit(kept: Path, words: list[str], names: list[str]) -> None:
    assert found(*words) == names


# ---------------------------------------------------------------- shown how


def test_columns_are_those_that_were_chosen_behind_the_id(kept: Path) -> None:
    lines = run("ls", "--columns", "name,val/loss,duration", "--columns", "model").stdout
    heading, *rows = lines.splitlines()
    assert heading.split() == ["EXPERIMENT", "NAME", "VAL/LOSS", "DURATION", "MODEL"]
    assert rows[0].split()[1:] == ["one", "0.1", "3m", "00s"]
    assert rows[3].split()[1:] == ["four", '{"depth":', "3}"]


def test_quiet_prints_the_ids_of_what_was_chosen(kept: Path) -> None:
    ids = [e.id for e in Project(directory=kept).records()]
    assert run("ls", "-q", "-f", "lr > 0", "-s", "lr-desc").stdout.split() == [
        ids[3],
        ids[0],
        ids[1],
    ]


@pytest.mark.parametrize(
    "words",
    [["-q", "--json"], ["-q", "--columns", "lr"], ["--columns", "lr", "--json"], ["-n", "0"]],
)
def test_options_that_contradict_each_other_are_wrong_use(kept: Path, words: list[str]) -> None:
    assert run("ls", *words, code=2).stdout == ""


def test_json_is_written_element_by_element() -> None:
    stdout = io.StringIO()
    written = []

    def elements() -> Iterator[dict[str, int]]:
        for number in range(1000):
            written.append(stdout.getvalue().count('"number"'))
            yield {"number": number}

    Output(io.StringIO(), stdout, io.StringIO(), {}).json_list(elements())
    assert written == list(range(1000))
    assert json.loads(stdout.getvalue()) == [{"number": n} for n in range(1000)]


def test_a_list_written_by_element_reads_as_one_written_at_once() -> None:
    for value in ([], [{"a": [1, {}], "é": "]\n"}], [1, [2]]):
        parts, whole = io.StringIO(), io.StringIO()
        Output(io.StringIO(), parts, io.StringIO(), {}).json_list(iter(value))
        Output(io.StringIO(), whole, io.StringIO(), {}).json(value)
        assert parts.getvalue() == whole.getvalue()


# ---------------------------------------------------------------- the same in Python


def test_python_takes_the_same_filters(kept: Path) -> None:
    listed = replicate.experiments.list("val/loss < 0.4")
    assert isinstance(listed, replicate.ExperimentList)
    assert [e.name for e in listed] == ["one", "two"]
    assert [e.name for e in replicate.experiments.list(["val/loss < 0.4", "lr < 1"])] == ["two"]
    assert [e.name for e in replicate.experiments.list(lambda e: e.name == "two")] == ["two"]
    with pytest.raises(UsageError, match="did you mean val/loss"):
        replicate.experiments.list("val_loss < 1")


def test_a_function_that_raises_for_some_leaves_those_out_and_says_so(kept: Path) -> None:
    def good(experiment: replicate.Experiment) -> bool:
        best = experiment.best()
        return bool(best.metrics["val/loss"] < 0.2)  # type: ignore[union-attr]

    with pytest.warns(UserWarning, match="left out 2 of 4 experiments.*AttributeError"):
        assert [e.name for e in replicate.experiments.list(good)] == ["one"]


def test_a_function_that_raises_for_all_is_an_error(kept: Path) -> None:
    with pytest.raises(KeyError, match="accuracy"):
        replicate.experiments.list(lambda e: e.params["accuracy"] > 1)
