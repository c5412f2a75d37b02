"""Turns what a training script passes as params and metrics into plain values that JSON can hold.

It recognises numpy, torch, tensorflow, jax, pydantic and OmegaConf objects by what they can do, and
imports none of them. It knows nothing of files.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
import os
import sys
from collections.abc import Mapping, Set
from typing import Any

from replicate.errors import UsageError
from replicate.model import Value

_MAX_DEPTH = 32
_MAX_TEXT = 10_000
#: Arrays with more elements than this are data, not params or metrics.
_MAX_ELEMENTS = 10_000
#: Python reads and writes integers of up to 4,300 digits as text; this is a little less.
_MAX_BITS = 14_000


def to_params(params: object) -> dict[str, Value]:
    """The params as a dict of plain values with string keys.

    Takes a mapping, `argparse.Namespace`, dataclass, pydantic model or OmegaConf object. Raises
    UsageError that names the param which cannot be kept.
    """
    if params is None:
        return {}
    plain = to_value(params, "params")
    if not isinstance(plain, dict):
        raise UsageError(
            f"params must be a dict or an object with named fields, not {type(params).__name__}",
            hint='For example: replicate.init(params={"learning_rate": 0.01})',
        )
    return plain


def to_value(value: Any, name: str) -> Value:
    """`value` as None, bool, int, float, str, list or dict (string keys), all the way down.

    Source: scalars of numpy, torch, tensorflow and jax through `item()`, arrays through `tolist()`.
    Objects that have a text form of their own (a device, a dtype, a function) become that text.
    Raises UsageError naming `name` when there is none.
    """
    return _convert(value, name, _MAX_DEPTH)


def _convert(value: Any, name: str, depth: int) -> Value:
    if type(value) is int and value.bit_length() > _MAX_BITS:
        raise UsageError(f"{name} is an integer of more than 4,000 digits")
    if value is None or type(value) in (bool, int, float, str):
        return value
    if depth == 0:
        raise UsageError(f"{name} is nested too deeply, or contains itself")
    if isinstance(value, enum.Enum):
        return _convert(value.value, name, depth - 1)
    if isinstance(value, bool | int | float | str):  # a subclass, such as numpy.float64
        for base in (bool, int, float, str):
            if isinstance(value, base):
                return _convert(base(value), name, depth)
    fields = _fields(value)
    if fields is not None:
        return {_key(k, name): _convert(v, f"{name}[{k!r}]", depth - 1) for k, v in fields.items()}
    if isinstance(value, Set):  # the order of a set is not kept: give it one
        value = sorted(value, key=str)
    if isinstance(value, list | tuple):
        return [_convert(v, f"{name}[{i}]", depth - 1) for i, v in enumerate(value)]
    if hasattr(value, "tolist") or hasattr(value, "item"):
        return _convert(_array(value, name), name, depth - 1)
    return _text(value, name)


def _fields(value: Any) -> Mapping[Any, Any] | None:
    """The named fields of a mapping-like object, or None when it is not one."""
    if isinstance(value, Mapping):
        # An OmegaConf mapping resolves its interpolations only when asked to.
        omegaconf = sys.modules.get("omegaconf")
        if omegaconf is not None and omegaconf.OmegaConf.is_config(value):
            return dict(omegaconf.OmegaConf.to_container(value, resolve=True))
        return value
    argparse = sys.modules.get("argparse")
    if argparse is not None and isinstance(value, argparse.Namespace):
        return dict(vars(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if not isinstance(value, type) and callable(getattr(value, "model_dump", None)):
        return dict(value.model_dump())
    return None


def _key(key: Any, name: str) -> str:
    if isinstance(key, str):
        return key
    if key is None or isinstance(key, bool | int | float | enum.Enum):
        return str(key.value if isinstance(key, enum.Enum) else key)
    raise UsageError(f"{name} has a key that is not text: {key!r}")


def _array(value: Any, name: str) -> Any:
    """A number from a scalar, nested lists from an array, of any array library."""
    size = getattr(value, "size", 1)
    count = size() if callable(size) else size
    try:
        elements = count if isinstance(count, int) else value.numel()
    except AttributeError:
        elements = 1
    if elements > _MAX_ELEMENTS:
        raise UsageError(
            f"{name} has {elements:,} elements, which is data rather than a value",
            hint="Save it in a file and pass that file to checkpoint().",
        )
    if getattr(value, "dtype", None) is not None and "bfloat16" in str(value.dtype):
        value = value.float() if hasattr(value, "float") else value.astype("float32")
    if hasattr(value, "detach"):  # a torch tensor, perhaps on a GPU and part of a graph
        value = value.detach()
    elif hasattr(value, "numpy") and not hasattr(value, "tolist"):  # a tensorflow tensor
        value = value.numpy()
    if elements == 1 and hasattr(value, "item"):
        return value.item() if not getattr(value, "shape", ()) else value.tolist()
    return value.tolist()


def _text(value: Any, name: str) -> str:
    if isinstance(value, os.PathLike):
        return os.fspath(value) if isinstance(os.fspath(value), str) else str(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, bytes):
        raise UsageError(f"{name} is bytes, which JSON cannot hold", hint="Decode it to text.")
    qualified = getattr(value, "__qualname__", None)
    if isinstance(qualified, str):  # a function or a class: its name, never its address
        return f"{getattr(value, '__module__', '')}.{qualified}".lstrip(".")
    text = str(value)
    if " at 0x" in text or "object at" in text or len(text) > _MAX_TEXT:
        raise UsageError(
            f"{name} is a {type(value).__module__}.{type(value).__qualname__}, "
            "which has no plain form that can be kept",
            hint="Pass the numbers, strings, lists or dicts that describe it instead.",
        )
    return text
