"""Random orders and choices from pabzip's own generator: the same on every machine and version.

Any part of them can be drawn alone, so training resumes in mid-epoch without replaying anything.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from pabzip.seeds import InitSpec, check_seed, magnitudes

Words = Callable[[int, int], npt.NDArray[np.uint32]]
"""Returns elements ``begin`` to ``end`` of one stream of `random_words`."""

# Weights take the streams from 0 upwards, one a tensor; data takes the upper half, two an epoch.
_FIRST_STREAM = 2**31
_MOST_EPOCHS = 2**30


def random_words(seed: int, stream: int, start: int, stop: int) -> npt.NDArray[np.uint32]:
    """Return elements ``start`` to ``stop`` of a stream as uniform 31-bit integers, in uint32.

    Raises:
        SeedError: not ``0 <= seed < 2**64``, the Philox key, or ``0 <= stream < 2**32``.

    Source: Philox4x32-10, Salmon et al. 2011; the integers are the magnitude bits (all but the
    sign bit) of the words that `pabzip.seeds` draws weights from.
    """
    spec = InitSpec(distribution="uniform", scale=1.0, stream=stream)
    return magnitudes(check_seed(seed), spec, start, stop) >> np.uint32(1)


def permutation(count: int, *, seed: int, stream: int) -> npt.NDArray[np.int64]:
    """Return ``0 .. count - 1`` in a random order.

    The order sorts `random_words`; equal words (31 bits, so about one pair in 65,536 elements)
    keep their order.

    Args:
        count: number of elements.
        seed: Philox key, ``0 <= seed < 2**64``.
        stream: ``0 <= stream < 2**32``.

    Returns:
        ``int64[count]``.

    Raises:
        SeedError: seed or stream out of range.
    """
    words = random_words(seed, stream, 0, count)
    return np.argsort(words, kind="stable").astype(np.int64, copy=False)


def order_stream(epoch: int) -> int:
    """Return the stream that orders the images of an epoch.

    Raises:
        ValueError: not ``0 <= epoch < 2**30``.
    """
    if not 0 <= epoch < _MOST_EPOCHS:
        raise ValueError(f"epoch: expected 0 <= epoch < 2**30, found {epoch}")
    return _FIRST_STREAM + 2 * epoch


def augmentation_stream(epoch: int) -> int:
    """Return the stream that augments the images of an epoch; raises as `order_stream` does."""
    return order_stream(epoch) + 1
