"""Which files a snapshot takes."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replicate.errors import NotFoundError, UsageError
from replicate.ignore import NEVER, likely_secrets, walk


def write(root: Path, *paths: str) -> Path:
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
    return root


def rules(root: Path, path: str, *lines: str) -> None:
    (root / path).write_text("\n".join(lines))


def taken(root: Path, start: str = "", **options: bool) -> list[str]:
    return [e.path for e in walk(root, start, **options)]


def test_everything_is_taken_in_the_order_of_the_paths(tmp_path: Path) -> None:
    paths = ["train.py", "a/b.txt", "a.py", "a-b/c", "data/x/y/z.csv", "Ä.txt"]
    write(tmp_path, *paths)
    assert taken(tmp_path) == sorted(paths)


def test_gitignore_and_replicateignore_are_honoured(tmp_path: Path) -> None:
    write(tmp_path, "train.py", "data.csv", "notes.txt")
    rules(tmp_path, ".gitignore", "*.csv")
    rules(tmp_path, ".replicateignore", "notes.txt")
    assert taken(tmp_path) == [".gitignore", ".replicateignore", "train.py"]


def test_replicateignore_brings_back_what_gitignore_hides(tmp_path: Path) -> None:
    write(tmp_path, "data.csv", "other.csv")
    rules(tmp_path, ".gitignore", "*.csv")
    rules(tmp_path, ".replicateignore", "!data.csv")
    assert taken(tmp_path) == [".gitignore", ".replicateignore", "data.csv"]


def test_a_deeper_ignore_file_wins(tmp_path: Path) -> None:
    write(tmp_path, "a.log", "kept/a.log", "kept/secret.txt", "secret.txt")
    rules(tmp_path, ".replicateignore", "*.log")
    rules(tmp_path, "kept/.gitignore", "!*.log", "/secret.txt")
    assert "kept/a.log" in taken(tmp_path)
    assert "a.log" not in taken(tmp_path)
    assert "secret.txt" in taken(tmp_path)
    assert "kept/secret.txt" not in taken(tmp_path)


def test_the_ignore_files_of_the_git_repository_around_the_project_hold(tmp_path: Path) -> None:
    project = write(tmp_path / "models/iris", "train.py", "model.pth", "cache/x")
    (tmp_path / ".git").mkdir()
    rules(tmp_path, ".gitignore", "*.pth", "/models/iris/cache")
    assert taken(project) == ["train.py"]


def test_a_project_that_the_repository_around_it_ignores_is_not_empty(tmp_path: Path) -> None:
    project = write(tmp_path / "iris", "train.py")
    (tmp_path / ".git").mkdir()
    rules(tmp_path, ".gitignore", "*", "!.bashrc")
    assert taken(project) == ["train.py"]


@pytest.mark.parametrize("name", sorted(NEVER))
def test_caches_and_the_data_of_other_tools_are_never_taken(tmp_path: Path, name: str) -> None:
    write(tmp_path, f"{name}/x", f"sub/{name}/x", "train.py", "train.pyc")
    rules(tmp_path, ".replicateignore", f"!{name}", f"!{name}/x")
    assert taken(tmp_path) == [".replicateignore", "train.py"]
    assert taken(tmp_path, use_ignore_files=False) == [".replicateignore", "train.py"]


@pytest.mark.parametrize("mark", ["pyvenv.cfg", "conda-meta/history"])
def test_environments_are_never_taken_whatever_their_name(tmp_path: Path, mark: str) -> None:
    write(tmp_path, f"my-env/{mark}", "my-env/lib/torch.py", "train.py")
    assert taken(tmp_path) == ["train.py"]


def test_a_project_that_is_itself_an_environment_is_taken(tmp_path: Path) -> None:
    write(tmp_path, "pyvenv.cfg", "train.py")
    assert taken(tmp_path) == ["pyvenv.cfg", "train.py"]


def test_a_repository_of_ours_is_not_taken_under_any_name(tmp_path: Path) -> None:
    write(tmp_path, "experiments/blobs/ab/ab12", "theirs/repository.json", "train.py")
    (tmp_path / "experiments/repository.json").write_text('{"format": "replicate", "version": 1}')
    assert taken(tmp_path) == ["theirs/repository.json", "train.py"]


def test_what_the_user_names_is_taken_though_it_is_ignored(tmp_path: Path) -> None:
    write(tmp_path, "weights.pth", "outputs/model.bin", "outputs/__pycache__/x")
    rules(tmp_path, ".gitignore", "weights.pth", "outputs", "*.bin")
    assert taken(tmp_path) == [".gitignore"]
    assert taken(tmp_path, "weights.pth") == ["weights.pth"]
    assert taken(tmp_path, "./outputs/", use_ignore_files=False) == ["outputs/model.bin"]


def test_a_named_directory_follows_the_ignore_files_above_it(tmp_path: Path) -> None:
    write(tmp_path, "src/a.py", "src/a.log", "src/deep/b.log")
    rules(tmp_path, ".gitignore", "*.log", "!src/a.log")
    assert taken(tmp_path, "src") == ["src/a.log", "src/a.py"]


@pytest.mark.parametrize("start", ["../other", "/etc", "a/../../b"])
def test_a_start_outside_the_project_is_refused(tmp_path: Path, start: str) -> None:
    with pytest.raises(UsageError, match="Not inside the project"):
        taken(tmp_path, start)


def test_a_start_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"model\.pth"):
        taken(tmp_path, "model.pth")


def test_symlinks_are_entries_and_are_not_followed(tmp_path: Path) -> None:
    write(tmp_path, "data/x")
    (tmp_path / "loop").symlink_to(".")
    (tmp_path / "data/up").symlink_to("..")
    (tmp_path / "dangling").symlink_to("nowhere")
    assert [(e.path, e.kind) for e in walk(tmp_path)] == [
        ("dangling", "symlink"),
        ("data/up", "symlink"),
        ("data/x", "file"),
        ("loop", "symlink"),
    ]


def test_a_symlink_that_the_user_names_is_followed(tmp_path: Path) -> None:
    write(tmp_path, "run-1/model.pth")
    (tmp_path / "latest").symlink_to("run-1")
    (tmp_path / "best.pth").symlink_to("run-1/model.pth")
    assert [(e.path, e.kind) for e in walk(tmp_path, "latest")] == [("latest/model.pth", "file")]
    assert [(e.path, e.kind) for e in walk(tmp_path, "best.pth")] == [("best.pth", "file")]


def test_a_pipe_and_a_socket_are_reported_and_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "sock"))
        entries = list(walk(tmp_path))
    assert [(e.path, e.kind) for e in entries] == [("pipe", "skipped"), ("sock", "skipped")]
    assert entries[0].problem == "is a pipe, a socket or a device"


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems refuse such names")
def test_a_name_that_is_not_utf8_is_reported_unless_it_is_ignored(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).touch()
    (tmp_path / os.fsdecode(b"caf\xe9.log")).touch()
    rules(tmp_path, ".gitignore", "*.log")
    assert [(e.path, e.problem) for e in walk(tmp_path)] == [
        (".gitignore", None),
        ("caf\\xe9.txt", "name is not UTF-8"),
    ]


def make_deep(top: Path, name: str, depth: int) -> None:
    """Nested directories with an empty file `x` in the last; the path may be longer than any."""
    here = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=here)
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("x", os.O_CREAT, dir_fd=here))
    os.close(here)


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Path]:
    """A directory that may become deeper than pytest's own cleaning can go."""
    yield tmp_path
    subprocess.run(["rm", "-rf", str(tmp_path / "d"), str(tmp_path / ("d" * 200))], check=True)


