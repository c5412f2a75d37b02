"""Which files of a directory a snapshot takes: the walk that leaves out what is ignored.

Knows the syntax of ignore files, the names that are never part of a model's code, and what a
secret looks like. Of a file's content it reads only what those questions need; it knows nothing
of hashes, of limits, or of where a snapshot goes.
"""

from __future__ import annotations

import os
import re
import stat as modes
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase, translate
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from replicate.errors import NotFoundError, UsageError

#: Names that are never taken, at any depth below the start, whatever the ignore files say.
NEVER = frozenset(
    (
        # our own data, and that of version control
        *(".replicate", ".git", ".hg", ".svn"),
        # what other experiment trackers keep
        *("wandb", "mlruns"),
        # caches, which any run makes anew
        *("__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".ipynb_checkpoints"),
        *(".cache", ".hypothesis", ".nox", ".tox", "node_modules", ".DS_Store"),
    )
)
#: How the name begins of the directory in which a checkout puts its files together.
STAGING = ".replicate-checkout-"
#: A directory that has one of these is a virtual or a conda environment.
ENVIRONMENT_MARKS = ("pyvenv.cfg", "conda-meta")
#: At one level the latter wins.
IGNORE_FILES = (".gitignore", ".replicateignore")

Kind = Literal["file", "symlink", "skipped"]


@dataclass(frozen=True, slots=True)
class Entry:
    """What a snapshot takes, or (kind "skipped") what it cannot take, with the `problem`.

    `path` is relative to the root of the walk, with `/`. `stat` is of the entry itself: of a
    symlink, not of what it points at.
    """

    path: str
    kind: Kind
    stat: os.stat_result | None = None
    problem: str | None = None


def walk(root: Path, start: str = "", use_ignore_files: bool = True) -> Iterator[Entry]:
    """Every file of `root` at or below `start` that is not ignored, in the order of the paths.

    `start` is what the user has named: it is taken whether or not it is ignored, and followed when
    it is a symlink; below it no symlink is followed. With `use_ignore_files` the ignore files of
    the root, of the directories below it, and of the git repository around it are honoured;
    without, only `NEVER`, compiled Python, environments and our repositories are left out.

    Directories are not entries, so that empty ones are lost. Raises NotFoundError when `start`
    cannot be had, and UsageError when it is outside of the root or an ignore file is unreadable.
    """
    start = _normal(start)
    try:
        stat = (root / start).stat()
    except OSError as error:
        raise NotFoundError(f"Cannot read {root / start}: {error.strerror}") from error
    if not modes.S_ISDIR(stat.st_mode):
        yield _entry(start, stat)
        return
    rules = _rules_above(root, start) if use_ignore_files else None
    # A stack and not recursion: a tree may be deeper than Python's calls may go.
    stack: list[Entry | _Directory] = [_Directory(start, rules)]
    is_start = True
    while stack:
        item = stack.pop()
        if isinstance(item, Entry):
            yield item
        else:
            stack.extend(reversed(_children(root, item, is_start)))
            is_start = False


def _normal(start: str) -> str:
    """`start` as a relative POSIX path without dots; "" is the root itself."""
    path = PurePosixPath(start)
    if path.is_absolute() or ".." in path.parts:
        raise UsageError(f"Not inside the project: {start}")
    return "" if path == PurePosixPath() else str(path)


class _Directory(NamedTuple):
    """A directory that is still to be listed, and the rules of those above it (None: no rules)."""

    path: str
    rules: _Rules | None


def _children(root: Path, directory: _Directory, is_start: bool) -> list[Entry | _Directory]:
    """What a snapshot takes of a directory, in the order of the paths that come of it."""
    path, rules = directory
    try:
        with os.scandir(root / path) as found:
            # `a.py` comes before `a/b.py`: directories are sorted with their slash.
            listing = sorted((e.name + "/" * e.is_dir(follow_symlinks=False), e) for e in found)
    except FileNotFoundError:
        return []  # removed since its parent was listed
    except OSError as error:
        return [Entry(_printable(path), "skipped", None, f"cannot be listed: {error.strerror}")]
    names = {entry.name for _, entry in listing}
    if not is_start and _is_apart(root / path, names):
        return []
    prefix = f"{path}/" if path else ""
    if rules is not None:
        rules = rules.with_files(root / path, len(rules.lead + prefix), names)
    taken: list[Entry | _Directory] = []
    for name, entry in listing:
        if entry.name in NEVER or name.endswith(".pyc") or name.startswith(STAGING):
            continue
        if rules is not None and rules.ignore(rules.lead + prefix + name, name):
            continue
        if not _is_utf8(name):
            taken.append(Entry(_printable(prefix + name), "skipped", None, "name is not UTF-8"))
        elif name.endswith("/"):
            taken.append(_Directory(prefix + entry.name, rules))
        else:
            taken.extend(_file(prefix + name, entry))
    return taken


def _file(path: str, entry: os.DirEntry[str]) -> Iterator[Entry]:
    """The entry of something that is no directory; nothing when it has just been removed."""
    try:
        yield _entry(path, entry.stat(follow_symlinks=False))
    except FileNotFoundError:
        return
    except OSError as error:
        yield Entry(path, "skipped", None, f"cannot be read: {error.strerror}")


def _entry(path: str, stat: os.stat_result) -> Entry:
    if modes.S_ISREG(stat.st_mode):
        return Entry(path, "file", stat)
    if modes.S_ISLNK(stat.st_mode):
        return Entry(path, "symlink", stat)
    return Entry(path, "skipped", stat, "is a pipe, a socket or a device")


def _is_utf8(name: str) -> bool:
    try:
        return name.isascii() or bool(name.encode())
    except UnicodeEncodeError:
        return False


def _printable(path: str) -> str:
    """`path` with each byte that is not UTF-8 as `\\xNN`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _is_apart(directory: Path, names: Collection[str]) -> bool:
    """Whether a directory holds an environment, or a repository of ours under whatever name."""
    if any(mark in names for mark in ENVIRONMENT_MARKS):
        return True
    ours = re.compile(rb'\s*\{\s*"format":\s*"replicate"')
    return "repository.json" in names and bool(
        ours.match(_beginning(directory / "repository.json"))
    )


# Ignore files. The syntax is gitignore(5), translated to regular expressions.


@dataclass(frozen=True, slots=True)
class _Group:
    """Consecutive patterns of one verdict: those for a name at any depth, those for a path."""

    ignored: bool
    names: re.Pattern[str] | None
    paths: re.Pattern[str] | None


@dataclass(frozen=True, slots=True)
class _Rules:
    """The ignore files that hold in a directory, the strongest first.

    Each is the groups of its patterns, the strongest first, and where its own directory ends in a
    path. `lead` is the path from the outermost ignore file's directory to the root of the walk.
    """

    lead: str = ""
    files: tuple[tuple[int, tuple[_Group, ...]], ...] = ()

    def with_files(self, directory: Path, base: int, names: Collection[str]) -> _Rules:
        """These rules and those of the ignore files in `directory`, whose path ends at `base`."""
        new = [(base, _parse(_read(directory / n))) for n in IGNORE_FILES if n in names]
        return _Rules(self.lead, (*reversed(new), *self.files)) if new else self

    def ignore(self, path: str, name: str) -> bool:
        """The verdict of the strongest pattern that matches `path` (with the lead) or its last
        component `name`. Both end in a slash for a directory."""
        for base, groups in self.files:
            for group in groups:
                if group.names and group.names.fullmatch(name):
                    return group.ignored
                if group.paths and group.paths.fullmatch(path, base):
                    return group.ignored
        return False


def _rules_above(root: Path, start: str) -> _Rules:
    """The rules that hold in `start` but for its own, from the git repository's root downwards.

    Rules that ignore a directory on the way have no say below it: else a repository that ignores
    all but a few names (as those that keep a home directory do) would leave nothing of a project.
    """
    root = root.resolve()
    top = next((d for d in (root, *root.parents) if (d / ".git").exists()), root)
    inside = root.relative_to(top).parts
    outermost = rules = _Rules("".join(f"{part}/" for part in inside))
    path = ""
    for part in (*inside, *PurePosixPath(start).parts):
        rules = rules.with_files(top / path, len(path), IGNORE_FILES)
        path += f"{part}/"
        if rules.ignore(path, f"{part}/"):
            rules = outermost
    return rules


def _read(file: Path) -> str:
    """The text of an ignore file; nothing when it is no regular file."""
    try:
        content = file.read_bytes() if file.is_file() else b""
    except OSError as error:
        raise UsageError(f"Cannot read the ignore file {file}: {error.strerror}") from error
    return content.decode("utf-8-sig", "surrogateescape")


def _parse(text: str) -> tuple[_Group, ...]:
    groups: list[_Group] = []
    names: list[str] = []
    paths: list[str] = []

    def close(ignored: bool) -> None:
        compiled = (re.compile("|".join(p), re.DOTALL) if p else None for p in (names, paths))
        if names or paths:
            groups.append(_Group(ignored, *compiled))
        names.clear()
        paths.clear()

    verdict = True
    for line in text.split("\n"):
        pattern = _without_trailing_spaces(line.removesuffix("\r"))
        if not pattern or pattern.startswith("#"):
            continue
        if pattern.startswith("!") is verdict:
            close(verdict)
            verdict = not verdict
        pattern = pattern.removeprefix("!")
        glob = pattern.removesuffix("/")
        translated = _translate(glob.removeprefix("/"))
        if translated is not None:
            slash = "/" if pattern.endswith("/") else "/?"
            # A path's own slash is no component for a last `*` to match: `a/*` is not `a/`.
            (paths if "/" in glob else names).append(f"{translated}(?<!/){slash}")
    close(verdict)
    return tuple(reversed(groups))


def _without_trailing_spaces(line: str) -> str:
    """`line` up to its last character that is not a space, or is one with a backslash before it."""
    found = re.match(r"(?: *(?:\\.|[^ \\]))*(?: *\\$)?", line, re.DOTALL)
    return found[0] if found else ""


_TOKEN = re.compile(
    r"""\\(?P<escaped>.)
    | (?:^|(?<=/))\*\*+(?P<deep>/|$)
    | (?P<stars>\*+)
    | (?P<one>\?)
    | \[(?P<negated>[!^]?)(?P<members>\]?(?:\\.|\[:[a-z]+:\]|[^\]\\])*)\]
    | (?P<malformed>[\[\\])
    | (?P<plain>.)""",
    re.DOTALL | re.VERBOSE,
)
_MEMBER = re.compile(
    r"\[:(?P<named>[a-z]+):\]|\\?(?P<low>.)-\\?(?P<high>.)|\\?(?P<single>.)", re.DOTALL
)
_NAMED = {
    "alnum": "a-zA-Z0-9",
    "alpha": "a-zA-Z",
    "digit": "0-9",
    "lower": "a-z",
    "space": r"\s",
    "upper": "A-Z",
    "xdigit": "0-9a-fA-F",
}


def _translate(glob: str) -> str | None:
    """A glob as a regular expression, or None for one that can match nothing."""
    expression = ""
    for token in _TOKEN.finditer(glob):
        match token.lastgroup:
            case "escaped" | "plain":
                expression += re.escape(token[token.lastgroup])
            case "deep":
                expression += "(?:.*/)?" if token["deep"] else ".+"
            case "stars":
                expression += "[^/]*"
            case "one":
                expression += "[^/]"
            case "members":
                members = _members(token["members"])
                if members is None:
                    return None
                expression += f"[^/{members}]" if token["negated"] else f"(?!/)[{members}]"
            case _:
                return None
    return expression or None


def _members(text: str) -> str | None:
    """The inside of a `[...]`, or None when there is nothing in it that can match."""
    members = ""
    for member in _MEMBER.finditer(text):
        if member["named"]:
            members += _NAMED.get(member["named"], "")
        elif member["single"]:
            members += re.escape(member["single"])
        elif member["low"] <= member["high"]:
            members += f"{re.escape(member['low'])}-{re.escape(member['high'])}"
    return members or None


# Secrets.

#: Patterns of paths (with a leading slash), and what a file must then begin with to be a secret.
_SECRETS: tuple[tuple[str, bytes], ...] = (
    ("*/.env", rb""),
    ("*/.env.*", rb""),
    ("*/id_rsa", rb""),
    ("*/id_dsa", rb""),
    ("*/id_ecdsa", rb""),
    ("*/id_ed25519", rb""),
    ("*/.netrc", rb""),
    ("*/.git-credentials", rb""),
    ("*/.aws/credentials", rb""),
    ("*.pem", rb"-----BEGIN [A-Z ]*PRIVATE KEY"),
    ("*.key", rb"-----BEGIN [A-Z ]*PRIVATE KEY"),
    ("*credentials*.json", rb'"private_key"'),
    ("*service*account*.json", rb'"private_key"'),
    ("*-????????????.json", rb'"private_key"'),  # as Google names the key of a service account
    ("*/kaggle.json", rb'"key"'),
    ("*/.docker/config.json", rb'"auth"'),
    ("*/.kube/config", rb""),
    ("*/.pgpass", rb""),
    ("*/.databrickscfg", rb""),
    ("*/.streamlit/secrets.toml", rb""),
    ("*.env", rb"(?i)(?:passw(?:or)?d|secret|token|key)\w*\s*="),
    ("*/.npmrc", rb"_authToken|_password"),
    ("*/.pypirc", rb"password"),
)
_EXAMPLES = (".example", ".sample", ".template", ".dist")
_PEEK = 1024


def likely_secrets(root: Path, entries: Iterable[Entry]) -> list[str]:
    """The paths of the files that look like passwords, tokens or private keys, by name and by
    their first KiB. Examples such as `.env.example` are none."""
    return [e.path for e in entries if e.kind == "file" and _is_secret(root, e.path)]


@cache
def _any_secret() -> re.Pattern[str]:
    """What no path matches but those that one of the patterns does: nearly all are none."""
    return re.compile("|".join(translate(pattern) for pattern, _ in _SECRETS))


def _is_secret(root: Path, path: str) -> bool:
    if path.endswith(_EXAMPLES) or _any_secret().match(f"/{path}") is None:
        return False
    return any(
        fnmatchcase(f"/{path}", pattern)
        and (not sign or re.search(sign, _beginning(root / path)) is not None)
        for pattern, sign in _SECRETS
    )


def _beginning(file: Path) -> bytes:
    """The first KiB of a file; nothing when it cannot be read, as whoever saves it will say."""
    try:
        with open(file, "rb") as stream:
            return stream.read(_PEEK)
    except OSError:
        return b""
