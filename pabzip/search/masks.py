"""From scores to masks, and from masks to weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from pabzip.errors import SearchError
from pabzip.search.selection import Settle, largest


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
                "that are infinite or not a number; shrink the initialisation, or add batch norm "
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
