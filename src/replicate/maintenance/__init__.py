"""Keeping a repository in order: what refers to what, whether all of it is there, how many bytes it
takes, and removing what nothing needs any more. `docs/garbage-collection.md` is the contract."""

from replicate.maintenance.gc import Collected, collect
from replicate.maintenance.presence import announced
from replicate.maintenance.references import Holder
from replicate.maintenance.usage import ExperimentUsage, Usage, usage
from replicate.maintenance.verify import Damage, Progress, Verification, silent, verify

__all__ = [
    "Collected",
    "Damage",
    "ExperimentUsage",
    "Holder",
    "Progress",
    "Usage",
    "Verification",
    "announced",
    "collect",
    "silent",
    "usage",
    "verify",
]
