"""One step of Bop on flat tensors, with or without a price for each flip.

A compiled kernel takes it in one pass over memory on a CPU, Triton's on a GPU; where there is no
kernel for a tensor, torch's own operations over lists do the same arithmetic. The step weight by
weight is stated in `pabzip.unmask.bop_kernels`.

The price of a flip. A tensor with K survivors, n of them flipped from their initial sign, the one
that the seed gave, p = n / K, spends K H(p) bits on its signs, H the binary entropy. One more flip
adds about ::

    d(K H(n / K)) / dn = log2((1 - p) / p) =: b

bits, its *price*; one flip taken back saves as much. The price is many bits while hardly any sign
is flipped, and nothing at p = 1/2, where plain Bop ends.

Minimizing ``loss + lambda * bits`` flips a sign away from the initial one where that lowers the
loss by more than ``lambda * b``, and flips it back unless that raises the loss by more. To first
order a flip of w changes the loss by -2 g w, so the Lagrangian's gradient along w, h its initial
sign, is ::

    e' = e - h * lambda * b / (2 |w|)

which pulls every weight back, and equation (6) applied to e' in place of e is the whole rule. With
``c = lambda * b / (2 |w|)``: a weight that has its initial sign flips where
``e * sign(w) >= tau + c``; one that is flipped returns where ``e * sign(w) >= tau - c``. If c
exceeds tau it returns even against a gradient that would rather keep it, unless that reaches
``c - tau``. Large weights are the cheap ones to flip: each buys more for its bit.

Why it does not oscillate: a weight that has just flipped had ``e h >= c + tau`` and returns only at
``e h <= c - tau``, so 2 tau lie between the two, as in plain Bop. The price is the same for all
weights of a tensor and falls as p rises; so for averages that stand still, the flips of one step
can only bring more of their own direction, and p moves to a fixed point, never to and fro. The
other side of this is that K H(p) is concave: the first flips of a tensor are dear, up to
log2(2 K + 1) bits, the later ones cheap.

The threshold still matters: on ResNet-20 a small one lets signs flicker whatever they cost. On
digits (LeNet-300-100, keep ratio 0.1, three seeds) a pull of ``lambda * b`` alone, the same for
weights of any magnitude, gave 94.4 % with 358 bytes of signs, dividing by ``2 |w|`` 95.4 % with
367.

Source: ours. Bop's decision: Peek-a-Boo, Appendix A, equation (6).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from pabzip.init import seeded_parameters, seeding
from pabzip.seeds import weights
from pabzip.unmask.bop_kernels import bop_step, count_flipped
from pabzip.unmask.rule import flip, laid_out_as


def price(flipped: Tensor, survivors: Tensor) -> Tensor:
    """Return the bits that one more flip adds, with n ``flipped`` of K ``survivors``.

    ``log2((K - n + 1/2) / (n + 1/2))``, which is finite for n = 0 and n = K; but never less than 0:
    once half of the signs are flipped another is free. Counts of any shape give float32 of that
    shape; nothing waits for their device.
    """
    others = (survivors - flipped).float()
    return torch.log2((others + 0.5) / (flipped.float() + 0.5)).clamp_(min=0)


def seed_signs(net: nn.Module) -> dict[str, Tensor]:
    """Return the initial signs of the weights of ``net``, whatever they are by now.

    They are int8 tensors of -1 and +1 by name, of the weights' shapes, on the CPU.
    """
    record = seeding(net)
    signs = {}
    for name, parameter in seeded_parameters(net).items():
        drawn = torch.from_numpy(weights(record.seed, record.specs[name], 0, parameter.numel()))
        signs[name] = drawn.sign().to(torch.int8).view(parameter.shape)
    return signs


_SMALLEST = np.finfo(np.float32).smallest_subnormal


def update(
    weights: Sequence[Tensor],
    averages: Sequence[Tensor],
    gradients: Sequence[Tensor],
    initial_signs: Sequence[Tensor] | None = None,
    *,
    rate: float,
    threshold: float,
    flip_cost: float = 0.0,
) -> list[Tensor]:
    """Move the averages by equation (5), then flip the weights by equation (6), in place.

    Every path gives the same bits. The tensors of one place have the same shape and device; the
    averages of half-precision weights are float32.

    Args:
        weights: floating tensors; pruned ones stay +0.0.
        averages: the moving averages.
        gradients: those of this step.
        initial_signs: the signs that the seed gave, int8; None for plain Bop.
        rate: the adaptivity rate.
        threshold: tau.
        flip_cost: what a bit costs in units of the loss; needs ``initial_signs``.

    Returns:
        The number of flips of each tensor: int64 scalars, on the weights' devices. Nothing waits
        for a device.
    """
    alike: dict[tuple[str, torch.device], list[int]] = {}
    for at, (weight, average) in enumerate(zip(weights, averages, strict=True)):
        path = _path(weight, average, priced=initial_signs is not None)
        alike.setdefault((path, weight.device), []).append(at)
    counts: dict[int, Tensor] = {}
    for (path, _), places in alike.items():
        given = [[tensors[at] for at in places] for tensors in (weights, averages, gradients)]
        signs = None if initial_signs is None else [initial_signs[at] for at in places]
        if path == "triton":
            from pabzip.unmask.triton_bop import triton_update

            found = triton_update(*given, rate=rate, threshold=threshold)
        else:
            step: Callable[..., list[Tensor]] = _by_numba if path == "numba" else _by_lists
            found = step(*given, signs, rate, threshold, flip_cost)
        counts.update(zip(places, found, strict=True))
    return [counts[at] for at in range(len(weights))]


def _path(weight: Tensor, average: Tensor, *, priced: bool) -> str:
    """Choose how a weight takes its step: by a kernel if both lie in memory alike, without gaps."""
    dense = weight.is_contiguous() or (
        weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last)
    )
    if not dense or weight.stride() != average.stride():
        return "lists"
    if weight.device.type == "cpu" and weight.dtype == torch.float32:
        return "numba"
    # Prices depend on counts of the whole tensor, which the GPU's kernel does not take.
    if weight.is_cuda and average.dtype == torch.float32 and not priced and _has_triton():
        return "triton"
    return "lists"


@cache
def _has_triton() -> bool:
    """Return whether triton is installed; it is not everywhere that torch is."""
    return find_spec("triton") is not None


def _by_numba(
    weights: list[Tensor],
    averages: list[Tensor],
    gradients: list[Tensor],
    initial_signs: list[Tensor] | None,
    rate: float,
    threshold: float,
    flip_cost: float,
) -> list[Tensor]:
    """Take the step with the compiled kernel."""
    numbers = (np.float32(1 - rate), np.float32(rate), max(np.float32(threshold), _SMALLEST))

    def flat(tensors: list[Tensor]) -> list[Any]:
        """Return the elements as the weights lie in memory."""
        alike = map(laid_out_as, tensors, weights)
        return [each.detach().as_strided((each.numel(),), (1,)).numpy() for each in alike]

    values, signs = flat(weights), [None] * len(weights)
    pulls = np.zeros(len(weights), dtype=np.float32)
    if initial_signs is not None:
        signs = flat(initial_signs)
        found = torch.tensor(list(map(count_flipped, values, signs)))
        pulls = (price(found[:, 0], found[:, 1]) * (flip_cost / 2)).numpy()
    given = zip(values, flat(averages), flat(gradients), signs, pulls, strict=True)
    counts = [bop_step(*tensors, *numbers, pull) for *tensors, pull in given]
    increment_version(weights)
    increment_version(averages)
    return list(torch.tensor(counts).unbind())


def _by_lists(
    weights: list[Tensor],
    averages: list[Tensor],
    gradients: list[Tensor],
    initial_signs: list[Tensor] | None,
    rate: float,
    threshold: float,
    flip_cost: float,
) -> list[Tensor]:
    """Take the step with torch's operations over lists of tensors."""
    dtypes = [average.dtype for average in averages]
    torch._foreach_mul_(averages, 1 - rate)
    torch._foreach_add_(
        averages, [g.to(dtype) for g, dtype in zip(gradients, dtypes, strict=True)], alpha=rate
    )
    # e * sign(w) is |e| where both agree in sign, -|e| where they do not, and 0 where w is 0: one
    # comparison decides, and no product of two small numbers can underflow.
    signs = torch._foreach_sign(weights)
    flips = [sign.to(dtype) for sign, dtype in zip(signs, dtypes, strict=True)]
    codes = None if initial_signs is None else torch._foreach_mul(flips, initial_signs)
    torch._foreach_mul_(flips, averages)
    if codes is not None:
        flipped = torch.stack([torch.count_nonzero(code < 0) for code in codes])
        survivors = torch.stack([torch.count_nonzero(code) for code in codes])
        pulls = (price(flipped, survivors) * (flip_cost / 2)).unbind()
        for weight, asks, code, pull in zip(weights, flips, codes, pulls, strict=True):
            # Not a number where the weight is 0; such comparisons are false, and nothing flips.
            asks.sub_(code.mul_(pull).div_(weight.abs()))
    for asks in flips:
        _ = asks.ge_(threshold) if threshold > 0 else asks.gt_(0)
    return flip(weights, flips)
