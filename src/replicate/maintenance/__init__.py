"""Keeping a repository in order: what refers to what, whether all of it is there, how many bytes it
takes, and removing what nothing needs any more. `docs/garbage-collection.md` is the contract."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from replicate.maintenance.compaction import Compacted, compact
    from replicate.maintenance.gc import Collected, collect
    from replicate.maintenance.merge import Merge, Outcome
    from replicate.maintenance.presence import announced
    from replicate.maintenance.references import Holder, objects_of
    from replicate.maintenance.removal import (
        RemovalPlan,
        Removed,
        delete_experiments,
        plan_removal,
        remove,
    )
    from replicate.maintenance.transfers import Transferred, refuse_same, transfer
    from replicate.maintenance.usage import ExperimentUsage, Usage, measure
    from replicate.maintenance.verify import (
        Damage,
        Progress,
        Unrecorded,
        Verification,
        check,
        silent,
    )

__all__ = [
    "Collected",
    "Compacted",
    "Damage",
    "ExperimentUsage",
    "Holder",
    "Merge",
    "Outcome",
    "Progress",
    "RemovalPlan",
    "Removed",
    "Transferred",
    "Unrecorded",
    "Usage",
    "Verification",
    "announced",
    "check",
    "collect",
    "compact",
    "delete_experiments",
    "measure",
    "objects_of",
    "plan_removal",
    "refuse_same",
    "remove",
    "silent",
    "transfer",
]

_HOMES = {
    "compaction": ("Compacted", "compact"),
    "gc": ("Collected", "collect"),
    "merge": ("Merge", "Outcome"),
    "presence": ("announced",),
    "references": ("Holder", "objects_of"),
    "removal": ("RemovalPlan", "Removed", "delete_experiments", "plan_removal", "remove"),
    "transfers": ("Transferred", "refuse_same", "transfer"),
    "usage": ("ExperimentUsage", "Usage", "measure"),
    "verify": ("Damage", "Progress", "Unrecorded", "Verification", "check", "silent"),
}


def __getattr__(name: str) -> Any:
    """Import what a name needs when it is first used (PEP 562): a training script, which imports
    this package with `project`, needs none of it."""
    for module, names in _HOMES.items():
        if name in names:
            value = getattr(import_module(f"{__name__}.{module}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
