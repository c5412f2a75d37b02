"""A repository that somebody has written to do harm: who lists it, shows it, compares, verifies or
checks out from it sees damage named, or what is there, and nothing worse.

`REPLICATE_FUZZ=1000` reads that many hostile repositories, rather than a few.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from conftest import posix
from fuzz_repository import ACTIONS, NASTY_TEXT, hostile, nested, sealed, valid, valid_bucket
from replicate.backends.base import Backend
from replicate.backends.local import LocalBackend
from replicate.backends.memory import MemoryBackend
from replicate.blobs import blob_key, hash_of
from replicate.cli import main
from replicate.cli.provenance import lineage_lines
from replicate.errors import ReplicateError, StorageError, UnsafeTreeError
from replicate.index import Index
from replicate.maintenance import check
from replicate.model import ExperimentRecord, Origin, TreeRef
from replicate.project import checkouts
from replicate.project.lineage import lineage
from replicate.records import encode_experiment, encode_time, new_id
from replicate.records.sealed import _CHECK, _digest
from replicate.repository import Repository
from replicate.streams import OutputReader, samples, summaries
from replicate.tree import Entry, decode_tree, stage, validate
from replicate.tree.manifest import Tree
from saving import Run, finished

pytestmark = posix

ROUNDS = int(os.environ.get("REPLICATE_FUZZ", "150"))
CLI_ROUNDS = max(8, ROUNDS // 20)


@pytest.fixture(scope="module")
def base() -> MemoryBackend:
    return valid()


@pytest.fixture(scope="module")
def bucket() -> MemoryBackend:
    return valid_bucket()


# ------------------------------------------------------------ every parser, over changed bytes


@pytest.mark.parametrize("part", range(4))
def test_whatever_was_changed_reading_ends_in_a_record_or_an_error_of_ours(
    base: MemoryBackend, part: int, tmp_path: Path
) -> None:
    for seed in range(part, ROUNDS, 4):
        backend = hostile(base, seed)
        try:
            read_all(backend, tmp_path / "target" / str(seed))
        except Exception as error:
            raise AssertionError(f"hostile(base, {seed})") from error
        assert outside(tmp_path) == [], f"hostile(base, {seed}) wrote elsewhere"


def test_a_bucket_with_packs_and_a_snapshot_is_read_as_safely(
    bucket: MemoryBackend, tmp_path: Path
) -> None:
    assert any(stat.key.startswith("packs/") for stat in bucket.list())
    assert any(stat.key.startswith("snapshots/parts/") for stat in bucket.list())
    for seed in range(20_000, 20_000 + ROUNDS // 2):
        backend = hostile(bucket, seed)
        try:
            read_all(backend, tmp_path / "target" / str(seed))
            Index(Repository(backend), None).matches(["0", "a"])
            check(Repository(backend), full=True)
        except ReplicateError:
            continue
        except Exception as error:
            raise AssertionError(f"hostile(bucket, {seed})") from error


def read_all(backend: Backend, target: Path) -> None:
    """Everything that can be read, as far as it goes."""
    repository = Repository(backend)
    with contextlib.suppress(ReplicateError):
        repository.exists()
    for record in repository.experiments():
        derived(record)
        repository.history(record)
        summaries(repository.history(record))
        samples(repository.stream(record.id, "system").read())
        OutputReader(repository.stream(record.id, "console")).read()
        for ref in (record.tree_ref, *(c.tree_ref for c in record.checkpoints)):
            check_out(repository, ref, target)
    with contextlib.suppress(ReplicateError):
        checkouts.undo(repository, target)
    for record in Index(repository, None).records():
        derived(record)
        list(record.checkpoints)


def derived(record: ExperimentRecord) -> None:
    """What faces ask of a record."""
    assert record.status
    assert record.duration is None or str(record.duration)
    record.best()
    record.latest()
    repr(record)
    lineage(record, [record])


def check_out(repository: Repository, ref: TreeRef | None, target: Path) -> None:
    with contextlib.suppress(ReplicateError):
        plan = checkouts.plan(repository, "0" * 64, [ref], target)
        checkouts.perform(repository, plan)


def outside(directory: Path) -> list[Path]:
    return [path for path in directory.iterdir() if path.name != "target"]


# ------------------------------------------------------------ every command, over the same

COMMANDS = (
    ("ls", "--all"),
    ("ls", "--json"),
    ("ls", "--filter", "loss < 1", "--sort", "loss"),
    ("show", "ID", "--all"),
    ("show", "ID", "--system"),
    ("show", "ID", "--json"),
    ("logs", "ID"),
    ("logs", "ID", "--json"),
    ("plot", "loss"),
    ("diff", "ID", "OTHER"),
    ("checkout", "ID", "-o", "TARGET", "--force"),
    ("verify", "--full"),
    ("du",),
    ("gc", "--dry-run"),
    ("ps",),
    ("export", "TARGET/out.jsonl"),
    ("cp", ".replicate", "TARGET/copy"),
)


@pytest.mark.parametrize("part", range(2))
def test_no_command_fails_in_a_way_of_its_own_or_acts_on_the_terminal(
    base: MemoryBackend, part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPLICATE_CACHE", str(tmp_path / "cache"))
    for seed in range(10_000 + part, 10_000 + CLI_ROUNDS, 2):
        directory = tmp_path / str(seed)
        id = on_disk(hostile(base, seed), directory / ".replicate")
        for command in COMMANDS:
            output = said(directory, *command, id=id)
            assert "unexpected" not in output, f"hostile(base, {seed}): {command}\n{output}"
            assert_harmless(output, f"hostile(base, {seed}): {command}")


def on_disk(backend: MemoryBackend, root: Path) -> str:
    """Write a repository as files; the id of its experiment."""
    ids = []
    for stat in backend.list():
        file = root / stat.key
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(backend.get(stat.key))
        if stat.key.startswith("experiments/"):
            ids.append(stat.key.split("/")[1])
    return max(ids, key=ids.count)


def said(directory: Path, *command: str, id: str) -> str:
    """What a command writes to a terminal's streams."""
    words = [w.replace("OTHER", id).replace("ID", id) for w in command]
    words = [w.replace("TARGET", str(directory / "target")) for w in words]
    out, err = Terminal(), Terminal()
    before = Path.cwd()
    os.chdir(directory)
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit),
        ):
            main.main(["--color", "never", "-v", *words])
    finally:
        os.chdir(before)
    return out.getvalue() + err.getvalue()


