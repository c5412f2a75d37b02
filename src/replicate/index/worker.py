"""Decoding of what was read of some experiments, as a process of its own does it for a listing.

It knows bytes and the rows that are made of them. It opens nothing: what it decodes comes from the
process that started it, and with that ends.
"""

from __future__ import annotations

import marshal
from collections.abc import Mapping, Sequence
from typing import BinaryIO

from replicate.backends.base import Stat
from replicate.backends.memory import MemoryBackend
from replicate.index.entries import ids_of, packed
from replicate.repository import Listed, Repository
from replicate.together import Fetched

#: A row of the cache, or None for an experiment that is damaged, or no longer as it was listed.
Row = dict[str, bytes]
#: What `marshal` can write, as all that follows: the numbers of a file,
_Stat = tuple[str, int, float, str]
#: the files of an experiment, as `Listed` has them,
_Files = tuple[str, _Stat | None, list[_Stat], _Stat | None]
#: and the bytes of files by their keys, with the experiments that they are of.
Request = tuple[dict[str, bytes], list[_Files]]


def request(files: Mapping[str, bytes], listed: Sequence[Listed]) -> Request:
    """These experiments with the bytes that were read of them."""
    return dict(files), [
        (
            one.id,
            _numbers(one.inputs) if one.inputs else None,
            [_numbers(stat) for stat in one.journals],
            _numbers(one.heartbeat) if one.heartbeat else None,
        )
        for one in listed
    ]


def decoded(asked: Request) -> list[Row | None]:
    """The row of each of these experiments."""
    files, experiments = asked
    # What was not read is not there to be read again: an experiment that needs it is damaged.
    repository = Repository(Fetched(MemoryBackend(), files))
    return [_row(repository, experiment) for experiment in experiments]


def main(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until there are no more of them, as when who asks has died."""
    while True:
        try:
            asked = marshal.load(requests)
        except EOFError:
            return
        marshal.dump(decoded(asked), answers)
        answers.flush()


def _row(repository: Repository, experiment: _Files) -> Row | None:
    id, inputs, journals, heartbeat = experiment
    stats = tuple(Stat(*numbers) for numbers in journals)
    reading = repository.read(
        Listed(id, inputs and Stat(*inputs), stats, heartbeat and Stat(*heartbeat))
    )
    return None if reading.record.damage else packed(reading, ids_of(reading.record))


def _numbers(stat: Stat) -> _Stat:
    return stat.key, stat.size, stat.modified, stat.version
