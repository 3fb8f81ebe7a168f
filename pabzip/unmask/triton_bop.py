"""Bop's step on a GPU in one pass over memory: averages, signs and the count of flips together.

Importing this module imports triton. With ``TRITON_INTERPRET=1`` set beforehand the same kernel
runs on the CPU, slowly, which is how it is tested without a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.graph import increment_version

from pabzip.unmask.rule import laid_out_as

_BLOCK = 1024  # weights a program


@triton.jit  # type: ignore[untyped-decorator]
def bop_kernel(
    weights: tl.tensor,
    averages: tl.tensor,
    gradients: tl.tensor,
    flips: tl.tensor,
    count: tl.tensor,
    keep: tl.tensor,
    rate: tl.tensor,
    threshold: tl.tensor,
    ANY: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
) -> None:
    """Take equations (5) and (6) for ``count`` weights; adds the number of flips to ``flips``.

    ``keep`` is 1 - rate, rounded once from float64. ``ANY`` stands for a threshold of zero.
    """
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    gradient = tl.load(gradients + place, mask=inside, other=0.0).to(tl.float32)
    average = tl.load(averages + place, mask=inside, other=0.0)
    weight = tl.load(weights + place, mask=inside, other=0.0).to(tl.float32)
    # One rounding for the product and the sum, as torch does where it adds with a factor.
    average = tl.fma(tl.full([BLOCK], rate, tl.float32), gradient, average * keep)
    tl.store(averages + place, average, mask=inside)
    agreed = tl.where(weight > 0, average, -average)
    large = agreed > 0 if ANY else agreed >= threshold
    flip = large & ((weight > 0) | (weight < 0))
    number = tl.sum(flip.to(tl.int32), axis=0)
    if number > 0:
        # Few flip, and what is not written costs no bandwidth.
        tl.store(weights + place, (-weight).to(weights.dtype.element_ty), mask=flip)
        tl.atomic_add(flips, number.to(tl.int64), sem="relaxed")


def triton_update(
    weights: Sequence[Tensor],
    averages: Sequence[Tensor],
    gradients: Sequence[Tensor],
    *,
    rate: float,
    threshold: float,
) -> list[Tensor]:
    """Move averages and flip weights in place, to the same bits as torch's operations on lists.

    The weights are float32, float16 or bfloat16, on one CUDA device (the CPU under Triton's
    interpreter), in any dense layout; the averages float32, of the same shapes and strides. The
    work is queued on the device's current stream; nothing is waited for.

    Returns:
        The number of flips of each tensor: int64 scalars on the device.
    """
    flips = torch.zeros(len(weights), dtype=torch.int64, device=weights[0].device)
    with torch.cuda.device_of(flips):  # type: ignore[no-untyped-call]
        for at, (weight, average, gradient) in enumerate(
            zip(weights, averages, gradients, strict=True)
        ):
            count = weight.numel()
            if count == 0:
                continue
            bop_kernel[(triton.cdiv(count, _BLOCK),)](
                weight,
                average,
                laid_out_as(gradient, weight),
                flips[at],
                count,
                1 - rate,
                rate,
                threshold,
                ANY=threshold == 0,
                BLOCK=_BLOCK,
                enable_fp_fusion=False,
            )
    # Kernels change tensors behind autograd's back, which is to notice all the same.
    increment_version([*weights, *averages])
    return list(flips.unbind())
