"""Names, tags, notes and groups: from `init()` or the environment, edited later by anybody."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

import replicate
from conftest import ProjectDirectory
from replicate.errors import UsageError
from replicate.fold import fold
from replicate.model import Edit, ExperimentRecord
from replicate.records import Event

RUN = """
import replicate
experiment = replicate.init(path=None)
experiment.stop()
"""
EMPTY = ExperimentRecord(
    id="e" * 64,
    created=datetime(2026, 1, 1, tzinfo=UTC),
    params={},
    user="u",
    host="h",
    command="c",
    path=None,
    tree=None,
    tags=("first",),
)

# ------------------------------------------------------------ init()


def test_the_environment_labels_a_run_that_init_does_not(project: ProjectDirectory) -> None:
    project.run(
        RUN,
        REPLICATE_NAME="nightly",
        REPLICATE_TAGS="a, b,,a",
        REPLICATE_NOTES="why",
        REPLICATE_GROUP="sweep",
    )
    record = project.record()
    assert (record.name, record.tags) == ("nightly", ("a", "b"))
    assert (record.notes, record.group) == ("why", "sweep")


def test_what_init_is_given_comes_before_the_environment(project: ProjectDirectory) -> None:
    project.run(
        'import replicate\nreplicate.init(path=None, name="mine", tags=["x"]).stop()',
        REPLICATE_NAME="nightly",
        REPLICATE_TAGS="a",
    )
    record = project.record()
    assert (record.name, record.tags) == ("mine", ("x", "a"))


# ------------------------------------------------------------ the command line


def test_tags_are_added_to_one_experiment_and_removed(project: ProjectDirectory) -> None:
    project.run(RUN)
    id = project.record().id
    done = project.cli("tag", id[:7], "baseline", "good")
    assert f"Tags of {id[:7]}: baseline, good" in done.stderr
    project.cli("tag", id[:7], "--remove", "baseline", "--add", "best")
    assert project.cli("tag", id[:7]).stdout.splitlines() == ["good", "best"]
    assert json.loads(project.cli("tag", id, "--json").stdout) == [
        {"id": id, "tags": ["good", "best"]}
    ]


def test_tags_are_added_to_many_experiments_at_once(project: ProjectDirectory) -> None:
    for _ in range(3):
        project.run(RUN)
    ids = [record.id for record in project.records()]
    project.cli("tag", *ids, "--add", "sweep")
    assert [record.tags for record in project.records()] == [("sweep",)] * 3


def test_a_word_that_is_no_id_tags_nothing(project: ProjectDirectory) -> None:
    project.run(RUN)
    id = project.record().id
    project.cli("tag", id, "baseline", "--remove", "old", expect=2)
    assert project.record().tags == ()


def test_notes_are_written_added_to_printed_and_cleared(project: ProjectDirectory) -> None:
    project.run(RUN)
    id = project.record().id
    project.cli("note", id, "explodes at", "step 300")
    project.cli("note", id, "--append", "clipping helps")
    assert project.cli("note", id).stdout == "explodes at step 300\nclipping helps\n"
    project.cli("note", id, "--clear")
    assert project.record().notes is None


def test_notes_are_not_edited_where_there_is_no_terminal(project: ProjectDirectory) -> None:
    project.run(RUN)
    done = project.cli("note", project.record().id, "--edit", expect=2)
    assert "needs a terminal" in done.stderr


def test_a_run_is_renamed_and_moved_to_a_group(project: ProjectDirectory) -> None:
    project.run(RUN)
    id = project.record().id
    project.cli("name", id, "resnet, cosine")
    project.cli("group", id, "sweep-3")
    record = project.record()
    assert (record.name, record.group) == ("resnet, cosine", "sweep-3")
    assert project.cli("name", id).stdout == "resnet, cosine\n"
    project.cli("group", id, "--clear")
    assert json.loads(project.cli("group", id, "--json").stdout) == {"id": id, "group": None}


def test_a_label_that_is_not_there_is_no_data_but_a_word(project: ProjectDirectory) -> None:
    project.run("import replicate\nreplicate.init(path=None)")
    id = project.record().id
    said = {command: project.cli(command, id) for command in ("name", "group", "note")}
    assert [done.stdout for done in said.values()] == ["", "", ""]
    assert [done.stderr for done in said.values()] == [
        f"{id[:7]} has no name\n",
        f"{id[:7]} is in no group\n",
        f"{id[:7]} has no notes\n",
    ]


def test_show_has_the_labels_and_with_all_who_changed_them(project: ProjectDirectory) -> None:
    project.run(RUN, REPLICATE_TAGS="old")
    id = project.record().id
    project.cli("tag", id, "--add", "new", "--remove", "old")
    project.cli("note", id, "a note")
    plain, every = project.cli("show", id).stdout, project.cli("show", id, "--all").stdout
    assert "new" in plain and "Edits" not in plain
    edits = every.partition("Edits")[2]
    assert "tags +new -old" in edits and "note: a note" in edits
    shown = json.loads(project.cli("show", id, "--json").stdout)
    assert [edit["kind"] for edit in shown["edits"]] == ["tag", "note"]
    assert all("@" in edit["author"] for edit in shown["edits"])


# ------------------------------------------------------------ Python


def test_a_run_that_is_recorded_edits_its_own_labels(project: ProjectDirectory) -> None:
    experiment = replicate.init(path=None, tags=["a"])
    experiment.tag("b", "c")
    experiment.untag("a")
    experiment.note("so far so good")
    experiment.rename("mine")
    experiment.regroup("ours")
    assert experiment.tags == ("b", "c")
    experiment.stop()
    record = project.record()
    assert (record.tags, record.notes) == (("b", "c"), "so far so good")
    assert (record.name, record.group) == ("mine", "ours")
    experiment.tag("after the end")
    assert project.record().tags == ("b", "c", "after the end")


def test_a_listed_experiment_is_edited(project: ProjectDirectory) -> None:
    project.run(RUN)
    (experiment,) = replicate.experiments.list()
    experiment.tag("a", "b")
    experiment.untag("a", "never had")
    assert experiment.tags == ("b",) == replicate.experiments.list()[0].tags


@pytest.mark.parametrize("tag", ["", " ", 3, None])
def test_what_is_no_tag_is_refused(project: ProjectDirectory, tag: str) -> None:
    project.run(RUN)
    with pytest.raises(UsageError):
        replicate.experiments.list()[0].tag(tag)


def test_a_process_that_records_nothing_edits_nothing(
    project: ProjectDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    experiment = replicate.init(path=None)
    experiment.tag("a")
    assert not project.repository.exists()


# ------------------------------------------------------------ several at once


def test_edits_of_several_processes_during_a_run_are_all_kept(project: ProjectDirectory) -> None:
    run = project.start(
        """
        import replicate
        experiment = replicate.init(path=None, tags=["start"])
        experiment.wait()
        print(experiment.id, flush=True)
        for number in range(20):
            experiment.checkpoint(step=number)
            experiment.tag(f"run-{number}")
        input()
        """
    )
    assert run.stdout is not None
    id = run.stdout.readline().strip()
    editor = f"""
