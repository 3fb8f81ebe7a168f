"""Predictive sign gradients (PSG), put on the layers of any network and taken off again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from pabzip.errors import RecipeError
from pabzip.init import seeded_parameters
from pabzip.unmask.psg_functions import PsgConfig, psg_conv, psg_conv_transpose, psg_linear
from pabzip.wrappers import unwrap

_CONFIG = "_pabzip_psg"
_BASE = "_pabzip_psg_base"

_ROUTES: dict[Any, Callable[..., Tensor]] = {
    F.linear: psg_linear,
    F.conv1d: psg_conv,
    F.conv2d: psg_conv,
    F.conv3d: psg_conv,
    F.conv_transpose1d: psg_conv_transpose,
    F.conv_transpose2d: psg_conv_transpose,
    F.conv_transpose3d: psg_conv_transpose,
}


class PsgHandle:
    """Remembers the layers that `apply_psg` changed.

    Attributes:
        modules: the layers, by name.
    """

    def __init__(self, modules: dict[str, nn.Module]):
        self.modules = modules

    def remove(self) -> None:
        """Give every layer its own class back; layers that have it already are left alone."""
        for module in self.modules.values():
            _detach(module)


def apply_psg(
    net: nn.Module,
    config: PsgConfig | None = None,
    *,
    weights: Iterable[str] | None = None,
) -> PsgHandle:
    """Let layers of ``net`` compute approximate gradients, in place.

    The forward pass stays exact. In the backward pass input x, weight w and output gradient g are
    replaced by their quantized versions (see `quantize`): the weight gradient is g~ x~^T, the input
    gradient w~^T g~ (w^T g where ``config.input_gradient`` is ``"exact"``), and small weight
    gradients are treated as ``config.behavior`` says. Bias gradients are exact. Output and both
    gradients take one product each, the weight gradient a further one for ``"correct"`` alone. What
    is not needed (the input gradient of the first layer, the weight gradient of a frozen layer) is
    not computed. In evaluation mode gradients are exact, so a search that runs in it measures the
    network itself.

    Each layer's class becomes a subclass of its own that routes the ``torch.nn.functional`` calls
    of its ``forward``; so Conv and Linear layers, their lazy initializations, and subclasses of
    one's own keep working, as do ``state_dict``, ``deepcopy``, pickling and autocast. A layer whose
    weight is used by someone else's ``forward`` (as in ``nn.MultiheadAttention``) is not reached.
    Gradients of gradients are not supported.

    Args:
        net: the network.
        config: bit-widths and thresholds; the paper's by default.
        weights: names of the weights whose layers to change (a mapping with these keys serves), all
            layers of a weight that several share. By default the seeded ones of Conv and Linear
            layers, which leaves a dense classifier alone as published; seeded weights of other
            kinds (recurrent, attention, embeddings) keep exact gradients.

    Returns:
        A handle; its ``remove()`` undoes all this.

    Raises:
        RecipeError: a name that is not the weight of a Conv or Linear layer, no such seeded
            weight, or a layer that has PSG already.
        SeedError: ``weights`` is not given and ``net`` was not drawn from a seed.

    Source: Peek-a-Boo, Sections 3.3 and 4.4; Wang et al. 2019 (E2-Train), who take the signs of the
    predicted gradients, which Peek-a-Boo does not. Deviation: the code published with Peek-a-Boo,
    whose networks have an exact forward pass too, computes every output and every weight gradient
    twice, exact and quantized; here there is one of each.
    """
    config = PsgConfig() if config is None else config
    net = unwrap(net)
    layers: dict[str, nn.Module] = {}
    by_weight: dict[str, nn.Module] = {
        f"{prefix}.weight" if prefix else "weight": module
        for prefix, module in net.named_modules(remove_duplicate=False)
        if isinstance(module, nn.Linear | _ConvNd)
    }
    seeded = {id(weight) for weight in (seeded_parameters(net).values() if weights is None else ())}
    named = [name for name, module in by_weight.items() if id(module.weight) in seeded]
    names = named if weights is None else list(weights)
    if weights is None and not names:
        raise RecipeError(
            f"apply_psg: expected a seeded weight of a Conv or Linear layer in "
            f"{type(net).__name__}, found none; gradients of other kinds of weights stay exact"
        )
    for name in names:
        if name not in by_weight:
            raise RecipeError(
                f"apply_psg: {name!r}: expected the weight of a Conv or Linear layer of "
                f"{type(net).__name__}, which has {', '.join(list(by_weight)[:8])}"
            )
    # One change for each layer that has such a weight, whatever its names and those of the weight.
    chosen = {id(by_weight[name].weight) for name in names}
    for prefix, module in net.named_modules():
        if not isinstance(module, nn.Linear | _ConvNd) or id(module.weight) not in chosen:
            continue
        if hasattr(module, _CONFIG):
            raise RecipeError(
                f"apply_psg: '{prefix}.weight': expected a layer without PSG, found one that has "
                "it already; call remove() on its handle first, or remove_psg(net)"
            )
        layers[prefix] = module
    for module in layers.values():
        object.__setattr__(module, _CONFIG, config)
        own: Any = type(module)
        module.__class__ = _psg_class(own)
    return PsgHandle(layers)


def remove_psg(net: nn.Module) -> None:
    """Take PSG off every layer of ``net`` that has it; for copies, whose handle is elsewhere."""
    for module in net.modules():
        _detach(module)


def _detach(module: nn.Module) -> None:
    """Give one layer its own class back, if it has PSG."""
    if hasattr(module, _CONFIG):
        own: Any = vars(type(module)).get(_BASE)
        if own is None:
            raise RecipeError(
                f"remove: expected a layer as apply_psg left it, found a {type(module).__name__} "
                "made of one; take PSG off before fully_shard, or put it on after"
            )
        module.__class__ = own
        object.__delattr__(module, _CONFIG)


@cache
def _psg_class(base: Any) -> Any:
    """Return the subclass of ``base`` that has predictive gradients; the same one every time."""

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not self.training:
            return base.forward(self, *args, **kwargs)
        with _Routing(getattr(self, _CONFIG)):
            return base.forward(self, *args, **kwargs)

    def reduce_ex(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
        # The class has no importable name, so a pickle names its base.
        return _blank, (base,), self.__getstate__()  # type: ignore[no-untyped-call]

    members = {
        "__doc__": f"{base.__name__} with predictive sign gradients.",
        "__module__": base.__module__,
        "forward": forward,
        "__reduce_ex__": reduce_ex,
        _BASE: base,
    }
    return type(f"Psg{base.__name__}", (base,), members)


def _blank(base: Any) -> nn.Module:
    """Return an empty layer of the subclass, for unpickling and copying to fill."""
    layer: type[nn.Module] = _psg_class(base)
    return layer.__new__(layer)


class _Routing(TorchFunctionMode):
    """Sends the functional calls of one layer's forward to their predictive versions."""

    def __init__(self, config: PsgConfig):
        super().__init__()
        self.config = config

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        route = _ROUTES.get(func)
        if route is None:
            return func(*args, **(kwargs or {}))
        # torch takes a mode off its stack while it is asked, so what the route calls is not routed.
        return route(self.config, *args, **(kwargs or {}))