class Terminal(io.StringIO):
    """A stream that a person reads."""

    encoding = "utf-8"  # type: ignore[assignment]


def assert_harmless(output: str, where: str) -> None:
    """Nothing that a terminal would act on, but ends of lines."""
    found = re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]", output)
    assert found is None, f"{where}: {output[max(0, found.start() - 60) : found.end() + 20]!r}"
    output.encode()


# ------------------------------------------------------------ what was thought of


def test_a_heartbeat_with_no_sense_is_damage_and_never_waited_for() -> None:
    for interval in (0, -1, 1e300, "10", None, True, [], 10**400):
        backend = MemoryBackend()
        run = Run(Repository(backend))
        beat = {"time": encode_time(datetime.now(UTC)), "interval": interval, "events": {}}
        backend.put(f"experiments/{run.id}/heartbeat.json", sealed(beat))
        (record,) = run.repository.experiments()
        assert record.heartbeat is None
        assert len(record.damage) == 1


@pytest.mark.parametrize("restored", [2, 3, 2**40, -1, None])
def test_attempts_that_go_on_from_each_other_are_damage(restored: Any) -> None:
    run = Run(Repository(MemoryBackend()))
    made = run.checkpoint({"a": b"a"})
    time = datetime.now(UTC)
    attempt = {
        **dict.fromkeys(("command", "user", "host"), ""),
        "id": new_id(),
        "attempt": 2,
        "params": {},
        "path": None,
        "tree": None,
        "restored": {"checkpoint": made, "attempt": restored, "time": encode_time(time)},
    }
    run.journal.append([("attempt", time, attempt)])
    (record,) = run.repository.experiments()
    assert record.attempts == ()
    assert record.current == record.checkpoints
    assert len(record.damage) == 1


