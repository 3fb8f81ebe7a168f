"""Batch-norm folding: keep of each batch norm what evaluation needs, one scale and one shift.

In evaluation mode, batch norm is an affine map of each channel. Its four vectors are replaced by
others of the same map: mean 0, variance 1, and all else in weight and bias. Two of the vectors are
then constant, which a file stores for next to nothing, and the network that loads them is the
ordinary architecture. Nothing is multiplied into convolutions: their weights stay their seed's.

A folded network is for inference. Its running statistics are gone, so training on needs the
original.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from pabzip.errors import PackError

if TYPE_CHECKING:
    from torch import nn

State = Mapping[str, torch.Tensor]


def batch_norms(net: nn.Module) -> dict[str, _BatchNorm]:
    """Return the batch norms of ``net`` that can be folded, by name, shared ones by every name.

    Those without weight and bias have nowhere to keep a scale, and those without running
    statistics are no affine map; both are left out.
    """
    return {
        name: module
        for name, module in net.named_modules(remove_duplicate=False)
        if isinstance(module, _BatchNorm)
        and module.affine
        and module.track_running_stats
        and module.running_mean is not None
    }


def fold(net: nn.Module, state: State) -> dict[str, torch.Tensor]:
    """Fold every batch norm of a state.

    Per channel, in float64 and rounded once to each tensor's own dtype::

        scale = weight / sqrt(running_var + eps)
        bias, weight = bias - running_mean * scale, scale * sqrt(1 + eps)
        running_mean, running_var, num_batches_tracked = 0, 1, 0

    so that batch norm with its own ``eps`` computes ``scale * x + bias``.

    Args:
        net: gives the structure alone (it may be on the meta device); it is not changed.
        state: its ``state_dict``; not changed either.

    Returns:
        The state with the tensors of batch norms replaced, in the same order.

    Raises:
        PackError: there is no batch norm to fold, one has channels without a finite map, or one
            shares a tensor that folding would have to give two values.

    Source: Ioffe and Szegedy, "Batch Normalization" (2015), Algorithm 2, line 11.
    """
    norms = batch_norms(net)
    if not norms:
        raise PackError(
            f"{type(net).__name__}: expected batch norm with weight, bias and running statistics "
            "to fold, found none; pack without fold_bn"
        )
    folded = dict(state)
    for name, norm in norms.items():
        prefix = f"{name}." if name else ""
        scale, shift = affine_map(state, prefix, norm.eps)
        bad = int((~(scale.isfinite() & shift.isfinite())).sum())
        if bad:
            raise PackError(
                f"{name or type(norm).__name__}: expected a finite scale and shift in every "
                f"channel, found {bad} of {len(scale)} without; its weights or statistics are not "
                "finite, or a variance is below 0"
            )
        values = {
            "weight": scale * (1 + norm.eps) ** 0.5,
            "bias": shift,
            "running_mean": torch.zeros_like(shift),
            "running_var": torch.ones_like(shift),
            "num_batches_tracked": torch.zeros((), dtype=torch.int64),
        }
        for key, value in values.items():
            if prefix + key in state:
                folded[prefix + key] = value.to(state[prefix + key].dtype)
    _check_sharing(net, folded)
    return folded


def affine_map(state: State, prefix: str, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scale and shift of one batch norm in evaluation, float64[channels] on the CPU."""
    weight, bias, mean, variance = (
        state[prefix + key].detach().to("cpu", torch.float64)
        for key in ("weight", "bias", "running_mean", "running_var")
    )
    scale = weight / (variance + eps).sqrt()
    return scale, bias - mean * scale


def _check_sharing(net: nn.Module, folded: State) -> None:
    """Refuse a tensor that has several names and would need several values."""
    first: dict[int, str] = {}
    for name, tensor in _named_tensors(net):
        other = first.setdefault(id(tensor), name)
        if name in folded and not torch.equal(folded[name], folded[other]):
            raise PackError(
                f"{name}: expected a tensor of its own, found one shared with {other}, and folding "
                "gives the two different values; pack without fold_bn"
            )


def _named_tensors(net: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every parameter and buffer under each of its names."""
    yield from net.named_parameters(remove_duplicate=False)
    yield from net.named_buffers(remove_duplicate=False)
