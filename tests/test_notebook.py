"""In a notebook: what experiments look like there, and a real one that records, lists and plots."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from conftest import ProjectDirectory
from experiments import LOSS, listed, losses, record
from replicate.errors import NotFoundError
from replicate.model import ExperimentRecord, Status, Stop


class Page(HTMLParser):
    """The elements of a fragment of HTML, and the text that a reader sees."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.cells: list[str] = []
        self.shown = ""
        self.feed(html)
        self.close()
        assert self.open == [], "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.open.append(tag)
        self.attributes += attrs
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & {*self.open}:
            self.shown += data
            if {"td", "th"} & {*self.open}:
                self.cells[-1] += data


def pages(made: ExperimentRecord) -> list[str]:
    """All that shows an experiment in a notebook."""
    found = listed(made, replace(made, id=made.id[::-1], params={}))
    (checkpoint, *_) = found[0].checkpoints
    return [
        found._repr_html_(),
        found[0]._repr_html_(),
        found[0].checkpoints._repr_html_(),
        checkpoint._repr_html_(),
    ]


def test_sort_says_how_the_greatest_comes_first_in_python() -> None:
    both = listed(record(0, metrics=losses(1.0)), record(1, metrics=losses(2.0)))
    assert both.sort("loss", reverse=True)[0].id == both[1].id
    with pytest.raises(NotFoundError) as error:
        both.sort("loss-desc")
    assert 'sort("loss", reverse=True)' in (error.value.hint or "")


#: All that a representation is made of.
OURS = {"style", "script", "div", "span", "b", "code", "table", "thead", "tbody", "tr", "th", "td"}
OUR_ATTRIBUTES = {
    *("class", "style", "title", "scope", "colspan"),
    *("data-v", "data-gap", "data-replicate"),
}
HOSTILE = [
    "<script>alert(1)</script>",
    "</td></tr></table><img src=x onerror=alert(1)>",
    "\" onmouseover=\"alert(1)' x='",
    "\x1b]0;title\x07\x00\u202e\ud800",
    "&lt;&amp;",
    "<!-- ",
    "]]></style><style>",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_others_have_written_is_text_and_nothing_else(text: str) -> None:
    def filled(text: str) -> ExperimentRecord:
        made = record(
            0,
            {text: text, "nested": {text: [text, {text: text}]}},
            [{text: text, "loss": 1}, {text: text, "loss": 2}],
            name=text,
            tags=(text,),
            notes=text,
            user=text,
            host=text,
            command=text,
            group=text,
        )
        first, second = made.checkpoints
        return replace(made, checkpoints=(replace(first, path=(text, text)), second))

    for hostile, plain in zip(pages(filled(text)), pages(filled("plain")), strict=True):
        page = Page(hostile)
        assert {*page.tags} <= OURS
        assert {name for name, _ in page.attributes} <= OUR_ATTRIBUTES
        for tag in ("script", "style", "table", "tr", "td"):
            assert page.tags.count(tag) == Page(plain).tags.count(tag)
        assert not re.search("[\x00-\x09\x0b-\x1f\u202e\ud800]", hostile)
        hostile.encode()


def test_hostile_names_are_shown_as_they_are() -> None:
    (experiment,) = listed(record(0, name="<b>&\x1b", metrics=losses(1.0)))
    assert "<b>&\\x1b" in Page(experiment._repr_html_()).shown


def test_a_list_shows_what_tells_experiments_apart() -> None:
    found = listed(
        record(0, {"lr": 0.1, "same": 1}, losses(0.5, 0.25), name="first"),
        record(
            1, {"lr": 0.2, "same": 1}, losses(0.75), stop=Stop(record(1).created, Status.FAILED)
        ),
    )
    page = Page(found._repr_html_())
    for shown in ("first", "lr", "0.1", "failed", "best loss", "0.25", "0.75"):
        assert shown in page.cells or any(shown in cell for cell in page.cells)
    assert "same" not in page.cells and "tags" not in page.cells


def test_numbers_are_sorted_as_numbers_and_times_as_times() -> None:
    found = listed(record(0, {"n": 9}), record(1, {"n": 10.5}), record(2, {"n": float("nan")}))
    keys = [value for name, value in Page(found._repr_html_()).attributes if name == "data-v"]
    assert {"9", "10.5", "", str(found[0].created.timestamp())} <= {*keys}


def test_long_lists_are_shortened_with_a_note() -> None:
    many = listed(*(record(n, {f"p{n}": n}) for n in range(1000)))
    html = many._repr_html_()
    assert "the first and last 20 of 1,000 experiments are shown" in html
    assert "988 more params" in html
    assert len(html) < 60_000
    long = listed(record(0, {"text": "x" * 100_000}, losses(1.0), notes="y"))
    assert len(long._repr_html_()) < 10_000 and len(long[0]._repr_html_()) < 10_000


def test_checkpoints_that_a_later_attempt_has_done_again_say_so() -> None:
    made = record(0, metrics=losses(1.0, 2.0))
    first, second = made.checkpoints
    plain = listed(made)[0].checkpoints
    resumed = listed(replace(made, checkpoints=(replace(first, superseded=True), second)))
    assert "superseded" in Page(resumed[0].checkpoints._repr_html_()).cells
    assert "superseded" not in Page(plain._repr_html_()).cells
    assert list(resumed[0].checkpoints.to_dataframe()["superseded"]) == [True, False]


def test_nothing_is_fetched_from_elsewhere() -> None:
    for html in pages(record(0, {"a": 1}, losses(1.0))):
        assert not re.search(r"https?:|//|src=|href=|@import|url\(", html.replace("</", ""))


def test_empty_lists_say_so() -> None:
    assert "no experiments" in listed()._repr_html_()
    assert "no checkpoints" in listed().checkpoints._repr_html_()


def test_names_of_metrics_are_offered_for_completion() -> None:
    found = listed(record(0, metrics=[{"loss": 1, "val/acc": 2}], primary=LOSS))
    metrics: Any = found.checkpoints.metrics
    assert metrics._ipython_key_completions_() == ["loss", "val/acc"]


# ------------------------------------------------------------ a real notebook


@pytest.fixture
def executed(
    project: ProjectDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[Any]]:
    """Runs cells in a notebook of the project; returns the outputs of each."""
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, str(tmp_path / name))

    def run(cells: list[str]) -> list[Any]:
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
        client = NotebookClient(
            notebook, timeout=120, resources={"metadata": {"path": str(project.path)}}
        )
        client.execute()
        return [cell.outputs for cell in notebook.cells]

    return run


