"""Layer collapse: a mask that leaves no path through the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pabzip.errors import SearchError
from pabzip.search.absolute import AbsoluteNetwork


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
