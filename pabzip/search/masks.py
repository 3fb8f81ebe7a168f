"""Masks: keep the largest scores exactly, and apply masks to a network."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from pabzip.errors import SearchError
from pabzip.wrappers import unwrap

Masks = Mapping[str, Tensor]
"""Bool tensors by name of the weight, True for one that is not pruned."""

Exact = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
"""`pabzip.search.ExactScorer.exact`."""

_SAMPLES = 2**16
_DEVIATIONS = 6.0

DOUBT = 2.0**-15
"""How far rounded values may lie from what they stand for, relative to it, with much to spare: the
sum of a thousand products in float32 is off by a tenth of this at most."""


def keep_largest(
    scores: Mapping[str, Tensor], masks: Masks, count: int, *, exact: Exact | None = None
) -> dict[str, Tensor]:
    """Keep the ``count`` best of the weights that ``masks`` still has, over all tensors at once.

    One threshold serves every tensor. Equal scores are settled by position (the order of the
    mapping, then row-major order; the earlier weight survives), so the count is exact. A weight
    that is pruned in ``masks`` stays pruned, whatever its score.

    A sample tells between which two scores the threshold lies, very probably. Two comparisons with
    these settle all scores but some in a hundred, and only those are sorted out exactly. Should
    the sample have misled, all of them are.

    Args:
        scores: finite floating tensors by name, higher is kept.
        masks: bool tensors by the same names and of the same shapes, True for a survivor.
        count: how many weights to keep.
        exact: for rounded scores: given places in the flat tensors by name, returns what the
            scores there stand for (`pabzip.search.ExactScorer`). It is asked about those within
            `DOUBT` of the threshold.

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
    nothing = {name: torch.zeros_like(mask).contiguous() for name, mask in masks.items()}
    if count <= 0:
        return nothing
    dtype = functools.reduce(torch.promote_types, (scores[name].dtype for name in masks))
    values = {
        name: scores[name].detach().to(mask.device, dtype).contiguous()
        for name, mask in masks.items()
    }
    low, high = _bracket(values, masks, count / alive)
    if exact is not None:
        low, high = low - 2 * DOUBT * abs(low), high + 2 * DOUBT * abs(high)
    kept = {name: (value > high).logical_and_(masks[name]) for name, value in values.items()}
    near = {
        name: (value >= low).logical_and_(masks[name]).logical_xor_(kept[name])
        for name, value in values.items()
    }
    missing = count - sum(int(torch.count_nonzero(part)) for part in kept.values())
    if not 0 < missing <= sum(int(torch.count_nonzero(part)) for part in near.values()):
        kept, near, missing = nothing, dict(masks), count
    places = {name: torch.nonzero(part.reshape(-1)).flatten() for name, part in near.items()}
    _add_largest(kept, values, places, missing, exact)
    return kept


def _bracket(values: Mapping[str, Tensor], masks: Masks, share: float) -> tuple[float, float]:
    """Return two values between which lies, very probably, what a share of them reaches."""
    # Every n-th value, n of no factor with the usual sizes, so that each place of a kernel is met.
    stride = max(1, sum(part.numel() for part in values.values()) // _SAMPLES)
    while math.gcd(stride, 2 * 3 * 5 * 7) > 1:
        stride += 1
    first = next(iter(values.values())).device
    parts = [
        value.view(-1)[::stride][masks[name].reshape(-1)[::stride]].to(first)
        for name, value in values.items()
    ]
    sample = torch.sort(torch.cat(parts), descending=True).values
    place = share * len(sample)
    margin = 1.0 + _DEVIATIONS * math.sqrt(max(place * (1.0 - share), 0.0))
    begin, end = math.floor(place - margin), math.ceil(place + margin)
    low = float(sample[end]) if end < len(sample) else -math.inf
    high = float(sample[begin]) if begin >= 0 else math.inf
    return low, high


def _add_largest(
    kept: Masks,
    values: Mapping[str, Tensor],
    places: Mapping[str, Tensor],
    count: int,
    exact: Exact | None,
) -> None:
    """Set ``kept`` at the ``count`` largest of the values at some places in the flat tensors."""
    first = next(iter(values.values())).device
    found = torch.cat([values[name].view(-1)[place].to(first) for name, place in places.items()])
    # Selecting the k-th value is linear in time, where sorting is not.
    threshold = torch.kthvalue(found, len(found) - count + 1).values
    width = threshold.abs() * (0.0 if exact is None else DOUBT)
    chosen = found > threshold + width
    doubtful = (found >= threshold - width).logical_xor_(chosen)
    order = torch.nonzero(doubtful).flatten()
    if exact is not None and bool(width > 0):
        asked = _chosen_places(places, doubtful)
        answers = exact({name: place for name, place in asked.items() if len(place)})
        together = torch.cat([part.to(first) for part in answers.values()])
        order = order[torch.argsort(together, descending=True, stable=True)]
    chosen[order[: count - int(torch.count_nonzero(chosen))]] = True
    for name, place in _chosen_places(places, chosen).items():
        kept[name].view(-1)[place] = True


def _chosen_places(places: Mapping[str, Tensor], chosen: Tensor) -> dict[str, Tensor]:
    """Return those of the places, all in one row, at which ``chosen`` is True."""
    parts = torch.split(chosen, [len(place) for place in places.values()])
    return {
        name: place[part.to(place.device)]
        for (name, place), part in zip(places.items(), parts, strict=True)
    }


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
    net = unwrap(net)
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
