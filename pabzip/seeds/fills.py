"""The CPU kernels that fill arrays, in chunks that stay in the first-level cache."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pabzip.seeds.compiled import compiled
from pabzip.seeds.kernels import one_weight, philox_words, word_magnitudes

_BLOCKS = 512  # Philox blocks a chunk
_ZERO, _TWO, _SIGN_SHIFT = np.uint64(0), np.uint64(2), np.uint32(31)


@compiled
def fill_magnitudes(
    key: tuple[np.uint32, np.uint32],
    stream: np.uint32,
    kind: int,
    table: NDArray[np.uint32],
    first_block: np.uint64,
    skip: int,
    out: NDArray[np.uint32],
) -> None:
    """Write magnitudes from element ``4 * first_block + skip`` on, ``0 <= skip < 4``."""
    places = np.arange(_BLOCKS).astype(np.uint32)
    words = np.empty(4 * _BLOCKS, dtype=np.uint32)
    done = 0
    while done < len(out):
        count = min(4 * _BLOCKS - skip, len(out) - done)
        blocks = (skip + count + 3) // 4
        philox_words(key, stream, first_block, places, blocks, words)
        word_magnitudes(kind, words[skip : skip + count], table, out[done : done + count])
        first_block += np.uint64(blocks)
        done += count
        skip = 0


@compiled
def fill_weights(
    key: tuple[np.uint32, np.uint32],
    stream: np.uint32,
    kind: int,
    table: NDArray[np.uint32],
    first_block: np.uint64,
    skip: int,
    factor: np.float32,
    out: NDArray[np.float32],
) -> None:
    """Write weights from element ``4 * first_block + skip`` on, ``0 <= skip < 4``."""
    places = np.arange(_BLOCKS).astype(np.uint32)
    words = np.empty(4 * _BLOCKS, dtype=np.uint32)
    magnitudes = np.empty(4 * _BLOCKS, dtype=np.uint32)
    done = 0
    while done < len(out):
        count = min(4 * _BLOCKS - skip, len(out) - done)
        blocks = (skip + count + 3) // 4
        philox_words(key, stream, first_block, places, blocks, words)
        used, target = words[skip : skip + count], out[done : done + count]
        word_magnitudes(kind, used, table, magnitudes[:count])
        for i in range(count):
            target[i] = one_weight(magnitudes[i], used[i], factor)
        first_block += np.uint64(blocks)
        done += count
        skip = 0


@compiled
def fill_regenerated(
    key: tuple[np.uint32, np.uint32],
    stream: np.uint32,
    kind: int,
    table: NDArray[np.uint32],
    first_block: np.uint64,
    skip: int,
    factor: np.float32,
    codes: NDArray[np.int8],
    out: NDArray[np.float32],
) -> bool:
    """Write weights under ``codes``; only blocks and weights that are not 0 cost arithmetic.

    Returns whether every code was 0, +1 or -1.
    """
    block_codes = np.empty(_BLOCKS, dtype=np.uint32)  # four codes each
    chunk_codes = block_codes.view(np.int8)
    live = np.empty(_BLOCKS + 1, dtype=np.uint32)
    places = np.empty(4 * _BLOCKS + 1, dtype=np.uint32)
    words = np.empty(4 * _BLOCKS, dtype=np.uint32)
    picked = np.empty(4 * _BLOCKS + 1, dtype=np.uint32)
    magnitudes = np.empty(4 * _BLOCKS, dtype=np.uint32)
    highest = np.uint8(0)
    done = 0
    while done < len(out):
        count = min(4 * _BLOCKS - skip, len(out) - done)
        blocks = (skip + count + 3) // 4
        block_codes[0] = 0  # elements before and after the range count as pruned
        block_codes[blocks - 1] = 0
        source, inside = codes[done : done + count], chunk_codes[skip : skip + count]
        out[done : done + count] = np.float32(0)
        for i in range(count):
            inside[i] = source[i]
            highest = max(highest, np.uint8(source[i] + 1))

        live_count = _ZERO
        for block in range(blocks):
            live[live_count] = block
            live_count += np.uint64(block_codes[block] != 0)
        philox_words(key, stream, first_block, live, np.int64(live_count), words)
        chosen = _ZERO
        for j in range(live_count):
            first = live[j] << _TWO
            for lane in range(4):
                code = chunk_codes[first + np.uint64(lane)]
                places[chosen] = first + np.uint64(lane)
                picked[chosen] = words[4 * j + lane] ^ (np.uint32(code < 0) << _SIGN_SHIFT)
                chosen += np.uint64(code != 0)
        word_magnitudes(kind, picked[:chosen], table, magnitudes[:chosen])
        for i in range(chosen):
            value = one_weight(magnitudes[i], picked[i], factor)
            out[done + np.int64(places[i]) - skip] = value
        first_block += np.uint64(blocks)
        done += count
        skip = 0
    return bool(highest <= 2)
