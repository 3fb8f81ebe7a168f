"""The search loop that all methods share: score, select, prune, repeat."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from pabzip.errors import SearchError
from pabzip.init import seeded_parameters
from pabzip.search.linearized import AbsoluteNetwork
from pabzip.search.masks import apply_masks, keep_largest
from pabzip.search.schedule import PruneGroup


def search_weights(
    net: nn.Module, weights: Mapping[str, nn.Parameter] | None = None
) -> dict[str, nn.Parameter]:
    """Return the weights to search, by name: the seeded ones, or an explicit choice.

    Args:
        net: the network.
        weights: parameters of ``net`` by name; by default the seeded weights.

    Raises:
        SearchError: no weights, a name that is not this parameter of ``net``, the same tensor
            twice, or values that are not finite.
        SeedError: ``weights`` is not given and ``net`` was not drawn from a seed.
    """
    chosen = seeded_parameters(net) if weights is None else dict(weights)
    if not chosen:
        raise SearchError(
            f"{type(net).__name__}: expected at least one weight to search, found none; "
            "pass weights= or seed more of the network"
        )
    known = dict(net.named_parameters(remove_duplicate=False))
    first_name: dict[int, str] = {}
    for name, parameter in chosen.items():
        if known.get(name) is not parameter:
            raise SearchError(
                f"weights[{name!r}]: expected a parameter of {type(net).__name__} under its own "
                "name, found another tensor; take them from net.named_parameters()"
            )
        if first_name.setdefault(id(parameter), name) != name:
            raise SearchError(
                f"weights[{name!r}]: the same tensor as {first_name[id(parameter)]!r}; "
                "expected every tensor once, leave one of the names out"
            )
        unfit = int(parameter.numel() - torch.isfinite(parameter.detach()).sum())
        if unfit:
            raise SearchError(
                f"weights[{name!r}]: expected finite values, found {unfit} of "
                f"{parameter.numel()} that are infinite or not a number"
            )
    return chosen


def refuse_collapse(
    net: nn.Module,
    weights: Mapping[str, nn.Parameter],
    masks: Mapping[str, Tensor],
    input_shape: Sequence[int],
) -> None:
    """Raise if tensors are empty and the network is cut by it; a bypassed empty one is harmless.

    A path counts if it leads from an input of ones to the outputs through the absolute values of
    the survivors, in evaluation mode.

    Args:
        net: the network; it is not changed.
        weights: the weights that were searched, by name.
        masks: bool tensors by the same names.
        input_shape: shape of one input, without the batch dimension.

    Raises:
        SearchError: layer collapse; the message names the layers.
    """
    empty = [name for name, mask in masks.items() if not bool(torch.any(mask))]
    if not empty:
        return
    network = AbsoluteNetwork(net, weights, input_shape)
    network.prune(masks)
    if not bool(torch.any(network.flow().from_input != 0)):
        raise SearchError(
            f"layer collapse: nothing is left of {', '.join(repr(name) for name in empty)}, and "
            "no path leads from the input to the output; expected survivors in every layer, "
            "raise keep_ratio, use more iterations, or give every layer a threshold of its own "
            "(scope='layer')"
        )


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
    groups: Sequence[PruneGroup],
    input_shape: Sequence[int],
    iterations: int = 1,
    *,
    schedule: str = "exponential",
    on_iteration: OnIteration | None = None,
) -> dict[str, Tensor]:
    """Prune ``net`` to its groups in ``iterations`` rounds of scoring and masking.

    Weights that are zero before the search count as pruned already, so a search can follow an
    earlier one; the schedule then begins at what is left. The weights of ``net`` change only at
    the very end, when the masks are final.

    Args:
        net: the network, pruned in place.
        weights: the weights to decide on, by name.
        scorer: gives the scores of each round.
        groups: which weights compete, and which fraction of them survives; each weight belongs
            to exactly one.
        input_shape: shape of one input, without the batch dimension.
        iterations: rounds; scores that depend on the mask need many.
        schedule: one of `pabzip.search.SCHEDULES`.
        on_iteration: called as ``on_iteration(i, iterations)`` after round i, from 1.

    Returns:
        The masks, bool tensors by name, with exactly ``round(keep_ratio * N)`` True in each
        group of N weights.

    Raises:
        SearchError: an argument out of range, more survivors asked for than weights are left,
            scores that are not finite, or layer collapse: a tensor with nothing left, and no path
            left from the input to the output. ``net`` is then as it was.
    """
    masks = {name: parameter.detach() != 0 for name, parameter in weights.items()}
    exact = scorer.exact if isinstance(scorer, ExactScorer) else None
    plans = [(group.names, group.counts(masks, iterations, schedule)) for group in groups]
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
