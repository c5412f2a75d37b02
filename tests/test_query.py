"""Filters and orders: what a person writes, and which experiments it means."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicate.errors import NotFoundError, UsageError
from replicate.model import CheckpointRecord, ExperimentRecord, PrimaryMetric, Status, Stop
from replicate.query import (
    OPERATORS,
    Sort,
    arrange,
    check_names,
    names,
    parse_filter,
    parse_sort,
    select,
    value_of,
)

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
LOSS = PrimaryMetric("val/loss", "minimize")


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Days begin and end by the clock of Greenwich."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def experiment(
    name: str = "one", *metrics: dict[str, Any], created: datetime = NOW, **fields: Any
) -> ExperimentRecord:
    known: dict[str, Any] = {
        "params": {},
        "user": "ada",
        "host": "gpu-7",
        "command": "train.py --lr 1",
        "path": None,
        "tree": None,
        "stop": Stop(created + timedelta(seconds=90), Status.FINISHED),
    }
    checkpoints = tuple(
        CheckpointRecord(
            id=f"{name}{step}".encode().hex().ljust(64, "0"),
            experiment=name,
            created=created,
            step=step * 10,
            path=None,
            tree=None,
            metrics=values,
            primary_metric=LOSS,
        )
        for step, values in enumerate(metrics)
    )
    return ExperimentRecord(
        id=name.encode().hex().ljust(64, "0"),
        created=created,
        name=name,
        checkpoints=checkpoints,
        **(known | fields),
    )


def matches(text: str, record: ExperimentRecord) -> bool:
    return parse_filter(text, NOW).matches(record)


def param(value: Any) -> ExperimentRecord:
    return experiment(params={"x": value})


# ---------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("value", "true", "false"),
    [
        (1, "= 1", "!= 1.0"),
        (1, "= 1.0", "> 1"),
        (1.0, "= 1", "< 1.0"),
        (1, "< 1.5", ">= 1.0001"),
        (0.5, "<= 1", "> 1"),
        (10**400, "> 1e300", "< 1.5"),
        (64, ">= 64.0", "> 64.0"),
        (1e-4, "= 0.0001", "!= 1e-4"),
        (math.nan, "= nan", "< 1"),
        (math.nan, "!= 1", ">= 1"),
        (math.inf, "> 1e308", "= nan"),
        (True, "= true", "= 1"),
        (1, "!= true", "= true"),
        (None, "= null", "= 0"),
        (None, "= none", "!= null"),
        ("adam", "= adam", "= sgd"),
        ("adam", '= "adam"', "= Adam"),
        ("adam", "< sgd", "> sgd"),
        ("two words", "= two words", "= two"),
        ("a = b", "= a = b", "!= 'a = b'"),
        ("10", "= 10", "> 9"),
        (10, "= 10", '= "10"'),
        ("", '= ""', "!= ''"),
        ("null", "= null", '= "none"'),
        ([64, 32], "= [64, 32]", "= [64]"),
        ([64, 32], "= [64.0, 32]", "< 70"),
        ("[broken", "= [broken", "= broken"),
    ],
)
def test_a_value_is_compared_by_what_it_means(value: Any, true: str, false: str) -> None:
    assert matches(f"x {true}", param(value))
    assert not matches(f"x {false}", param(value))


@pytest.mark.parametrize("operator", ["<", "<=", ">", ">=", "="])
@pytest.mark.parametrize("value", ["large", None, True, [1], {"a": 1}])
def test_a_number_and_what_is_none_do_not_match_and_are_no_error(operator: str, value: Any) -> None:
    assert not matches(f"x {operator} 32", param(value))


def test_what_is_not_set_is_null() -> None:
    assert matches("dropout = null", param(1))
    assert not matches("dropout != null", param(1))
    assert matches("dropout != 0.5", param(1))
    assert not matches("dropout < 1", param(1))


@given(st.integers() | st.floats() | st.booleans() | st.none() | st.text(), st.data())
def test_no_filter_raises_for_any_value(value: Any, data: st.DataObject) -> None:
    literal = data.draw(st.sampled_from(["1", "0.5", "nan", "null", "true", "text", "[1]", "{}"]))
    results = {op: matches(f"x {op} {literal}", param(value)) for op in OPERATORS}
    assert results["="] is not results["!="]
    assert not (results["<"] and results[">"])


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    "text",
    [
        "val/loss < 0.2",
        "val/loss<0.2",
        "train loss >= 1",
        "  train loss   >=   1  ",
        "top-5.accuracy = 0.9",
        "model.layers.0 = 64",
        "model.lr.base = 0.1",
        "params.step = 7",
        "metrics.lr = 0.01",
        "params.params.x = 1",
        '"a=b" = 3',
        "'x < y' = 4",
        "実験 = 5",
    ],
)
def test_names_of_all_kinds_can_be_filtered(text: str) -> None:
    record = experiment(
        "one",
        {"val/loss": 0.1, "train loss": 1.5, "top-5.accuracy": 0.9, "lr": 0.01},
        params={
            "model": {"layers": {"0": 64}, "lr.base": 0.1},
            "params": {"x": 1},
            "step": 7,
            "lr": 1,
            "a=b": 3,
            "x < y": 4,
            "実験": 5,
        },
    )
    assert matches(text, record)
    assert [record] == select([record], [parse_filter(text)])


def test_a_name_is_a_field_before_a_param_before_a_metric() -> None:
    record = experiment("one", {"lr": 3, "val/loss": 1}, params={"lr": 2, "host": "mine"})
    assert value_of(record, "host") == "gpu-7"
    assert value_of(record, "lr") == 2
    assert value_of(record, "params.host") == "mine"
    assert value_of(record, "metrics.lr") == 3


def test_a_metric_is_of_the_best_checkpoint_and_the_step_of_the_latest() -> None:
    first, second = {"val/loss": 0.1, "a": 1}, {"val/loss": 0.3, "a": 2, "b": 3}
    record = experiment("one", first, second)
    assert value_of(record, "val/loss") == 0.1
    assert value_of(record, "a") == 1
    assert value_of(record, "b") == 3
    assert value_of(record, "step") == 10


def test_a_metric_is_of_the_latest_checkpoint_when_none_is_best() -> None:
    assert value_of(experiment("one", {"a": 1}, {"a": 2}), "a") == 2


@pytest.mark.parametrize(
    "text",
    [
        "status = finished",
        "step >= 10",
        "user = ada",
        "host != gpu-8",
        "command = train.py --lr 1",
        "name = one",
        "name < two",
        "group = null",
        "tags = small",
        "tags = 2024",
        "tags != large",
        "duration > 60",
        "id = 6f6e65",
    ],
)
def test_every_field_can_be_filtered(text: str) -> None:
    record = experiment("one", {"a": 1}, {"a": 1}, tags=("small", "2024"))
    assert matches(text, record)


@pytest.mark.parametrize(
    "text",
    [
        *("duration > 1 min", "duration < 2h", "duration < 1.5 hours", "duration >= 1 min 30 s"),
        *("duration = 1m30s", "duration != an hour", "duration = 90", "duration > '89'"),
    ],
)
def test_a_duration_is_compared_with_a_length_of_time(text: str) -> None:
    assert matches(text, experiment())
    assert not matches("duration > 2 min", experiment())


@pytest.mark.parametrize("length", ["hour", "1 fortnight", "1 hour ago", "true", "1h x"])
def test_what_is_no_length_of_time_is_wrong_use(length: str) -> None:
    with pytest.raises(UsageError, match="no length of time") as error:
        parse_filter(f"duration > {length}")
    assert "90 min" in (error.value.hint or "")


def test_a_name_with_a_sign_in_it_can_be_quoted() -> None:
    records = [experiment(params={"a=b": 3})]
    assert select(records, [parse_filter('"a=b" = 3')]) == records
    with pytest.raises(NotFoundError) as error:
        select(records, [parse_filter("a=b = 3")])
    assert '"a=b" = 3' in (error.value.hint or "")


def test_tags_are_a_set() -> None:
    assert matches("tags = null", experiment())
    assert not matches("tags = a", experiment(tags=("b", "ab")))
    assert not matches("tags != a", experiment(tags=("a", "b")))
    with pytest.raises(UsageError, match='cannot be compared with "<"'):
        parse_filter("tags < a")


def test_text_fields_are_texts_even_when_they_look_like_numbers() -> None:
    assert matches("name = 7", experiment("7"))
    assert matches("name < 8", experiment("7"))


def test_a_name_that_no_experiment_has_is_an_error_with_the_nearest() -> None:
    records = [experiment("one", {"val/loss": 1}, params={"model": {"depth": 3}}), experiment("b")]
    with pytest.raises(NotFoundError, match=r'has "val_loss"; did you mean val/loss\?'):
        select(records, [parse_filter("val_loss < 1")])
    with pytest.raises(NotFoundError, match=r"did you mean params\.model\.depth\?"):
        check_names(["params.model.dept"], records)
    with pytest.raises(NotFoundError) as error:
        check_names(["xyzzy"], records)
    assert "did you mean" not in error.value.message
    assert "model.depth, val/loss" in (error.value.hint or "")


def test_a_name_that_some_experiment_has_is_right() -> None:
    records = [experiment("one", {"val/loss": 0, "a": 1}, {"b": 1, "val/loss": 1}), experiment("b")]
    check_names(["a", "metrics.b", "val/loss", "created"], records)
    check_names(["anything"], [])


def test_names_lists_fields_then_params_then_metrics() -> None:
    params = {"p": {"q": 1}, "r": 2}
    record = experiment("one", {"val/loss": 0, "a": 1}, {"val/loss": 1, "b": 1}, params=params)
    assert names([record])[-5:] == ["p.q", "r", "val/loss", "a", "b"]
    assert names([record])[:3] == ["id", "created", "status"]


# ---------------------------------------------------------------- what is no filter


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("loss", "name operator value"),
        ("", "name operator value"),
        ("< 1", "name operator value"),
        ("loss <", "value is missing"),
        ("loss == 1", 'no operator "=="'),
        ("loss => 1", 'no operator "=>"'),
        ("loss <> 1", 'no operator "<>"'),
        ("loss ~ 1", 'no operator "~"'),
        ("loss ! 1", 'no operator "!"'),
    ],
)
def test_what_is_no_filter_is_an_error_with_the_operators_and_an_example(
    text: str, why: str
) -> None:
    with pytest.raises(UsageError, match=why) as error:
        parse_filter(text)
    assert error.value.hint == 'operators are = != < <= > >=, as in --filter "val/loss < 0.2"'


def test_a_status_that_there_is_not_is_an_error_with_the_nearest() -> None:
    with pytest.raises(UsageError, match='no status "runing"; did you mean running'):
        parse_filter("status = runing")


# ---------------------------------------------------------------- times


@pytest.mark.parametrize(
    ("created", "true", "false"),
    [
        ("2026-11-01T15:30", "= 2026-11-01", "> 2026-11-01"),
        ("2026-11-01T15:30", "<= 2026-11-01", "< 2026-11-01"),
        ("2026-11-01T15:30", ">= 2026-11-01", "= 2026-11-02"),
        ("2026-11-02T00:00", "> 2026-11-01", "<= 2026-11-01"),
        ("2026-11-01T15:30", "= 2026-11", "!= 2026"),
        ("2026-12-31T23:59", "= 2026-12", "= 2027"),
        ("2026-11-01T15:30:20", "= 2026-11-01 15:30", "= 2026-11-01 15:31"),
        ("2026-11-01T15:30:20", "= 2026-11-01T15:30:20Z", "< 2026-11-01T15:30:20Z"),
        ("2026-11-01T15:30:20", "> 2026-11-01 16:30:00+02:00", "< 2026-11-01 16:30:00+02:00"),
        ("2026-11-22T03:00", "= yesterday", "= today"),
        ("2026-11-23T03:00", "> yesterday", "< today"),
        ("2026-11-21T13:00", "> 2 days ago", "< 2 days ago"),
        ("2026-11-20T13:00", "< 2 days ago", "> 2 days ago"),
        ("2026-11-20T13:00", "= 2 days ago", "= 3 days ago"),
        ("2026-11-23T11:30", "> 1 hour ago", "< an hour ago"),
        ("2026-11-23T11:30", "< 5m ago", "< 2d ago"),
        ("2026-11-09T12:00", "= 2 weeks ago", "< 1 month ago"),
        ("2020-11-09T12:00", "< a year ago", "> 1y ago"),
    ],
)
def test_times_are_as_exact_as_they_are_written(created: str, true: str, false: str) -> None:
    record = experiment(created=datetime.fromisoformat(created).replace(tzinfo=UTC))
    assert matches(f"created {true}", record)
    assert not matches(f"created {false}", record)


@pytest.mark.parametrize(
    "text", ["last tuesday", "2026-13-01", "2026-11-31", "2 days", "0000", "999999999 years ago"]
)
def test_what_is_no_time_is_an_error_with_examples(text: str) -> None:
    with pytest.raises(UsageError, match="is no time") as error:
        parse_filter(f"created > {text}", NOW)
    assert "2 days ago" in (error.value.hint or "")


# ---------------------------------------------------------------- order


def ordered(values: Sequence[Any], sort: str) -> list[Any]:
    records = [experiment(str(n), params={"x": value}) for n, value in enumerate(values)]
    return [r.params["x"] for r in arrange(records, parse_sort(sort))]


def test_ints_and_floats_are_in_one_order() -> None:
    assert ordered([2, 0.5, 1, 10**400, -math.inf], "x") == [-math.inf, 0.5, 1, 2, 10**400]


@pytest.mark.parametrize("direction", ["", "-asc", "-desc"])
def test_nan_and_then_what_is_missing_come_last_in_both_directions(direction: str) -> None:
    result = ordered([None, math.nan, 1, 2], f"x{direction}")
    assert sorted(result[:2]) == [1, 2]
    assert math.isnan(result[2])
    assert result[3] is None


def test_mixed_types_have_one_order_from_wherever_they_start() -> None:
    values = [3, "a", True, [1], "b", 0.5]
    expected = [True, 0.5, 3, "a", "b", [1]]
    for start in permutations(values):
        assert ordered(start, "x") == expected
    assert ordered(values, "x-desc") == expected[::-1]


@pytest.mark.parametrize("direction", ["", "-desc"])
def test_equal_ones_stay_as_they_were_in_both_directions(direction: str) -> None:
    records = [experiment(n, params={"x": 1.0 if n == "b" else 1}) for n in "abc"]
    assert [r.name for r in arrange(records, parse_sort(f"x{direction}"))] == ["a", "b", "c"]


def test_every_field_can_be_sorted_by() -> None:
    records = [
        experiment("b", {"a": 1}, tags=("x",), created=NOW),
        experiment("a", created=NOW - timedelta(days=1)),
    ]
    assert [r.name for r in arrange(records, Sort("created"))] == ["a", "b"]
    assert [r.name for r in arrange(records, Sort("name", descending=True))] == ["b", "a"]
    assert [r.name for r in arrange(records, Sort("tags"))] == ["b", "a"]
    assert [r.name for r in arrange(records, Sort("step"))] == ["b", "a"]


@pytest.mark.parametrize(
    ("text", "sort"),
    [
        ("val/loss", Sort("val/loss")),
        ("val/loss-asc", Sort("val/loss")),
        ("val/loss-desc", Sort("val/loss", descending=True)),
        ("train loss-desc", Sort("train loss", descending=True)),
        ("desc", Sort("desc")),
        ("x-descending", Sort("x-descending")),
        ("x-desc-asc", Sort("x-desc")),
    ],
)
def test_a_direction_stands_at_the_end(text: str, sort: Sort) -> None:
    assert parse_sort(text) == sort


def test_there_must_be_something_to_sort_by() -> None:
    with pytest.raises(UsageError, match="nothing to sort by"):
        parse_sort("-desc")
