"""Libraries that come as extras: imported where they are used, and missed in plain words."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from replicate.errors import UsageError


def required(module: str, what: str, install: str) -> Any:
    """The module; raises UsageError that says what needs it and how to install it if it is not
    there."""
    try:
        return import_module(module)
    except ImportError as error:
        library = module.partition(".")[0]
        raise UsageError(
            f"{what} needs {library}, which cannot be imported ({error})",
            hint=f"Install it: pip install {install}",
        ) from error