def data(outputs: list[Any], kind: str) -> str:
    """What a cell shows in this form."""
    return "".join(o["data"][kind] for o in outputs if "data" in o and kind in o["data"])


def printed(outputs: list[Any]) -> str:
    """What a cell has printed."""
    return "".join(o["text"] for o in outputs if o.get("name") == "stdout")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_notebook_records_lists_and_plots(
    project: ProjectDirectory, executed: Callable[..., list[Any]]
) -> None:
    outputs = executed(
        [
            "import replicate\n"
            "experiment = replicate.init(path=None, params={'lr': 0.1}, name='<i>first</i>')\n"
            "for step in range(5):\n"
            "    experiment.checkpoint(step=step, metrics={'loss': 1 / (step + 1)},\n"
            "                          primary_metric=('loss', 'minimize'))",
            "print(experiment.status, replicate.experiments.list()[0].status); experiment",
            "experiment.stop(); print(experiment.status); experiment",
            "with replicate.init(path=None, params={'lr': 0.2}) as other:\n"
            "    other.checkpoint(metrics={'loss': 0.5}, primary_metric=('loss', 'minimize'))\n"
            "experiments = replicate.experiments.list(); experiments",
            "experiments.best()",
            "experiments.to_dataframe()[['name', 'status', 'params.lr', 'metrics.loss']]",
            "experiments.plot();",
            "experiments.scatter('lr'); experiments.parallel();",
            "experiments.history('loss').groupby('experiment')['value'].min().sort_values().tolist()",
            "experiment.checkpoints",
            "experiment.latest()",
        ]
    )
    assert printed(outputs[1]) == "running running\n"
    assert "running" in data(outputs[1], "text/html")
    assert printed(outputs[2]) == "finished\n"
    assert "&lt;i&gt;first&lt;/i&gt;" in data(outputs[2], "text/html")
    listing = data(outputs[3], "text/html")
    assert listing.count("<tr>") == 3 and "<ExperimentList of 2:" in data(outputs[3], "text/plain")
    assert "loss=0.2" in data(outputs[4], "text/plain")
    assert "finished" in data(outputs[5], "text/html")
    assert data(outputs[6], "image/png") and len(outputs[7]) == 2
    assert data(outputs[8], "text/plain") == "[0.2, 0.5]"
    assert data(outputs[9], "text/html").count("<tr>") == 6
    assert "checkpoint" in data(outputs[10], "text/html")
    assert [e.status for e in project.records()] == [Status.FINISHED, Status.FINISHED]
