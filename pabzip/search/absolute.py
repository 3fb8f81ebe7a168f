"""The network of absolute values: what SynFlow measures, without touching the network itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pabzip.errors import SearchError
from pabzip.search.isolation import call, isolated
from pabzip.search.products import Product
from pabzip.search.taps import Taps


@dataclass(frozen=True, slots=True)
class Flow:
    """What `AbsoluteNetwork.flow` finds.

    The gradient of R by a weight is the sum of its products' parts and of its rest.

    Attributes:
        total: R, the sum of the outputs for an input of ones.
        products: the linear maps and convolutions of each weight, by its name.
        rests: gradients of R by each weight through other uses than ``products``, by its name;
            None where there are none.
        from_input: gradient of R by the input, of shape ``(1, *input_shape)``.
    """

    total: float
    products: Mapping[str, list[Product]]
    rests: Mapping[str, Tensor | None]
    from_input: Tensor


class AbsoluteNetwork:
    """A network whose parameters and buffers are replaced by their absolute values.

    The values live in detached copies that are handed to the network for one call at a time
    (``torch.func.functional_call``), so its own weights, signs, buffers, gradients and dtypes are
    never written. Calls run in evaluation mode, which is put back module by module afterwards,
    even on an exception. The caller's random state, autocast and gradient mode are left alone.
    All of it is computed in float64: R is a product over the layers, and overflows float32 soon.

    Args:
        net: any module that maps one floating tensor to one floating tensor.
        weights: the parameters that get gradients; pruned entries can be zeroed with `prune`.
        input_shape: shape of one input, without the batch dimension.

    Raises:
        SearchError: ``input_shape`` is not a sequence of positive integers.
    """

    def __init__(
        self,
        net: nn.Module,
        weights: Mapping[str, nn.Parameter],
        input_shape: Sequence[int],
    ):
        self._input_shape = check_input_shape(input_shape)
        self._net = net
        self._names = {id(parameter): name for name, parameter in net.named_parameters()}
        self._state = {
            name: self._absolute(tensor)
            for name, tensor in (*net.named_parameters(), *net.named_buffers())
        }
        self._weights = {
            name: self._state[self._names[id(parameter)]].requires_grad_()
            for name, parameter in weights.items()
        }
        self._device = next(iter(weights.values())).device

    @property
    def weights(self) -> dict[str, Tensor]:
        """The absolute values of the searched weights, by name; they require gradients."""
        return self._weights

    @torch.no_grad()
    def prune(self, masks: Mapping[str, Tensor]) -> None:
        """Set the weights that ``masks`` has pruned to zero, in the copies alone."""
        for name, weight in self._weights.items():
            weight.mul_(masks[name])  # none is negative, so this gives +0.0

    def flow(self) -> Flow:
        """Return R and what its gradients are made of.

        Raises:
            SearchError: the network refuses the input, or does not give one floating tensor.
        """
        with isolated(self._net, self._device, training=lambda _: False):
            ones = torch.ones(
                (1, *self._input_shape), dtype=torch.float64, device=self._device,
                requires_grad=True,
            )  # fmt: skip
            with Taps(self._weights) as taps:
                total = call(self._net, self._state, ones).sum()
            wanted = [ones, *self._weights.values()]
            first, *rest = torch.autograd.grad(total, wanted, allow_unused=True)
        return Flow(
            total=float(total.detach()),
            products=taps.products,
            rests=dict(zip(self._weights, rest, strict=True)),
            from_input=torch.zeros_like(ones) if first is None else first,
        )

    def _absolute(self, tensor: Tensor) -> Tensor:
        """Return a detached copy: absolute values if floating, else the values themselves."""
        with torch.no_grad():
            if tensor.is_floating_point():
                return tensor.detach().to(torch.float64, copy=True).abs_()
            return tensor.detach().clone()


def check_input_shape(input_shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of one input as a tuple.

    Raises:
        SearchError: it is not a sequence of positive integers.
    """
    sizes = tuple(input_shape) if isinstance(input_shape, Iterable) else ()
    if not sizes or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise SearchError(
            "input_shape: expected the sizes of one input without the batch dimension, such "
            f"as (3, 32, 32), found {input_shape!r}"
        )
    return sizes
