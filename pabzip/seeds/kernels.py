"""The numba backend: the functions of `pabzip.seeds.reference` as compiled loops for the CPU.

Importing this module imports numba; `pabzip.seeds.generation` does so on first use.

Numba widens integers to 64 bits and turns a mix of int64 and uint64 into float64, so every operand
of the integer arithmetic is unsigned, and results are cut back to 32 bits by hand. The loops are
plain on purpose: LLVM makes vector instructions of them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba.extending import intrinsic
from numpy.typing import NDArray

from pabzip.seeds.compiled import compiled
from pabzip.seeds.philox import (
    KEY_INCREMENTS,
    MULTIPLIERS,
    ROUNDS,
    WORDS_PER_BLOCK,
    split_seed,
)
from pabzip.seeds.reference import normal_table
from pabzip.seeds.spec import InitSpec, check_backend

KINDS = check_backend("numba", {"normal": 0, "uniform": 1, "signed_constant": 2})
"""How the kernels know each distribution."""

NORMAL, UNIFORM, SIGNED_CONSTANT = (
    KINDS[name] for name in ("normal", "uniform", "signed_constant")
)

_ONE, _SIX, _SEVEN, _SEGMENT_SHIFT = np.uint32(1), np.uint32(6), np.uint32(7), np.uint32(25)
_SEGMENT_MASK, _SIGN_SHIFT = np.uint32(63), np.uint32(31)
_HALF, _LOW = np.uint64(32), np.uint64(0xFFFFFFFF)
_MULTIPLIER_0, _MULTIPLIER_1 = (np.uint64(word) for word in MULTIPLIERS)
_INCREMENT_0, _INCREMENT_1 = (np.uint64(word) for word in KEY_INCREMENTS)


def _typed_leading_zeros(_context: Any, value: Any) -> Any:
    """Give numba the type and the machine code of `leading_zeros`."""

    def generate(_ctx: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.ctlz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return value(value), generate


leading_zeros: Any = intrinsic(_typed_leading_zeros)
"""Leading zeros of a uint32 or uint64, as the same type; to be called from compiled code alone."""


@compiled
def philox_words(
    key: tuple[np.uint32, np.uint32],
    stream: np.uint32,
    first_block: np.uint64,
    places: NDArray[np.uint32],
    count: int | np.int64,
    words: NDArray[np.uint32],
) -> None:
    """Write the four words of each block ``first_block + places[:count]``.

    The state stays in 64-bit variables with 32-bit values: the vector units multiply such lanes as
    they are, which is twice as fast as widening 32-bit ones.
    """
    k0, k1 = np.uint64(key[0]), np.uint64(key[1])
    for j in range(count):
        block = first_block + np.uint64(places[j])
        c0, c1, c2, c3 = block & _LOW, block >> _HALF, np.uint64(stream), np.uint64(0)
        r0, r1 = k0, k1
        for _ in range(ROUNDS):
            first = c0 * _MULTIPLIER_0
            second = c2 * _MULTIPLIER_1
            c0, c1 = (second >> _HALF) ^ c1 ^ r0, second & _LOW
            c2, c3 = (first >> _HALF) ^ c3 ^ r1, first & _LOW
            r0 = (r0 + _INCREMENT_0) & _LOW
            r1 = (r1 + _INCREMENT_1) & _LOW
        words[4 * j] = c0
        words[4 * j + 1] = c1
        words[4 * j + 2] = c2
        words[4 * j + 3] = c3


@compiled
def word_magnitudes(
    kind: int, words: NDArray[np.uint32], table: NDArray[np.uint32], out: NDArray[np.uint32]
) -> None:
    """Turn words into fixed-point magnitudes; see `pabzip.seeds.reference.word_magnitudes`."""
    if kind == NORMAL:
        for i in range(len(out)):
            value = np.uint32(np.uint32(words[i] << _ONE) | _ONE)
            octave = leading_zeros(value)
            aligned = np.uint32(value << octave)
            column = np.uint32(octave << _SIX) + (
                np.uint32(aligned >> _SEGMENT_SHIFT) & _SEGMENT_MASK
            )
            rest = np.uint64(np.uint32(aligned << _SEVEN))
            inner = table[1, column] - np.uint32((rest * np.uint64(table[2, column])) >> _HALF)
            drop = np.uint32((rest * np.uint64(np.uint32(inner))) >> _HALF)
            out[i] = max(np.uint32(table[0, column] - drop), _ONE)
    elif kind == UNIFORM:
        for i in range(len(out)):
            out[i] = np.uint32(np.uint32(words[i] << _ONE) | _ONE)
    elif kind == SIGNED_CONSTANT:
        out[:] = _ONE
    else:
        raise ValueError("expected one of KINDS")


@compiled
def one_weight(magnitude: np.uint32, word: np.uint32, factor: np.float32) -> np.float32:
    """Round a magnitude to float32, multiply once, and put the word's top bit as the sign."""
    positive = np.float32(magnitude) * factor
    return -positive if (word >> _SIGN_SHIFT) != 0 else positive


