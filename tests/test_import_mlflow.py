"""`replicate import` of MLflow's file store and of its SQLite database: as the real MLflow writes
them, and as hostile or damaged as they can be."""

from __future__ import annotations

import json
import math
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from conftest import ProjectDirectory, content_of
from other_tools import as_committed, by_the_real_tool
from replicate.interop.mlflow import artifact_directory, typed
from replicate.model import ExperimentRecord, Status, Value

STORES = {
    "files as committed": ("mlruns", as_committed("mlflow", "mlruns")),
    "database as committed": ("mlflow.db", as_committed("mlflow", "mlflow.db", "artifacts")),
    "files by the real tool": ("mlruns", by_the_real_tool("mlflow", "files")),
    "database by the real tool": ("mlflow.db", by_the_real_tool("mlflow", "database")),
}


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A store that MLflow 3.12 has written."""
    return written(request.param, tmp_path)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The file store that is committed, to be changed by a test."""
    return written("files as committed", tmp_path)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """The database that is committed, to be changed by a test."""
    with closing(sqlite3.connect(written("database as committed", tmp_path))) as connection:
        yield connection


def written(name: str, tmp_path: Path) -> Path:
    home = tmp_path / "mlflow"
    home.mkdir()
    path, write = STORES[name]
    write(home)
    return home / path


def named(project: ProjectDirectory) -> dict[str | None, ExperimentRecord]:
    return {record.name: record for record in project.records()}


def history(project: ProjectDirectory, name: str, metric: str) -> list[tuple[object, Value]]:
    """The steps and values of a metric that were logged, by step."""
    repository = project.open().repository
    record = named(project)[name]
    logged = [p for p in repository.history(record) if len(p.metrics) == 1 and metric in p.metrics]
    return sorted((p.step, p.metrics[metric]) for p in logged)


def run_directory(store: Path, name: str) -> Path:
    """The directory of a run in a file store."""
    every = store.glob("*/*/meta.yaml")
    (found,) = [meta.parent for meta in every if f"run_name: {name}" in meta.read_text()]
    return found


# ---------------------------------------------------------------- what the tool has written


def test_every_run_that_is_not_deleted_is_imported(project: ProjectDirectory, store: Path) -> None:
    done = project.cli("import", str(store))
    assert done.stdout == "4 experiments imported, 1 deleted there\n"
    assert named(project).keys() == {"first", "bad", "stopped", "going on"}


def test_how_runs_ended_is_kept(project: ProjectDirectory, store: Path) -> None:
    project.cli("import", str(store))
    assert {name: record.status for name, record in named(project).items()} == {
        "first": Status.FINISHED,
        "bad": Status.FAILED,
        "stopped": Status.KILLED,
        "going on": Status.LOST,
    }
    first = named(project)["first"]
    assert first.stop is not None and first.stop.time > first.created
    assert named(project)["going on"].stop is None


def test_what_a_run_says_of_itself_is_kept(project: ProjectDirectory, store: Path) -> None:
    project.cli("import", str(store))
    first = named(project)["first"]
    assert first.params == {
        "lr": 0.1,
        "depth": 3,
        "bias": True,
        "seed": None,
        "opt/name": "adam 2",
    }
    assert first.tags == ("team=vision",)
    assert (first.group, first.notes, first.user) == ("digits", "a note", "ann")
    assert first.command == "train.py"
    assert first.environment["git"]["commit"] == "0a1b2c3d"


def test_an_id_begins_with_that_of_mlflow(project: ProjectDirectory, store: Path) -> None:
    project.cli("import", str(store))
    for record in project.records():
        assert record.imported is not None and record.imported["from"] == "mlflow"
        original = record.imported["id"]
        assert len(original) == 32 and len(record.id) == 64 and record.id.startswith(original)
        assert f"from mlflow, {original}" in project.cli("show", original).stdout


def test_the_history_of_metrics_becomes_points(project: ProjectDirectory, store: Path) -> None:
    project.cli("import", str(store))
    assert history(project, "first", "val/loss") == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
    (one, first), (two, second) = history(project, "first", "odd")
    assert (one, two, second) == (1, 2, math.inf)
    assert isinstance(first, float) and math.isnan(first)


