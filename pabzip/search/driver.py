"""The search itself: score, prune a little, repeat; whatever the scorer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from pabzip.search.budgets import Budget
from pabzip.search.collapse import refuse_collapse
from pabzip.search.masks import apply_masks, keep_largest

OnIteration = Callable[[int, int], None]
"""Called as ``on_iteration(i, iterations)`` after each round, i from 1."""


class Scorer(Protocol):
    """Scores the weights of one network; the seam at which methods differ."""

    def scores(self, masks: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return a floating tensor for each mask, by name and of its shape; higher is kept.

        What it says of weights that ``masks`` has pruned does not matter.
        """
        ...


@runtime_checkable
class ExactScorer(Scorer, Protocol):
    """A scorer whose scores are rounded, and which can say more precisely where it matters."""

    def exact(self, places: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return scores of the last round in float64, up to one factor, at some places.

        Args:
            places: positions in the flat weights, int64 vectors by name.

        Returns:
            Vectors by the same names, in the same order.
        """
        ...


def iterative_search(
    net: nn.Module,
    weights: Mapping[str, nn.Parameter],
    scorer: Scorer,
    budgets: Sequence[Budget],
    input_shape: Sequence[int],
    iterations: int = 1,
    *,
    schedule: str = "exponential",
    on_iteration: OnIteration | None = None,
) -> dict[str, Tensor]:
    """Prune ``net`` to its budgets in ``iterations`` rounds of scoring and masking.

    Weights that are zero before the search count as pruned already, so a search can follow an
    earlier one; the schedule then begins at what is left. The weights of ``net`` change only at
    the very end, when the masks are final.

    Args:
        net: the network, pruned in place.
        weights: the weights to decide on, by name.
        scorer: gives the scores of each round.
        budgets: which weights compete, and which fraction of them survives; each weight belongs
            to exactly one.
        input_shape: shape of one input, without the batch dimension.
        iterations: rounds; scores that depend on the mask need many.
        schedule: one of `pabzip.search.SCHEDULES`.
        on_iteration: called as ``on_iteration(i, iterations)`` after round i, from 1.

    Returns:
        The masks, bool tensors by name, with exactly ``round(keep_ratio * N)`` True in each
        budget of N weights.

    Raises:
        SearchError: an argument out of range, more survivors asked for than weights are left,
            scores that are not finite, or layer collapse: a tensor with nothing left, and no path
            left from the input to the output. ``net`` is then as it was.
    """
    masks = {name: parameter.detach() != 0 for name, parameter in weights.items()}
    exact = scorer.exact if isinstance(scorer, ExactScorer) else None
    plans = [(budget.names, budget.counts(masks, iterations, schedule)) for budget in budgets]
    for iteration in range(iterations):
        scores = scorer.scores(masks)
        masks = {
            name: mask
            for names, counts in plans
            for name, mask in keep_largest(
                {name: scores[name] for name in names},
                {name: masks[name] for name in names},
                counts[iteration],
                exact=exact,
            ).items()
        }
        if on_iteration is not None:
            on_iteration(iteration + 1, iterations)
    refuse_collapse(net, weights, masks, input_shape)
    apply_masks(net, masks)
    return masks
