"""The JSON that commands print is what docs/reference/json.md says, key by key, both ways."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import click
import pytest

from conftest import ProjectDirectory, posix
from replicate.cli import COMMANDS, main

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "json.md"

pytestmark = posix

RUNS = (
    """
    import replicate
    experiment = replicate.init(params={"lr": 0.1, "nested": {"x": [1]}, "nan": float("nan")},
                                name="one", tags=["a"], notes="n", group="g", keep={"last": 1})
    for step in range(3):
        open("model.txt", "w").write(str(step) * 1000)
        experiment.log({"loss": float("nan")}, step)
        experiment.checkpoint("model.txt", step, {"loss": 1.0 / (step + 1), "inf": float("inf")},
                              ("loss", "minimize"))
    """,
    """
    # The same script, changed.
    import replicate
    experiment = replicate.init(params={"lr": 1, "new": None})
    open("model.txt", "w").write("other")
    open("more.txt", "w").write("more")
    experiment.checkpoint(["model.txt", "more.txt"], 0.5, {"loss": 2}, ("loss", "minimize"))
    experiment.checkpoint(metrics={"text": "x"})
    raise ValueError("as planned")
    """,
    """
    import replicate
    first, *_ = replicate.experiments.list()
    replicate.init(path=None, parent=first.latest())
    """,
    """
    import replicate
    experiment = replicate.init(resume="latest", from_step=0.5, params={"lr": 2})
    experiment.checkpoint(step=1, metrics={"loss": 0.5}, primary_metric=("loss", "minimize"))
    """,
)


# ---------------------------------------------------------------- what the page says


@dataclass
class Shape:
    """An object as the page describes it."""

    types: dict[str, str]
    base: str | None
    seen: set[str] = field(default_factory=set)


def _sections() -> Iterator[tuple[str, Shape]]:
    for section in re.split(r"^## ", PAGE.read_text("utf-8"), flags=re.M)[1:]:
        title, _, text = section.partition("\n")
        base = re.search(r"^All of an? \[([\w ]+)\]", text, re.M)
        types = {
            key: kind
            for keys, kind in re.findall(r"^\| (`.+?) \| (.+?) \|", text, re.M)
            for key in re.findall(r"`(\w+)`", keys)
        }
        yield title, Shape(types, base[1] if base else None)


def _printed() -> dict[str, str]:
    """What each command prints, by its name and, if it tells apart, what is shown."""
    table = re.findall(r"^\| (`replicate .+?) \| (.+?) \|$", PAGE.read_text("utf-8"), re.M)
    return {
        command: kind.partition(", in the order")[0]
        for commands, kind in table
        for command in re.findall(r"`replicate (.+?)`", commands)
    }


class Schema:
    """The page, which values are held against."""

    def __init__(self) -> None:
        self.shapes = dict(_sections())
        self.printed = _printed()

    def keys(self, shape: str) -> dict[str, str]:
        found = self.shapes[shape]
        return {**(self.keys(found.base) if found.base else {}), **found.types}

    def check(self, value: Any, kind: str, where: str) -> None:
        """Raise AssertionError unless the value is of the kind."""
        assert self.fits(value, kind.removesuffix(", may be absent"), where), f"{where}: {kind}"

    def fits(self, value: Any, kind: str, where: str) -> bool:
        kinds = re.split(r", | or ", kind)
        return any(self._fits(value, one, where) for one in kinds)

    def _fits(self, value: Any, kind: str, where: str) -> bool:
        if kind.startswith("list of "):
            inner = kind.removeprefix("list of ")
            return isinstance(value, list) and all(self.fits(v, inner, where) for v in value)
        if kind.startswith("object of "):
            inner = kind.removeprefix("object of ")
            return isinstance(value, dict) and all(
                self.fits(v, inner, f"{where}.{k}") for k, v in value.items()
            )
        if kind.startswith("["):
            return isinstance(value, dict) and self._is_shape(
                value, kind[1 : kind.index("]")], where
            )
        return value == kind.strip("`") if kind.startswith("`") else SIMPLE[kind](value)

    def _is_shape(self, value: dict[str, Any], shape: str, where: str) -> bool:
        keys = self.keys(shape)
        needed = {key for key, kind in keys.items() if "may be absent" not in kind}
        assert value.keys() <= keys.keys(), f"{where}: {PAGE.name} lacks keys of {shape}"
        assert needed <= value.keys(), f"{where}: {shape} lacks keys of {PAGE.name}"
        for key, inner in value.items():
            self.check(inner, keys[key], f"{where}.{key}")
        self.shapes[shape].seen |= value.keys()
        if base := self.shapes[shape].base:
            self.shapes[base].seen |= value.keys()
        return True


def _is_number(value: Any) -> bool:
    return (isinstance(value, int | float) and not isinstance(value, bool)) or (
        value in ("NaN", "Infinity", "-Infinity")
    )


def _is_time(value: Any) -> bool:
    return value.endswith("Z") and datetime.fromisoformat(value) is not None


SIMPLE: dict[str, Callable[[Any], bool]] = {
    "text": lambda v: isinstance(v, str),
    "boolean": lambda v: isinstance(v, bool),
    "integer": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "number": _is_number,
    "time": _is_time,
    "id": lambda v: isinstance(v, str) and re.fullmatch("[0-9a-f]{64}", v) is not None,
    "null": lambda v: v is None,
    "value": lambda v: True,
}


# ---------------------------------------------------------------- what the commands print


def strict(text: str) -> Any:
    """JSON as every parser reads it: without NaN."""

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture
def recorded(project: ProjectDirectory) -> ProjectDirectory:
    """A project with runs that ended in different ways."""
    for script in RUNS:
        project.run(script, expect=None)
    project.wait_for_helpers()
    return project


def samples(project: ProjectDirectory) -> Iterator[tuple[str, Any]]:
    """Each command as the page names it, with what it prints."""
    first, second, third = project.records()

    def run(*words: str, expect: int = 0) -> Any:
        return strict(project.cli(*words, "--json", expect=expect).stdout)

    yield "tag", run("tag", first.id, "b")
    yield "note", run("note", first.id, "text")
    yield "name", run("name", first.id, "new")
    yield "group", run("group", first.id, "--clear")
    yield "ls", run("ls")
    yield "ps", run("ps")
    for record in (first, second, third):
        yield "show EXPERIMENT", run("show", record.id)
    yield "show CHECKPOINT", run("show", first.checkpoints[0].id)
    yield "show EXPERIMENT --system", run("show", first.id, "--system")
    yield "logs", run("logs", second.id)
    yield "diff", run("diff", first.id, second.id)
    yield "diff", run("diff", second.checkpoints[0].id, third.id)
    yield "du", run("du")
    yield "gc", run("gc", "--dry-run")
    yield "compact", run("compact")
    yield "plot METRIC", run("plot", "loss")
    yield "plot METRIC --scatter PARAM", run("plot", "loss", "--scatter", "lr")
    yield "plot METRIC --parallel", run("plot", "loss", "--parallel")
    yield "import", run("import", str(project.repository), "-R", str(project.path / "copy"))
    other = str(project.path / "other")
    yield "push", run("push", other)
    yield "pull", run("pull", other)
    yield "cp", run("cp", other, str(project.path / "third"), "--dry-run")
    yield "verify", run("verify", "--full")
    for blob in [p for p in project.repository.glob("blobs/*/*") if p.is_file()]:
        blob.chmod(0o644)
        blob.write_bytes(b"x")
    yield "verify", run("verify", "--full", expect=1)


def test_commands_print_what_is_documented_and_all_of_it(recorded: ProjectDirectory) -> None:
    schema = Schema()
    for command, value in samples(recorded):
        schema.check(value, schema.printed.pop(command, "") or Schema().printed[command], command)
    assert schema.printed == {}, "documented, and printed by no command here"
    for name, shape in schema.shapes.items():
        assert shape.seen >= shape.types.keys(), f"{name}: documented, and never printed"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_with_json_is_documented(name: str) -> None:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    documented = {printed.split()[0] for printed in _printed()}
    assert (name in documented) is any("--json" in p.opts for p in command.params)


def test_the_page_uses_only_types_that_it_explains() -> None:
    schema = Schema()
    kinds = [k for shape in schema.shapes.values() for k in shape.types.values()]
    for kind in [*kinds, *schema.printed.values()]:
        for one in re.split(r", | or ", kind.removesuffix(", may be absent")):
            simple = re.sub(r"^(list|object) of ", "", one)
            known = simple in SIMPLE or simple.startswith("`")
            assert known or re.match(r"\[([\w ]+)\]", simple)[1] in schema.shapes, kind  # type: ignore[index]