def test_the_checkpoint_that_is_made_of_the_history_adds_no_point_to_it(
    project: ProjectDirectory, store: Path
) -> None:
    project.cli("import", str(store))
    shown = json.loads(project.cli("show", named(project)["first"].id, "--json").stdout)
    assert shown["metrics"]["val/loss"]["count"] == 3
    assert len(project.open().repository.history(named(project)["first"])) == 5


def test_the_last_metrics_and_the_artifacts_become_a_checkpoint(
    project: ProjectDirectory, store: Path, tmp_path: Path
) -> None:
    project.cli("import", str(store))
    (checkpoint,) = named(project)["first"].checkpoints
    assert checkpoint.metrics == {"val/loss": 1 / 3, "odd": math.inf}
    assert checkpoint.step == 2
    assert checkpoint.path == ("model.txt", "net", "output")
    found = project.files_of(checkpoint.id, tmp_path / "out")
    weights = b"weights\n"
    assert found == {
        "model.txt": weights,
        "output/model.txt": weights,
        "net/model.txt": weights,  # logged as a model, which MLflow 3 keeps apart
    }
    assert named(project)["going on"].checkpoints == ()


def test_a_second_import_adds_nothing(project: ProjectDirectory, store: Path) -> None:
    project.cli("import", str(store))
    before, stored = content_of(project.repository), content_of(store.parent)
    again = project.cli("import", str(store))
    assert again.stdout == "0 experiments imported, 4 here already, 1 deleted there\n"
    assert content_of(project.repository) == before
    assert content_of(store.parent) == stored


