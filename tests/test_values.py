"""What a script passes as params and metrics becomes plain values, whatever library it is of."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import enum
import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from replicate.errors import UsageError
from replicate.values import to_params, to_value


class Color(enum.Enum):
    RED = 1


class Names(enum.StrEnum):
    ADAM = "adam"


@dataclasses.dataclass
class Inner:
    size: int = 3


@dataclasses.dataclass
class Outer:
    inner: Inner = dataclasses.field(default_factory=Inner)
    path: Path = Path("data")


class Model:
    """As a pydantic model: it can be dumped."""

    def model_dump(self) -> dict[str, Any]:
        return {"rate": 0.1}


class Box(Mapping[str, int]):
    def __getitem__(self, key: str) -> int:
        return 1

    def __iter__(self) -> Iterator[str]:
        return iter(["a"])

    def __len__(self) -> int:
        return 1


def train() -> None:
    """A function that a person passes as a param."""


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (None, None),
        (True, True),
        (np.True_, True),
        (np.float64(0.1), 0.1),
        (np.float32(0.5), 0.5),
        (np.int8(-3), -3),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (np.array([5]), [5]),
        ((1, (2, 3)), [1, [2, 3]]),
        ({3, 1, 2}, [1, 2, 3]),
        (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        (Box(), {"a": 1}),
        (Color.RED, 1),
        (Names.ADAM, "adam"),
        (Path("a/b"), "a/b"),
        (datetime.date(2026, 1, 2), "2026-01-02"),
        (train, f"{__name__}.train"),
        (Outer, f"{__name__}.Outer"),
        (Outer(), {"inner": {"size": 3}, "path": "data"}),
        (Model(), {"rate": 0.1}),
        (argparse.Namespace(a=argparse.Namespace(b=1)), {"a": {"b": 1}}),
        ({1: {None: 2, True: 3, 0.5: 4}}, {"1": {"None": 2, "True": 3, "0.5": 4}}),
        (np.dtype("float32"), "float32"),
        (10**400, 10**400),
    ],
)
def test_becomes_plain(value: object, plain: object) -> None:
    found = to_value(value, "value")
    assert found == plain
    assert type(found) is type(plain)


@pytest.mark.parametrize("value", [math.nan, np.float64("nan"), np.float32("nan")])
def test_nan_stays_nan(value: object) -> None:
    found = to_value(value, "loss")
    assert type(found) is float and math.isnan(found)


def test_torch_values_become_plain() -> None:
    torch = pytest.importorskip("torch")
    weights = torch.ones(2, 2, requires_grad=True)
    assert to_value(weights.sum() * 2, "loss") == 8.0
    assert to_value(weights, "weights") == [[1.0, 1.0], [1.0, 1.0]]
    assert to_value(torch.tensor(1.5, dtype=torch.bfloat16), "x") == 1.5
    assert to_value(torch.device("cpu"), "device") == "cpu"
    assert to_value(torch.float32, "dtype") == "torch.float32"
    with pytest.raises(UsageError, match="20,000 elements"):
        to_value(torch.zeros(20_000), "weights")


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ({"a": [0, object()]}, "value['a'][1]"),
        (Outer(inner=Inner(size=object())), "value['inner']['size']"),  # type: ignore[arg-type]
        (b"bytes", "value is bytes"),
        ({(1, 2): 3}, "value has a key"),
        (np.zeros(10_001), "value has 10,001 elements"),
        pytest.param(10**5000, "value is an integer", id="long"),
        pytest.param(-(10**5000), "value is an integer", id="long and negative"),
        (np.array([10**5000], dtype=object), "value[0] is an integer"),
    ],
)
def test_what_has_no_plain_form_is_named(value: object, named: str) -> None:
    with pytest.raises(UsageError) as error:
        to_value(value, "value")
    assert named in str(error.value)


def test_params_must_have_names() -> None:
    assert to_params(None) == {}
    for wrong in ([1], "text", 3):
        with pytest.raises(UsageError, match="params must be"):
            to_params(wrong)