@pytest.mark.parametrize("circle", [True, False])
def test_a_family_of_thousands_of_generations_is_shown(circle: bool) -> None:
    ids = [new_id() for _ in range(3_000)]
    parents = [Origin(ids[-1]) if circle else None, *map(Origin, ids[:-1])]
    blank: dict[str, Any] = {"params": {}, "user": "", "host": "", "command": "", "path": None}
    now = datetime.now(UTC)
    records = [
        ExperimentRecord(id=id, created=now, tree=None, parent=parent, **blank)
        for id, parent in zip(ids, parents, strict=True)
    ]
    for record in (records[0], records[1500], records[-1]):
        assert lineage_lines(lineage(record, records), record.id, plain=True)


def test_values_that_are_nested_deeply_are_damage_and_not_the_end_of_a_listing() -> None:
    for depth in (101, 400, 900, 20_000):
        backend = MemoryBackend()
        repository = Repository(backend)
        good = finished(repository, {"a": b"a"})
        bad = Run(repository).id
        key = f"experiments/{bad}/experiment.json"
        text = "[" * depth + "]" * depth
        data = backend.get(key).replace(b'"params": {}', b'"params": {"a": ' + text.encode() + b"}")
        found = _CHECK.search(data)
        assert found is not None
        body = data[: found.start()]
        backend.put(key, body + b',"check":"' + _digest(body) + b'"}\n')
        records = {record.id: record for record in repository.experiments()}
        assert not records[good].damage
        assert records[bad].damage
    assert nested(2) == [[1]]


@pytest.mark.parametrize(
    "path",
    [
        *("/etc/x", "../x", "a/../../x", "a//b", ".", "a/./b", "C:/x", "a\\..\\b", "a\0b", ""),
        *(".git/hooks/post-checkout", "sub/.GIT/config", ".git./x", ".git /x", "GIT~1/x"),
        *(".g\u200cit/config", ".git::$INDEX_ALLOCATION/x", ".Replicate/x", "\ud800"),
        *("x" * 256, "/".join(["x" * 200] * 30)),
    ],
)
def test_a_path_that_could_lead_elsewhere_is_refused(path: str) -> None:
    with pytest.raises(UnsafeTreeError):
        validate(Tree((Entry(path, hash="0" * 64),)))


@pytest.mark.parametrize(
    "entries",
    [
        [Entry("a", "link", target="../x")],
        [Entry("a", "link", target="/etc")],
        [Entry("a/b/l", "link", target="../.."), Entry("x", "link", target="a/b/l/../y")],
        [Entry("a/b/L", "link", target="../.."), Entry("x", "link", target="a/b/l/../y")],
        [Entry("a", "link", target="b"), Entry("a/x")],
        [Entry("A", "link", target="b"), Entry("a/x")],
        [Entry("a"), Entry("a")],
        [Entry("a", mode=0o4755)],
    ],
)
def test_links_and_modes_that_could_do_harm_are_refused(entries: list[Entry]) -> None:
    with pytest.raises(UnsafeTreeError):
        validate(Tree(tuple(entries)))


def test_links_that_stay_inside_are_kept() -> None:
    entries = [Entry("a/b/l", "link", target="../c/../d"), Entry("x", "link", target="a/b/l/y")]
    validate(Tree(tuple(entries)))


@pytest.mark.parametrize(
    "entry",
    [
        '{"path": "a", "size": 1e999, "hash": "%s"}',
        '{"path": "a", "size": -1, "hash": "%s"}',
        '{"path": "a", "size": "1", "hash": "%s"}',
        '{"path": "a", "mode": "0x1ff", "hash": "%s"}',
        '{"path": "a", "size": 17000000, "hash": "%s"}',
        '{"path": "a", "hash": "%s", "chunks": [["../x", 1]]}',
        '{"path": ["a"], "hash": "%s"}',
        '{"path": "a", "kind": "device", "hash": "%s"}',
        "[" * 100_000,
        "1" * 5_000,
    ],
)
def test_a_manifest_that_means_nothing_is_an_error_of_ours(entry: str) -> None:
    text = '{"entries": [' + entry.replace("%s", "0" * 64) + "]}"
    with pytest.raises(ReplicateError):
        decode_tree(text.encode(), "tree")


