"""What all searches share: their arguments, and the loop of scoring and pruning."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import Any, Protocol, TypedDict, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from pabzip.calls import EXAMPLE, Call, Output, guarded, shown
from pabzip.errors import SearchError
from pabzip.init import selected
from pabzip.search.collapse import refuse_collapse, refuse_ties_at_zero, refuse_unscored
from pabzip.search.masks import apply_masks, keep_largest
from pabzip.search.schedule import PruneGroup, prune_groups
from pabzip.search.starts import call_of_shape
from pabzip.selection import Selection
from pabzip.wrappers import check_whole, runnable, unwrap

OnIteration = Callable[[int, int], None]
"""Called as ``on_iteration(i, iterations)`` after each round, i from 1."""

ExampleInputs = Tensor | tuple[Any, ...] | Mapping[str, Any] | Iterable[Any]
"""A batch: a tensor, a tuple of positional arguments, or a mapping of keyword arguments. `snip` and
`grasp` also take an iterable of batches."""

_Search = TypeVar("_Search", bound=Callable[..., dict[str, Tensor]])


class SearchOptions(TypedDict, total=False):
    """Keyword arguments of every search; `pabzip.search.synflow` says what they are."""

    input_shape: Sequence[int] | None
    example_inputs: ExampleInputs | None
    targets: Any
    loss: Callable[..., Tensor] | None
    output: Output | None
    only: Selection | None
    skip: Selection | None
    weights: Mapping[str, nn.Parameter] | None
    iterations: int | None
    schedule: str
    scope: str
    seed: int | None
    on_iteration: OnIteration | None


@dataclass
class SearchCall:
    """What a search was called with: a network, a keep ratio, and `SearchOptions`."""

    net: nn.Module
    keep_ratio: float
    _: KW_ONLY
    input_shape: Sequence[int] | None = None
    example_inputs: ExampleInputs | None = None
    targets: Any = None
    loss: Callable[..., Tensor] | None = None
    output: Output | None = None
    only: Selection | None = None
    skip: Selection | None = None
    weights: Mapping[str, nn.Parameter] | None = None
    iterations: int | None = None
    schedule: str = "exponential"
    scope: str = "global"
    seed: int | None = None
    on_iteration: OnIteration | None = None

    def __post_init__(self) -> None:
        way = "search before fully_shard (or FSDP)"
        check_whole(self.net, "the search", way, SearchError)
        self.net = runnable(self.net)
        takes = "the outputs, and of the targets where there are any"
        self.loss = guarded(self.loss, "loss", takes, SearchError)
        self.output = guarded(self.output, "output", "what the network returns", SearchError)

    @cached_property
    def chosen(self) -> dict[str, nn.Parameter]:
        """The weights to search, by name: seeded ones, or an explicit choice.

        Raises:
            SearchError: no weights, a name that is not this parameter of ``net``, the same tensor
                twice, values that are not finite, or ``weights`` beside ``only`` or ``skip``.
            SeedError: ``weights`` is not given and ``net`` was not drawn from a seed, or ``only``
                or ``skip`` names nothing.
        """
        net, weights = unwrap(self.net), self.weights
        if weights is not None and (self.only is not None or self.skip is not None):
            raise SearchError(
                "weights: expected none beside only= or skip=; take them out of weights="
            )
        chosen = selected(net, self.only, self.skip) if weights is None else dict(weights)
        if not chosen:
            raise SearchError(
                f"{type(net).__name__}: expected at least one weight to search, found none; "
                "widen only=, skip= or weights=, or seed more of the network"
            )
        known = dict(net.named_parameters(remove_duplicate=False))
        first_name: dict[int, str] = {}
        for name, parameter in chosen.items():
            if known.get(name) is not parameter:
                raise SearchError(
                    f"weights[{name!r}]: expected a parameter of {type(net).__name__} under its "
                    "own name, found another tensor; take them from net.named_parameters(), of a "
                    "wrapped network from that of the network inside"
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

    @cached_property
    def inputs(self) -> Call | None:
        """What to call the network with, from a batch or a shape; None where neither is given.

        Raises:
            SearchError: the batch or the shape is none, or the two do not agree.
        """
        input_shape, call = self.input_shape, None
        if self.example_inputs is not None:
            call = Call.of(self.example_inputs, self.net)
            if call is None:
                raise SearchError(
                    f"example_inputs: expected {EXAMPLE}, with a tensor in it, found "
                    f"{shown(self.example_inputs)}; iterables of batches are for snip and grasp"
                )
        if input_shape is None:
            return call
        sizes = tuple(input_shape) if isinstance(input_shape, Iterable) else ()
        if not sizes or not all(isinstance(size, int) and size > 0 for size in sizes):
            raise SearchError(
                "input_shape: expected the sizes of one input without the batch dimension, such "
                f"as (3, 32, 32), found {input_shape!r}"
            )
        if call is None:
            return call_of_shape(sizes)
        found = [tuple(tensor.shape[1:]) for _, tensor in call.tensors()]
        if found != [sizes]:
            raise SearchError(
                f"input_shape: expected {', '.join(map(str, found))}, the shape of the "
                f"example_inputs, found {sizes}; give one of the two"
            )
        return call

    def run(
        self,
        scorer: Scorer,
        inputs: Call | None,
        *,
        rounds: int | None = None,
        groups: Sequence[PruneGroup] | None = None,
    ) -> dict[str, Tensor]:
        """Return what `iterative_search` finds.

        ``rounds`` is the published number, used where the caller gives none; None for scores that
        no round changes, so that one does. Without ``groups``, those of the caller's scope.
        """
        if groups is None:
            groups = prune_groups(self.chosen, self.keep_ratio, self.scope)
        if rounds is None:
            return iterative_search(
                self.net, self.chosen, scorer, groups, inputs, output=self.output
            )
        return iterative_search(
            self.net, self.chosen, scorer, groups, inputs,
            rounds if self.iterations is None else self.iterations,
            schedule=self.schedule, on_iteration=self.on_iteration, output=self.output,
        )  # fmt: skip


def shares_options(search: _Search) -> _Search:
    """Spell `SearchOptions` out in the signature that ``help`` and `inspect` show of a search."""
    own = inspect.signature(search)
    extra = [p for p in own.parameters.values() if p.kind is inspect.Parameter.KEYWORD_ONLY]
    common = inspect.signature(SearchCall).parameters.values()
    search.__signature__ = own.replace(parameters=[*common, *extra])  # type: ignore[attr-defined]
    return search


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


@runtime_checkable
class PathScorer(Scorer, Protocol):
    """A scorer whose score of zero says that no path leads through a weight."""

    @property
    def reached(self) -> Collection[str]:
        """Names of the weights that inputs reached in the last round."""
        ...

    @property
    def connected(self) -> bool:
        """Whether a path led from the input to the output in the last round."""
        ...


def iterative_search(
    net: nn.Module,
    weights: Mapping[str, nn.Parameter],
    scorer: Scorer,
    groups: Sequence[PruneGroup],
    inputs: Call | Sequence[int] | None = None,
    iterations: int = 1,
    *,
    schedule: str = "exponential",
    on_iteration: OnIteration | None = None,
    output: Output | None = None,
) -> dict[str, Tensor]:
    """Prune ``net`` to its groups in ``iterations`` rounds of scoring and masking.

    Weights that are zero before the search count as pruned already, so a search can follow an
    earlier one; rounds whose target is met already prune nothing. The weights of ``net`` change
    only at the very end, when the masks are final.

    Args:
        net: the network, pruned in place.
        weights: the weights to decide on, by name.
        scorer: gives the scores of each round.
        groups: which weights compete, and which fraction of them survives; each weight belongs
            to exactly one.
        inputs: a call of the network, or the shape of one input without the batch dimension;
            tells whether an empty layer cuts the network. Without it every empty layer is an
            error.
        iterations: rounds; scores that depend on the mask need many.
        schedule: one of `pabzip.search.SCHEDULES`.
        on_iteration: called as ``on_iteration(i, iterations)`` after round i, from 1.
        output: from what the network returns to a tensor, as for `pabzip.search.synflow`.

    Returns:
        The masks, bool tensors by name, with exactly ``N - int((1 - keep_ratio) * N)`` True in
        each group of N weights, as published.

    Raises:
        SearchError: an argument out of range, more survivors asked for than weights are left or
            have a path, scores that are not finite, or layer collapse: a tensor with nothing
            left, and no path left from the input to the output. ``net`` is then as it was.
    """
    start = masks = {name: parameter.detach() != 0 for name, parameter in weights.items()}
    exact = scorer.exact if isinstance(scorer, ExactScorer) else None
    plans = [(group.names, group.counts(masks, iterations, schedule)) for group in groups]
    for iteration in range(iterations):
        # After an earlier search the first rounds may have nothing to prune: no scores for those.
        if iteration == 0 or any(counts[iteration] < counts[iteration - 1] for _, counts in plans):
            scores, before, masks = scorer.scores(masks), masks, {}
            if isinstance(scorer, PathScorer):
                if iteration == 0:
                    refuse_unscored(scores, before, scorer.reached, exact)
                if not scorer.connected:  # what is pruned from here on would hide where it broke
                    refuse_collapse(net, weights, before, inputs, output)
            for names, counts in plans:
                own = {name: before[name] for name in names}
                masks |= keep_largest(
                    {name: scores[name] for name in names}, own, counts[iteration], exact=exact
                )
                if isinstance(scorer, PathScorer) and iteration == iterations - 1:
                    left = {name: masks[name] for name in names}
                    dense = all(bool(start[name].all()) for name in names)
                    refuse_ties_at_zero(scores, own, left, exact, dense=dense)
        if on_iteration is not None:
            on_iteration(iteration + 1, iterations)
    refuse_collapse(net, weights, masks, inputs, output)
    apply_masks(net, masks)
    return masks
