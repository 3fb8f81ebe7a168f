"""The loss of a network on training data as a function of its weights, and its derivatives."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _NormBase

from pabzip.calls import EXAMPLE, Call, Output, entry, map_tensors, shown
from pabzip.errors import SearchError
from pabzip.search.driver import SearchCall
from pabzip.search.isolation import NetworkCopy

BATCH_NORMS = ("batch", "running")
"""What batch norm normalizes by while the loss is derived: the statistics of each batch, as in
training, or the running ones, as in evaluation; at initialization these are those it was made with,
and change nothing."""

Batch = tuple[Any, Any]
"""Inputs and targets: inputs as `pabzip.calls.Call.of` reads them; targets None where there are
none, ``int64[B]`` where no loss is given, and else what the loss takes."""

Loss = Callable[..., Tensor]
"""Called as ``loss(outputs, targets)``, or without targets as ``loss(outputs)``."""


class LossNetwork(NetworkCopy):
    """The mean loss of a network over fixed batches, as a function of its weights.

    All but batch norm (dropout, predictive gradients) runs as in evaluation, so that derivatives
    are exact and nothing is drawn at random. Parameters and buffers are detached copies: the
    network's own weights, statistics, gradients, modes and ``requires_grad`` stay as they are, also
    on an exception.

    Args:
        net: a network that maps inputs to logits, or to whatever ``loss`` takes.
        weights: the parameters that get derivatives; pruned entries can be zeroed with `prune`.
        batches: inputs and targets, at least one batch; each counts by its number of samples.
            Floating tensors are computed with in ``dtype``, all others as they are.
        dtype: floating dtype of the computation.
        temperature: the logits are divided by it; not used with a loss that is not ours.
        batch_norm: one of `BATCH_NORMS`.
        loss: the mean loss of a batch from what the network returns, or from what ``output`` makes
            of it. None is the cross-entropy of the logits; for batches without targets, the
            network's own ``loss``.
        output: from what the network returns to a tensor, for cross-entropy the logits.

    Attributes:
        inputs: the first batch's, as the network is called with them.

    Raises:
        SearchError: batches, a dtype or a batch norm of another kind, or a temperature out of
            range.
    """

    def __init__(
        self,
        net: nn.Module,
        weights: Mapping[str, nn.Parameter],
        batches: Iterable[Batch],
        dtype: torch.dtype,
        temperature: float = 1.0,
        batch_norm: str = "batch",
        *,
        loss: Loss | None = None,
        output: Output | None = None,
    ):
        if not dtype.is_floating_point:
            raise SearchError(f"dtype: expected a floating dtype, found {dtype}")
        if not 0.0 < temperature < math.inf:
            raise SearchError(f"temperature: expected a number above 0, found {temperature!r}")
        if batch_norm not in BATCH_NORMS:
            raise SearchError(
                f"batch_norm: expected one of {', '.join(BATCH_NORMS)}, found {batch_norm!r}"
            )
        super().__init__(net, weights, dtype, output)
        self._temperature, self._by_batch = temperature, batch_norm == "batch"
        self._loss = loss

        def moved(_: str, tensor: Tensor) -> Tensor:
            return tensor.to(self.device, dtype if tensor.is_floating_point() else None)

        self._batches = [
            (call.map(moved), map_tensors(targets, moved))
            for call, targets in _checked(batches, net, own_loss=loss is not None)
        ]
        self.inputs = self._batches[0][0]
        self._samples = sum(self._size(*batch) for batch in self._batches)

    def gradients(self) -> dict[str, Tensor]:
        """Return g, the gradient of the loss by each searched weight, by name.

        Raises:
            SearchError: the network refuses the batches, or does not give logits for the labels.
        """
        wanted = list(self.weights.values())
        return self._summed(lambda loss: torch.autograd.grad(loss, wanted, materialize_grads=True))

    def hessian_gradients(self) -> dict[str, Tensor]:
        """Return Hg, the Hessian of the loss times its gradient, by name of each searched weight.

        Two passes: the gradient over all batches, then the derivative of its product with each
        batch's own gradient. The Hessian itself is never formed. Weights that are pruned never move
        again, so their gradients are no part of g here.

        Raises:
            SearchError: as `gradients`, or an operation that has no second derivative.
        """
        wanted = list(self.weights.values())
        # Of torch's attentions, only the one in plain steps can be derived twice.
        with sdpa_kernel(SDPBackend.MATH):
            direction = self.gradients()
        with torch.no_grad():
            for name, weight in self.weights.items():
                direction[name].masked_fill_(weight == 0, 0.0)

        def product(loss: Tensor) -> tuple[Tensor, ...]:
            try:
                own = torch.autograd.grad(loss, wanted, create_graph=True, materialize_grads=True)
                pairs = zip(own, direction.values(), strict=True)
                along = sum((g * d).sum() for g, d in pairs)
                return torch.autograd.grad(along, wanted, materialize_grads=True)  # type: ignore[arg-type]
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                raise SearchError(
                    f"{type(self._net).__name__}: expected operations that can be derived twice, "
                    f"found one that cannot ({error}); search by another method"
                ) from error

        with sdpa_kernel(SDPBackend.MATH):
            return self._summed(product)

    def _summed(self, derivative: Callable[[Tensor], Sequence[Tensor]]) -> dict[str, Tensor]:
        """Return the sum over the batches of what ``derivative`` gives for each one's loss."""
        total = [torch.zeros_like(weight, requires_grad=False) for weight in self.weights.values()]
        with self.isolated(training=lambda m: self._by_batch and isinstance(m, _NormBase)):
            for call, targets in self._batches:
                with self.swapped_in():
                    loss = self._loss_of(call, targets)
                    with self.derived():
                        parts = derivative(loss)
                torch._foreach_add_(total, list(parts))
        return dict(zip(self.weights, total, strict=True))

    def _loss_of(self, call: Call, targets: Any) -> Tensor:
        """Return the loss of a batch; those of all batches add up to the mean over all samples."""
        if self._loss is None and targets is not None:
            loss = self._cross_entropy(call, targets)
        else:
            loss = self._own_loss(call, targets)
        return loss * (self._size(call, targets) / self._samples)

    def _size(self, call: Call, targets: Any) -> int:
        """Return the number of labels, or without those the length of the first tensor."""
        labels = self._loss is None and targets is not None
        counted = targets if labels else next(tensor for _, tensor in call.tensors())
        return len(counted) if counted.dim() else 1

    def _cross_entropy(self, call: Call, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy of a batch's logits, over the temperature."""
        logits = self(call) / self._temperature
        if logits.dim() != 2 or len(logits) != len(labels):
            raise SearchError(
                f"{type(self._net).__name__}: expected logits [{len(labels)}, classes] for "
                f"{len(labels)} labels, found {list(logits.shape)}; pass output= to find them in "
                "what the network returns, or loss= for outputs of another kind"
            )
        if int(labels.min()) < 0 or int(labels.max()) >= logits.shape[1]:
            raise SearchError(
                f"batches: expected labels from 0 to {logits.shape[1] - 1} for this network, "
                f"found {int(labels.min())} to {int(labels.max())}"
            )
        return F.cross_entropy(logits, labels)

    def _own_loss(self, call: Call, targets: Any) -> Tensor:
        """Return the loss that the caller has given, or that the network returns itself."""
        name, returned = type(self._net).__name__, self.returned(call)
        if self._loss is None:
            loss, where = entry(returned, "loss"), "the network's own loss"
        else:
            outputs = returned if self._output is None else self._output(returned)
            loss = self._loss(outputs) if targets is None else self._loss(outputs, targets)
            where = "loss="
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
            found = f"{loss.dtype} {list(loss.shape)}" if isinstance(loss, Tensor) else shown(loss)
            raise SearchError(
                f"{name}: expected a floating scalar from {where}, found {found}; pass targets= "
                "with the labels, or a loss= that returns the mean over a batch"
            )
        return self.derivable(loss, call).reshape(())


def loss_network(
    call: SearchCall, dtype: torch.dtype, batch_norm: str, temperature: float = 1.0
) -> LossNetwork:
    """Return the loss that a call of a search speaks of."""
    return LossNetwork(
        call.net, call.chosen, _batches_of(call), dtype, temperature, batch_norm,
        loss=call.loss, output=call.output,
    )  # fmt: skip


def _batches_of(call: SearchCall) -> list[Any]:
    """Return the batches of a call, in any form that `snip` takes: pairs, or inputs alone."""
    examples, targets = call.example_inputs, call.targets
    if examples is None:
        raise SearchError(
            "example_inputs: expected training images and targets= with their labels, found none; "
            "pass those of pabzip.data.batches, or search by a method without data"
        )
    single = isinstance(examples, Tensor | Mapping) or isinstance(targets, Tensor | Mapping)
    if isinstance(examples, tuple) and call.loss is not None and targets is None:
        single = any(isinstance(argument, Tensor) for argument in examples)
    if single:
        return [(examples, targets)]
    if targets is None:
        return list(examples)
    inputs, labels = list(examples), list(targets)
    if len(inputs) != len(labels):
        raise SearchError(
            f"targets: expected labels for {len(inputs)} batches of example_inputs, found "
            f"{len(labels)}"
        )
    return list(zip(inputs, labels, strict=True))


def _checked(batches: Iterable[Batch], net: nn.Module, *, own_loss: bool) -> list[tuple[Call, Any]]:
    """Return the calls and targets of all batches; refuse what is none, and no batch at all."""
    found = list(batches)
    checked = []
    for number, batch in enumerate(found):
        pair = isinstance(batch, tuple | list) and len(batch) == 2
        inputs, targets = batch if pair else (batch, None)
        call = Call.of(inputs, net)
        if own_loss:
            fits = True
        elif targets is None:  # the network's own loss, of labels among its inputs
            fits = isinstance(inputs, Mapping)
        else:
            fits = (
                isinstance(targets, Tensor)
                and targets.dtype == torch.int64
                and targets.dim() == 1
                and len(targets) > 0
                and (not isinstance(inputs, Tensor) or len(targets) in _possible_batches(inputs))
            )
        if call is None or not fits:
            parts = batch if pair else (batch,)
            described = ", ".join(
                f"{part.dtype} {list(part.shape)}" if isinstance(part, Tensor) else shown(part)
                for part in parts
                if part is not None
            )
            raise SearchError(
                f"batches[{number}]: expected a pair of inputs [B, ...] and int64 labels [B], "
                f"found {described}; inputs are {EXAMPLE}, and other targets, or none, need loss="
            )
        checked.append((call, targets))
    if not found:
        raise SearchError(
            "batches: expected at least one pair of inputs and labels, found none; pass training "
            "images, such as those of pabzip.data.batches"
        )
    return checked


def _possible_batches(inputs: Tensor) -> tuple[int, ...]:
    """Return what may be the number of samples: the first size or, if no image, the second."""
    return tuple(inputs.shape[: 1 if inputs.dim() > 3 else 2])
