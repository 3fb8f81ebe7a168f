"""Run a caller's network on other tensors, and leave no trace of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pabzip.errors import SearchError


@contextmanager
def isolated(
    net: nn.Module, device: torch.device, training: Callable[[nn.Module], bool]
) -> Iterator[None]:
    """Set the mode of each module, with gradients on; put modes and random state back after it.

    Autocast and inference mode are off within the block. All of the caller's settings return, also
    on an exception.

    Args:
        net: the network.
        device: where it runs; only its generator is kept besides the CPU's.
        training: says of a module whether it runs in training mode.
    """
    # The flag is set by hand: a module's own train() and eval() may do more than can be undone.
    modes = [(module, module.training) for module in net.modules()]
    accelerators = [device] if device.type == "cuda" else []
    try:
        for module, _ in modes:
            module.training = training(module)
        with (
            torch.random.fork_rng(accelerators),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(device.type, enabled=False),
        ):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def call(net: nn.Module, state: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    """Return the output of ``net`` with ``state`` in place of its parameters and buffers.

    Raises:
        SearchError: the network refuses the inputs, or does not give one floating tensor that has
            a gradient.
    """
    where = f"{type(net).__name__} on inputs of shape {tuple(inputs.shape)}"
    try:
        output = torch.func.functional_call(net, dict(state), (inputs,))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError) as error:
        raise SearchError(
            f"{where}: the forward pass failed ({error}); expected inputs that the network takes: "
            "an input_shape without the batch dimension, or batches as in training"
        ) from error
    if not isinstance(output, Tensor) or not output.is_floating_point():
        kind = output.dtype if isinstance(output, Tensor) else type(output).__name__
        raise SearchError(f"{where}: expected one floating tensor as output, found {kind}")
    if not output.requires_grad:
        raise SearchError(
            f"{where}: expected an output that depends on the weights, found one without a "
            "gradient; does the network detach it, or run under no_grad?"
        )
    return output
