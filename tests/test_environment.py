"""What is recorded of the machine and the process."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from replicate import environment, process
from replicate.environment import gpus_from, packages
from replicate.process import command, imported_modules

PYTHON = "/usr/bin/python3"


@pytest.mark.parametrize(
    ("orig", "argv", "expected"),
    [
        ("train.py", ["train.py"], "train.py"),
        ("train.py --learning_rate=0.2", None, "train.py --learning_rate=0.2"),
        ("-u src/train.py -m x", ["src/train.py", "-m", "x"], "src/train.py -m x"),
        ("-m pkg.train --lr 1", ["/p/pkg/train.py", "--lr", "1"], "-m pkg.train --lr 1"),
        ("-um pkg.train", ["/p/pkg/train.py"], "-m pkg.train"),
        ("-mpkg.train", ["/p/pkg/train.py"], "-m pkg.train"),
        ("-X importtime -W error -m pkg", ["/p/pkg/__main__.py"], "-m pkg"),
        ("-Ximporttime train.py -m", ["train.py", "-m"], "train.py -m"),
        ("-c 'import train' -m", ["-c", "-m"], "-c -m"),
        ("train.py 'a b' ''", None, "train.py 'a b' ''"),
        ("/env/lib/ipykernel_launcher.py -f /run/kernel.json", None, "notebook"),
        ("", [""], "interactive"),
    ],
)
def test_the_command_is_what_its_user_typed(
    orig: str, argv: list[str] | None, expected: str
) -> None:
    words = shlex.split(orig)
    assert command(words if argv is None else argv, [PYTHON, *words]) == expected


def test_an_installed_script_is_named_without_its_directory() -> None:
    script = str(Path(sys.executable).parent / "train-iris")
    assert command([script, "--lr=1"], [sys.executable, script, "--lr=1"]) == "train-iris --lr=1"


@pytest.mark.parametrize(
    ("typed", "recorded"),
    [
        ("--api-key X1 --lr 1", "--api-key *** --lr 1"),
        ("--token=X1", "--token=***"),
        ("--password X1", "--password ***"),
        ("--db.password=X1", "--db.password=***"),
        ("wandb.api_key=X1", "wandb.api_key=***"),
        ("--hf_token X1", "--hf_token ***"),
        ("--AWS-SECRET-ACCESS-KEY=X1", "--AWS-SECRET-ACCESS-KEY=***"),
        ("sk-abcdefghijklmnop1234", "***"),
        ("--x=hf_abcdefghijklmnop1234", "--x=***"),
        ("AKIAABCDEFGHIJKLMNOP", "***"),
        ("ghp_abcdefghijklmnopqrstuvwxyz", "***"),
        ("postgres://ben:X1@db/runs", "postgres://***@db/runs"),
        ("'note: hf_abcdefghijklmnop1234'", "'note: '***"),
    ],
)
def test_secrets_in_a_command_are_hidden(typed: str, recorded: str) -> None:
    assert (
        command(["train.py", *shlex.split(typed)], [PYTHON, "train.py"]) == f"train.py {recorded}"
    )


@pytest.mark.parametrize(
    "typed",
    [
        "--tokenizer=gpt2 --max-tokens 512 --num_tokens=8",
        "--pad_token=x --eos-token y --mask_token z",
        "--use-auth --key=val --author ben",
        "--token --lr=1",
        "--name=task-abcdefghijklmnop1234",
        "s3://bucket/root@2",
    ],
)
def test_what_only_resembles_a_secret_is_kept(typed: str) -> None:
    recorded = command(["train.py", *typed.split()], [PYTHON, "train.py"])
    assert recorded == f"train.py {typed}"


def test_host_and_user_are_names() -> None:
    assert process.host()
    assert process.user()


def test_the_machine_is_described_in_json() -> None:
    machine = environment.machine()
    assert json.loads(json.dumps(machine)) == machine
    assert machine["python"]["version"] == ".".join(map(str, sys.version_info[:3]))
    assert machine["cpu"]["count"] == os.cpu_count()
    assert machine["memory"] > 2**20


def test_gpus_are_read_from_what_nvidia_smi_prints() -> None:
    table = "NVIDIA A100-SXM4-80GB, 81920, 550.54\nNVIDIA GB10, [N/A], 580.9\n"
    assert gpus_from(table) == [
        {"name": "NVIDIA A100-SXM4-80GB", "memory": 85_899_345_920, "driver": "550.54"},
        {"name": "NVIDIA GB10", "memory": None, "driver": "580.9"},
    ]
    assert gpus_from("NVIDIA-SMI has failed because there is no driver.\n") == []


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository before its first commit."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    directory = tmp_path / "iris"
    directory.mkdir()
    run_git(directory, "init", "--quiet", "--initial-branch=main")
    return directory


def run_git(directory: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=Ben", "-c", "user.email=ben@example.com")
    command = ["git", "-C", str(directory), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def commit(directory: Path) -> str:
    (directory / "train.py").write_text("1")
    run_git(directory, "add", ".")
    run_git(directory, "commit", "--quiet", "-m", "Train")
    return run_git(directory, "rev-parse", "HEAD")


def test_a_repository_without_commits_has_a_branch_and_no_commit(checkout: Path) -> None:
    expected = {"commit": None, "branch": "main", "dirty": False, "remote": None}
    assert environment.git(checkout) == expected


def test_git_gives_commit_branch_and_whether_tracked_files_changed(checkout: Path) -> None:
    head = commit(checkout)
    (checkout / "untracked").touch()
    expected = {"commit": head, "branch": "main", "dirty": False, "remote": None}
    assert environment.git(checkout) == expected
    (checkout / "train.py").write_text("2")
    assert environment.git(checkout) == expected | {"dirty": True}


def test_a_detached_head_has_no_branch(checkout: Path) -> None:
    head = commit(checkout)
    run_git(checkout, "checkout", "--quiet", "--detach")
    found = environment.git(checkout)
    assert found is not None
    assert (found["commit"], found["branch"]) == (head, None)


@pytest.mark.parametrize(
    ("url", "recorded"),
    [
        ("https://ben:X1@example.com/iris.git", "https://example.com/iris.git"),
        ("https://ghp_X1@example.com:8443/iris.git", "https://example.com:8443/iris.git"),
        ("ssh://git:X1@example.com/iris.git", "ssh://git@example.com/iris.git"),
        ("git@example.com:iris.git", "git@example.com:iris.git"),
        ("/srv/git/iris of ben.git", "/srv/git/iris of ben.git"),
    ],
)
def test_the_remote_has_no_credentials(checkout: Path, url: str, recorded: str) -> None:
    run_git(checkout, "remote", "add", "backup", "/elsewhere")
    run_git(checkout, "remote", "add", "origin", url)
    found = environment.git(checkout)
    assert found is not None
    assert found["remote"] == recorded


def test_without_a_git_repository_there_are_no_facts(checkout: Path, tmp_path: Path) -> None:
    assert environment.git(tmp_path) is None
    assert environment.git(tmp_path / "nowhere") is None


def test_without_git_there_are_no_facts(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(checkout))
    assert environment.git(checkout) is None


def test_a_repository_that_git_distrusts_gives_no_facts(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(checkout)
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    assert environment.git(checkout) is None


def test_a_repository_cannot_name_a_program_that_git_runs(checkout: Path, tmp_path: Path) -> None:
    commit(checkout)
    monitor = tmp_path / "monitor"
    monitor.write_text(f"#!/bin/sh\ntouch {tmp_path / 'ran'}\n")
    monitor.chmod(0o755)
    run_git(checkout, "config", "core.fsmonitor", str(monitor))
    assert environment.git(checkout) is not None
    assert not (tmp_path / "ran").exists()


def test_imported_modules_are_those_that_python_does_not_bring() -> None:
    names = ("os", "os.path", "__main__", "_cffi_backend", "yaml", "torch.nn", "torch", "a.b")
    assert imported_modules(dict.fromkeys(names)) == ["a", "torch", "yaml"]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that comes first on the path, to install distributions in."""
    directory = tmp_path / "site"
    directory.mkdir()
    monkeypatch.syspath_prepend(directory)
    return directory


