"""Reading many experiments of a bucket: many requests at once, and decoding meanwhile.

It knows which files can be fetched together. What they say is the repository's affair.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from replicate.backends.base import Backend, Stat
from replicate.backends.files import several
from replicate.backends.wrapper import Wrapper
from replicate.background import Background
from replicate.errors import KeyNotFoundError
from replicate.model import Heartbeat
from replicate.repository import Listed, Reading, Repository

#: So many small files are asked for at once: each is a wait for the network and little else.
THREADS = 32
#: So many experiments are fetched while as many are decoded, and of each file so many bytes: bounds
#: memory. What is larger, as no program of ours writes it, is read when its turn comes.
WINDOW, LARGE = 256, 1 << 20


def read_together(repository: Repository, listed: Sequence[Listed]) -> Iterator[Reading]:
    """Each of these experiments as `Repository.read` gives it, in their order; but the heartbeat of
    a run that is over is not read, as there is nothing more to learn from it."""
    windows = [listed[start : start + WINDOW] for start in range(0, len(listed), WINDOW)]
    fetching = [_fetching(repository.backend, window) for window in windows[:1]]
    for number, window in enumerate(windows):
        fetched = fetching.pop().result()
        fetching += [
            _fetching(repository.backend, following)
            for following in windows[number + 1 : number + 2]
        ]
        yield from _decoded(repository, window, fetched)


def _fetching(backend: Backend, window: Sequence[Listed]) -> Background[dict[str, bytes]]:
    keys = [stat.key for listed in window for stat in _files(listed)]
    return Background(lambda: fetched(backend, keys, THREADS, LARGE))


def _files(listed: Listed) -> Sequence[Stat]:
    return (listed.inputs, *listed.journals) if listed.inputs else listed.journals


def fetched(backend: Backend, keys: Sequence[str], threads: int, large: int) -> dict[str, bytes]:
    """The bytes of those that are there and not large. One thread reads them in their order."""

    def fetch(key: str) -> bytes | None:
        try:
            return backend.get(key, 0, large)
        except KeyNotFoundError:
            return None

    read = several(fetch, keys, threads) if threads > 1 else map(fetch, keys)
    found = zip(keys, read, strict=True)
    return {key: data for key, data in found if data is not None and len(data) < large}


def _decoded(
    repository: Repository, window: Sequence[Listed], fetched: Mapping[str, bytes]
) -> Iterator[Reading]:
    here = Repository(Fetched(repository.backend, fetched), repository.spools)
    readings = [here.read(replace(listed, heartbeat=None)) for listed in window]
    goes_on = [
        listed.heartbeat
        for listed, reading in zip(window, readings, strict=True)
        if listed.heartbeat and reading.record.stop is None
    ]
    beats = dict(zip(goes_on, several(repository.heartbeat, goes_on, THREADS), strict=True))
    for listed, reading in zip(window, readings, strict=True):
        stat = listed.heartbeat
        if stat is None or stat not in beats:
            yield replace(reading, listed=listed)
        else:
            yield _alive(repository, replace(reading, listed=listed), stat, beats[stat])


def _alive(
    repository: Repository, reading: Reading, stat: Stat, heartbeat: Heartbeat | None
) -> Reading:
    """The reading with its heartbeat. When that says more than the journals did before it was read,
    or nothing, all is read again, in the order in which the one can be judged by the others."""
    if heartbeat is None or any(reading.events.get(w, 0) < n for w, n in heartbeat.events.items()):
        return repository.read(reading.listed)
    record = replace(reading.record, heartbeat=repository.aged(heartbeat, stat))
    return replace(reading, record=record)


class Fetched(Wrapper):
    """A backend of which some keys were fetched before. Each is given out so once: who asks again
    wants to know how it is now."""

    def __init__(self, wrapped: Backend, fetched: Mapping[str, bytes]) -> None:
        super().__init__(wrapped)
        self._fetched = dict(fetched)

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        data = self._fetched.pop(key, None)
        if data is None:
            return super().get(key, start, length)
        return data[start : None if length is None else start + length]
