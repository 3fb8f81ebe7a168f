"""Run a caller's network on other tensors, and leave no trace of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pabzip.errors import SearchError


@contextmanager
def isolated(
    net: nn.Module, device: torch.device, training: Callable[[nn.Module], bool]
) -> Iterator[None]:
    """Set the mode of each module, with gradients on; put modes and random state back after it.

    Autocast and inference mode are off within the block, and float32 is float32 (`full_float32`).
    All of the caller's settings return, also on an exception.

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
            full_float32(),
        ):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def full_float32() -> Iterator[None]:
    """Compute convolutions in float32 as such; put the caller's setting back after it.

    By default torch rounds the factors of a float32 convolution to the 10 bits of TF32 on a CUDA
    device, which changes masks. No other flag of cuDNN changes within the block. Products of
    matrices are left alone: they round only where the caller has asked torch for it.
    """
    cudnn = torch.backends.cudnn
    try:
        # The context manager sets all flags, those that are not passed to defaults of its own.
        now = {name: getattr(cudnn, name) for name in inspect.signature(cudnn.flags).parameters}
    except RuntimeError:
        # torch does not tell allow_tf32 once a caller has set convolutions apart from it.
        with _ieee_convolutions():
            yield
        return
    # The precision of all of cuDNN is what convolutions follow that have none of their own.
    with cudnn.flags(**{**now, "allow_tf32": False, "fp32_precision": "ieee"}):
        yield


@contextmanager
def _ieee_convolutions() -> Iterator[None]:
    """Set the precision of convolutions alone."""
    cudnn: Any = torch.backends.cudnn  # torch's stubs do not know of conv
    convolutions = cudnn.conv
    before = convolutions.fp32_precision
    convolutions.fp32_precision = "ieee"
    try:
        yield
    finally:
        convolutions.fp32_precision = before


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
            "an input_shape without the batch dimension, or batches as in training; a network "
            "whose inputs are no floats can be searched by magnitude or at random"
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
