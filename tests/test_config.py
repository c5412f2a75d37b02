"""What replicate.yaml and the environment can say."""

from __future__ import annotations

from pathlib import Path

import pytest

from replicate.config import ENVIRONMENT, find_project, load, parse_size, rank
from replicate.errors import ConfigError


def configure(directory: Path, text: str | bytes, name: str = "replicate.yaml") -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    content = text.encode() if isinstance(text, str) else text
    (directory / name).write_bytes(content)
    return directory / name


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_nothing_needs_to_be_configured(tmp_path: Path) -> None:
    config = load(tmp_path, environ={})
    assert (config.directory, config.file) == (tmp_path, None)
    assert (config.repository, config.source) == (".replicate", "default")
    assert (config.compression, config.max_snapshot_size) == ("auto", 100_000_000)
    assert config.mode == "online"


def test_an_empty_file_is_the_defaults_and_makes_a_project(tmp_path: Path) -> None:
    file = configure(tmp_path, "# nothing yet\n")
    config = load(tmp_path, environ={})
    assert (config.file, config.repository, config.source) == (file, ".replicate", "default")


def test_the_file_is_read(tmp_path: Path) -> None:
    text = "repository: s3://bucket/root\ncompression: none\nmax_snapshot_size: 500MB\n"
    file = configure(tmp_path, text)
    config = load(tmp_path, environ={})
    assert (config.repository, config.source) == ("s3://bucket/root", str(file))
    assert (config.compression, config.max_snapshot_size) == ("none", 500_000_000)


@pytest.mark.parametrize("name", ["replicate.yaml", "replicate.yml"])
def test_the_nearest_parent_with_a_file_is_the_project(tmp_path: Path, name: str) -> None:
    configure(tmp_path, "")
    file = configure(tmp_path / "a", "", name)
    below = tmp_path / "a/b/c"
    (below / ".replicate").mkdir(parents=True)
    assert find_project(below) == (tmp_path / "a", file)


def test_without_a_file_the_nearest_repository_marks_the_project(tmp_path: Path) -> None:
    (tmp_path / "a/.replicate").mkdir(parents=True)
    (tmp_path / "a/b").mkdir()
    assert find_project(tmp_path / "a/b") == (tmp_path / "a", None)


def test_a_repository_in_the_home_directory_does_not_adopt_other_projects(home: Path) -> None:
    (home / ".replicate").mkdir()
    (home / "iris").mkdir()
    assert find_project(home / "iris") == (home / "iris", None)
    assert find_project(home) == (home, None)


def test_argument_beats_environment_beats_file(tmp_path: Path) -> None:
    configure(tmp_path, "repository: from-file")
    environ = {"REPLICATE_REPOSITORY": "from-environment"}
    config = load(tmp_path, environ=environ)
    assert (config.repository, config.source) == ("from-environment", "REPLICATE_REPOSITORY")
    config = load(tmp_path, repository="from-argument", environ=environ)
    assert (config.repository, config.source) == ("from-argument", "argument")


def test_an_empty_variable_is_an_unset_one(tmp_path: Path) -> None:
    environ = dict.fromkeys(ENVIRONMENT, "")
    assert load(tmp_path, environ=environ) == load(tmp_path, environ={})


def test_the_environment_can_name_the_directory(tmp_path: Path) -> None:
    assert load(environ={"REPLICATE_DIRECTORY": str(tmp_path)}).directory == tmp_path
    with pytest.raises(ConfigError, match=r"does not exist: .*/nowhere"):
        load(environ={"REPLICATE_DIRECTORY": str(tmp_path / "nowhere")})


def test_the_environment_can_say_what_is_recorded(tmp_path: Path) -> None:
    names = {"REPLICATE_HOST": "gpu-1", "REPLICATE_USER": "ben", "REPLICATE_COMMAND": "train.py"}
    config = load(tmp_path, environ=names)
    assert (config.host, config.user, config.command) == ("gpu-1", "ben", "train.py")


@pytest.mark.parametrize("mode", ["online", "offline", "disabled"])
def test_whether_and_when_runs_are_saved_can_be_chosen(tmp_path: Path, mode: str) -> None:
    assert load(tmp_path, environ={"REPLICATE_MODE": mode}).mode == mode


def test_a_mode_that_there_is_not_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"REPLICATE_MODE must be `online`, .* not 'off'"):
        load(tmp_path, environ={"REPLICATE_MODE": "off"})


def test_an_unknown_key_is_named_with_its_line_and_the_nearest_one(tmp_path: Path) -> None:
    file = configure(tmp_path, "compression: auto\nrepositry: s3://bucket\n")
    with pytest.raises(ConfigError) as error:
        load(tmp_path, environ={})
    assert error.value.message == f"Unknown key `repositry` ({file}, line 2)"
    assert error.value.hint == "Did you mean `repository`?"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("repository: 3", "`repository` must be a path or a URL .*, not 3"),
        ("repository:", "`repository` must be a path or a URL .*, not None"),
        ("repository: [a]", "`repository` must be .*, not a list or a mapping"),
        ("compression: zip", "`compression` must be one of auto, none, zstd, not 'zip'"),
        ("max_snapshot_size: true", "`max_snapshot_size` must be a size such as 500MB, not True"),
        ("max_snapshot_size: 0", "`max_snapshot_size` must be a size"),
        ("max_snapshot_size: 5 parsecs", "`max_snapshot_size` must be a size"),
        ("repository: a\nrepository: b", "`repository` is given twice .*line 2"),
        ("- repository", "must hold lines of `key: value`"),
        ("[a]: b", "Unknown key `a list or a mapping`"),
        ("repository: 'a", "is not valid YAML"),
        ("repository: !!python/object:os.system x", "is not valid YAML"),
        ("repository: 2021-13-45", "is not valid YAML"),
        (b"repository: \xff", "is not valid YAML"),
    ],
)
def test_what_cannot_be_meant_is_an_error(tmp_path: Path, text: str | bytes, message: str) -> None:
    configure(tmp_path, text)
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, environ={})


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("500MB", 500_000_000),
        ("1.5 GiB", 1_610_612_736),
        ("10k", 10_000),
        ("7 b", 7),
        (1024, 1024),
        ("2TB", 2_000_000_000_000),
    ],
)
def test_sizes_are_written_as_people_write_them(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, 0),
        ({"RANK": "3"}, 3),
        ({"SLURM_PROCID": "0"}, 0),
        ({"OMPI_COMM_WORLD_RANK": "2"}, 2),
        ({"RANK": "0", "SLURM_PROCID": "1"}, 0),
        ({"RANK": "first", "SLURM_PROCID": "1"}, 1),
        ({"RANK": "-1"}, 0),
        ({"RANK": "3", "REPLICATE_ALL_RANKS": "1"}, 0),
    ],
)
def test_the_rank_is_what_the_launcher_says(environ: dict[str, str], expected: int) -> None:
    assert rank(environ) == expected


def test_runs_wait_for_a_bucket_where_the_state_of_programs_is_kept(tmp_path: Path) -> None:
    def spool(**environ: str) -> Path | None:
        return load(tmp_path, environ=environ).spool

    assert spool() == tmp_path / ".local/state/replicate/spool"
    assert spool(XDG_STATE_HOME="/state") == Path("/state/replicate/spool")
    assert spool(XDG_STATE_HOME="/state", REPLICATE_SPOOL="/scratch") == Path("/scratch")