def test_a_store_that_was_moved_has_its_artifacts_beside_it(
    project: ProjectDirectory, store: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "elsewhere"
    store.parent.rename(moved)
    done = project.cli("import", str(moved / store.name))
    assert "warning" not in done.stderr
    assert named(project)["first"].checkpoints[0].tree is not None


# ---------------------------------------------------------------- growth


def test_what_a_run_has_logged_since_is_added(project: ProjectDirectory, files: Path) -> None:
    project.cli("import", str(files))
    run = run_directory(files, "going on")
    (run / "metrics" / "val").mkdir(parents=True)
    (run / "metrics" / "val" / "loss").write_text("1795449110000 3.5 0\n")
    project.cli("import", str(files))
    with (run / "metrics" / "val" / "loss").open("a") as log:
        log.write("1795449110001 2.5 1\n")
    again = project.cli("import", str(files))
    assert again.stdout == "0 experiments imported, 1 completed, 3 here already, 1 deleted there\n"
    assert set(history(project, "going on", "val/loss")) == {(0, 3.5), (1, 2.5)}
    logs = list(project.repository.glob(f"experiments/{named(project)['going on'].id}/log/*"))
    assert sum(log.read_text().count('"val/loss"') for log in logs) == 2
    assert [c.metrics["val/loss"] for c in named(project)["going on"].checkpoints] == [3.5, 2.5]


def test_a_run_that_has_ended_since_says_so(
    project: ProjectDirectory, database: sqlite3.Connection, tmp_path: Path
) -> None:
    path = str(tmp_path / "mlflow" / "mlflow.db")
    project.cli("import", path)
    with database:
        database.execute(
            "UPDATE runs SET status = 'FAILED', end_time = start_time + 1 WHERE name = 'going on'"
        )
    project.cli("import", f"sqlite:///{path}")
    assert named(project)["going on"].status is Status.FAILED


# ---------------------------------------------------------------- damage and malice


def test_a_damaged_run_is_named_and_the_rest_imported(
    project: ProjectDirectory, files: Path
) -> None:
    meta = run_directory(files, "first") / "meta.yaml"
    meta.write_text("status: [")
    done = project.cli("import", str(files), expect=1)
    assert str(meta) in done.stderr
    assert named(project).keys() == {"bad", "stopped", "going on"}


def test_a_damaged_line_costs_one_value(project: ProjectDirectory, files: Path) -> None:
    log = run_directory(files, "first") / "metrics" / "val" / "loss"
    lines = log.read_text().splitlines()
    log.write_text("\n".join([lines[0], "1795449 x", lines[2]]))
    done = project.cli("import", str(files), expect=1)
    assert done.stderr.count(f"line 2 of {log} is damaged") == 1
    assert history(project, "first", "val/loss") == [(0, 1.0), (2, 1 / 3)]


def test_a_database_that_is_damaged_is_named(project: ProjectDirectory, tmp_path: Path) -> None:
    path = written("database as committed", tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[:4096] + bytes(len(data) - 4096))
    done = project.cli("import", str(path), expect=1)
    assert f"{path} cannot be read" in done.stderr


def test_artifacts_that_are_not_here_are_spoken_of_once(
    project: ProjectDirectory, database: sqlite3.Connection, tmp_path: Path
) -> None:
    with database:
        database.execute("UPDATE runs SET artifact_uri = 's3://b/1/' || run_uuid || '/artifacts'")
        database.execute("DELETE FROM logged_models")
    done = project.cli("import", str(tmp_path / "mlflow" / "mlflow.db"))
    assert done.stderr.count("artifacts of runs at s3://b/1 were not looked at") == 1
    assert named(project)["first"].checkpoints[0].path is None


def test_a_link_out_of_the_artifacts_is_not_followed(
    project: ProjectDirectory, files: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("secret")
    link = run_directory(files, "first") / "artifacts" / "link"
    link.symlink_to(tmp_path / "secret")
    done = project.cli("import", str(files), expect=1)
    assert f"{link} is left out: it is a link that leads outside" in done.stderr
    (checkpoint,) = named(project)["first"].checkpoints
    assert checkpoint.tree is not None
    assert "link" not in project.open().repository.tree(checkpoint.tree).files


def test_no_store_can_pass_off_another_directory_as_artifacts(tmp_path: Path) -> None:
    end = ("ab12", "artifacts")
    (tmp_path / "ab12" / "artifacts").mkdir(parents=True)
    (tmp_path / "private").mkdir()
    assert artifact_directory(str(tmp_path / "private"), tmp_path, end) is None
    hidden = f"{tmp_path}/private/../ab12/artifacts"
    assert artifact_directory(hidden, tmp_path, end) is None
    honest = f"file://{tmp_path}/ab12/artifacts"
    assert artifact_directory(honest, tmp_path, end) == tmp_path / "ab12" / "artifacts"


def test_the_artifacts_of_a_server_lie_beside_its_database(tmp_path: Path) -> None:
    place = tmp_path / "mlartifacts" / "1" / "ab12" / "artifacts"
    place.mkdir(parents=True)
    uri = "mlflow-artifacts:/1/ab12/artifacts"
    assert artifact_directory(uri, tmp_path, ("ab12", "artifacts")) == place


def test_several_stores_in_one_directory_are_not_guessed_among(
    project: ProjectDirectory, tmp_path: Path
) -> None:
    path = written("files as committed", tmp_path)
    STORES["database as committed"][1](path.parent)
    done = project.cli("import", str(path.parent), expect=2)
    assert str(path) in done.stderr and "mlflow.db" in done.stderr
    shutil.rmtree(path)
    result = json.loads(project.cli("import", str(path.parent), "--json").stdout)
    assert result["kind"] == "MLflow database"


# ---------------------------------------------------------------- params


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-1", -1),
        ("0.1", 0.1),
        ("1e-05", 1e-05),
        ("inf", math.inf),
        ("True", True),
        ("None", None),
        ("007", "007"),
        ("1e-5", "1e-5"),
        (" 3", " 3"),
        ("1_000", "1_000"),
        ("adam", "adam"),
        ("", ""),
    ],
)
def test_a_param_is_a_number_only_if_nothing_is_lost(text: str, value: Value) -> None:
    found = typed(text)
    assert found == value and type(found) is type(value)
