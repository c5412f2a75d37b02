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

KIB, MIB = 1 << 10, 1 << 20
#: No chunk is longer. Readers may rely on it to refuse a manifest that says otherwise.
MAX_CHUNK = 16 * MIB
#: A tensor of at least this size is cut from its neighbours; shorter ones merge up to it. A file
#: shorter than this is one chunk.
LARGE_SPAN = 128 * KIB
#: Longer tensors are cut every so many bytes, counted from the tensor's own start.
GRID = 4 * MIB
#: Least, typical and greatest length of a chunk where the content decides, in content of at least
#: the length before them: of long content every small chunk would be one of hundreds.
CONTENT_SIZES = (
    (512 * MIB, (MIB, 4 * MIB, MAX_CHUNK)),
    (64 * MIB, (256 * KIB, MIB, MAX_CHUNK)),
    (0, (64 * KIB, 256 * KIB, 4 * MIB)),
)


def cut(view: memoryview) -> Iterator[int]:
    """Where the chunks of a file end: ascending offsets, the last one `len(view)`; none when empty.

    Each chunk has 1 to `MAX_CHUNK` bytes. `view` is the file's bytes, as from `mmap`; of a
    container only the headers are read, of anything else what comes before the offset that was
    asked for. Never raises for what the bytes are. Not to be called from several threads at once.
    """
    if len(view) < LARGE_SPAN:
        yield from [len(view)] if len(view) else []
        return
    cut_at = 0
    for span in _covering(find_spans(view), len(view)):
        if span.end - span.start >= LARGE_SPAN:
            if span.start > cut_at:
                yield span.start
            yield from _grid(span) if span.is_array else _by_content(view, span)
        elif span.end - cut_at >= LARGE_SPAN or span.end == len(view):
            yield span.end
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


def _grid(span: Span) -> list[int]:
    """Cuts every `GRID` bytes. What is left is its own chunk only if it is large enough for one."""
    ends = list(range(span.start + GRID, span.end, GRID))
    if ends and span.end - ends[-1] < LARGE_SPAN:
        ends.pop()
    return [*ends, span.end]


def _by_content(view: memoryview, span: Span) -> Iterator[int]:
    """Cuts that move with the content when bytes come before it; without pyfastcdc, a grid."""
    try:
        # The compiled class by name: `pyfastcdc.FastCDC` may be the Python one, which would take
        # minutes for a gigabyte. Imported here because only the recorder of large files needs it.
        from pyfastcdc.cy import FastCDC
    except ImportError:
        yield from _grid(span)
        return
    length = span.end - span.start
    least, typical, greatest = next(sizes for at, sizes in CONTENT_SIZES if length >= at)
    cutter = FastCDC(typical, min_size=least, max_size=greatest)
    for chunk in cutter.cut_buf(view[span.start : span.end]):
        yield span.start + chunk.offset + chunk.length
