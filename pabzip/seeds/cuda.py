"""The CUDA backend: weights made on the GPU, in any floating dtype, from codes of two bits each.

Importing this module imports torch and triton. With ``TRITON_INTERPRET=1`` set beforehand the same
kernel runs on the CPU, slowly, which is how it is tested without a GPU.

One program makes ``4 * BLOCKS`` neighboring weights. Philox gives four words a call, so the four
lanes are computed side by side and interleaved at the end, which keeps all stores contiguous. Each
byte of packed codes belongs to one Philox block. A program whose codes are all 0 only writes zeros,
and the table is read for weights that survive alone.

There is one floating-point multiplication a weight and no addition, so nothing can be fused.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from pabzip.errors import MissingDependencyError, SeedError
from pabzip.seeds.packed import CODES_PER_BYTE
from pabzip.seeds.philox import split_seed
from pabzip.seeds.reference import normal_table
from pabzip.seeds.spec import InitSpec, check_backend, check_seed

try:
    import torch
    import triton
    import triton.language as tl
except ImportError as error:
    raise MissingDependencyError(
        f"pabzip.seeds.cuda needs torch with triton, and {error.name} is not installed; "
        "pip install 'pabzip[torch]' with a CUDA build of torch"
    ) from error

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""The dtypes that weights can be made in."""

_BLOCKS = 512  # Philox blocks a program: 2,048 weights

# tl.constexpr values: the only globals that a Triton kernel may read.
ROUNDS = tl.constexpr(10)
NORMAL, UNIFORM, SIGNED_CONSTANT = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)

KINDS = check_backend(
    "CUDA",
    {
        "normal": NORMAL.value,
        "uniform": UNIFORM.value,
        "signed_constant": SIGNED_CONSTANT.value,
    },
)
"""How the kernels know each distribution: numbers from 0 on."""

KIND_COUNT = tl.constexpr(len(KINDS))


@triton.jit  # type: ignore[untyped-decorator]
def philox(block: tl.tensor, stream: tl.tensor, key_0: tl.tensor, key_1: tl.tensor) -> tl.tensor:
    """Return the four words of each block; the constants are those of `pabzip.seeds.philox`."""
    c0 = block.to(tl.uint32)
    c1 = (block >> 32).to(tl.uint32)
    c2 = tl.zeros_like(c0) + stream
    c3 = tl.zeros_like(c0)
    multiplier_0 = tl.full(c0.shape, 0xD2511F53, tl.uint32)
    multiplier_1 = tl.full(c0.shape, 0xCD9E8D57, tl.uint32)
    k0 = tl.zeros_like(c0) + key_0
    k1 = tl.zeros_like(c0) + key_1
    for _ in tl.static_range(ROUNDS):
        high_0 = tl.umulhi(c0, multiplier_0)
        high_1 = tl.umulhi(c2, multiplier_1)
        low_0 = c0 * multiplier_0
        low_1 = c2 * multiplier_1
        c0 = high_1 ^ c1 ^ k0
        c1 = low_1
        c2 = high_0 ^ c3 ^ k1
        c3 = low_0
        k0 += tl.full(c0.shape, 0x9E3779B9, tl.uint32)
        k1 += tl.full(c0.shape, 0xBB67AE85, tl.uint32)
    return c0, c1, c2, c3


@triton.jit  # type: ignore[untyped-decorator]
def leading_zeros(value: tl.tensor) -> tl.tensor:
    """Return the leading zero bits of each uint32, none of which is 0."""
    # By way of a float's exponent: with the second bit of two adjacent ones cleared, the
    # conversion cannot round up to the next power of two.
    exponent = (value & ~(value >> 1)).to(tl.float32).to(tl.int32, bitcast=True) >> 23
    return (158 - exponent).to(tl.uint32)


