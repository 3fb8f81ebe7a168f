"""The quantiser of predictive sign gradients."""

from __future__ import annotations

import torch
from torch import Tensor


def quantise(values: Tensor, bits: int) -> Tensor:
    """Round ``values`` to the levels that ``bits`` bits can tell apart, symmetric around zero.

    With L = 2**(bits - 1) - 1 and s = max|values| / L, a value v becomes ``round(v / s) * s``,
    where round is to nearest even: 2L + 1 equally spaced levels, the outermost at the largest
    magnitude of the whole tensor, and one exactly at zero. So pruned weights stay zero, signs never
    change, and nothing saturates. The scale is taken as it is, not rounded to a power of two.

    Args:
        values: floating tensor of any shape.
        bits: 2 to 32; 32 returns ``values`` itself.

    Returns:
        Tensor of the same shape, dtype and device, detached. The arithmetic is float32 for half
        precision, whose results are then rounded to that dtype: there the levels are equally
        spaced but for that rounding, up to half a step of 8 bits in bfloat16. A value that is not
        finite makes the whole result NaN, so it cannot pass unseen.

    Source: Peek-a-Boo, Section 3.3, asks for "bit-quantized versions" and leaves the quantiser
    open; this one is our choice. The published code takes an unsigned grid for inputs and a scale
    per sample or filter.
    """
    values = values.detach()
    if bits >= 32 or values.numel() == 0:
        return values
    wide = torch.promote_types(values.dtype, torch.float32)
    step = largest_magnitude(values).to(wide) / (2 ** (bits - 1) - 1)
    # An all-zero tensor has no scale of its own; any positive step maps it to zeros.
    step += step == 0
    # One new tensor, then in place: fresh memory costs more than the arithmetic on it.
    scaled = values.div(step) if values.dtype == wide else values.to(wide).div_(step)
    return scaled.round_().mul_(step).to(values.dtype)


def largest_magnitude(values: Tensor) -> Tensor:
    """Return max|values| as a scalar tensor, NaN if there is one, in a single reading pass.

    Args:
        values: floating tensor that is not empty.
    """
    smallest, largest = torch.aminmax(values)
    return torch.maximum(smallest.neg(), largest)
