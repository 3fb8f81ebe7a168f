"""Cases for the Triton kernel; run as a script it answers under the interpreter.

``TRITON_INTERPRET`` counts only if it is set before triton is imported, hence a process of its own.
Prints one JSON object: the name of each case and the SHA-256 of the bytes that the kernel made.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray

from pabzip.seeds import DISTRIBUTIONS, InitSpec, cuda, pack_codes, regenerate
from pabzip.seeds import philox as reference_philox
from pabzip.seeds.cuda import philox

DTYPES = ("float32", "float16", "bfloat16")


class Case(NamedTuple):
    """One tensor to regenerate."""

    name: str
    seed: int
    spec: InitSpec
    codes: NDArray[np.int8]
    dtype: str


def cases() -> Iterator[Case]:
    """Yield every distribution and dtype on shapes that do and do not fill programs and blocks."""
    shapes_and_keeps = [((1,), 1.0), ((3, 683), 0.3), ((3, 5, 7, 39), 0.0004), ((2, 1024), 1.0)]
    generator = np.random.default_rng(7)
    for distribution in DISTRIBUTIONS:
        for dtype in DTYPES:
            for index, (shape, keep) in enumerate(shapes_and_keeps):
                # Small scales reach float16's subnormal numbers and its zero.
                scale = float(np.float32([0.0371, 1e-5, 1.0, 0.5][index]))
                signs = generator.choice([-1, 1], shape)
                codes = (signs * (generator.random(shape) < keep)).astype(np.int8)
                spec = InitSpec(distribution, scale, [0, 7, 2**31, 2**32 - 1][index])
                seed = [0, 1, 2**64 - 1, 0x9E3779B97F4A7C15][index]
                yield Case(f"{distribution}-{dtype}-{index}", seed, spec, codes, dtype)


def digest(array: NDArray[Any]) -> str:
    """Return the SHA-256 of an array's bytes."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def expected_digest(case: Case) -> str:
    """Return the digest that numpy's weights give once rounded to the case's dtype."""
    exact = regenerate(case.seed, case.spec, case.codes, backend="numpy")
    if case.dtype == "bfloat16":  # round the upper half of the bits to nearest even
        bits = exact.view(np.uint32).astype(np.uint64)
        return digest(((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16))
    return digest(exact.astype(case.dtype))


def kernel_digest(case: Case, device: str) -> str:
    """Return the digest of what the Triton kernel makes."""
    made = cuda.regenerate(
        case.seed,
        case.spec,
        pack_codes(case.codes),
        case.codes.shape,
        dtype=getattr(torch, case.dtype),
        device=device,
    )
    assert made.shape == case.codes.shape
    assert made.dtype == getattr(torch, case.dtype)
    return digest(made.cpu().view(torch.uint8).numpy())


@triton.jit  # type: ignore[untyped-decorator]
def _probe(
    out: tl.tensor, first_block: tl.tensor, stream: tl.tensor, low: tl.tensor, high: tl.tensor
) -> None:
    """Write the words of sixteen Philox blocks, starting anywhere."""
    block = first_block + tl.arange(0, 16)
    c0, c1, c2, c3 = philox(block, stream.to(tl.uint32), low.to(tl.uint32), high.to(tl.uint32))
    words = tl.interleave(tl.interleave(c0, c2), tl.interleave(c1, c3))
    tl.store(out + tl.arange(0, 64), words.to(tl.int32, bitcast=True))


def far_blocks_agree(device: str) -> bool:
    """Return whether the kernel's generator is right where the block index outgrows 32 bits."""
    first_block, stream, seed = 2**32 - 8, 2**31 + 5, 0xA4093822299F31D0
    out = torch.zeros(64, dtype=torch.int32, device=device)
    _probe[(1,)](out, first_block, stream, seed % 2**32, seed >> 32)
    expected = reference_philox.words(seed, stream, 4 * first_block, 4 * first_block + 64)
    return np.array_equal(out.cpu().numpy().view(np.uint32), expected)


if __name__ == "__main__":
    found: dict[str, Any] = {case.name: kernel_digest(case, "cpu") for case in cases()}
    found["far blocks agree"] = far_blocks_agree("cpu")
    json.dump(found, sys.stdout)
