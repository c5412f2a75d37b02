"""Where a large file is cut into chunks: at its tensors when it is a container that says where they
are, by its content otherwise.

Cuts are hints. They decide how much two versions of a file share, never whether a file can be read:
joined, the chunks are the file, whatever it holds. Sizes are constants rather than parts of the
file's size, so that a growing file does not one day cut its old tensors anew (content that is not
tensors is, when it grows long). The figures behind them are in decision 2. Nothing here knows of
hashes or repositories.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from replicate.chunking.containers import Span, find_spans
from replicate.readers import Reader

KIB, MIB = 1 << 10, 1 << 20
#: No chunk is longer. Readers may rely on it to refuse a manifest that says otherwise.
MAX_CHUNK = 16 * MIB
#: A tensor of at least this size is cut from its neighbours; shorter ones merge up to it. A file
#: shorter than this is one chunk.
LARGE_SPAN = 128 * KIB
#: Longer tensors are cut every so many bytes, counted from the tensor's own start.
GRID = 4 * MIB
#: So much content is read at once to be cut: more than one chunk can be.
WINDOW = 32 * MIB
#: Least, typical and greatest length of a chunk where the content decides, in content of at least
#: the length before them: of long content every small chunk would be one of hundreds.
CONTENT_SIZES = (
    (512 * MIB, (MIB, 4 * MIB, MAX_CHUNK)),
    (64 * MIB, (256 * KIB, MIB, MAX_CHUNK)),
    (0, (64 * KIB, 256 * KIB, 4 * MIB)),
)


def cut(reader: Reader) -> Iterator[memoryview]:
    """The chunks of a file, which joined are what was read of it; none when it is empty.

    Each has 1 to `MAX_CHUNK` bytes, in memory that does not change any more: whoever hashes and
    writes it does so to the same bytes, whatever becomes of the file. Read from the start to the
    end, but for the headers of a container, a few chunks ahead. Raises as `reader` does, never for
    what the bytes are. Not to be called from several threads at once.
    """
    size = reader.size
    if size < LARGE_SPAN:
        if size:
            yield reader.read(0, size)
        return
    cut_at = 0
    for span in _covering(find_spans(reader), size):
        if span.end - span.start >= LARGE_SPAN:
            if span.start > cut_at:
                yield reader.read(cut_at, span.start - cut_at)
            yield from _grid(reader, span) if span.is_array else _by_content(reader, span)
        elif span.end - cut_at >= LARGE_SPAN or span.end == size:
            yield reader.read(cut_at, span.end - cut_at)
        else:
            continue
        cut_at = span.end


def _covering(spans: Iterable[Span], size: int) -> Iterator[Span]:
    """The spans, with what lies between them as spans of unknown content: every byte is in one."""
    covered = 0
    for span in spans:
        if span.start > covered:
            yield Span(covered, span.start, is_array=False)
        yield span
        covered = span.end
    if covered < size:
        yield Span(covered, size, is_array=False)


def _grid(reader: Reader, span: Span) -> Iterator[memoryview]:
    """Cuts every `GRID` bytes. What is left is its own chunk only if it is large enough for one."""
    at = span.start
    while at < span.end:
        length = GRID if span.end - at >= GRID + LARGE_SPAN else span.end - at
        yield reader.read(at, length)
        at += length


def _by_content(reader: Reader, span: Span) -> Iterator[memoryview]:
    """Cuts that move with the content when bytes come before it; without pyfastcdc, a grid."""
    try:
        # The compiled class by name: `pyfastcdc.FastCDC` may be the Python one, which would take
        # minutes for a gigabyte. Imported here because only the recorder of large files needs it.
        from pyfastcdc.cy import FastCDC
    except ImportError:
        yield from _grid(reader, span)
        return
    length = span.end - span.start
    least, typical, greatest = next(sizes for at, sizes in CONTENT_SIZES if length >= at)
    cutter = FastCDC(typical, min_size=least, max_size=greatest)
    at, window = span.start, memoryview(b"")
    while at < span.end:
        is_last = at + len(window) == span.end
        # The rules of the cut are others where less than the typical length is left. A chunk that
        # ends with the window may be longer than that.
        found = next(cutter.cut_buf(window)).length if is_last or len(window) >= typical else 0
        if not is_last and found in (0, len(window)):
            window = reader.read(at, min(WINDOW, span.end - at))
            continue
        yield window[:found]
        at, window = at + found, window[found:]
