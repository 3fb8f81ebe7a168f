"""The CUDA backend: weights made on the GPU, in any floating dtype, from codes of two bits each.

Importing this module imports torch and triton. With ``TRITON_INTERPRET=1`` set beforehand the same
kernel runs on the CPU, slowly, which is how it is tested without a GPU.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from pabzip.errors import MissingDependencyError, SeedError
from pabzip.seeds import normal_table
from pabzip.seeds.packed import CODES_PER_BYTE
from pabzip.seeds.philox import split_seed
from pabzip.seeds.spec import InitSpec, check_seed

try:
    import torch

    from pabzip.seeds.triton_kernels import KINDS, regenerate_kernel
except ImportError as error:
    raise MissingDependencyError(
        f"pabzip.seeds.cuda needs torch with triton, and {error.name} is not installed; "
        "pip install 'pabzip[torch]' with a CUDA build of torch"
    ) from error

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""The dtypes that weights can be made in."""

_BLOCKS = 512  # Philox blocks a program: 2,048 weights


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
    return torch.from_numpy(normal_table.load().copy()).to(device)


def as_int32(word: int) -> int:
    """Return the signed integer with the bits of a uint32, so that one compiled kernel serves."""
    return word - 2**32 if word >= 2**31 else word


def _interpreting() -> bool:
    """Return whether Triton's interpreter was asked for, as Triton itself reads it."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")
