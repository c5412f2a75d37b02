"""Lists of a bucket, in the order of the keys: a short one in one request, a long one in parallel.

A storage gives 1,000 keys (Azure 5,000) at a time, one page after another. Most of our names are
hexadecimal digits that are evenly spread, so that a long list is cut at the first digits into
ranges, which are asked for at the same time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import obstore
from obstore.store import AzureStore

from replicate.backends.failures import asked
from replicate.backends.stores import Stores

PAGE = 1000
#: How many lists are under way at once; as many again may wait to be taken, which bounds memory.
THREADS = 16
#: With more keys than this a list is cut at two digits, so that no range is very long.
_MANY = 50_000
_HEX = "0123456789abcdef"

#: What a storage says of one object: "path", "size", "last_modified", "e_tag".
Meta = Any


class Listing:
    """Lists of the place at `url`, with the objects that are hidden there."""

    def __init__(self, stores: Callable[[], Stores], url: str) -> None:
        self._stores = stores
        self._url = url

    def list(self, prefix: str, after: str) -> Iterator[Meta]:
        """All below `prefix` (a directory with its slash, or "") that sorts after `after`."""
        page = self._page(prefix, after)
        yield from page
        if len(page) < PAGE:
            return
        last = page[-1]["path"]
        if not prefix:
            yield from self._directories(last)
        elif digits := self._digits(prefix, last):
            yield from self._ranges(prefix, last, digits)
        else:
            yield from self._range(prefix, last, "")

    def _directories(self, after: str) -> Iterator[Meta]:
        """The rest of everything: what is at the top, and each directory by itself."""
        store = self._stores().quick
        found = asked("list", self._url, "", lambda: obstore.list_with_delimiter(store))
        entries: dict[str, Meta] = {meta["path"]: meta for meta in found["objects"]}
        entries |= {f"{name}/": None for name in found["common_prefixes"]}
        for name in sorted(entries):
            if name.endswith("/") and (name > after or after.startswith(name)):
                yield from self.list(name, after if after.startswith(name) else "")
            elif name > after:
                yield entries[name]

    def _digits(self, prefix: str, last: str) -> int:
        """At how many digits to cut what follows the first page; 0 where cutting does not help."""
        name = last[len(prefix) : len(prefix) + 8]
        # Azure lists from the start of the prefix whatever is asked for.
        if isinstance(self._stores().quick, AzureStore) or set(name) - set(_HEX + "/"):
            return 0
        passed = (int(name.replace("/", "").ljust(8, "0"), 16) + 1) / 16**8
        return 1 if PAGE / passed < _MANY else 2

    def _ranges(self, prefix: str, after: str, digits: int) -> Iterator[Meta]:
        """As `_range` for all that is left, in parallel."""
        names = _HEX if digits == 1 else [a + b for a in _HEX for b in _HEX]
        if digits == 2 and after[len(prefix) + 2 : len(prefix) + 3] == "/":
            names = [f"{name}/" for name in names]
        cuts = [cut for cut in (prefix + name for name in names) if cut > after]
        bounds = list(zip([after, *cuts], [*cuts, ""], strict=True))
        waiting: deque[Future[list[Meta]]] = deque()
        with ThreadPoolExecutor(THREADS) as pool:
            try:
                for start, end in bounds:
                    waiting.append(pool.submit(self._all, prefix, start, end))
                    if len(waiting) == 2 * THREADS:
                        yield from waiting.popleft().result()
                while waiting:
                    yield from waiting.popleft().result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _all(self, prefix: str, after: str, end: str) -> list[Meta]:  # type: ignore[valid-type]
        return [*self._range(prefix, after, end)]

    def _range(self, prefix: str, after: str, end: str) -> Iterator[Meta]:
        """What sorts after `after` and up to `end`, one page after another."""
        while True:
            page = self._page(prefix, after)
            for meta in page:
                if end and meta["path"] > end:
                    return
                yield meta
            if len(page) < PAGE:
                return
            after = page[-1]["path"]

    def _page(self, prefix: str, after: str) -> Any:
        """The first so many keys after `after`, or all that there are."""
        store = self._stores().quick
        return asked("list", self._url, prefix, lambda: _first_page(store, prefix, after))


def _first_page(store: Any, prefix: str, after: str) -> list[Meta]:
    pages = obstore.list(store, prefix or None, offset=after or None, chunk_size=PAGE)
    return [meta for meta in next(iter(pages), []) if meta["path"] > after]
