"""Imports point down: every module of the package is read, and none knows what lies above it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

import replicate
from replicate.cli import COMMANDS

#: From the bottom up. A module may import what stands in a row below its own, and the modules of
#: its own package. A package stands for all its modules, unless one of them has a row of its own.
LAYERS = (
    ("errors", "background", "secrets", "checks", "flat", "planes", "readers", "locks"),
    (
        *("config", "ignore", "cache", "outputs", "periods", "positional"),
        *("backends.base", "chunking", "compression"),
    ),
    ("model", "packs", "backends"),
    ("blobs", "records", "values", "diff", "query", "environment", "process", "text", "changes"),
    ("tree", "fold", "analysis", "journal", "streams", "spool"),
    ("repository", "snapshots"),
    ("together",),
    ("maintenance", "index"),
    ("recorder",),
    ("project", "interop"),
    ("api", "cli", "dashboard", "integrations", "notebook"),
    ("", "__main__"),  # the package itself, whose names are those of `api` and `project`
)
#: What the commands of the command line share. No command imports another.
SHARED_BY_COMMANDS = {
    *("chart", "options", "output", "progress", "schema", "table", "text"),
    *("facts", "listing", "metrics", "moving", "provenance", "selection"),
}
#: Imports inside functions: who has one, of what, and why it is not at the top.
LATE = {
    ("", "replicate.*"): "the command line imports the package, and needs none of its names",
    ("analysis", "replicate.analysis.*"): "a training script draws nothing",
    ("maintenance", "replicate.maintenance.*"): "a run imports what it keeps, and no collector",
    ("project.lists", "replicate.query"): "a training script chooses among no experiments",
    ("project.project", "replicate.maintenance"): "a training script does not collect or verify",
    ("project.slips", "difflib"): "only a run whose primary metric is missing looks for another",
    ("recorder.client", "replicate.recorder.commit"): "only a run without a helper commits itself",
    ("recorder.client", "replicate.recorder.foreground"): "the same",
    ("recorder.helper", "replicate.recorder.system"): "20 ms that saving does not wait for",
    ("recorder.leftovers", "replicate.recorder.recovery"): "only a run after a crash recovers",
    ("project.project", "replicate.recorder.recovery"): "the same, and `sync`",
    ("project.project", "replicate.project.spooled"): "only who looks at a run offline reads it so",
    ("environment", "importlib.metadata"): "10 ms that only the helper has to pay",
    ("backends.files", "concurrent.futures"): "8 ms that a script which only spools need not pay",
    ("backends.credentials", "boto3"): "optional: only who uses AWS's profiles has it",
    ("backends.credentials", "botocore.*"): "the same",
    ("backends.credentials", "obstore.auth.*"): "the same",
    ("backends.location", "replicate.backends.cloud"): "obstore is for those who have a bucket",
    ("compression", "zstandard"): "only a repository that compresses needs it",
    ("planes", "numpy"): "optional: 70 ms that only long chunks which are compressed repay",
    ("chunking", "pyfastcdc.cy"): "only the process that cuts files needs it",
    ("index.apart", "replicate.index.crew"): "subprocess: 10 ms that only many experiments repay",
    ("cache", "sqlite3"): "a training script lists nothing, and some Pythons are built without it",
    ("config.file", "yaml"): "20 ms that only those with a replicate.yaml pay",
}
#: Who may read the environment, and who may speak to the person.
READS_ENVIRONMENT = {"config", "cli"}
SPEAKS = {"api", "cli"}

ROOT = Path(replicate.__file__).parent


class Import(NamedTuple):
    """One import: of which module, on which line, and whether it stands in a function."""

    target: str
    line: int
    late: bool


@cache
def modules() -> dict[str, ast.Module]:
    """Every module of the package, by its name below `replicate`."""
    found = {}
    for file in sorted(ROOT.rglob("*.py")):
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix("__init__").rstrip(".")] = ast.parse(file.read_text("utf-8"))
    return found


def imports(module: str) -> list[Import]:
    """All imports of a module, those in functions and under TYPE_CHECKING too."""
    return list(_imports(modules()[module], late=False))


def _imports(node: ast.AST, late: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, child.lineno, late) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            for alias in child.names:
                yield Import(_target(child.module or "", alias.name), child.lineno, late)
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _imports(child, late=True)
        else:
            yield from _imports(child, late)


def _target(module: str, name: str) -> str:
    """The module that `from module import name` imports: `name` may itself be one."""
    inner = f"{module}.{name}".removeprefix("replicate.")
    return f"replicate.{inner}" if module.startswith("replicate") and inner in modules() else module


def ours(target: str) -> str | None:
    """The name below `replicate`, or None for a module of others."""
    if target == "replicate":
        return ""
    return target.removeprefix("replicate.") if target.startswith("replicate.") else None


def layer(module: str) -> int:
    """The row of a module: that of the longest name which it is or lies in."""
    rows = {name: row for row, names in enumerate(LAYERS) for name in names}
    name = module
    while name not in rows:
        assert "." in name, f"{module} has no row in LAYERS"
        name = name.rpartition(".")[0]
    return rows[name]


def package(module: str) -> str:
    return module.partition(".")[0]


@pytest.mark.parametrize("module", modules())
def test_imports_point_down(module: str) -> None:
    for found in imports(module):
        target = ours(found.target)
        if target is None or (package(target) == package(module) and package(module)):
            continue
        if target == "" and package(module) == "cli":
            continue  # for the version that it shows
        assert layer(target) < layer(module), f"line {found.line} imports {found.target}"


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {
        module: {
            target
            for found in imports(module)
            if not found.late and (target := ours(found.target)) and target != module
        }
        for module in modules()
        if module
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"imports in a circle: {error.args[1]}")


@pytest.mark.parametrize("module", modules())
def test_an_import_inside_a_function_has_a_reason(module: str) -> None:
    for found in imports(module):
        if found.late:
            parent = found.target.rpartition(".")[0]
            known = {(module, found.target), (module, f"{parent}.*")}
            assert known & LATE.keys(), f"line {found.line} imports {found.target} in a function"


@pytest.mark.parametrize("command", [name for name in COMMANDS if f"cli.{name}" in modules()])
def test_no_command_imports_another(command: str) -> None:
    for found in imports(f"cli.{command}"):
        target = ours(found.target) or ""
        if package(target) == "cli" and "." in target:
            shared = target.rpartition(".")[2]
            assert shared in SHARED_BY_COMMANDS, f"line {found.line} imports {found.target}"


@pytest.mark.parametrize("module", [m for m in modules() if package(m) not in SPEAKS])
def test_only_faces_speak_to_the_person(module: str) -> None:
    for node in ast.walk(modules()[module]):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"print", "input"}, f"line {node.lineno}"
        if isinstance(node, ast.Attribute):
            said = f"{ast.unparse(node.value)}.{node.attr}"
            assert said not in {"sys.stdout", "sys.stderr", "sys.stdin"}, f"line {node.lineno}"


@pytest.mark.parametrize("module", [m for m in modules() if package(m) not in READS_ENVIRONMENT])
def test_only_config_and_the_command_line_read_the_environment(module: str) -> None:
    for node in ast.walk(modules()[module]):
        if isinstance(node, ast.Attribute):
            read = f"{ast.unparse(node.value)}.{node.attr}"
            assert read not in {"os.environ", "os.getenv", "os.environb"}, f"line {node.lineno}"
    names = [found.target for found in imports(module)]
    assert "os.environ" not in names
