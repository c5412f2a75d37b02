"""Stores of other tools for tests: as they lie in `fixtures/`, and as the real tool writes them.

The tools live in environments of their own in `.tools/`, made once. Where they cannot be installed
the tests with the real tool are skipped, and say why.
"""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

if os.name == "posix":
    import fcntl

FIXTURES = Path(__file__).parent / "fixtures"
_TOOLS = Path(__file__).parents[1] / ".tools"
_NEEDS = {
    "keepsake": ["keepsake==0.4.2", "protobuf<3.21", "googleapis-common-protos<1.57"],
    "mlflow": ["mlflow-skinny==3.12.0", "sqlalchemy", "alembic"],
}

#: Writes what one mode of a fixture's `train.py` makes into a directory.
Writer = Callable[[Path], None]


def as_committed(tool: str, *names: str) -> Writer:
    """The store that lies in the fixture."""

    def write(directory: Path) -> None:
        for name in names:
            source = FIXTURES / tool / name
            if source.is_dir():
                shutil.copytree(source, directory / name)
            else:
                packed = source.with_name(f"{name}.gz")
                (directory / name).write_bytes(gzip.decompress(packed.read_bytes()))

    return write


def by_the_real_tool(tool: str, *arguments: str) -> Writer:
    """The store that the tool writes now, once for all tests that use it."""

    def write(directory: Path) -> None:
        shutil.copytree(_run(tool, arguments).name, directory, dirs_exist_ok=True)

    return write


@cache
def _run(tool: str, arguments: tuple[str, ...]) -> tempfile.TemporaryDirectory[str]:
    """What the tool has written, in a directory that lasts as long as the tests."""
    command = [str(_python_with(tool)), "train.py", *arguments]
    directory = tempfile.TemporaryDirectory(prefix=f"{tool}-")
    shutil.copy(FIXTURES / tool / "train.py", directory.name)
    done = subprocess.run(command, cwd=directory.name, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return directory


def _python_with(tool: str) -> Path:
    """The interpreter of an environment that has the tool; skips the test where there is none."""
    if sys.version_info[:2] not in ((3, 11), (3, 12)) or os.name != "posix":
        pytest.skip("the tool of that time does not run on this system or version of Python")
    home = _TOOLS / f"{tool}-{sys.version_info.major}.{sys.version_info.minor}"
    python, ready = home / "bin" / "python", home / ".installed"
    _TOOLS.mkdir(exist_ok=True)
    with open(_TOOLS / f"{tool}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process of the tests may be making it
        if not ready.exists():
            venv.create(home, clear=True, with_pip=True)
            command = [python, "-m", "pip", "install", "--quiet", *_NEEDS[tool]]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                shutil.rmtree(home)
                pytest.skip(f"{tool} cannot be installed: {done.stderr.strip()[-200:]}")
            ready.touch()
    return python