def install(site: Path, name: str, version: str, **files: str) -> None:
    info = site / f"{name.lower().replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    for file, text in files.items():
        (info / file.replace("__", ".")).write_text(text)


def test_a_distribution_is_found_whatever_its_modules_are_called(site: Path) -> None:
    install(
        site, "PyWheel", "1.0", RECORD="wheelmod/__init__.py,sha256=x,1\nPyWheel-1.dist-info/R,,"
    )
    install(site, "Old-Style", "2.0", top_level__txt="oldmod\n_oldmod\n")
    install(site, "one-file", "3.0", RECORD="onemod.py,,\n../../bin/onemod,,\n")
    install(site, "c-extension", "4.0", RECORD="cmod.cpython-311-x86_64-linux-gnu.so,,\n")
    install(site, "unwanted", "5.0", RECORD="other/wheelmod/__init__.py,,\n", top_level__txt="\n")
    wanted = ["wheelmod", "oldmod", "onemod", "cmod", "nowhere"]
    assert packages(wanted) == {
        "c-extension": "4.0",
        "Old-Style": "2.0",
        "one-file": "3.0",
        "PyWheel": "1.0",
    }


def test_every_distribution_in_a_namespace_is_found(site: Path) -> None:
    install(site, "cloud-storage", "1.0", RECORD="cloudns/storage/__init__.py,,\n")
    install(site, "cloud-auth", "2.0", RECORD="cloudns/auth/__init__.py,,\n")
    assert packages(["cloudns"]) == {"cloud-auth": "2.0", "cloud-storage": "1.0"}


def test_an_editable_install_is_found_by_its_sources(site: Path, tmp_path: Path) -> None:
    (tmp_path / "src/editablemod").mkdir(parents=True)
    (site / "_editable.pth").write_text(f"import site\n{tmp_path / 'src'}\n")
    install(site, "my-project", "0.1", RECORD="_editable.pth,sha256=x,9\n")
    assert packages(["editablemod"]) == {"my-project": "0.1"}


def test_of_two_installs_the_first_on_the_path_counts(site: Path, tmp_path: Path) -> None:
    older = tmp_path / "older"
    older.mkdir()
    sys.path.append(str(older))
    install(older, "twice", "1.0", RECORD="twicemod.py,,\n")
    install(site, "twice", "2.0", RECORD="twicemod.py,,\n")
    try:
        assert packages(["twicemod"]) == {"twice": "2.0"}
    finally:
        sys.path.remove(str(older))


def test_a_damaged_distribution_does_not_hide_the_others(site: Path) -> None:
    (site / "broken-1.0.dist-info").mkdir()
    (site / "broken-1.0.dist-info/RECORD").write_text("goodmod/x.py,,\n")
    install(site, "good", "1.0", RECORD="goodmod/__init__.py,,\n")
    assert packages(["goodmod"]) == {"good": "1.0"}


def test_packages_agree_with_pythons_own_table() -> None:
    table = importlib.metadata.packages_distributions()
    wanted = [name for name in table if name.isidentifier() and not name.startswith("_")]
    missing = {name for module in wanted for name in table[module]} - set(packages(wanted))
    assert missing == set()
    assert "pytest" in packages(["pytest"])