class Generator(NamedTuple):
    """What a tensor is drawn from, in the exact machine types that the kernels want.

    Attributes:
        key: of Philox.
        stream: of the tensor.
        kind: of distribution, one of `KINDS`.
        table: of the normal distribution.
        factor: float32, what a magnitude is multiplied by.
    """

    key: tuple[np.uint32, np.uint32]
    stream: np.uint32
    kind: int
    table: NDArray[np.uint32]
    factor: np.float32

    @classmethod
    def of(cls, seed: int, spec: InitSpec) -> Generator:
        """Return the generator of one tensor."""
        low, high = (np.uint32(word) for word in split_seed(seed))
        stream, kind = np.uint32(spec.stream), KINDS[spec.distribution]
        return cls((low, high), stream, kind, normal_table(), spec.factor)


@compiled
def picked_magnitudes(
    generator: Generator,
    elements: NDArray[np.int64],
    words: NDArray[np.uint32],
    magnitudes: NDArray[np.uint32],
) -> None:
    """Write the word and the magnitude of each of ``elements``.

    Elements ascend, and the last lies less than 2**33 after the first. A block that holds several
    of them is computed once.
    """
    count = len(elements)
    first = elements[0] >> 2
    places = np.empty(count, dtype=np.uint32)
    slots = np.empty(count, dtype=np.uint32)
    blocks = 0
    last = np.int64(-1)
    for i in range(count):
        block = (elements[i] >> 2) - first
        places[blocks] = block
        blocks += block != last
        last = block
        slots[i] = 4 * (blocks - 1) + (elements[i] & 3)
    drawn = np.empty(4 * blocks, dtype=np.uint32)
    philox_words(generator.key, generator.stream, np.uint64(first), places, blocks, drawn)
    for i in range(count):
        words[i] = drawn[slots[i]]
    word_magnitudes(generator.kind, words[:count], generator.table, magnitudes[:count])


_BLOCKS = 512  # Philox blocks a chunk
_ZERO, _TWO = np.uint64(0), np.uint64(2)


@compiled
def _fill_drawn(
    generator: Generator,
    first_block: np.uint64,
    skip: int,
    magnitudes: NDArray[np.uint32],
    weights: NDArray[np.float32],
) -> None:
    """Write magnitudes or weights from element ``4 * first_block + skip`` on, ``0 <= skip < 4``.

    The one that is not wanted is empty.
    """
    key, stream, kind, table, factor = generator
    places = np.arange(_BLOCKS).astype(np.uint32)
    words = np.empty(4 * _BLOCKS, dtype=np.uint32)
    room = np.empty(4 * _BLOCKS, dtype=np.uint32)
    done, size = 0, max(len(magnitudes), len(weights))
    while done < size:
        count = min(4 * _BLOCKS - skip, size - done)
        blocks = (skip + count + 3) // 4
        philox_words(key, stream, first_block, places, blocks, words)
        used = words[skip : skip + count]
        drawn = magnitudes[done : done + count] if len(magnitudes) else room[:count]
        word_magnitudes(kind, used, table, drawn)
        if len(weights):
            target = weights[done : done + count]
            for i in range(count):
                target[i] = one_weight(drawn[i], used[i], factor)
        first_block += np.uint64(blocks)
        done += count
        skip = 0


@compiled
def _fill_regenerated(
    generator: Generator,
    first_block: np.uint64,
    skip: int,
    codes: NDArray[np.int8],
    out: NDArray[np.float32],
) -> bool:
    """Write weights under ``codes``; only blocks and weights that are not 0 cost arithmetic.

    Returns whether every code was 0, +1 or -1.
    """
    key, stream, kind, table, factor = generator
    block_codes = np.empty(_BLOCKS, dtype=np.uint32)  # four codes each
    chunk_codes = block_codes.view(np.int8)
    active = np.empty(_BLOCKS + 1, dtype=np.uint32)
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

        active_count = _ZERO
        for block in range(blocks):
            active[active_count] = block
            active_count += np.uint64(block_codes[block] != 0)
        philox_words(key, stream, first_block, active, np.int64(active_count), words)
        chosen = _ZERO
        for j in range(active_count):
            first = active[j] << _TWO
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


def fill_magnitudes(seed: int, spec: InitSpec, start: int, out: NDArray[np.uint32]) -> None:
    """Write the fixed-point magnitudes of elements ``start`` onwards to ``out``."""
    no_weights = np.empty(0, dtype=np.float32)
    _fill_drawn(*_arguments(seed, spec, start), out, no_weights)


def fill_weights(seed: int, spec: InitSpec, start: int, out: NDArray[np.float32]) -> None:
    """Write the weights of elements ``start`` onwards, each with the sign the seed gives."""
    no_magnitudes = np.empty(0, dtype=np.uint32)
    _fill_drawn(*_arguments(seed, spec, start), no_magnitudes, out)


def fill_regenerated(
    seed: int,
    spec: InitSpec,
    start: int,
    codes: NDArray[np.int8],
    out: NDArray[np.float32],
) -> bool:
    """Write the weights under ``codes``; return whether every code was 0, +1 or -1."""
    return bool(_fill_regenerated(*_arguments(seed, spec, start), codes, out))


def _arguments(seed: int, spec: InitSpec, start: int) -> tuple[Generator, np.uint64, int]:
    """Return the leading arguments of a kernel that begins with element ``start``."""
    block, skip = divmod(start, WORDS_PER_BLOCK)
    return Generator.of(seed, spec), np.uint64(block), skip
