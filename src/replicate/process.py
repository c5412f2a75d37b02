"""Facts about this process: where it runs, who runs it, what was typed, what it has imported.

Facts only: nothing here decides, prints, or reads the environment's variables. Secrets in a command
line are not among the facts. What takes longer to find out is in `environment`.
"""

from __future__ import annotations

import getpass
import os
import re
import shlex
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from replicate.secrets import HIDDEN, Allowed, redact_words


def host() -> str:
    """This machine's name on its network, or "unknown"."""
    return socket.gethostname() or "unknown"


def user() -> str:
    """The login name of whoever runs this process; the number where a user has no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as a user that is in no table
        return str(os.getuid()) if hasattr(os, "getuid") else "unknown"


def is_prepared() -> bool:
    """Whether this is a child that `multiprocessing` only prepares yet, by importing the script
    once more for it: what stands at the script's top level is done by its parent already."""
    multiprocessing = sys.modules.get("multiprocessing.process")
    # Nothing else tells it: the attribute is there until the child begins with its own work.
    return multiprocessing is not None and hasattr(multiprocessing.current_process(), "_inheriting")


# The command.

#: Interpreter options that take a value.
_WITH_VALUE = "WX"


def command(
    argv: Sequence[str],
    orig_argv: Sequence[str] | None = None,
    *,
    allowed: Allowed = (),
    hidden: list[str] | None = None,
) -> str:
    """The command as its user typed it, without the interpreter and with secrets as `***`, but for
    those that are `allowed`; the names of those options are added to `hidden`.

    `train.py --lr=0.2`; `-m package.train` for a module; `notebook` for a cell. `argv` is
    `sys.argv`; `orig_argv` is what the interpreter was started with, by default `sys.orig_argv`.
    """
    if not argv or not argv[0]:
        return "interactive"
    if argv[0].endswith("kernel_launcher.py"):
        return "notebook"
    module = _module(sys.orig_argv if orig_argv is None else orig_argv)
    words = ["-m", module] if module else [_script(argv[0])]
    arguments, found = redact_words(argv[1:], allowed)
    if hidden is not None:
        hidden += found
    return " ".join(_quoted(word) for word in (*words, *arguments))


def _script(path: str) -> str:
    """A script as it was typed: one that was found on the PATH without its directory."""
    at = Path(path)
    return at.name if at.is_absolute() and at.parent == Path(sys.executable).parent else path


def _module(orig_argv: Sequence[str]) -> str | None:
    """The module of `python -m module`, also as `-um module` and `-mmodule`."""
    rest = iter(orig_argv[1:])
    for argument in rest:
        if not argument.startswith("-") or argument == "-":
            return None
        if argument == "--check-hash-based-pycs":
            next(rest, None)
        option = re.match(r"-[^-mcWX]*([mcWX])(.*)", argument, re.DOTALL)
        if option is None:
            continue
        value = option[2] or next(rest, None)
        if option[1] not in _WITH_VALUE:
            return value if option[1] == "m" else None
    return None


def _quoted(word: str) -> str:
    """`word` as a shell needs it, but for the asterisks of a hidden secret: nobody runs those."""
    return HIDDEN.join(shlex.quote(w) if w else "" for w in word.split(HIDDEN)) or "''"


def imported_modules(modules: Mapping[str, Any]) -> list[str]:
    """The top-level names in `sys.modules` that are neither Python's own nor private, sorted."""
    # A thread may import meanwhile: list() takes the keys in one step.
    names = {name.partition(".")[0] for name in list(modules)}
    return sorted(
        name for name in names - sys.stdlib_module_names if name and not name.startswith("_")
    )
