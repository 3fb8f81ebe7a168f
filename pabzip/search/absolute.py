"""The network of absolute values: what SynFlow measures, without touching the network itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from pabzip.errors import SearchError
from pabzip.search.isolation import call, isolated


class AbsoluteNetwork:
    """A network whose parameters and buffers are replaced by their absolute values.

    The values live in detached copies that are handed to the network for one call at a time
    (``torch.func.functional_call``), so its own weights, signs, buffers, gradients and dtypes are
    never written. Calls run in evaluation mode, which is put back module by module afterwards,
    even on an exception. The caller's random state, autocast and gradient mode are left alone.

    Args:
        net: any module that maps one floating tensor to one floating tensor.
        weights: the parameters that get gradients; pruned entries can be zeroed with `prune`.
        input_shape: shape of one input, without the batch dimension.
        dtype: floating dtype of the computation.

    Raises:
        SearchError: ``input_shape`` is not a sequence of positive integers.
    """

    def __init__(
        self,
        net: nn.Module,
        weights: Mapping[str, nn.Parameter],
        input_shape: Sequence[int],
        dtype: torch.dtype,
    ):
        self._input_shape = check_input_shape(input_shape)
        if not dtype.is_floating_point:
            raise SearchError(f"dtype: expected a floating dtype, found {dtype}")
        self._net = net
        self._dtype = dtype
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
            weight.masked_fill_(~masks[name], 0.0)

    def gradients(self) -> tuple[dict[str, Tensor], Tensor]:
        """Return the gradients of R, the sum of the outputs for an input of ones.

        Returns:
            The gradient of each searched weight by name, and the gradient of the input, of shape
            ``(1, *input_shape)``. Both in the dtype of the computation. A weight or an input that
            does not reach the outputs has a gradient of zeros.

        Raises:
            SearchError: the network refuses the input, or does not give one floating tensor.
        """
        with isolated(self._net, self._device, training=lambda _: False):
            ones = torch.ones(
                (1, *self._input_shape), dtype=self._dtype, device=self._device, requires_grad=True
            )
            total = call(self._net, self._state, ones).sum()
            wanted = [*self._weights.values(), ones]
            found = torch.autograd.grad(total, wanted, materialize_grads=True)
        return dict(zip(self._weights, found[:-1], strict=True)), found[-1]

    def _absolute(self, tensor: Tensor) -> Tensor:
        """Return a detached copy: absolute values if floating, else the values themselves."""
        with torch.no_grad():
            if tensor.is_floating_point():
                return tensor.detach().to(self._dtype, copy=True).abs_()
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
