"""The search itself: score, prune a little, repeat; whatever the scorer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from pabzip.errors import SearchError
from pabzip.search.masks import apply_masks, keep_largest
from pabzip.search.schedule import exponential_schedule


class Scorer(Protocol):
    """Scores the weights of one network; the seam at which methods differ."""

    def scores(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a floating tensor for each mask, by name and of its shape; higher is kept."""
        ...

    def connected(self, masks: Mapping[str, Tensor]) -> bool:
        """Say whether the survivors still lead from the input to the output."""
        ...


def iterative_search(
    net: nn.Module,
    weights: Mapping[str, nn.Parameter],
    scorer: Scorer,
    keep_ratio: float,
    iterations: int,
    *,
    on_iteration: Callable[[int, int], None] | None = None,
) -> dict[str, Tensor]:
    """Prune ``net`` to ``keep_ratio`` in ``iterations`` rounds of scoring and masking.

    Weights that are zero before the search count as pruned already, so a search can follow an
    earlier one. The weights of ``net`` change only at the very end, when the masks are final.

    Args:
        net: the network, pruned in place.
        weights: the weights to decide on, by name.
        scorer: gives the scores of each round.
        keep_ratio: fraction of ``weights`` that survives, in (0, 1].
        iterations: rounds; scores that depend on the mask need many.
        on_iteration: called as ``on_iteration(i, iterations)`` after round i, from 1.

    Returns:
        The masks, bool tensors by name, with exactly ``round(keep_ratio * N)`` True together.

    Raises:
        SearchError: an argument out of range, more survivors asked for than weights are left,
            scores that are not finite, or layer collapse: a tensor with nothing left, and no path
            left from the input to the output. ``net`` is then as it was.
    """
    counts = exponential_schedule(
        keep_ratio, iterations, sum(parameter.numel() for parameter in weights.values())
    )
    masks = {name: parameter.detach() != 0 for name, parameter in weights.items()}
    alive = sum(int(mask.sum()) for mask in masks.values())
    if counts[-1] > alive:
        raise SearchError(
            f"keep_ratio: {keep_ratio!r} asks for {counts[-1]} survivors, found only {alive} "
            "weights that are not zero already; lower keep_ratio"
        )
    for iteration, count in enumerate(counts, 1):
        masks = keep_largest(scorer.scores(masks), masks, count)
        if on_iteration is not None:
            on_iteration(iteration, iterations)
    _refuse_collapse(masks, scorer, keep_ratio)
    apply_masks(net, masks)
    return masks


def _refuse_collapse(masks: Mapping[str, Tensor], scorer: Scorer, keep_ratio: float) -> None:
    """Raise if tensors are empty and the network is cut by it; a bypassed empty one is harmless."""
    empty = [name for name, mask in masks.items() if not bool(torch.any(mask))]
    if empty and not scorer.connected(masks):
        raise SearchError(
            f"layer collapse: nothing is left of {', '.join(repr(name) for name in empty)}, and "
            f"no path leads from the input to the output; expected survivors in every layer, "
            f"raise keep_ratio (found {keep_ratio!r}) or use more iterations"
        )
