"""Masks: keep the largest scores exactly, and apply masks to a network."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from pabzip.errors import SearchError

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


def keep_largest(
    scores: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    count: int,
    *,
    exact: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] | None = None,
) -> dict[str, Tensor]:
    """Keep the ``count`` best of the weights that ``masks`` still has, over all tensors at once.

    One threshold serves every tensor. Equal scores are settled by position (the order of the
    mapping, then row-major order; the earlier weight survives), so the count is exact. A weight
    that is pruned in ``masks`` stays pruned, whatever its score.

    Args:
        scores: finite floating tensors by name, higher is kept.
        masks: bool tensors by the same names and of the same shapes, True for a survivor.
        count: how many weights to keep.
        exact: for rounded scores: given places in the flat tensors by name, returns what the
            scores there stand for (`pabzip.search.ExactScorer`). It is asked about those too near
            the threshold to be told apart.

    Returns:
        New bool tensors by name; ``masks`` itself is not changed. When ``masks`` has no more than
        ``count`` survivors, all of them survive.

    Raises:
        SearchError: scores that are not finite; the message names the tensor.
    """
    for name, score in scores.items():
        # The extremes of a tensor carry any NaN or infinity in it; counting is for the message.
        if score.numel() and not torch.isfinite(torch.stack(torch.aminmax(score))).all():
            unfit = int(score.numel() - torch.isfinite(score).sum())
            raise SearchError(
                f"scores of {name!r}: expected finite values, found {unfit} of {score.numel()} "
                "that are infinite or not a number; shrink the initialization, or add batch norm "
                "(without it the activations of a deep network overflow)"
            )
    alive = sum(int(torch.count_nonzero(mask)) for mask in masks.values())
    if count >= alive:
        return {name: mask.clone() for name, mask in masks.items()}
    settle = None if exact is None else _by_position(exact, list(masks))
    values = [scores[name].detach() for name in masks]
    kept = largest(values, list(masks.values()), alive, count, settle)
    return dict(zip(masks, kept, strict=True))


def _by_position(
    exact: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]], names: Sequence[str]
) -> Settle:
    """Return ``exact`` for lists in the order of ``names``."""

    def settle(places: Sequence[Tensor]) -> Sequence[Tensor]:
        found = exact(
            {name: place for name, place in zip(names, places, strict=True) if len(place)}
        )
        return list(found.values())

    return settle


def apply_masks(net: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Prune weights in place: where a mask is False, the weight becomes +0.0.

    Survivors keep their bits. All masks are checked before the first weight changes.

    Args:
        net: the network that holds the weights.
        masks: bool tensors by parameter name, of the parameter's shape, on any device.

    Raises:
        SearchError: a name that ``net`` does not have, or a mask of another dtype or shape.

    Source: Peek-a-Boo, Section 3.2 and Algorithm 1, line 1.
    """
    parameters = dict(net.named_parameters(remove_duplicate=False))
    for name, mask in masks.items():
        if name not in parameters:
            raise SearchError(
                f"masks[{name!r}]: expected the name of a parameter of {type(net).__name__}, "
                f"which has {', '.join(list(parameters)[:8])}"
            )
        shape = tuple(parameters[name].shape)
        if mask.dtype != torch.bool or tuple(mask.shape) != shape:
            raise SearchError(
                f"masks[{name!r}]: expected a bool tensor of shape {shape}, found {mask.dtype} "
                f"of shape {tuple(mask.shape)}"
            )
    with torch.no_grad():
        for name, mask in masks.items():
            parameter = parameters[name]
            parameter.masked_fill_(~mask.to(parameter.device), 0.0)