def test_a_tree_that_would_fill_the_disk_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    repository = Repository(LocalBackend(tmp_path / "repository"))
    repository.create()
    zeros = bytes(1 << 20)
    hash = hash_of(zeros)
    repository.backend.put_if_absent({blob_key(hash): zeros})
    # The same chunk again and again: a megabyte stored is ten terabytes of files.
    chunks = ((hash, len(zeros)),) * 10_000
    huge = [Entry(str(n), size=10_000 << 20, hash=hash, chunks=chunks) for n in range(1_000)]
    target = tmp_path / "target"
    with pytest.raises(StorageError, match="do not fit"):
        stage(repository.backend, huge, target)
    assert list(target.iterdir()) == []


@pytest.mark.parametrize("path", ["../../victim", "/tmp/victim", "a/../../victim", "sub/x"])
def test_undoing_a_checkout_deletes_nothing_elsewhere(tmp_path: Path, path: str) -> None:
    repository = Repository(LocalBackend(tmp_path / "repository"))
    repository.create()
    directory = tmp_path / "one" / "two"
    directory.mkdir(parents=True)
    (tmp_path / "victim").write_text("kept")
    (tmp_path / "x").write_text("kept")
    (directory / "sub").symlink_to(tmp_path)
    batch = repository.batch()
    empty = batch.add_tree(b'{"entries":[\n\n]}\n', None)
    batch.flush()
    document = {
        "id": new_id(),
        "created": encode_time(datetime.now(UTC)),
        "directory": str(directory),
        "checked_out": "0" * 64,
        "replaced": empty,
        "added": [path],
        "undoes": None,
    }
    repository.backend.put(f"checkouts/{document['id']}.json", sealed(document))
    with contextlib.suppress(ReplicateError):
        checkouts.undo(repository, directory)
    assert (tmp_path / "victim").read_text() == "kept"
    assert (tmp_path / "x").read_text() == "kept"


def test_no_text_of_a_repository_acts_on_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPLICATE_CACHE", str(tmp_path / "cache"))
    root = tmp_path / ".replicate"
    repository = Repository(LocalBackend(root))
    text = NASTY_TEXT.replace("\x00", "")
    run = Run(repository, {f"c\x1b[31m{ACTIONS[3]}.py": b"\x1b[2J\n"})
    record = ExperimentRecord(
        id=run.id,
        created=datetime.now(UTC),
        params={text: text, "lr": [text]},
        user=text,
        host=text,
        command=text,
        path=text,
        tree=None,
        name=text,
        tags=(text,),
        notes=text,
        group=text,
        environment={text: text, "git": {"remote": text}},
        packages={text: text},
    )
    (root / "experiments" / run.id / "experiment.json").write_bytes(encode_experiment(record))
    run.checkpoint({f"m\x1b[31m{ACTIONS[3]}": b"\x1b[2J\n"})
    now = datetime.now(UTC)
    stop = {"status": "failed", "signal": text, "exit_code": 1}
    error = {"type": text, "message": text, "traceback": text}
    run.journal.append(
        [
            ("problem", now, {"message": text}),
            ("summary", now, {"metrics": {text: text}}),
            ("note", now, {"author": text, "text": text}),
            ("tag", now, {"author": text, "add": [text], "remove": [text]}),
            ("stop", now, {**stop, "exception": error}),
            ("drop", now, {"checkpoints": [1]}),
        ]
    )
    output = {"stream": "stdout", "source": text, "first": 0, "end": 1, "text": text + "\n"}
    repository.journal(run.id, new_id()[:16], "console").append([("output", now, output)])
    other = finished(repository, {"other": b"x"})
    for command in COMMANDS:
        words = [w.replace("OTHER", other) for w in command]
        shown = said(tmp_path, *words, id=run.id)
        assert "unexpected" not in shown, f"{command}\n{shown}"
        assert_harmless(shown, str(command))