import sys, replicate
experiment = replicate.experiments.get({id!r})
for number in range(10):
    experiment.tag(f"{{sys.argv[1]}}-{{number}}")
    experiment.untag("start")
"""
    editors = [project.start(editor, name) for name in ("left", "right")]
    for process in editors:
        assert process.communicate()[1] == "" and process.returncode == 0
    run.communicate("\n")
    record = project.record()
    expected = {f"{who}-{n}" for who in ("left", "right") for n in range(10)}
    assert set(record.tags) == expected | {f"run-{n}" for n in range(20)}
    assert len(record.checkpoints) == 20 and not record.damage


tags = st.lists(st.sampled_from("abc"), max_size=2)
changes = st.one_of(
    st.builds(lambda add, remove: ("tag", {"add": add, "remove": remove}), tags, tags),
    st.text(max_size=3).map(lambda text: ("note", {"text": text})),
    st.text(max_size=3).map(lambda name: ("name", {"name": name})),
    st.none().map(lambda group: ("group", {"group": group})),
)


@st.composite
def edits(draw: st.DrawFn) -> list[Event]:
    """Edits by a few machines, some of them at the same moment."""
    found: list[Event] = []
    for number, (writer, second, (kind, change)) in enumerate(
        draw(st.lists(st.tuples(st.sampled_from("xyz"), st.integers(0, 3), changes), max_size=12))
    ):
        time = EMPTY.created + timedelta(seconds=second)
        found.append(Event(kind, time, writer, number, {"author": f"me@{writer}", **change}))
    return found


@given(st.data(), edits())
def test_edits_give_the_same_labels_in_whatever_order_they_are_read(
    data: st.DataObject, events: list[Event]
) -> None:
    expected = fold(EMPTY, events)
    assert fold(EMPTY, data.draw(st.permutations(events))) == expected
    assert fold(EMPTY, [*events, *events]) == expected
    assert not expected.damage


def test_the_later_edit_counts() -> None:
    def tagged(second: int, writer: str, add: list[str], remove: list[str]) -> Event:
        time = EMPTY.created + timedelta(seconds=second)
        data = {"author": "me@here", "add": add, "remove": remove}
        return Event("tag", time, writer, 0, data)

    events = [tagged(2, "a", ["x"], ["first"]), tagged(1, "b", [], ["x"])]
    record = fold(EMPTY, events)
    assert record.tags == ("x",)
    assert [edit.change["remove"] for edit in record.edits] == [["x"], ["first"]]
    assert record.edits[0] == Edit(events[1].time, "me@here", "tag", {"add": [], "remove": ["x"]})


def test_an_edit_that_cannot_be_read_is_damage_and_the_others_hold() -> None:
    events = [
        Event("tag", EMPTY.created, "w", 0, {"author": "a", "add": 3, "remove": []}),
        Event("name", EMPTY.created, "w", 1, {"author": "a", "name": "good"}),
    ]
    record = fold(EMPTY, events)
    assert record.name == "good" and len(record.damage) == 1