@triton.jit  # type: ignore[untyped-decorator]
def magnitudes(
    word: tl.tensor,
    active: tl.tensor,
    table: tl.tensor,
    KIND: tl.constexpr,  # noqa: N803
) -> tl.tensor:
    """Return the fixed-point magnitude of each word; the table is read where ``active``."""
    value = (word << 1) | 1
    if KIND == NORMAL:
        octave = leading_zeros(value)
        aligned = value << octave
        column = (octave * 64 + ((aligned >> 25) & 63)).to(tl.int32)
        rest = aligned << 7
        a = tl.load(table + column, mask=active, other=1)
        b = tl.load(table + 2048 + column, mask=active, other=0)
        c = tl.load(table + 4096 + column, mask=active, other=0)
        magnitude = tl.maximum(a - tl.umulhi(rest, b - tl.umulhi(rest, c)), 1)
    elif KIND == UNIFORM:
        magnitude = value
    else:
        tl.static_assert(KIND == SIGNED_CONSTANT)
        magnitude = tl.zeros_like(word) + 1
    return magnitude


@triton.jit  # type: ignore[untyped-decorator]
def _weights(
    word: tl.tensor,
    code: tl.tensor,
    table: tl.tensor,
    factor: tl.tensor,
    KIND: tl.constexpr,  # noqa: N803
) -> tl.tensor:
    """Return float32 weights of one lane; see `pabzip.seeds.reference` for the definition."""
    active = (code & 1) != 0
    negative = ((word >> 31) ^ (code >> 1)) != 0
    magnitude = magnitudes(word, active, table, KIND)
    weight = magnitude.to(tl.float32) * tl.where(negative, -factor, factor)
    return tl.where(active, weight, 0.0)


