"""The network inside the wrappers that rename its parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def unwrap(net: nn.Module) -> nn.Module:
    """Return the network inside DataParallel, DistributedDataParallel and ``torch.compile``.

    Args:
        net: any network, wrapped any number of times or not at all; it is left as it is.
    """
    from torch import nn
    from torch.nn.parallel import DataParallel, DistributedDataParallel

    while True:
        if isinstance(net, DataParallel | DistributedDataParallel):
            net = net.module
        elif isinstance(getattr(net, "_orig_mod", None), nn.Module):  # torch.compile
            net = net._orig_mod  # type: ignore[assignment]
        else:
            return net
