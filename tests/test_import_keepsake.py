"""`replicate import` of a Keepsake repository: as the real Keepsake writes one, and as hostile or
damaged as one can be."""

from __future__ import annotations

import io
import json
import math
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from conftest import ProjectDirectory, content_of
from other_tools import as_committed, by_the_real_tool
from replicate.model import PrimaryMetric, Status

KEEPSAKE = {
    "as committed": as_committed("keepsake", "repository"),
    "by the real tool": by_the_real_tool("keepsake"),
}
SAVED = "weights of step {}\n"


@pytest.fixture(params=KEEPSAKE)
def real(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A repository that Keepsake 0.4.2 has written."""
    home = tmp_path / "keepsake"
    home.mkdir()
    KEEPSAKE[request.param](home)
    return home / "repository"


@pytest.fixture
def keepsake(tmp_path: Path) -> Path:
    """The repository that is committed, to be changed by a test."""
    KEEPSAKE["as committed"](tmp_path)
    return tmp_path / "repository"


def metadata(repository: Path) -> dict[str, dict[str, Any]]:
    """What Keepsake has written of each experiment, those with most checkpoints first."""
    found = [json.loads(f.read_text()) for f in repository.glob("metadata/experiments/*.json")]
    return {v["id"]: v for v in sorted(found, key=lambda v: -len(v["checkpoints"]))}


def edit(repository: Path, name: str, **changes: Any) -> None:
    """Change the metadata of an experiment."""
    file = repository / "metadata" / "experiments" / f"{name}.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def pack(archive: Path, *members: tuple[tarfile.TarInfo, bytes]) -> None:
    """Write a .tar.gz with exactly these members."""
    with tarfile.open(archive, "w:gz") as file:
        for member, data in members:
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, target, 0o644
    return info


def files_of(project: ProjectDirectory, tree: str | None) -> dict[str, int]:
    assert tree is not None
    return {e.path: e.size for e in project.open().repository.tree(tree).entries}


# ---------------------------------------------------------------- what the tool has written


def test_experiments_keep_their_ids_and_inputs(project: ProjectDirectory, real: Path) -> None:
    project.cli("import", str(real))
    records = {record.id: record for record in project.records()}
    assert records.keys() == metadata(real).keys()
    for id, value in metadata(real).items():
        record = records[id]
        assert record.command == value["command"] == "train.py"
        assert record.user == value["user"]
        assert record.packages == value["python_packages"]
        assert record.created.isoformat()[:19] == value["created"][:19]
        assert record.imported is not None
        assert record.imported["from"] == "keepsake" and record.imported["version"] == "0.4.2"


def test_params_keep_infinity_null_and_nesting(project: ProjectDirectory, real: Path) -> None:
    project.cli("import", str(real))
    first = project.records()[0]
    assert first.params == {
        "learning_rate": 0.1,
        "depth": 3,
        "limit": math.inf,
        "seed": None,
        "model": {"layers": [8, 4]},
    }


def test_checkpoints_keep_ids_metrics_and_the_best(project: ProjectDirectory, real: Path) -> None:
    project.cli("import", str(real))
    first, second = project.records()
    expected = metadata(real)[first.id]["checkpoints"]
    assert [c.id for c in first.checkpoints] == [c["id"] for c in expected]
    assert [c.step for c in first.checkpoints] == [0, 1, 2]
    losses = [c.metrics["loss"] for c in first.checkpoints]
    assert losses[0] == 0.5 and math.isnan(losses[1]) and losses[2] == 0.25
    assert {c.metrics["worst"] for c in first.checkpoints} == {-math.inf}
    assert first.primary_metric == PrimaryMetric("loss", "minimize")
    assert first.best() == first.checkpoints[2]
    (only,) = second.checkpoints
    assert (only.step, only.metrics, only.path, only.tree) == (7, {"loss": 2}, None, None)


def test_code_and_files_can_be_checked_out(
    project: ProjectDirectory, real: Path, tmp_path: Path
) -> None:
    project.cli("import", str(real))
    first = project.records()[0]
    for checkpoint in first.checkpoints:
        found = project.files_of(checkpoint.id, tmp_path / checkpoint.id)
        assert found["weights/model.txt"] == SAVED.format(checkpoint.step).encode()
        assert b"keepsake.init" in found["train.py"]
    project.cli("verify", "--full")


def test_a_run_that_was_stopped_has_finished(project: ProjectDirectory, real: Path) -> None:
    project.cli("import", str(real))
    for record in project.records():
        assert record.status is Status.FINISHED and record.stop is not None
        assert record.stop.time == record.checkpoints[-1].created


def test_that_nobody_knows_how_a_run_ended_is_said_until_it_is_known(
    project: ProjectDirectory, keepsake: Path
) -> None:
    stopped, beating = metadata(keepsake)
    beat = keepsake / "metadata" / "heartbeats" / f"{beating}.json"
    beat.parent.mkdir(exist_ok=True)
    beat.write_text(
        json.dumps({"experiment_id": beating, "last_heartbeat": "2020-11-01T12:00:00Z"})
    )
    project.cli("import", str(keepsake))
    status = {record.id: record.status for record in project.records()}
    assert status == {stopped: Status.FINISHED, beating: Status.LOST}
    beat.unlink()
    project.cli("import", str(keepsake))
    assert {record.status for record in project.records()} == {Status.FINISHED}


def test_of_a_version_without_heartbeats_nobody_knows_how_a_run_ended(
    project: ProjectDirectory, keepsake: Path
) -> None:
    for name in metadata(keepsake):
        file = keepsake / "metadata" / "experiments" / f"{name}.json"
        value = json.loads(file.read_text())
        del value["keepsake_version"]
        file.write_text(json.dumps(value))
    project.cli("import", str(keepsake))
    assert {record.status for record in project.records()} == {Status.LOST}


def test_a_second_import_adds_nothing(project: ProjectDirectory, real: Path) -> None:
    project.cli("import", str(real))
    before = content_of(project.repository)
    again = project.cli("import", str(real))
    assert again.stdout == "0 experiments imported, 2 here already\n"
    assert content_of(project.repository) == before


def test_the_project_of_a_repository_names_it_too(
    project: ProjectDirectory, keepsake: Path
) -> None:
    keepsake.rename(keepsake.with_name(".keepsake"))
    result = json.loads(project.cli("import", str(keepsake.parent), "--json").stdout)
    assert result["kind"] == "Keepsake repository"
    assert len(result["added"]) == 2 and result["problems"] == []


# ---------------------------------------------------------------- other versions, and growth


def test_what_a_run_has_recorded_since_is_added(project: ProjectDirectory, keepsake: Path) -> None:
    id, value = next(iter(metadata(keepsake).items()))
    edit(keepsake, id, checkpoints=value["checkpoints"][:1])
    project.cli("import", str(keepsake))
    edit(keepsake, id, checkpoints=value["checkpoints"])
    again = project.cli("import", str(keepsake))
    assert again.stdout == "0 experiments imported, 1 completed, 1 here already\n"
    assert len(project.open().resolve(id).checkpoints) == 3  # type: ignore[union-attr]


def test_an_import_that_was_cut_off_is_finished_by_the_next(
    project: ProjectDirectory, keepsake: Path
) -> None:
    project.cli("import", str(keepsake))
    whole = project.records()
    journals = list(project.repository.glob("experiments/*/journal/*"))
    for journal in journals:
        journal.unlink()  # as when only experiment.json had been written
    project.cli("import", str(keepsake))
    assert [r.checkpoints for r in project.records()] == [r.checkpoints for r in whole]


def test_the_layout_of_before_there_were_archives(
    project: ProjectDirectory, keepsake: Path, tmp_path: Path
) -> None:
    """Plain directories, and a file of metadata for each checkpoint."""
    (keepsake / "repository.json").unlink()
    (keepsake / "metadata" / "checkpoints").mkdir()
    for id, value in metadata(keepsake).items():
        for checkpoint in value.pop("checkpoints"):
            file = keepsake / "metadata" / "checkpoints" / f"{checkpoint['id']}.json"
            file.write_text(json.dumps({**checkpoint, "experiment_id": id}))
        file = keepsake / "metadata" / "experiments" / f"{id}.json"
        file.write_text(json.dumps(value))
    for archive in keepsake.glob("*/*.tar.gz"):
        with tarfile.open(archive) as packed:
            packed.extractall(archive.parent, filter="data")
        archive.unlink()
    project.cli("import", str(keepsake))
    first = project.records()[0]
    assert [c.step for c in first.checkpoints] == [0, 1, 2]
    found = project.files_of(first.checkpoints[1].id, tmp_path / "out")
    assert found["weights/model.txt"] == SAVED.format(1).encode()


def test_what_was_deleted_here_does_not_come_back(
    project: ProjectDirectory, keepsake: Path
) -> None:
    project.cli("import", str(keepsake))
    first, second = project.records()
    project.cli("rm", "--force", first.id, second.checkpoints[0].id)
    project.cli("import", str(keepsake))
    assert [(r.id, r.checkpoints) for r in project.records()] == [(second.id, ())]


# ---------------------------------------------------------------- damage and malice


def test_a_damaged_experiment_is_named_and_the_rest_imported(
    project: ProjectDirectory, keepsake: Path
) -> None:
    first, second = metadata(keepsake)
    file = keepsake / "metadata" / "experiments" / f"{first}.json"
    file.write_text(file.read_text()[:100])
    done = project.cli("import", str(keepsake), expect=1)
    assert done.stdout == "1 experiment imported\n"
    assert str(file) in done.stderr
    assert [record.id for record in project.records()] == [second]


@pytest.mark.parametrize("harm", ["missing", "cut off", "flipped", "no archive"])
def test_a_damaged_archive_costs_only_its_files(
    project: ProjectDirectory, keepsake: Path, harm: str
) -> None:
    value = next(iter(metadata(keepsake).values()))
    archive = keepsake / "checkpoints" / f"{value['checkpoints'][0]['id']}.tar.gz"
    data = archive.read_bytes()
    archive.unlink()
    if harm != "missing":
        flipped = data[:-6] + bytes([data[-6] ^ 1]) + data[-5:]  # in the checksum of all bytes
        content = {"cut off": data[:-20], "flipped": flipped, "no archive": b"?"}
        archive.write_bytes(content[harm])
    done = project.cli("import", str(keepsake), expect=1)
    assert str(archive) in done.stderr
    first = project.records()[0]
    assert [c.tree is None for c in first.checkpoints] == [True, False, False]
    assert first.checkpoints[0].metrics["loss"] == 0.5
    assert str(archive) in first.problems[0]


UNSAFE = {
    "a parent": member("x/../../outside"),
    "an absolute path": member("x//etc/outside"),
    "a link that leads outside": member("x/link", tarfile.SYMTYPE, "../../outside"),
    "a hard link": member("x/hard", tarfile.LNKTYPE, "x/good"),
    "a device": member("x/device", tarfile.CHRTYPE),
    "a pipe": member("x/pipe", tarfile.FIFOTYPE),
    "what git keeps": member("x/.git/config"),
    "no directory of its own": member("outside"),
}


@pytest.mark.parametrize("unsafe", UNSAFE)
def test_an_unsafe_member_is_left_out_and_named(
    project: ProjectDirectory, keepsake: Path, unsafe: str
) -> None:
    value = next(iter(metadata(keepsake).values()))
    archive = keepsake / "checkpoints" / f"{value['checkpoints'][0]['id']}.tar.gz"
    pack(archive, (member("x/good"), b"good"), (UNSAFE[unsafe], b""))
    done = project.cli("import", str(keepsake), expect=1)
    assert f"{UNSAFE[unsafe].name} in {archive} is left out" in done.stderr
    first = project.records()[0]
    assert files_of(project, first.checkpoints[0].tree) == {"good": 4}
    assert not (project.path.parent / "outside").exists()


def test_links_that_stay_inside_and_modes_are_kept(
    project: ProjectDirectory, keepsake: Path, tmp_path: Path
) -> None:
    value = next(iter(metadata(keepsake).values()))
    archive = keepsake / "checkpoints" / f"{value['checkpoints'][0]['id']}.tar.gz"
    program = member("x/run")
    program.mode = 0o4755
    link = member("x/link", tarfile.SYMTYPE, "run")
    pack(archive, (program, b"go"), (link, b""))
    project.cli("import", str(keepsake))
    project.files_of(value["checkpoints"][0]["id"], tmp_path / "out")
    assert (tmp_path / "out" / "link").readlink() == Path("run")
    assert (tmp_path / "out" / "run").stat().st_mode & 0o7777 == 0o755


@pytest.mark.parametrize("id", ["../../../etc/passwd", "", 7])
def test_an_id_that_could_name_another_file_is_refused(
    project: ProjectDirectory, keepsake: Path, id: object
) -> None:
    first, second = metadata(keepsake)
    edit(keepsake, first, id=id)
    done = project.cli("import", str(keepsake), expect=1)
    assert f"{first}.json does not describe an experiment" in done.stderr
    assert [record.id for record in project.records()] == [second]


def test_a_malformed_checkpoint_costs_only_itself(
    project: ProjectDirectory, keepsake: Path
) -> None:
    id, value = next(iter(metadata(keepsake).items()))
    edit(keepsake, id, checkpoints=[{"id": "a1"}, *value["checkpoints"][1:]])
    done = project.cli("import", str(keepsake), expect=1)
    assert f"checkpoint 0 of experiment {id[:7]} was not imported" in done.stderr
    assert [c.step for c in project.records()[0].checkpoints] == [1, 2]


def test_importing_leaves_no_file_behind(project: ProjectDirectory, keepsake: Path) -> None:
    before = content_of(keepsake)
    project.cli("import", str(keepsake))
    assert content_of(keepsake) == before
    shutil.rmtree(project.repository / "experiments")
    left = {file.split("/")[0] for file in content_of(project.repository)}
    assert left <= {"repository.json", "trees", "blobs", ".reserve"}


@pytest.mark.parametrize("source", ["nowhere", ".", "ftp://host/root"])
def test_what_cannot_be_imported_is_wrong_use(project: ProjectDirectory, source: str) -> None:
    project.cli("import", source, expect=2)
    assert not project.repository.exists()
