"""`replicate export`: what was recorded, in files that need no Replicate to be read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import ProjectDirectory, content_of
from replicate.cli.export import whole_json

parquet = pytest.importorskip("pyarrow.parquet")

TRAIN = """
    import sys, replicate
    rate, name = float(sys.argv[1]), sys.argv[2]
    params = {"rate": rate, "depth": int(rate * 10), "model": {"kind": name}, "mixed": sys.argv[3]}
    params["mixed"] = 1 if params["mixed"] == "1" else params["mixed"]
    with replicate.init(path="train.py", params=params, name=name, tags=["t"]) as experiment:
        for step in range(2):
            open("model.txt", "w").write(f"{name} {step}")
            loss = float("nan") if step == 0 else rate
            experiment.log({"seen": step * 10}, step=step)
            experiment.checkpoint(
                path="model.txt",
                step=step,
                metrics={"loss": loss},
                primary_metric=("loss", "minimize"),
            )
"""


@pytest.fixture
def trained(project: ProjectDirectory) -> Iterator[ProjectDirectory]:
    """A project with two experiments."""
    project.run(TRAIN, "0.1", "first", "1")
    project.run(TRAIN, "0.5", "second", "x")
    project.wait_for_helpers()
    yield project


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_a_directory_has_all_of_every_experiment(trained: ProjectDirectory, tmp_path: Path) -> None:
    target = tmp_path / "out"
    trained.cli("export", str(target))
    assert {d.name for d in target.iterdir()} == {r.id for r in trained.records()}
    for record in trained.records():
        place = target / record.id
        expected = whole_json(record)
        assert lines(place / "checkpoints.jsonl") == expected.pop("checkpoints")
        assert json.loads((place / "experiment.json").read_text()) == expected
        history = lines(place / "history.jsonl")
        seen = [(p["step"], p["metrics"]["seen"]) for p in history if "seen" in p["metrics"]]
        losses = [p["metrics"]["loss"] for p in history if "loss" in p["metrics"]]
        assert seen == [(0, 0), (1, 10)]
        assert losses == ["NaN", record.params["rate"]]
        assert content_of(place / "code") == {"train.py": (trained.path / "train.py").read_bytes()}
        for checkpoint in record.checkpoints:
            files = content_of(place / "checkpoints" / checkpoint.id)
            assert files == {"model.txt": f"{record.name} {checkpoint.step}".encode()}


def test_json_lines_have_an_experiment_each(trained: ProjectDirectory, tmp_path: Path) -> None:
    target = tmp_path / "runs.jsonl"
    trained.cli("export", str(target))
    found = lines(target)
    assert [{k: v for k, v in e.items() if k != "history"} for e in found] == [
        whole_json(record) for record in trained.records()
    ]
    assert [len(e["history"]) for e in found] == [4, 4]
    piped = trained.cli("export", "-", "--format", "jsonl").stdout
    assert piped == target.read_text(encoding="utf-8")


def test_parquet_reads_back_as_it_was(trained: ProjectDirectory, tmp_path: Path) -> None:
    trained.cli("export", str(tmp_path / "tables"), "--format", "parquet")
    experiments = parquet.read_table(tmp_path / "tables" / "experiments.parquet")
    types = {field.name: str(field.type) for field in experiments.schema}
    assert types["params.rate"] == "double" and types["params.depth"] == "int64"
    assert types["params.mixed"] == types["params.model.kind"] == "string"
    rows = experiments.to_pylist()
    records = trained.records()
    for row, record in zip(rows, records, strict=True):
        best = record.best()
        assert best is not None
        assert (row["id"], row["name"], row["tags"]) == (record.id, record.name, ["t"])
        assert row["created"] == record.created
        assert row["status"] == "finished" and row["checkpoints"] == 2
        assert row["params.rate"] == record.params["rate"]
        assert row["params.depth"] == record.params["depth"]
        assert row["best_checkpoint"] == best.id
        assert row["metrics.loss"] == record.params["rate"]
    assert [row["params.mixed"] for row in rows] == ["1", "x"]
    history = parquet.read_table(tmp_path / "tables" / "history.parquet").to_pylist()
    assert len(history) == 8
    first = [row for row in history if row["experiment"] == records[0].id]
    assert [r["value"] for r in first if r["metric"] == "seen"] == [0.0, 10.0]
    loss = [(r["step"], r["value"]) for r in first if r["metric"] == "loss"]
    assert math.isnan(loss[0][1]) and loss[1] == (1.0, 0.1)


def test_ids_and_filters_choose(trained: ProjectDirectory, tmp_path: Path) -> None:
    first, second = trained.records()
    trained.cli("export", str(tmp_path / "a.jsonl"), first.id[:10])
    trained.cli("export", str(tmp_path / "b.jsonl"), "--filter", "rate > 0.2")
    assert [e["id"] for e in lines(tmp_path / "a.jsonl")] == [first.id]
    assert [e["id"] for e in lines(tmp_path / "b.jsonl")] == [second.id]
    done = trained.cli("export", str(tmp_path / "c"), "--filter", "rate > 9", expect=2)
    assert 'No experiment matches: "rate > 9" is true of none; rate is' in done.stderr


def test_a_name_says_the_format_or_why_it_cannot(trained: ProjectDirectory, tmp_path: Path) -> None:
    trained.cli("export", str(tmp_path / "all.JSONL"))
    assert len(lines(tmp_path / "all.JSONL")) == 2
    done = trained.cli("export", str(tmp_path / "all.parquet"), expect=2)
    assert "--format parquet" in done.stderr
    assert not (tmp_path / "all.parquet").exists()


@pytest.mark.parametrize("name", ["out", "out.jsonl", "tables"])
def test_nothing_that_is_there_is_overwritten(
    trained: ProjectDirectory, tmp_path: Path, name: str
) -> None:
    target = tmp_path / name
    if name.endswith(".jsonl"):
        target.write_text("mine")
    else:
        target.mkdir()
        (target / "mine").write_text("mine")
    before = content_of(tmp_path)
    more = ["--format", "parquet"] if name == "tables" else []
    done = trained.cli("export", str(target), *more, expect=2)
    assert "is there already" in done.stderr
    assert content_of(tmp_path) == before


def test_what_is_damaged_is_named_and_the_rest_exported(
    trained: ProjectDirectory, tmp_path: Path
) -> None:
    record = trained.records()[0]
    bad, good = record.checkpoints
    assert bad.tree is not None
    (entry,) = trained.open().repository.tree(bad.tree).entries
    (trained.repository / "blobs" / entry.hash[:2] / entry.hash).unlink()
    done = trained.cli("export", str(tmp_path / "out"), expect=1)
    assert f"checkpoints/{bad.id} of experiment {record.id[:7]} is lost" in done.stderr
    left = content_of(tmp_path / "out" / record.id / "checkpoints")
    assert left == {f"{good.id}/model.txt": b"first 1"}
