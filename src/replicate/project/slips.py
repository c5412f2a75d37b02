"""A primary metric that no checkpoint of a run has: most likely a slip in its name, which would
leave the run without a best checkpoint, and nobody the wiser.

It knows names alone; what is said of them is for `recording` to tell.
"""

from __future__ import annotations

from collections.abc import Callable

from replicate.model import CheckpointRecord

#: Names that are as alike as this are taken for one, with a slip in it: "acuracy" and "accuracy"
#: are, "val/loss" and "train/loss" are not.
_ALIKE = 0.8
#: So many of the metrics that there are instead are named.
_NAMED = 8


class PrimaryNames:
    """Finds a primary metric that a run never has, and says so once for each name.

    One that looks like another metric is a slip as soon as it is seen. Any other may come with a
    later checkpoint, as what is measured every tenth time does: that is known when the run ends.
    """

    def __init__(self, had_before: Callable[[str], bool]) -> None:
        """`had_before` tells whether an earlier attempt at the run had a metric."""
        self._had_before = had_before
        self._had: dict[str, None] = {}
        self._awaited: str | None = None
        self._said: set[str] = set()

    def seen(self, checkpoint: CheckpointRecord) -> str | None:
        """Take note of a checkpoint; what there is to say about its primary metric, if anything."""
        known = (self._awaited, len(self._had))
        self._had.update(dict.fromkeys(checkpoint.metrics))
        if checkpoint.primary_metric is not None:
            self._awaited = checkpoint.primary_metric.name
        name = self._missing() if known != (self._awaited, len(self._had)) else None
        near = None if name is None else _nearest(name, [*self._had])
        if name is None or near is None:
            return None
        self._said.add(name)
        return (
            f'The primary metric "{name}" is not among the metrics of the checkpoints; did you '
            f'mean "{near}"? Without it none of them is the best.'
        )

    def ended(self) -> str | None:
        """What there is to say when no further checkpoint comes."""
        name = self._missing()
        if name is None:
            return None
        self._said.add(name)
        return (
            f'No checkpoint has the primary metric "{name}", so none is the best; they have '
            f"{', '.join([*self._had][:_NAMED])}{', …' if len(self._had) > _NAMED else ''}."
        )

    def _missing(self) -> str | None:
        """The primary metric, when checkpoints have had metrics but never this one."""
        name = self._awaited
        if name is None or name in self._said or name in self._had or not self._had:
            return None
        return None if self._had_before(name) else name


def _nearest(name: str, others: list[str]) -> str | None:
    """The other name that this one is a slip of: nearly the same, or a longer one ("acc")."""
    import difflib

    bare = {other: _bare(other) for other in others}
    wanted = _bare(name)
    alike = difflib.get_close_matches(wanted, bare.values(), n=1, cutoff=_ALIKE)
    found = (other for other, b in bare.items() if b in alike or (wanted and wanted in b))
    return next(found, None)


def _bare(name: str) -> str:
    """What is left of a name where people make slips: its letters and digits."""
    return "".join(filter(str.isalnum, name.casefold()))
