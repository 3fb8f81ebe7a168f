"""When a search fails: layers that cannot be scored, weights without a path, layer collapse."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from pabzip.calls import Call, Output
from pabzip.errors import SearchError
from pabzip.search.linearized import LinearizedNetwork
from pabzip.search.masks import Exact, Masks


def refuse_collapse(
    net: nn.Module,
    weights: Mapping[str, nn.Parameter],
    masks: Masks,
    inputs: Call | Sequence[int] | None,
    output: Output | None = None,
) -> None:
    """Raise if tensors are empty and the network is cut by it; warn of those with a bypass.

    A path counts if it leads from an input of ones to the outputs of the linearized network.
    Without ``inputs`` no empty tensor is known to be harmless.
    """
    empty = [name for name, mask in masks.items() if not bool(torch.any(mask))]
    if not empty:
        return
    if inputs is None:
        raise SearchError(
            f"layer collapse: nothing is left of {_shown(empty)}; expected survivors in every "
            "layer. Raise keep_ratio, or, if the network has a way around them, pass input_shape= "
            "or example_inputs="
        )
    network = LinearizedNetwork(net, weights, inputs, output)
    network.prune(masks)
    if not network.flow(warn=False).connected:
        raise SearchError(
            f"layer collapse: nothing is left of {_shown(empty)}, and no path leads from the input "
            "to the output. Raise keep_ratio, use more iterations, or give every layer a threshold "
            "of its own (scope='layer')"
        )
    warnings.warn(
        f"nothing is left of {_shown(empty)}; the network has a way around them, such as the "
        "shortcut of a residual block, and goes on without them. To keep some of their weights, "
        "raise keep_ratio or give every layer a threshold of its own (scope='layer')",
        stacklevel=5,
    )


def refuse_unscored(
    scores: Mapping[str, Tensor], masks: Masks, reached: Collection[str], exact: Exact | None
) -> None:
    """Raise if a layer of a dense network has no score above zero although inputs reach it.

    ``scores`` are of the first round, and ``masks`` from before it. Where something is pruned
    already, a layer may have lost its paths, so nothing is refused.
    """
    if not all(bool(mask.all()) for mask in masks.values()):
        return
    unscored = [
        name for name, mask in masks.items()
        if name in reached and not bool(scores[name].any())
        and bool(_without_path({name: scores[name]}, {name: mask}, exact)[name].all())
    ]  # fmt: skip
    if unscored:
        raise SearchError(
            f"scores of {_shown(unscored)}: expected some above zero, found none: inputs reach the "
            "layer, but its output does not reach the network's, or only through factors of zero. "
            "Leave it out with skip=, or change what blocks it"
        )


def refuse_ties_at_zero(
    scores: Mapping[str, Tensor], before: Masks, after: Masks, exact: Exact | None, *, dense: bool
) -> None:
    """Raise if position alone decided what the last round left: its threshold is a score of zero.

    Zero scores are settled by position, as all ties are, and a weight with one has no path. After
    an earlier search that is harmless in a layer that has a path: weights that lost theirs do
    nothing, kept or pruned. ``before`` and ``after`` are the masks around the round; ``dense``
    says that nothing was pruned before the search.
    """
    if all(torch.equal(before[name], after[name]) for name in after):
        return  # nothing was pruned, so nothing was chosen
    if not any(bool((after[name] & (scores[name] == 0)).any()) for name in after):
        return
    without = _without_path(scores, before, exact)
    tied = [name for name in after if bool((without[name] & after[name]).any())]
    if not tied:
        return
    asked = sum(int(mask.sum()) for mask in after.values())
    paths = sum(int((before[name] & ~without[name]).sum()) for name in after)
    found = (
        f"keep_ratio: asks for {asked} survivors, found only {paths} weights with a path from the "
        "input to the output"
    )
    lost = [
        name
        for name, mask in before.items()
        if bool(mask.any()) and torch.equal(mask, without[name])
    ]
    if lost:
        raise SearchError(
            f"{found}; no weight of {_shown(lost)} has one. Lower keep_ratio, or leave such layers "
            "out with skip="
        )
    if dense:
        raise SearchError(
            f"{found}, so the threshold falls among the zero scores of {_shown(tied)}. Lower "
            "keep_ratio, use more iterations or a larger input, or leave such layers out with skip="
        )


def _without_path(
    scores: Mapping[str, Tensor], masks: Masks, exact: Exact | None
) -> dict[str, Tensor]:
    """Return which of the weights in ``masks`` have no path: a score of zero, also unrounded."""
    zero = {name: mask & (scores[name] == 0) for name, mask in masks.items()}
    if exact is not None:
        places = {name: where.flatten().nonzero().flatten() for name, where in zero.items()}
        asked = {name: place for name, place in places.items() if len(place)}
        for name, values in exact(asked).items():
            zero[name].view(-1)[asked[name]] = values == 0
    return zero


def _shown(names: Iterable[str]) -> str:
    """Return names for a message."""
    return ", ".join(repr(name) for name in names)
