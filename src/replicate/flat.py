"""Values of the user's under names with dots, and where they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: What JSON can hold, with NaN and the infinities.
Value = Any

_SCALARS = frozenset({str, int, float, bool, type(None)})


def differing(flat: Sequence[Mapping[str, Value]]) -> list[str]:
    """The names whose values are not the same in all of these flat mappings."""
    names = dict.fromkeys(name for values in flat for name in values)
    missing = object()
    return [
        n for n in names if any(not same(p.get(n, missing), flat[0].get(n, missing)) for p in flat)
    ]


def same(left: Value, right: Value) -> bool:
    """Whether two values mean the same: 1 and 1.0 do, NaN and NaN do, 1 and True do not."""
    if isinstance(left, bool) is not isinstance(right, bool):
        return False
    return bool(left == right) or repr(left) == repr(right)


def flatten(params: Mapping[str, Value], prefix: str = "") -> dict[str, Value]:
    """Nested params under dotted names: {"a": {"b": 1}} is {"a.b": 1}. Lists stay whole."""
    flat: dict[str, Value] = {}
    for name, value in params.items():
        if type(value) not in _SCALARS and isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat
