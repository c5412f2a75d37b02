"""Charts: what they show, how they look as figures and in characters, and `replicate plot`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
from matplotlib.figure import Figure

import replicate
from conftest import ProjectDirectory
from experiments import listed, losses, record
from replicate.analysis.charts import course, parallel, scale, scatter
from replicate.analysis.figures import save
from replicate.analysis.series import Run, smoothed
from replicate.cli.chart import Axis, Look, Trace, chart
from replicate.errors import NotFoundError, UsageError
from replicate.model import Point, PrimaryMetric
from replicate.project import ExperimentList


@pytest.fixture(autouse=True)
def no_window() -> Iterator[None]:
    mpl.use("Agg")
    yield
    plt.close("all")


def run(number: int, steps: dict[float, float], **fields: object) -> Run:
    """A run that logged these losses at these steps, a second apart, in the order given."""
    made = record(number, **fields)  # type: ignore[arg-type]
    times = (made.created + timedelta(seconds=n) for n in range(len(steps)))
    points = [
        Point(t, step, {"loss": loss}) for t, (step, loss) in zip(times, steps.items(), strict=True)
    ]
    return Run(made, points)


@pytest.fixture
def three() -> ExperimentList:
    return listed(
        record(0, {"lr": 0.1, "opt": "sgd"}, losses(3.0, 2.0), name="first"),
        record(1, {"lr": 0.001, "opt": "adam"}, losses(1.0, math.nan, 4.0)),
        record(2, {"lr": 0.3, "opt": "adam"}, losses(5.0)),
    )


# ------------------------------------------------------------ what is shown


def test_steps_may_come_in_any_order() -> None:
    drawn = course([run(0, {2: 0.2, 0: 0.9, 1: 0.5})])
    assert (drawn.lines[0].x, drawn.lines[0].y) == ((0, 1, 2), (0.9, 0.5, 0.2))


def test_of_several_values_at_one_step_the_last_stands() -> None:
    made = run(0, {0: 1.0})
    again = Point(made.points[0].time + timedelta(seconds=1), 0, {"loss": 0.5})
    assert course([Run(made.record, [*made.points, again])]).lines[0].y == (0.5,)


def test_nan_and_infinities_are_gaps() -> None:
    (line,) = course([run(0, {0: 1.0, 1: math.nan, 2: math.inf, 3: 2.0})]).lines
    assert [math.isnan(y) for y in line.y] == [False, True, True, False]


def test_time_is_counted_from_the_start_of_each_run() -> None:
    drawn = course([run(0, {5: 1.0, 6: 1.0}), run(7, {5: 1.0})], axis="time")
    assert [line.x for line in drawn.lines] == [(0.0, 1.0), (0.0,)]


def test_the_metric_is_the_primary_one_unless_named(three: ExperimentList) -> None:
    assert course(three.runs()).metric == "loss"
    without = listed(record(0, metrics=[{"a": 1, "b": 2}], primary=None))
    assert course(without.runs()).metric == "a"
    accuracy = PrimaryMetric("acc", "maximize")
    named = listed(record(0, metrics=[{"a": 1, "acc": 2}], primary=accuracy))
    assert course(named.runs()).metric == "acc"


def test_an_unknown_name_suggests_the_nearest(three: ExperimentList) -> None:
    with pytest.raises(NotFoundError, match="did you mean loss"):
        course(three.runs(), "los")
    with pytest.raises(NotFoundError, match="did you mean lr"):
        scatter(three.runs(), "lrr")
    with pytest.raises(NotFoundError, match="no experiments"):
        listed().plot()
    with pytest.raises(NotFoundError, match="metrics"):
        listed(record(0)).plot()
    with pytest.raises(UsageError, match="step, time, date"):
        course(three.runs(), axis="epoch")


def test_experiments_are_called_by_what_tells_them_apart(three: ExperimentList) -> None:
    called = [line.label for line in course(three.runs()).lines]
    assert called[0] == "first  lr=0.1, opt=sgd"
    assert called[1] == f"{three[1].short_id}  lr=0.001, opt=adam"
    twins = listed(record(0, name="a", metrics=losses(1)), record(1, name="a", metrics=losses(1)))
    assert [n.label for n in course(twins.runs()).lines] == [f"a ({e.short_id})" for e in twins]


def test_smoothing_passes_over_gaps_and_starts_at_the_first_value() -> None:
    found = smoothed([1.0, math.nan, 3.0, 3.0], 0.5)
    assert found[0] == 1.0 and math.isnan(found[1])
    assert found[2:] == [pytest.approx(7 / 3), pytest.approx(19 / 7)]
    assert smoothed([1.0, 5.0], 0) == [1.0, 5.0]


@pytest.mark.parametrize("amount", [1, -0.1, math.nan])
def test_smoothing_by_too_much_is_refused(amount: float) -> None:
    with pytest.raises(UsageError, match="smoothing"):
        smoothed([1.0], amount)


def test_a_scatter_shows_what_each_run_came_to(three: ExperimentList) -> None:
    drawn = scatter(three.runs(), "lr")
    assert drawn.metric.positions == (2.0, 1.0, 5.0)
    assert drawn.param.positions == (0.1, 0.001, 0.3)
    assert drawn.param.log and not drawn.metric.log


def test_values_that_are_no_numbers_are_categories() -> None:
    assert scale("p", ["b", 10, 9, True, None, "a"]).categories == (
        *("null", "true", "9", "10", "a", "b"),
    )
    assert scale("p", [1, 2.5]).categories == ()


def test_parallel_shows_the_params_that_differ(three: ExperimentList) -> None:
    drawn = parallel(three.runs())
    assert [s.name for s in drawn.params] == ["lr", "opt"]
    assert drawn.params[1].categories == ("adam", "sgd")
    assert [s.name for s in parallel(three.runs(), ["opt"]).params] == ["opt"]


# ------------------------------------------------------------ figures


def test_plot_draws_a_line_for_each_experiment_and_returns_the_axes(three: ExperimentList) -> None:
    ax = three.plot(logy=True, x="time")
    assert [len(line.get_xdata()) for line in ax.lines] == [2, 3, 1]
    assert ax.get_ylabel() == "loss" and ax.get_yscale() == "log"
    assert "minutes" in ax.get_xlabel()
    legend = ax.get_legend()
    assert legend is not None
    assert legend.get_texts()[0].get_text().startswith("first  lr=0.1")


def test_a_plot_of_one_experiment_may_share_axes(three: ExperimentList) -> None:
    _, ax = plt.subplots()
    assert three[0].plot("loss", ax=ax) is ax
    three[1].plot(ax=ax, x="date")
    assert len(ax.lines) == 2


def test_smoothing_keeps_the_recorded_values_as_a_faint_line(three: ExperimentList) -> None:
    ax = three[:1].plot(smoothing=0.5)
    raw, curve = ax.lines
    assert list(raw.get_ydata()) == [3.0, 2.0] and (raw.get_alpha() or 1) < 0.5
    assert list(curve.get_ydata()) == [3.0, pytest.approx(7 / 3)]


def test_many_experiments_are_told_apart_by_a_colour_scale() -> None:
    many = listed(*(record(n, {"lr": 0.1 * (n + 1)}, losses(n, 1.0)) for n in range(30)))
    ax = many.plot()
    assert len(ax.lines) == 30 and ax.get_legend() is None
    assert isinstance(ax.figure, Figure)
    assert [a.get_ylabel() for a in ax.figure.axes] == ["loss", "lr"]
    assert len({str(line.get_color()) for line in ax.lines}) == 30
    by_loss = many.plot(color="loss").figure
    assert isinstance(by_loss, Figure) and by_loss.axes[1].get_ylabel() == "loss"


def test_names_of_others_are_drawn_as_they_are_written(tmp_path: Path) -> None:
    names = ["_hidden", "$\\frac{", "a\x1b[31m", "<b>&"]
    params = [{"p$_{": name, "q": n} for n, name in enumerate(names)]
    metrics = [{"m$\\x": 1.0, "l": 2.0}]
    hostile = listed(
        *(record(n, p, metrics, PrimaryMetric("m$\\x", "minimize"), name=name)
          for n, (p, name) in enumerate(zip(params, names, strict=True)))
    )  # fmt: skip
    ax = hostile.plot()
    legend = ax.get_legend()
    assert legend is not None
    shown = [t.get_text().partition("  ")[0] for t in legend.get_texts()]
    assert shown == ["_hidden", "$\\frac{", "a\\x1b[31m", "<b>&"]
    for number, axes in enumerate((ax, hostile.scatter("p$_{"), hostile.parallel())):
        assert isinstance(axes.figure, Figure)
        axes.figure.savefig(tmp_path / f"{number}.svg")


def test_scatter_and_parallel_do_without_values_that_are_missing() -> None:
    some = listed(
        record(0, {"lr": 0.1}, losses(1.0)), record(1, {"lr": 0.2}, losses(math.nan)), record(2)
    )
    ax = some.scatter("lr")
    assert "2 without a value" in ax.get_title()
    assert "3 experiments" in some.parallel().get_title()


def test_parallel_marks_what_is_missing_and_breaks_no_line() -> None:
    some = listed(
        record(0, {"lr": 0.1, "depth": 3}, losses(1.0)),
        record(1, {"lr": 0.2}, losses(math.nan)),
        record(2, {"depth": 5}, losses(0.5)),
    )
    ax = some.parallel(["lr", "depth"])
    lines = [line.get_ydata() for line in ax.lines if len(line.get_xdata()) == 3]
    assert len(lines) == 3
    assert all(math.isfinite(height) for line in lines for height in line)
    assert [t.get_text() for t in ax.texts].count("missing") == 3


def test_the_names_on_the_axes_of_parallel_do_not_lie_on_each_other() -> None:
    rates = (0.001, 0.0011, 0.0012, 0.1, 0.5, 1750.0)
    many = listed(*(record(n, {"lr": lr}, losses(1.0 / lr)) for n, lr in enumerate(rates)))
    ax = many.parallel(["lr"])
    names = {t.get_text(): t.get_position() for t in ax.texts}
    assert {"0.001", "1750"} <= names.keys()
    heights = sorted(y for x, y in names.values() if x < 0.5)
    assert all(high - low > 0.04 for low, high in pairwise(heights))


def test_a_figure_of_one_unchanging_value_is_drawn(tmp_path: Path) -> None:
    same = listed(*(record(n, {"lr": 0.1}, losses(1.0)) for n in range(12)))
    for draw in (same.plot, same.parallel, lambda: same.scatter("lr")):
        figure = draw().figure
        assert isinstance(figure, Figure)
        figure.savefig(tmp_path / "same.png")


def test_save_writes_a_figure_of_the_kind_that_the_name_says(
    three: ExperimentList, tmp_path: Path
) -> None:
    for name, first in (("a.png", b"\x89PNG"), ("a.svg", b"<?xml"), ("a.pdf", b"%PDF")):
        save(tmp_path / name, lambda ax: three.plot(ax=ax))
        assert (tmp_path / name).read_bytes().startswith(first)


# ------------------------------------------------------------ characters


STEP, VALUE = Axis("step"), Axis("")


def drawn(*traces: Trace, x: Axis = STEP, y: Axis = VALUE, look: Look) -> list[str]:
    return chart("loss", traces, x, y, look)


def test_a_line_falls_from_the_top_left_to_the_bottom_right() -> None:
    look = Look(width=40, height=10, style="ascii")
    lines = drawn(Trace("a", [0, 10], [10, 0]), look=look)
    rows = lines[1:11]
    assert rows[0].split("|")[-1].startswith("*") or rows[0].split("+")[-1].startswith("*")
    assert rows[-1].endswith("*") and len(rows[-1]) == 40
    places = [row.index("*") for row in rows]
    assert places == sorted(places)


def test_every_line_of_a_chart_fits_the_width() -> None:
    traces = [Trace("x" * 300, range(100), [n * 1e9 for n in range(100)]) for _ in range(20)]
    for width in (30, 80, 200):
        for style in ("braille", "marks", "ascii"):
            look = Look(width=width, style=style)  # type: ignore[arg-type]
            lines = drawn(*traces, x=Axis("a very long name of an axis " * 10), look=look)
            assert max(map(len, lines)) <= width
    assert lines[-1] == "  . 8 earlier ones, not named"


def test_of_many_lines_the_last_are_named_each_with_a_mark_or_a_colour_of_its_own() -> None:
    traces = [Trace(f"run {n}", [0, 9], [n, n]) for n in range(20)]
    for style in ("marks", "ascii"):
        legend = drawn(*traces, look=Look(style=style))[-13:]  # type: ignore[arg-type]
        assert [line.split()[1:] for line in legend[:-1]] == [["run", str(n)] for n in range(8, 20)]
        assert len({line.split()[0] for line in legend}) == 13
    look = Look(style="braille", paint=lambda text, style: f"<{style}>{text}")
    colours = [line.split(">")[0] for line in drawn(*traces, look=look)[-13:]]
    assert len(set(colours)) == 13 and colours[-1] == "  <faint"


def test_a_run_without_a_finite_value_has_no_line_and_the_title_counts_it() -> None:
    runs = listed(*(record(n, {"lr": n}, losses(math.nan if n < 4 else n)) for n in range(15)))
    ax = runs.plot()
    assert len(ax.lines) == 11
    assert ax.get_title() == "loss of 11 experiments (4 without a finite value)"
    assert len(course(runs.runs()).lines) == 15


def test_each_line_has_a_mark_of_its_own_without_colours() -> None:
    look = Look(style="marks")
    lines = drawn(Trace("a", [0, 9], [1, 1]), Trace("b", [0, 9], [2, 2]), look=look)
    assert lines[-2:] == ["  ● a", "  × b"]
    assert any("●●●" in line for line in lines) and any("×××" in line for line in lines)


def test_a_gap_is_not_drawn_over() -> None:
    values = [1.0, 1.0, math.nan, math.nan, 1.0, 1.0]
    lines = drawn(Trace("a", range(6), values), look=Look(width=60, style="ascii"))
    row = next(line for line in lines if "*" in line)
    assert re.search(r"\*+ {10,}\*+", row)


def test_a_logarithmic_axis_leaves_out_what_has_no_place_on_it() -> None:
    trace = Trace("a", [1, 2, 3, 4], [0.001, 0.0, -1.0, 10.0])
    lines = drawn(trace, y=Axis("", log=True), look=Look(style="ascii"))
    labels = [line.split()[0] for line in lines[1:17] if line.split()[0][0].isdigit()]
    assert labels == ["10", "1", "0.1", "0.01", "0.001"]
    assert sum(line.count("*") for line in lines[1:17]) == 2


def test_nothing_to_draw_is_an_empty_chart() -> None:
    assert drawn(Trace("a", [], []), look=Look(style="ascii"))[-1] == "  * a"
    assert drawn(Trace("a", [1], [math.nan]), look=Look(style="ascii"))


def test_huge_and_tiny_numbers_have_an_axis() -> None:
    for values in ([1e300, -1e300], [1e-300, 2e-300], [5.0, 5.0], [0.0, 0.0], [1e16, 1e16 + 2]):
        assert drawn(Trace("a", [0, 1], values), look=Look(style="ascii"))


# ------------------------------------------------------------ the command


@pytest.fixture
def recorded(project: ProjectDirectory) -> ProjectDirectory:
    """A project with two runs: their loss falls, the other way round."""
    for number, lr in enumerate((0.1, 0.001)):
        with replicate.init(path=None, params={"lr": lr, "opt": "ad\x1bam"[number:]}) as experiment:
            for step in range(5):
                loss = math.nan if step == 2 else (5.0 - step) * (number + 1)
                experiment.checkpoint(
                    step=step, metrics={"val/loss": loss}, primary_metric=("val/loss", "minimize")
                )
    return project


def test_plot_draws_in_a_terminal_of_80_places(recorded: ProjectDirectory) -> None:
    lines = recorded.cli("plot").stdout.splitlines()
    assert lines[0].strip() == "val/loss"
    assert max(map(len, lines)) <= 80
    assert lines[-2].startswith("  ● ") and "lr=0.1" in lines[-2]
    assert "\x1b" not in "".join(lines)


def test_plot_in_colours_draws_dots_of_braille(recorded: ProjectDirectory) -> None:
    out = recorded.cli("--color", "always", "plot", "val/loss").stdout
    assert "\x1b[36m" in out and re.search("[\u2801-\u28ff]", out)


def test_plot_takes_ids_and_filters(recorded: ProjectDirectory) -> None:
    first, second = recorded.records()
    only = json.loads(recorded.cli("plot", "val/loss", second.id[:7], "--json").stdout)
    assert [s["experiment"] for s in only["series"]] == [second.id]
    only = json.loads(recorded.cli("plot", "--filter", "lr > 0.01", "--json").stdout)
    assert [s["experiment"] for s in only["series"]] == [first.id]
    assert only["series"][0]["y"] == [5.0, 4.0, "NaN", 2.0, 1.0]
    assert (only["metric"], only["x"]) == ("val/loss", "step")


def test_plot_scatters_and_sets_side_by_side(recorded: ProjectDirectory) -> None:
    assert "val/loss by lr" in recorded.cli("plot", "--scatter", "lr").stdout
    found = json.loads(recorded.cli("plot", "--scatter", "lr", "--json").stdout)
    assert [p["metric"] for p in found["points"]] == [1.0, 2.0]
    assert [p["params"] for p in found["points"]] == [{"lr": 0.1}, {"lr": 0.001}]
    found = json.loads(recorded.cli("plot", "--parallel", "--json").stdout)
    assert found["params"] == ["lr", "opt"]


@pytest.mark.parametrize("kind", [[], ["--scatter", "opt"], ["--parallel"]])
def test_plot_writes_a_figure(recorded: ProjectDirectory, kind: list[str]) -> None:
    done = recorded.cli("plot", *kind, "--logy", "--smoothing", "0.5", "-o", "figure.svg")
    assert "<svg" in (recorded.path / "figure.svg").read_text()
    assert (done.stdout, "figure.svg" in done.stderr) == ("", True)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["val/los"], 2, "did you mean val/loss"),
        (["--scatter", "l"], 2, "lr"),
        (["--smoothing", "1"], 2, "smoothing"),
        (["--parallel"], 2, "-o"),
        (["--parallel", "--scatter", "lr"], 2, "--scatter"),
        (["-o", "figure.xyz"], 2, ".png, .svg, .pdf"),
        (["-o", "missing/figure.png"], 1, "missing/figure.png"),
    ],
)
def test_plot_says_what_is_wrong(
    recorded: ProjectDirectory, arguments: list[str], code: int, says: str
) -> None:
    assert says in recorded.cli("plot", *arguments, expect=code).stderr


def test_plot_says_why_no_experiment_matches(recorded: ProjectDirectory) -> None:
    said = recorded.cli("plot", "-f", "lr = 5", expect=2).stderr
    assert 'No experiment matches: "lr = 5" is true of none; lr is ' in said


def test_plot_of_an_empty_project_says_so(project: ProjectDirectory) -> None:
    assert "no experiments" in project.cli("plot", expect=2).stderr