def test_a_tree_deeper_than_the_recursion_limit_is_walked(deep: Path) -> None:
    depth = sys.getrecursionlimit() + 200
    make_deep(deep, "d", depth)
    assert taken(deep) == ["d/" * depth + "x"]


def test_a_directory_that_cannot_be_listed_is_reported(deep: Path) -> None:
    make_deep(deep, "d" * 200, 30)
    write(deep, "train.py")
    unlisted, train = walk(deep)
    assert unlisted.path.startswith("d" * 200 + "/")
    assert (unlisted.kind, unlisted.problem) == ("skipped", "cannot be listed: File name too long")
    assert train.path == "train.py"


@pytest.mark.parametrize(
    ("pattern", "ignored", "kept"),
    [
        ("*.log", ["a.log", "x/a.log"], ["a.logs"]),
        ("/a", ["a"], ["x/a"]),
        ("x/a", ["x/a"], ["y/x/a"]),
        ("build/", ["build/x", "y/build/x"], ["x/build"]),
        ("**/a", ["a", "x/a", "x/y/a"], ["ba"]),
        ("x/**", ["x/a", "x/y/a"], ["y/x/a"]),
        ("x/**/a", ["x/a", "x/y/a", "x/y/z/a"], ["a"]),
        ("/x/*", ["x/a"], ["y/a"]),
        ("a?c", ["abc"], ["ac"]),
        ("[a-c]1", ["a1", "c1"], ["d1"]),
        ("[!a-c]1", ["d1"], ["a1"]),
        ("[]]1", ["]1"], ["a1"]),
        ("[[:digit:]x]", ["1", "x"], ["y"]),
        ("[z-a]", [], ["b"]),
        ("a[", [], ["a["]),
        (r"\!a", ["!a"], ["a"]),
        (r"\#a", ["#a"], ["a"]),
        ("#a", [], ["#a"]),
        ("a  ", ["a"], ["a  "]),
        ("a\\ ", ["a "], ["a"]),
        ("a\r", ["a"], ["b"]),
        ("a.c", ["a.c"], ["abc"]),
        ("/", [], ["a"]),
    ],
)
def test_a_pattern_means_what_gitignore_says(
    tmp_path: Path, pattern: str, ignored: list[str], kept: list[str]
) -> None:
    write(tmp_path, *ignored, *kept)
    (tmp_path / ".replicateignore").write_bytes(f"{pattern}\n".encode())
    assert set(taken(tmp_path)) == {".replicateignore", *kept}


