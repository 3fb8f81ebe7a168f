"""The numba backend: the same functions as `pabzip.seeds.reference`, in compiled code.

Importing this module imports numba; `pabzip.seeds.generation` does so on first use.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pabzip.seeds import kernels, normal_table
from pabzip.seeds.philox import WORDS_PER_BLOCK, split_seed
from pabzip.seeds.spec import InitSpec

Generator = tuple[tuple[np.uint32, np.uint32], np.uint32, int, NDArray[np.uint32]]
"""What every kernel begins with: Philox key, stream, kind of distribution, normal table."""


def generator_arguments(seed: int, spec: InitSpec) -> Generator:
    """Return the leading arguments of the kernels, in the exact machine types they want."""
    low, high = split_seed(seed)
    key = (np.uint32(low), np.uint32(high))
    return key, np.uint32(spec.stream), kernels.KINDS[spec.distribution], normal_table.load()


def fill_magnitudes(seed: int, spec: InitSpec, start: int, out: NDArray[np.uint32]) -> None:
    """Write the fixed-point magnitudes of elements ``start`` onwards to ``out``."""
    kernels.fill_magnitudes(*generator_arguments(seed, spec), *_place(start), out)


def fill_weights(seed: int, spec: InitSpec, start: int, out: NDArray[np.float32]) -> None:
    """Write the weights of elements ``start`` onwards, each with the sign the seed gives."""
    kernels.fill_weights(*generator_arguments(seed, spec), *_place(start), spec.factor, out)


def fill_regenerated(
    seed: int,
    spec: InitSpec,
    start: int,
    codes: NDArray[np.int8],
    out: NDArray[np.float32],
) -> bool:
    """Write the weights under ``codes``; return whether every code was 0, +1 or -1."""
    generator = generator_arguments(seed, spec)
    return bool(kernels.fill_regenerated(*generator, *_place(start), spec.factor, codes, out))


def _place(start: int) -> tuple[np.uint64, int]:
    """Return the Philox block of element ``start``, and its place in the block."""
    block, skip = divmod(start, WORDS_PER_BLOCK)
    return np.uint64(block), skip