@triton.jit  # type: ignore[untyped-decorator]
def rounded(weight: tl.tensor, DTYPE: tl.constexpr) -> tl.tensor:  # noqa: N803
    """Round finite float32 to ``DTYPE``, to nearest even."""
    if DTYPE == tl.bfloat16:  # noqa: SIM300
        # By hand: the interpreter's own conversion cuts instead of rounding.
        bits = weight.to(tl.uint32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        return (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:  # noqa: RET505 (Triton wants both ends of the choice)
        return weight.to(DTYPE)


@triton.jit  # type: ignore[untyped-decorator]
def _drawn(
    word: tl.tensor,
    table: tl.tensor,
    factor: tl.tensor,
    KIND: tl.constexpr,  # noqa: N803
    FRACTION: tl.constexpr,  # noqa: N803
) -> tl.tensor:
    """Return one lane of `draw`, float32."""
    if FRACTION:
        # The lower 31 bits but the last 7 of them: 24, which float32 holds.
        return ((word & 0x7FFFFFFF) >> 7).to(tl.int32).to(tl.float32) * (2.0**-24)
    else:  # noqa: RET505 (Triton wants both ends of the choice)
        return _weights(word, tl.zeros_like(word) + 1, table, factor, KIND)


@triton.jit(do_not_specialize=["stream", "key_0", "key_1"])  # type: ignore[untyped-decorator]
def regenerate_kernel(
    packed: tl.tensor,
    table: tl.tensor,
    out: tl.tensor,
    count: tl.tensor,
    stream: tl.tensor,
    key_0: tl.tensor,
    key_1: tl.tensor,
    factor: tl.tensor,
    KIND: tl.constexpr,  # noqa: N803
    BLOCKS: tl.constexpr,  # noqa: N803
) -> None:
    """Write ``count`` weights; key words and stream come as int32 with the bits of a uint32."""
    first_block = tl.program_id(0).to(tl.int64) * BLOCKS
    block = first_block + tl.arange(0, BLOCKS)
    place = first_block * 4 + tl.arange(0, BLOCKS * 4)
    inside = place < count
    four = tl.load(packed + block, mask=block * 4 < count, other=0).to(tl.uint32)
    if tl.max(four.to(tl.int32), axis=0) == 0:
        tl.store(out + place, tl.zeros([BLOCKS * 4], out.dtype.element_ty), mask=inside)
    else:
        w0, w1, w2, w3 = philox(
            block, stream.to(tl.uint32), key_0.to(tl.uint32), key_1.to(tl.uint32)
        )
        x0 = rounded(_weights(w0, four & 3, table, factor, KIND), out.dtype.element_ty)
        x1 = rounded(_weights(w1, (four >> 2) & 3, table, factor, KIND), out.dtype.element_ty)
        x2 = rounded(_weights(w2, (four >> 4) & 3, table, factor, KIND), out.dtype.element_ty)
        x3 = rounded(_weights(w3, four >> 6, table, factor, KIND), out.dtype.element_ty)
        weights = tl.interleave(tl.interleave(x0, x2), tl.interleave(x1, x3))
        tl.store(out + place, weights, mask=inside)


@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=["count", "skip", "first_block", "stream", "key_0", "key_1"]
)
def draw_kernel(
    table: tl.tensor,
    out: tl.tensor,
    count: tl.tensor,
    skip: tl.tensor,
    first_block: tl.tensor,
    stream: tl.tensor,
    key_0: tl.tensor,
    key_1: tl.tensor,
    factor: tl.tensor,
    KIND: tl.constexpr,  # noqa: N803
    FRACTION: tl.constexpr,  # noqa: N803
    BLOCKS: tl.constexpr,  # noqa: N803
) -> None:
    """Write ``count`` elements from number ``skip`` of the block ``first_block`` on."""
    begin = tl.program_id(0).to(tl.int64) * BLOCKS
    block = first_block.to(tl.int64) + begin + tl.arange(0, BLOCKS)
    place = begin * 4 + tl.arange(0, BLOCKS * 4) - skip
    w0, w1, w2, w3 = philox(block, stream.to(tl.uint32), key_0.to(tl.uint32), key_1.to(tl.uint32))
    x0 = rounded(_drawn(w0, table, factor, KIND, FRACTION), out.dtype.element_ty)
    x1 = rounded(_drawn(w1, table, factor, KIND, FRACTION), out.dtype.element_ty)
    x2 = rounded(_drawn(w2, table, factor, KIND, FRACTION), out.dtype.element_ty)
    x3 = rounded(_drawn(w3, table, factor, KIND, FRACTION), out.dtype.element_ty)
    drawn = tl.interleave(tl.interleave(x0, x2), tl.interleave(x1, x3))
    tl.store(out + place, drawn, mask=(place >= 0) & (place < count))


def draw(
    seed: int, spec: InitSpec, start: int, out: torch.Tensor, *, fraction: bool = False
) -> None:
    """Write weights from element ``start`` on, every code +1, or numbers uniform on [0, 1).

    The work is queued on the device's current stream; nothing is waited for.

    Args:
        seed: ``0 <= seed < 2**64``.
        spec: what the tensor is drawn from.
        start: index of the first element, ``0 <= start``, and ``start + out.numel() < 2**63``.
        out: a contiguous tensor on a CUDA device (the CPU under Triton's interpreter), of float32,
            float64, float16, bfloat16 or, for signs, int8.
        fraction: draw floor(t / 2**7) / 2**24 instead, t the lower 31 bits of an element's word
            (`pabzip.rand`); ``spec`` then gives its stream alone.

    Raises:
        SeedError: a device that this backend does not serve.
    """
    key_low, key_high = split_seed(check_seed(seed))
    kernel_device(out.device)
    count, (first_block, skip) = out.numel(), divmod(start, CODES_PER_BYTE)
    if count == 0:
        return
    programs = -(-(count + skip) // (CODES_PER_BYTE * _BLOCKS))
    with torch.cuda.device_of(out):  # type: ignore[no-untyped-call]
        draw_kernel[(programs,)](
            table_on(out.device),
            out,
            count,
            skip,
            first_block,
            as_int32(spec.stream),
            as_int32(key_low),
            as_int32(key_high),
            float(spec.factor),
            KIND=KINDS[spec.distribution],
            FRACTION=fraction,
            BLOCKS=_BLOCKS,
            enable_fp_fusion=False,
        )


def regenerate(
    seed: int,
    spec: InitSpec,
    packed: NDArray[np.uint8] | torch.Tensor,
    shape: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str,
) -> torch.Tensor:
    """Return the weights that packed codes make of the seed's, on the GPU.

    The work is queued on the device's current stream; nothing is waited for.

    Args:
        seed: ``0 <= seed < 2**64``.
        spec: what the tensor is drawn from.
        packed: codes as `pabzip.seeds.pack_codes` makes them, ``ceil(size / 4)`` bytes: a numpy
            array, or a uint8 tensor, best already on ``device``. The unused bit pattern ``10`` is
            not looked for; it counts as 0.
        shape: shape of the weight.
        dtype: one of `DTYPES`. The half-precision values are the float32 ones rounded to nearest
            even.
        device: a CUDA device (the CPU under Triton's interpreter).

    Returns:
        A new contiguous tensor of ``shape`` and ``dtype`` on ``device``, equal to the bit to
        `pabzip.seeds.regenerate`. Pruned weights are +0.0.

    Raises:
        SeedError: an argument out of range, the wrong number of bytes, or a device or dtype that
            this backend does not serve.
    """
    key_low, key_high = split_seed(check_seed(seed))
    target = kernel_device(device)
    if dtype not in DTYPES:
        raise SeedError(f"dtype: expected one of {', '.join(map(str, DTYPES))}, found {dtype}")
    count = math.prod(shape)
    codes = _codes_on(target, packed, -(-count // CODES_PER_BYTE))
    out = torch.empty(tuple(shape), dtype=dtype, device=target)
    if count == 0:
        return out
    programs = -(-count // (CODES_PER_BYTE * _BLOCKS))
    with torch.cuda.device_of(out):  # type: ignore[no-untyped-call]
        regenerate_kernel[(programs,)](
            codes,
            table_on(codes.device),
            out,
            count,
            as_int32(spec.stream),
            as_int32(key_low),
            as_int32(key_high),
            float(spec.factor),
            KIND=KINDS[spec.distribution],
            BLOCKS=_BLOCKS,
            enable_fp_fusion=False,
        )
    return out


def _codes_on(
    device: torch.device, packed: NDArray[np.uint8] | torch.Tensor, expected: int
) -> torch.Tensor:
    """Return the packed codes as a flat tensor on ``device``, after a check of kind and size."""
    if isinstance(packed, np.ndarray):
        # torch warns about read-only arrays, which views into an opened file are.
        packed = torch.from_numpy(packed if packed.flags.writeable else packed.copy())
    if packed.dtype != torch.uint8 or packed.numel() != expected:
        raise SeedError(
            f"packed codes: expected {expected} bytes of dtype uint8, "
            f"found {packed.numel()} of {packed.dtype}"
        )
    return packed.to(device).contiguous().view(-1)


def kernel_device(device: torch.device | str) -> torch.device:
    """Return ``device`` if Triton's kernels run there.

    Raises:
        SeedError: it is not a CUDA device (the CPU under Triton's interpreter).
    """
    target = torch.device(device)
    if target.type != ("cpu" if _interpreting() else "cuda"):
        raise SeedError(
            f"device: expected a CUDA device, found {target}; "
            "pabzip.seeds.regenerate serves the CPU"
        )
    return target


@cache
def table_on(device: torch.device) -> torch.Tensor:
    """Return the normal table on ``device``, uint32, shape ``(3, 2048)``."""
    return torch.from_numpy(normal_table().copy()).to(device)


def as_int32(word: int) -> int:
    """Return the signed integer with the bits of a uint32, so that one compiled kernel serves."""
    return word - 2**32 if word >= 2**31 else word


def _interpreting() -> bool:
    """Return whether Triton's interpreter was asked for, as Triton itself reads it."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")
