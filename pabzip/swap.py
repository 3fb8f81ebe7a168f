"""Other tensors in the place of a module's own, for the length of a block."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def swapped(net: nn.Module, pairs: Iterable[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Run ``net`` with other parameters and buffers within the block; it gets its own back.

    Each module is swapped once, however many names it has, and each tensor in all its places.
    ``torch.func.functional_call`` swaps a module once for each name, and leaves copies in one that
    has two.

    Recurrent layers keep lists of their weights besides, which are swapped too. Buffers that the
    network assigns anew within the block are put back with the others.

    Args:
        net: any module.
        pairs: parameters and buffers of it, each with what stands in its place.
    """
    held = list(pairs)  # the tensors stay alive, so that no other one gets their ids
    others = {id(own): other for own, other in held}
    layers = list(net.modules())
    before: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (table, {key: own for key, own in table.items() if every or id(own) in others})
        for layer in layers
        for table, every in ((layer._parameters, False), (layer._buffers, True))
    ]
    lists = [(layer, layer._flat_weights) for layer in layers if isinstance(layer, nn.RNNBase)]
    try:
        for table, entries in before:
            table.update({key: others.get(id(own), own) for key, own in entries.items()})
        for layer, flat in lists:
            layer._flat_weights = [others.get(id(weight), weight) for weight in flat]
        yield
    finally:
        for table, entries in before:
            table.update(entries)
        for layer, flat in lists:
            layer._flat_weights = flat
