"""Find the largest of millions of numbers, exactly, in a few passes over them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_SAMPLES = 2**16
_DEVIATIONS = 6.0

DOUBT = 2.0**-15
"""How far rounded values may lie from what they stand for, relative to it, with much to spare: the
sum of a thousand products in float32 is off by a tenth of this at most."""

Settle = Callable[[Sequence[Tensor]], Sequence[Tensor]]
"""Given places in each of the flat tensors, returns what the values there stand for."""


def largest(
    values: Sequence[Tensor],
    among: Sequence[Tensor],
    alive: int,
    count: int,
    settle: Settle | None = None,
) -> list[Tensor]:
    """Return where the ``count`` largest values of several tensors are; of equal ones, the first.

    A sample tells between which two values the smallest of them lies, very probably. Two
    comparisons with these settle all values but some in a hundred, and only those are sorted out
    exactly. Should the sample have misled, all of them are.

    Args:
        values: finite floating tensors.
        among: bool tensors of the same shapes: only where they are True, values count.
        alive: how many ``among`` has.
        count: how many to find, at most ``alive``.
        settle: where values are rounded, tells those within `DOUBT` of the smallest one found.

    Returns:
        bool tensors like ``among``, new ones, with exactly ``count`` True together.
    """
    if count <= 0:
        return [torch.zeros_like(part) for part in among]
    dtype = functools.reduce(torch.promote_types, (part.dtype for part in values))
    values = [
        part.to(mask.device, dtype).contiguous() for part, mask in zip(values, among, strict=True)
    ]
    low, high = _bracket(values, among, count / alive)
    if settle is not None:
        low, high = low - 2 * DOUBT * abs(low), high + 2 * DOUBT * abs(high)
    above = [(part > high).logical_and_(mask) for part, mask in zip(values, among, strict=True)]
    near = [
        ((part >= low).logical_and_(mask)).logical_xor_(sure)
        for part, mask, sure in zip(values, among, above, strict=True)
    ]
    missing = count - sum(int(torch.count_nonzero(part)) for part in above)
    places = [torch.nonzero(part.view(-1)).flatten() for part in near]
    if not 0 < missing <= sum(len(place) for place in places):
        above = [torch.zeros(part.shape, dtype=torch.bool, device=part.device) for part in among]
        places, missing = [torch.nonzero(part.reshape(-1)).flatten() for part in among], count
    _add_largest(above, values, places, missing, settle)
    return above


def _bracket(
    values: Sequence[Tensor], among: Sequence[Tensor], share: float
) -> tuple[float, float]:
    """Return two values between which lies, very probably, what a share of them reaches."""
    # Every n-th value, n of no factor with the usual sizes, so that each place of a kernel is met.
    stride = max(1, sum(part.numel() for part in values) // _SAMPLES)
    while math.gcd(stride, 2 * 3 * 5 * 7) > 1:
        stride += 1
    first = values[0].device
    parts = [
        part.view(-1)[::stride][mask.reshape(-1)[::stride]].to(first)
        for part, mask in zip(values, among, strict=True)
    ]
    sample = torch.sort(torch.cat(parts), descending=True).values
    place = share * len(sample)
    margin = 1.0 + _DEVIATIONS * math.sqrt(max(place * (1.0 - share), 0.0))
    begin, end = math.floor(place - margin), math.ceil(place + margin)
    low = float(sample[end]) if end < len(sample) else -math.inf
    high = float(sample[begin]) if begin >= 0 else math.inf
    return low, high


def _add_largest(
    kept: Sequence[Tensor],
    values: Sequence[Tensor],
    places: Sequence[Tensor],
    count: int,
    settle: Settle | None,
) -> None:
    """Set ``kept`` at the ``count`` largest of the values at some places in the flat tensors."""
    first = values[0].device
    found = torch.cat(
        [part.view(-1)[place].to(first) for part, place in zip(values, places, strict=True)]
    )
    # Selecting the k-th value is linear in time, where sorting is not.
    threshold = torch.kthvalue(found, len(found) - count + 1).values
    width = threshold.abs() * (0.0 if settle is None else DOUBT)
    chosen = found > threshold + width
    doubtful = (found >= threshold - width).logical_xor_(chosen)
    order = torch.nonzero(doubtful).flatten()
    if settle is not None and bool(width > 0):
        parts = torch.split(doubtful, [len(place) for place in places])
        exact = settle(
            [place[part.to(place.device)] for place, part in zip(places, parts, strict=True)]
        )
        together = torch.cat([part.to(first) for part in exact])
        order = order[torch.argsort(together, descending=True, stable=True)]
    chosen[order[: count - int(torch.count_nonzero(chosen))]] = True
    parts = torch.split(chosen, [len(place) for place in places])
    for mask, place, part in zip(kept, places, parts, strict=True):
        mask.view(-1)[place[part.to(mask.device)]] = True
