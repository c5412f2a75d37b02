"""Listing the experiments of a repository: what is kept on this machine, what a bucket's snapshot
tells, and what has to be read."""

from replicate.index.entries import RACY_SECONDS
from replicate.index.listing import Index, Match, Progress, unseen

__all__ = ["RACY_SECONDS", "Index", "Match", "Progress", "unseen"]
