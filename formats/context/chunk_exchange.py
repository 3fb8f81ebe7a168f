"""The sizes of a payload's chunks in the side stream, both ways.

Chunks of one tensor resemble each other, so a size is told as what it exceeds its neighbours'
proportion by.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pabzip.errors import FormatError
from pabzip.formats.context import contexts
from pabzip.formats.context.chunk_writer import MOST_BYTES_A_WEIGHT
from pabzip.formats.context.range_coder import FLUSH_BYTES
from pabzip.formats.context.side_stream import SideStream, fold, unfold

Sizes = NDArray[np.int64]


def pass_coded_bytes(stream: SideStream, weights: list[int], known: Sizes | None) -> Sizes:
    """Pass the range-coded bytes of each chunk.

    Args:
        stream: the side stream.
        weights: live weights of each chunk; at least one chunk, at least one weight in each.
        known: what to write; None reads.

    Raises:
        FormatError: a chunk has more bytes than its weights can take.
    """
    limits = [MOST_BYTES_A_WEIGHT * count + FLUSH_BYTES for count in weights]
    start = stream.number(int(known[0]) if known is not None else 0, contexts.CODED_BYTES)

    def expected(place: int, before: int, total: int) -> int:
        """Return as many bytes a weight as in the chunk before."""
        del total
        return before * weights[place] // weights[place - 1]

    return _pass_rest(stream, contexts.BYTES_CHANGE, [start], limits, expected, known)


def pass_survivors(
    stream: SideStream, weights: list[int], survivors: int, known: Sizes | None
) -> Sizes:
    """Pass the survivors of each chunk but the last, which has the rest.

    Args:
        stream: the side stream.
        weights: live weights of each chunk; at least one chunk, at least one weight in each.
        survivors: of the whole tensor.
        known: what to write; None reads.

    Raises:
        FormatError: a chunk has more survivors than weights, or fewer than none.
    """
    ahead: list[int] = np.cumsum(weights[::-1])[::-1].tolist()  # weights from each chunk on

    def expected(place: int, before: int, total: int) -> int:
        """Return the chunk's share of the survivors that are left."""
        del before
        return (survivors - total) * weights[place] // ahead[place]

    told = None if known is None else known[:-1]
    found = _pass_rest(stream, contexts.SURVIVORS, [], weights[:-1], expected, told)
    rest = survivors - int(found.sum())
    if not 0 <= rest <= weights[-1]:
        raise FormatError(
            "side stream",
            f"expected 0 to {weights[-1]} survivors in the last chunk, found {rest}",
        )
    return np.append(found, rest)


def _pass_rest(
    stream: SideStream,
    base: int,
    sizes: list[int],
    limits: list[int],
    expected: Callable[[int, int, int], int],
    known: Sizes | None,
) -> Sizes:
    """Pass the sizes that follow ``sizes``, each as its difference from what is expected.

    ``expected`` is given the chunk's place, the size before it, and the sum of all before it.
    """
    begin = len(sizes)
    differences = np.zeros(len(limits) - begin, dtype=np.int64)
    if known is not None:
        sums = np.cumsum(known).tolist()
        for place in range(begin, len(limits)):
            before, total = (int(known[place - 1]), sums[place - 1]) if place else (0, 0)
            differences[place - begin] = fold(int(known[place]) - expected(place, before, total))
    passed = stream.numbers(differences, base, len(differences)).tolist()
    for size, limit in zip(sizes, limits, strict=False):
        _check(size, limit)
    total = sum(sizes)
    for place, difference in enumerate(passed, start=begin):
        size = expected(place, sizes[-1] if sizes else 0, total) + unfold(difference)
        sizes.append(size)
        total += size
        _check(size, limits[place])
    return np.array(sizes, dtype=np.int64)


def _check(size: int, limit: int) -> None:
    """Check the size of a chunk."""
    if not 0 <= size <= limit:
        raise FormatError(
            "side stream", f"expected a chunk's size to be 0 to {limit}, found {size}"
        )