def test_an_ignore_file_with_a_byte_order_mark_is_understood(tmp_path: Path) -> None:
    write(tmp_path, "a")
    (tmp_path / ".replicateignore").write_bytes(b"\xef\xbb\xbfa\n")
    assert taken(tmp_path) == [".replicateignore"]


NAMES = st.sampled_from(["a", "b", "ab", "a.b", "b.a", "a b", "!a", "#b", "x[1]", "-"])
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)
PIECES = st.sampled_from(
    [
        *("a", "b", "ab", "*", "a*", "*.a", "*b", "?", "a?b", "[ab]", "[!a]", "[a-b]*", "**"),
        *(r"\!a", r"x\[1\]", "x[[]1]", "[[:alpha:]]", "a b", "#b", "-", "[]-]", "***"),
    ]
)
PATTERNS = st.builds(
    lambda negate, root, pieces, end: negate + root + "/".join(pieces) + end,
    st.sampled_from(["", "", "!"]),
    st.sampled_from(["", "", "/", "**/"]),
    st.lists(PIECES, min_size=1, max_size=3),
    st.sampled_from(["", "", "/", "/**", " ", "/*"]),
)
IGNORE_FILE = st.lists(PATTERNS, max_size=5)
IGNORE_FILES_AT = st.dictionaries(st.sampled_from(["", "a/", "a/b/", "b/"]), IGNORE_FILE)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is the judge")
@settings(max_examples=100, deadline=None)
@given(paths=st.sets(PATHS, max_size=12), ignore_files=IGNORE_FILES_AT)
def test_the_walk_takes_what_git_would(paths: set[str], ignore_files: dict[str, list[str]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        for path in sorted(paths, key=len, reverse=True):
            in_a_file = any((root / parent).is_file() for parent in Path(path).parents)
            if not in_a_file and not (root / path).exists():
                write(root, path)
        for prefix, lines in ignore_files.items():
            if (root / prefix).is_dir():
                rules(root, f"{prefix}.gitignore", *lines)
        assert taken(root) == sorted(_untracked(root))


def _untracked(root: Path) -> list[str]:
    def git(*arguments: str) -> str:
        settings = {"HOME": str(root), "GIT_CONFIG_NOSYSTEM": "1", "PATH": os.environ["PATH"]}
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(
            command, check=True, capture_output=True, env=settings
        ).stdout.decode()

    git("init", "--quiet", "--template=")
    return git("ls-files", "-z", "--others", "--exclude-standard").split("\0")[:-1]


def secrets(root: Path) -> list[str]:
    return likely_secrets(root, walk(root))


def test_files_that_are_named_like_secrets_are_found(tmp_path: Path) -> None:
    found = [".aws/credentials", ".env", ".env.production", ".netrc", "keys/id_rsa"]
    write(tmp_path, *found, ".env.example", "keys/id_rsa.pub", "environment.env.py", "train.py")
    assert secrets(tmp_path) == found


def test_private_keys_and_tokens_are_found_by_their_content(tmp_path: Path) -> None:
    contents = {
        "ca.pem": "-----BEGIN CERTIFICATE-----",
        "server.pem": "-----BEGIN RSA PRIVATE KEY-----",
        "server.key": "-----BEGIN PRIVATE KEY-----",
        "layout.key": "C major",
        "credentials.json": '{"type": "service_account", "private_key": "…"}',
        "sub/credentials.json": '{"installed": {}}',
        ".npmrc": "//registry.example/:_authToken=x",
        "sub/.npmrc": "save-exact=true",
        ".pypirc": "[pypi]\npassword = x",
    }
    write(tmp_path, *contents)
    for path, content in contents.items():
        (tmp_path / path).write_text(content)
    assert secrets(tmp_path) == [
        ".npmrc",
        ".pypirc",
        "credentials.json",
        "server.key",
        "server.pem",
    ]


def test_looking_for_secrets_does_not_follow_symlinks(tmp_path: Path) -> None:
    (tmp_path / ".env").symlink_to("/dev/zero")
    assert secrets(tmp_path) == []
