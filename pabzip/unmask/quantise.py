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
        spaced but for that rounding, up to half a step of 8 bits in bfloat16 (`levels` has none).
        A value that is not finite makes the whole result NaN, so it cannot pass unseen.

    Source: Peek-a-Boo, Section 3.3, asks for "bit-quantized versions" and leaves the quantiser
    open; this one is our choice. The published code takes an unsigned grid for inputs and a scale
    per sample or filter.
    """
    values = values.detach()
    if bits >= 32 or values.numel() == 0:
        return values
    whole, step = _whole(values, bits)
    return whole.mul_(step).to(values.dtype)


def levels(values: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Do what `quantise` does, but keep the levels apart from their scale.

    The levels are whole numbers, so a product of two such tensors is one of integers: exact, in
    whatever order it is summed up, as long as no sum passes the 24 bits of float32. For two
    operands of 8 bits that takes more than 1,040 terms, all of the largest magnitude. Half
    precision holds operands of 8 bits exactly too, and its products are summed up in float32.

    Args:
        values: floating tensor of any shape.
        bits: 2 to 32; 32 returns ``values`` itself.

    Returns:
        Tensor of the same shape, dtype and device, detached, and its unit: a tensor without
        dimensions, of float32 or wider. Their product is what `quantise` returns, but for rounding.
        In float16, whose largest number a sum of whole numbers soon passes, the levels are divided
        by the power of two that brings them below one, which leaves them as exact.
    """
    values = values.detach()
    if bits >= 32 or values.numel() == 0:
        return values, values.new_ones((), dtype=torch.promote_types(values.dtype, torch.float32))
    whole, step = _whole(values, bits)
    if values.dtype == torch.float16:
        whole.mul_(2.0 ** (1 - bits))
        step *= 2.0 ** (bits - 1)
    return whole.to(values.dtype), step


def largest_magnitude(values: Tensor) -> Tensor:
    """Return max|values| as a scalar tensor, NaN if there is one, in a single reading pass.

    Args:
        values: floating tensor that is not empty.
    """
    smallest, largest = torch.aminmax(values)
    return torch.maximum(smallest.neg(), largest)


def _whole(values: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return a new tensor of the levels as whole numbers, float32 or wider, and their step."""
    wide = torch.promote_types(values.dtype, torch.float32)
    step = largest_magnitude(values).to(wide) / (2 ** (bits - 1) - 1)
    # An all-zero tensor has no scale of its own; any positive step maps it to zeros.
    step += step == 0
    # One new tensor, then in place: fresh memory costs more than the arithmetic on it.
    scaled = values.div(step) if values.dtype == wide else values.to(wide).div_(step)
    return scaled.round_(), step
