"""What is kept out of what a run records: secrets in its command and among its files."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from replicate import ignore, process
from replicate.config import Config
from replicate.secrets import Allowed, may_save, redact_command
from replicate.tree import Listing


def recorded_command(config: Config, hidden: list[str]) -> str:
    """The command that is recorded, without secrets; what those are called is added to `hidden`."""
    if config.command is None:
        return process.command(sys.argv, allowed=config.allow_secrets, hidden=hidden)
    command, found = redact_command(config.command, config.allow_secrets)
    hidden += found
    return command


def without_secrets(
    project: Path, listing: Listing, named: Sequence[str], allowed: Allowed
) -> tuple[Listing, list[str]]:
    """The listing without the files that probably hold secrets, and their paths. One that was
    named itself, or is allowed, stays."""
    files = (ignore.Entry(s.path, "file") for s in listing.selected if s.kind == "file")
    found = ignore.likely_secrets(project, (file for file in files if file.path not in named))
    secret = {path for path in found if not may_save(path, allowed)}
    if secret:
        kept = tuple(s for s in listing.selected if s.path not in secret)
        listing = Listing(kept, listing.left_out)
    return listing, sorted(secret)
