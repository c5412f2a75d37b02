"""Facts about the machine and the project that take a moment to find out: hardware, git, packages.

Facts only: nothing here decides, prints, or imports a library to ask it. A fact that cannot be had
is None or absent, never an exception, and everything that is returned can be JSON. Secrets in a
remote's URL are not among the facts.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from replicate.secrets import HIDDEN, redact_text

if TYPE_CHECKING:
    from importlib.metadata import Distribution

_TIMEOUT = 10  # seconds, for git and nvidia-smi

# The machine.


def machine() -> dict[str, Any]:
    """Python, operating system, processor, memory (bytes) and NVIDIA GPUs of this machine."""
    return {
        "python": {
            "version": platform.python_version(),
            "implementation": platform.python_implementation(),
        },
        "os": {
            "system": platform.system(),
            "release": platform.release(),
            "distribution": _distribution_of_os(),
        },
        "cpu": {"model": _cpu_model(), "count": os.cpu_count()},
        "memory": _memory(),
        "gpus": _gpus(),
    }


def _distribution_of_os() -> str | None:
    if sys.platform == "darwin":
        return f"macOS {platform.mac_ver()[0]}"
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME")
    except OSError:
        return None


def _cpu_model() -> str | None:
    if sys.platform == "darwin":
        model = _output("sysctl", "-n", "machdep.cpu.brand_string") or ""
    else:
        found = re.search(r"^model name\s*:(.*)$", _text(Path("/proc/cpuinfo")), re.MULTILINE)
        model = found[1] if found else platform.machine()
    return model.strip() or None


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf
        return None


def _gpus() -> list[dict[str, Any]]:
    # Where there is no driver, do not pay for a process that can only say so.
    drivers = (Path("/proc/driver/nvidia/version"), Path("/dev/dxg"))
    if sys.platform == "linux" and not any(driver.exists() for driver in drivers):
        return []
    if shutil.which("nvidia-smi") is None:
        return []
    fields = "--query-gpu=name,memory.total,driver_version"
    return gpus_from(_output("nvidia-smi", fields, "--format=csv,noheader,nounits") or "")


def gpus_from(table: str) -> list[dict[str, Any]]:
    """The GPUs in what nvidia-smi prints: name, memory in bytes (None: not told), driver."""
    rows = ([cell.strip() for cell in line.rsplit(",", 2)] for line in table.splitlines())
    return [
        {"name": name, "memory": int(mib) * 2**20 if mib.isdigit() else None, "driver": driver}
        for name, mib, driver in (row for row in rows if len(row) == 3)
    ]


# Git.


def git(directory: Path) -> dict[str, Any] | None:
    """Commit, branch, dirty and remote of the git repository around `directory`.

    None outside of one, without git, or when git refuses (it does where another user owns the
    files). `commit` is None before the first one, `branch` when HEAD is detached, `remote` when
    there is none. `dirty` says whether tracked files differ from the commit: to look for
    untracked ones takes seconds where there is data, and the snapshot has them.
    """
    status = _git(directory, "status", "--porcelain=v2", "--branch", "--untracked-files=no")
    if status is None:
        return None
    lines = status.splitlines()
    heads = dict(line[2:].partition(" ")[::2] for line in lines if line.startswith("# "))
    commit, branch = heads.get("branch.oid"), heads.get("branch.head")
    return {
        "commit": None if commit == "(initial)" else commit,
        "branch": None if branch == "(detached)" else branch,
        "dirty": any(not line.startswith("#") for line in lines),
        "remote": _remote(_git(directory, "remote", "-v") or ""),
    }


def _git(directory: Path, *arguments: str) -> str | None:
    # The repository may be a stranger's: start no monitor that its configuration names.
    safely = ("--no-optional-locks", "--no-pager", "-c", "core.fsmonitor=false")
    return _output("git", *safely, "-C", str(directory), *arguments)


def _remote(listing: str) -> str | None:
    """The URL of `origin`, else of the first remote, in what `git remote -v` prints."""
    urls: dict[str, str] = {}
    for line in listing.splitlines():
        name, _, rest = line.partition("\t")
        urls.setdefault(name, rest.rpartition(" ")[0])
    url = urls.get("origin") or next(iter(urls.values()), None)
    return without_credentials(url) if url else None


def without_credentials(url: str) -> str:
    """`url` without a password; without a user too where that may be a token (http)."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return HIDDEN
    userinfo, at, location = parts.netloc.rpartition("@")
    if not at:
        return redact_text(url)
    name = "" if parts.scheme in ("http", "https") else userinfo.partition(":")[0]
    plain = parts._replace(netloc=f"{name}@{location}" if name else location)
    return redact_text(urlunsplit(plain))


def _output(*arguments: str) -> str | None:
    """What a command prints, or None when it is missing, fails, or takes too long."""
    try:
        done = subprocess.run(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_TIMEOUT,
            check=True,
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", "replace")


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8", "replace")
    except OSError:
        return ""


# Packages.


def packages(modules: Iterable[str]) -> dict[str, str]:
    """Name and version of every installed distribution that provides one of these modules.

    Looks along `sys.path` and imports none of them. Several distributions may provide one
    module, as those of `google` do: all are named. A name is as its distribution writes it.
    """
    # 10 ms that only the helper has to pay, although a trainer may import this module.
    from importlib.metadata import distributions

    wanted = set(modules)
    found: dict[str, str] = {}
    for distribution in distributions():
        try:
            if _provides(distribution, wanted):
                name, version = distribution.metadata["Name"], distribution.version
                if name and version:
                    found.setdefault(name, version)  # the first on the path is what is imported
        except (OSError, ValueError, KeyError):  # damaged: it says nothing, the others do
            continue
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def _provides(distribution: Distribution, wanted: set[str]) -> bool:
    """Whether a distribution has one of the modules; its list of files is read only if need be.

    importlib.metadata's own table takes the path of every file apart, which is what costs there.
    """
    declared = distribution.read_text("top_level.txt")
    if declared and declared.strip():
        return not wanted.isdisjoint(declared.split())
    record = distribution.read_text("RECORD") or ""
    if not wanted.isdisjoint(re.findall(r"^([^/,.\s]+)(?=/|\.)", record, re.MULTILINE)):
        return True
    for pth in re.findall(r"^([^/,]+\.pth),", record, re.MULTILINE):
        if _has_module(_text(Path(str(distribution.locate_file(pth)))), wanted):
            return True
    return False


def _has_module(pth: str, wanted: set[str]) -> bool:
    """Whether a directory that an editable install adds to the path has one of the modules."""
    sources = (Path(line) for line in pth.splitlines() if line and not line.startswith("import"))
    return any(
        (source / name).is_dir() or (source / f"{name}.py").is_file()
        for source in sources
        for name in wanted
    )
