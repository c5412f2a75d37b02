"""A manifest that somebody else has written is refused whole when anything in it could do harm, and
before the first byte is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

import replicate
from conftest import ProjectDirectory, content_of
from replicate.errors import DamagedError, UnsafeTreeError
from replicate.tree import Entry, Tree, decode_tree, encode_tree, validate

EMPTY = blake3(b"").hexdigest()
GOOD = {"path": "good.txt", "mode": "0644", "size": 0, "hash": EMPTY}


def file(path: str, **fields: Any) -> dict[str, Any]:
    return {**GOOD, "path": path, **fields}


def link(path: str, target: str) -> dict[str, Any]:
    return {"path": path, "kind": "link", "target": target}


UNSAFE = {
    "leaves by dots": [file("../evil")],
    "leaves by dots within": [file("a/../../evil")],
    "has dots": [file("a/./b")],
    "is absolute": [file("/tmp/evil")],
    "is empty": [file("")],
    "has an empty part": [file("a//b")],
    "ends with a slash": [file("a/")],
    "has a backslash": [file("..\\evil")],
    "has a drive letter": [file("C:evil")],
    "has a null byte": [file("a\0b")],
    "is in .git": [file(".git/hooks/pre-commit", mode="0755")],
    "is in .GIT": [file("sub/.GIT/config")],
    "is in .replicate": [file(".replicate/repository.json")],
    "is in .Replicate": [file(".Replicate/repository.json")],
    "stands twice": [file("a"), file("a")],
    "stands twice, as a link too": [file("a"), link("a", "b")],
    "is below a file": [file("a"), file("a/b")],
    "is below a link": [link("a", "b"), file("a/c"), file("b/d")],
    "is below a link, deeper": [link("a", "b"), file("a/c/d")],
    "is a link that leaves": [link("a", "../evil")],
    "is a link that leaves from below": [link("a/b", "../../evil")],
    "is an absolute link": [link("a", "/etc/passwd")],
    "is a link by backslashes": [link("a", "..\\evil")],
    "is a link to nowhere": [link("a", "")],
    "has set-user-id": [file("a", mode="4755")],
    "has set-group-id": [file("a", mode="2755")],
    "has a sticky bit": [file("a", mode="1755")],
    "is a device": [{"path": "a", "kind": "device", "major": 1, "minor": 3}],
    "is a pipe": [{"path": "a", "kind": "fifo"}],
}
MALFORMED = {
    "has a negative size": [file("a", size=-1)],
    "has a giant size": [file("a", size=1 << 60)],
    "has a size that its chunks have not": [file("a", size=5, chunks=[[EMPTY, 2], [EMPTY, 2]])],
    "has a negative chunk": [file("a", size=0, chunks=[[EMPTY, 5], [EMPTY, -5]])],
    "has a giant chunk": [file("a", size=1 << 40, chunks=[[EMPTY, 1 << 40]])],
    "has a hash with dots": [file("a", hash="../../" + EMPTY[6:])],
    "has a short hash": [file("a", hash="abc")],
    "has no hash": [{"path": "a", "size": 0}],
    "has a path that is no text": [file(3)],  # type: ignore[arg-type]
    "has a mode that is no number": [file("a", mode="rwx")],
    "is no object": ["a"],
}


def manifest(entries: list[Any]) -> bytes:
    return json.dumps({"entries": entries}).encode()


@pytest.mark.parametrize("entries", UNSAFE.values(), ids=UNSAFE.keys())
def test_a_manifest_is_refused_when_a_path_of_it(entries: list[Any]) -> None:
    with pytest.raises(UnsafeTreeError):
        decode_tree(manifest([GOOD, *entries]), "a tree")


@pytest.mark.parametrize("entries", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_manifest_is_damaged_when_an_entry_of_it(entries: list[Any]) -> None:
    with pytest.raises(DamagedError, match="a tree"):
        decode_tree(manifest([GOOD, *entries]), "a tree")


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"[" * 100_000, b'{"entries": 3}', b"\xff"])
def test_what_is_no_manifest_is_damaged(data: bytes) -> None:
    with pytest.raises(DamagedError, match="a tree"):
        decode_tree(data, "a tree")


@pytest.mark.parametrize(
    "entries", [*UNSAFE.values(), *MALFORMED.values()], ids=[*UNSAFE.keys(), *MALFORMED.keys()]
)
def test_nothing_is_written_of_a_hostile_tree_in_a_repository(
    project: ProjectDirectory, tmp_path: Path, entries: list[Any]
) -> None:
    with replicate.init(path=None) as experiment:
        experiment.checkpoint(metrics={"loss": 1})
    plant(project, manifest([GOOD, *entries]))
    target = tmp_path / "target"
    opened = project.open()
    with pytest.raises((UnsafeTreeError, DamagedError)):
        opened.checkout(opened.plan_checkout(opened.pick(experiment.id), target))
    assert not target.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["project"]
    assert content_of(project.path) == {}


def plant(project: ProjectDirectory, data: bytes) -> None:
    """Put a tree with a correct hash, and a checkpoint of it, into the only experiment."""
    from datetime import UTC, datetime

    repository = project.open().repository
    (record,) = repository.experiments()
    hash = blake3(data).hexdigest()
    repository.backend.put_if_absent(
        {f"trees/{hash[:2]}/{hash}.json": data, f"blobs/{EMPTY[:2]}/{EMPTY}": b""}
    )
    event = {"id": "e" * 64, "step": 9, "path": ".", "tree": hash, "metrics": {}}
    journal = repository.journal(record.id, "f" * 16)
    journal.append([("checkpoint", datetime.now(UTC), event)])


def test_a_good_manifest_reads_as_it_was_written() -> None:
    tree = Tree(
        (
            Entry("a b/naïve.txt", size=0, hash=EMPTY, mode=0o755),
            Entry("big", size=5, hash=EMPTY, chunks=((EMPTY, 2), (EMPTY, 3))),
            Entry("link", "link", mode=0o777, target="a b/naïve.txt"),
        )
    )
    validate(tree)
    assert decode_tree(encode_tree(tree), "a tree") == tree
