"""Which weights a search decides on."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from pabzip.errors import SearchError
from pabzip.init import seeded_parameters


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
