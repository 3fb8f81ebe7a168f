"""Single torch tensors to what a ticket holds of them: codes, or values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pabzip.errors import PackError
from pabzip.seeds import InitSpec, weights
from pabzip.ticket import DenseTensor

if TYPE_CHECKING:
    import torch


def read_codes(name: str, weight: torch.Tensor, seed: int, spec: InitSpec) -> np.ndarray:
    """Read the codes of one weight: 0 pruned, +1 sign kept, -1 sign flipped.

    Args:
        name: the weight's name, for messages.
        weight: float32 tensor of any shape, on any device.
        seed: the network's seed.
        spec: the weight's init spec.

    Returns:
        int8 array of the weight's shape, values in {0, +1, -1}.

    Raises:
        PackError: ``weight`` is not float32, or a survivor's magnitude is not the seed's, bit for
            bit.
    """
    import torch

    if weight.dtype != torch.float32:
        raise PackError(
            f"{name}: expected a float32 seeded weight, found {weight.dtype}; half precision "
            "loses the magnitudes' bits: pack the float32 network and convert when loading"
        )
    found = np.ascontiguousarray(weight.detach().cpu().numpy()).reshape(-1)
    drawn = weights(seed, spec, 0, found.size)
    survivors = found != 0  # not-a-number counts as a survivor, and is then refused
    differs = survivors & (np.abs(found).view(np.uint32) != np.abs(drawn).view(np.uint32))
    count = int(np.count_nonzero(differs))
    if count:
        first = int(np.argmax(differs))
        raise PackError(
            f"{name}: expected every surviving weight to be plus or minus the magnitude drawn "
            f"from seed {seed}, found {count} of {int(np.count_nonzero(survivors))} that differ "
            f"(the first at index {first}: {float(found[first])!r} instead of "
            f"+-{abs(float(drawn[first]))!r}); unmasking may only flip signs: check the seed, "
            "or leave a weight that is trained otherwise dense with init_(..., skip=...)"
        )
    flipped = np.signbit(found) != np.signbit(drawn)
    codes = np.where(flipped, np.int8(-1), np.int8(1))
    codes[~survivors] = 0
    return codes.reshape(tuple(weight.shape))


def dense_from_torch(name: str, value: torch.Tensor) -> DenseTensor:
    """Copy a torch tensor into a `DenseTensor`; bfloat16 travels as uint16 bit patterns."""
    import torch

    value = value.detach().cpu().contiguous()
    dtype = str(value.dtype).removeprefix("torch.")
    if value.dtype == torch.bfloat16:
        value = value.view(torch.int16)
        return DenseTensor(name, value.numpy().view(np.uint16).copy(), dtype, dtype)
    return DenseTensor(name, value.numpy().copy(), dtype, dtype)
