"""Run a caller's network on copies of its tensors, and leave it as it was."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pabzip.calls import Call, Output, main_output, shown
from pabzip.errors import SearchError
from pabzip.swap import swapped
from pabzip.wrappers import runnable, uncompiled

CHECKPOINTED = (
    "expected a network that keeps its activations for the backward pass, found one that computes "
    "them again (activation checkpointing) or moves them by hooks; turn that off for the search"
)
"""Why a network is refused whose backward pass cannot be followed."""


@contextmanager
def full_float32() -> Iterator[None]:
    """Compute convolutions in float32 as such; put the caller's setting back after it.

    By default torch rounds the factors of a float32 convolution to the 10 bits of TF32 on a CUDA
    device, which changes masks. No other flag of cuDNN changes within the block. Products of
    matrices are left alone: they round only where the caller has asked torch for it.
    """
    cudnn: Any = torch.backends.cudnn  # torch's stubs do not know of conv
    try:
        # The context manager sets all flags, those that are not passed to defaults of its own.
        now = {name: getattr(cudnn, name) for name in inspect.signature(cudnn.flags).parameters}
    except RuntimeError:
        # torch does not tell allow_tf32 once a caller has set convolutions apart from it.
        before, cudnn.conv.fp32_precision = cudnn.conv.fp32_precision, "ieee"
        try:
            yield
        finally:
            cudnn.conv.fp32_precision = before
        return
    # The precision of all of cuDNN is what convolutions follow that have none of their own.
    with cudnn.flags(**{**now, "allow_tf32": False, "fp32_precision": "ieee"}):
        yield


class NetworkCopy:
    """A network that runs on copies of its parameters and buffers, its own left as they are.

    The network has the copies within `swapped_in` alone, so its own weights, signs, buffers,
    gradients and dtypes are never written.

    Floating tensors are copied to ``dtype``, and the copies of ``weights`` require gradients.
    ``output`` finds the tensor in what the network returns; None takes `main_output`.

    Attributes:
        weights: the copies of ``weights``, by the same names.
        device: of the weights.
    """

    def __init__(
        self,
        net: nn.Module,
        weights: Mapping[str, nn.Parameter],
        dtype: torch.dtype,
        output: Output | None = None,
    ):
        net = runnable(net)
        self._net, self._output = net, output
        self.device = next(iter(weights.values())).device
        names = {id(parameter): name for name, parameter in net.named_parameters()}
        self._state = {
            name: tensor.detach().to(dtype if tensor.is_floating_point() else None, copy=True)
            for name, tensor in (*net.named_parameters(), *net.named_buffers())
        }
        self.weights: dict[str, Tensor] = {
            name: self._state[names[id(parameter)]].requires_grad_()
            for name, parameter in weights.items()
        }
        self._parameters = [self._state[name] for name in names.values()]
        self._pairs = [
            (tensor, self._state[name])
            for name, tensor in (*net.named_parameters(), *net.named_buffers())
        ]

    @torch.no_grad()
    def prune(self, masks: Mapping[str, Tensor]) -> None:
        """Set the weights that ``masks`` has pruned to zero, in the copies alone."""
        for name, weight in self.weights.items():
            weight.masked_fill_(~masks[name], 0.0)

    @contextmanager
    def isolated(self, training: Callable[[nn.Module], bool]) -> Iterator[None]:
        """Set the mode of each module, with gradients on; put modes and random state back after it.

        Autocast and inference mode are off within the block, and float32 is float32
        (`full_float32`). All of the caller's settings return, also on an exception. ``training``
        says of a module whether it runs in training mode.
        """
        # The flag is set by hand: a module's own train() and eval() may do more than can be undone.
        modes = [(module, module.training) for module in self._net.modules()]
        accelerators = [self.device] if self.device.type == "cuda" else []
        try:
            for module, _ in modes:
                module.training = training(module)
            with (
                torch.random.fork_rng(accelerators),
                torch.inference_mode(False),
                torch.enable_grad(),
                torch.autocast(self.device.type, enabled=False),
                full_float32(),
            ):
                yield
        finally:
            for module, mode in modes:
                module.training = mode

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Run the network on the copies within the block, uncompiled.

        The backward pass belongs into the block: a network that checkpoints activations computes
        them once more there.
        """
        with uncompiled(), swapped(self._net, self._pairs):
            yield

    def __call__(self, call: Call) -> Tensor:
        """Return the output tensor of a call; to be made within `isolated` and `swapped_in`.

        Raises:
            SearchError: the network refuses the inputs, or does not give a floating tensor that
                has a gradient.
        """
        returned = self.returned(call)
        output = (main_output if self._output is None else self._output)(returned)
        if not isinstance(output, Tensor) or not output.is_floating_point():
            found = output if self._output else returned
            by = "from output=" if self._output else "as output, or one within it"
            raise SearchError(
                f"{self._where(call)}: expected one floating tensor {by}, found {shown(found)}; "
                "output= is called with what the network returns, and says which tensor counts"
            )
        return self.derivable(output, call)

    def returned(self, call: Call) -> Any:
        """Return what the network returns for a call; to be made as `__call__` is.

        Raises:
            SearchError: the network refuses the inputs.
        """
        try:
            return self._forward(call)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            if CHECKPOINTED in str(error):
                raise SearchError(f"{type(self._net).__name__}: {CHECKPOINTED}") from error
            raise SearchError(
                f"{self._where(call)}: the forward pass failed ({error}). Expected inputs that the "
                "network takes, an input_shape without the batch dimension or batches as in "
                "training; example_inputs= takes token ids, tuples and mappings too"
            ) from error

    def derivable(self, output: Tensor, call: Call) -> Tensor:
        """Return an output of a call; refuse one that has no gradient."""
        if not output.requires_grad:
            raise SearchError(
                f"{self._where(call)}: expected an output that depends on the weights, found one "
                "without a gradient; does the network detach it, or run under no_grad?"
            )
        return output

    def _forward(self, call: Call) -> Any:
        return self._net(*call.args, **call.kwargs)

    @contextmanager
    def derived(self) -> Iterator[None]:
        """Say in our words that a backward pass within the block fails.

        Raises:
            SearchError: it does; ``torch.OutOfMemoryError`` stays itself.
        """
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = str(error).split("\n")[0]
            failed = f"the backward pass failed ({reason})"
            raise SearchError(
                f"{type(self._net).__name__}: {CHECKPOINTED if 'checkpoint' in reason else failed}"
            ) from error

    def _where(self, call: Call) -> str:
        return f"{type(self._net).__name__} on {call.shown}"
