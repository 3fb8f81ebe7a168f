"""Fold batch norm to a scale and a shift a channel, and check that the outputs stay the same.

In evaluation mode, batch norm is an affine map of each channel. Its four vectors are replaced by
others of the same map: mean 0, variance 1, and all else in weight and bias. Two of the vectors are
then constant, which a file stores for next to nothing, and the network that loads them is the
ordinary architecture. Nothing is multiplied into convolutions: their weights stay their seed's.

A folded network is for inference. Its running statistics are gone, so training on needs the
original.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from pabzip.errors import PackError
from pabzip.formats import DenseTensor, rounded
from pabzip.packing.sources import MemorySource

if TYPE_CHECKING:
    from torch import nn


State = Mapping[str, torch.Tensor]

_VECTORS = ("weight", "bias", "running_mean", "running_var")


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
    """Fold every batch norm of a state; return it with their tensors replaced.

    Per channel, in float64 and rounded once to each tensor's own dtype::

        scale = weight / sqrt(running_var + eps)
        bias, weight = bias - running_mean * scale, scale * sqrt(1 + eps)
        running_mean, running_var, num_batches_tracked = 0, 1, 0

    so that batch norm with its own ``eps`` computes ``scale * x + bias``. ``net`` gives the
    structure alone and may be on the meta device.

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
    weight, bias, mean, variance = _vectors(state, prefix, torch.float64)
    scale = weight / (variance + eps).sqrt()
    return scale, bias - mean * scale


def _vectors(state: State, prefix: str, dtype: torch.dtype) -> list[torch.Tensor]:
    """Return weight, bias, mean and variance of one batch norm, on the CPU."""
    return [state[prefix + key].detach().to("cpu", dtype) for key in _VECTORS]


def _check_sharing(net: nn.Module, folded: State) -> None:
    """Refuse a tensor that has several names and would need several values."""
    first: dict[int, str] = {}
    named = [method(remove_duplicate=False) for method in (net.named_parameters, net.named_buffers)]
    for name, tensor in chain(*named):
        other = first.setdefault(id(tensor), name)
        if name in folded and not torch.equal(folded[name], folded[other]):
            raise PackError(
                f"{name}: expected a tensor of its own, found one shared with {other}, and folding "
                "gives the two different values; pack without fold_bn"
            )


TOLERANCES = {None: 1e-3, "float16": 5e-2, "bfloat16": 0.5}
"""Largest difference allowed, relative to the largest output, by what dense tensors are rounded to.

Where a channel's mean is r times its deviation, the map's two terms cancel, and rounding either
moves the output by about r units in the last place. Measured over 20 layers, relative to the
largest output: 1e-6 in float32, 0.01 in float16, up to 0.3 in bfloat16. The limit of float32 holds
whatever the rounding, and catches any mistake of folding; the others catch what half precision
ruins.
"""

_SAMPLES = 64
_BATCH = 2


def fold_checked(
    net: nn.Module | None,
    state: State,
    arch: str,
    arch_options: Mapping[str, Any],
    dense_dtype: str | None,
) -> dict[str, torch.Tensor]:
    """Fold a state as `fold` does, and check the outputs; of a registered ``arch`` the network's.

    ``dense_dtype`` is what the file will round dense tensors to, or None; the state that is
    returned is not rounded. Without ``net`` the architecture is built on the meta device, for its
    structure alone.

    Raises:
        PackError: as of `fold`; also ``arch`` is custom and there is no ``net``, a value overflows
            ``dense_dtype``, or outputs differ.
    """
    if net is None:
        if arch == "custom":
            raise PackError(
                "fold_bn: expected a registered architecture, found a checkpoint of a custom one, "
                "whose structure it does not hold; build the network, load the checkpoint with "
                "pabzip.checkpoint.network_from_checkpoint(checkpoint, net=network), and pack that"
            )
        from pabzip.models import build

        net = build(arch, arch_options, device="meta")
    folded = fold(net, state)
    names = {f"{name}.{key}" if name else key for name in batch_norms(net) for key in _VECTORS}
    # The strict check of the folding itself is never left out.
    for rounded_to in dict.fromkeys((None, dense_dtype)):
        found = {
            name: _rounded(name, value, rounded_to) if rounded_to and name in names else value
            for name, value in folded.items()
        }
        check_batch_norms(net, state, found, rounded_to)
        if arch != "custom":
            check_network(arch, arch_options, state, found, rounded_to)
    return folded


def check_batch_norms(
    net: nn.Module, original: State, folded: State, dense_dtype: str | None
) -> None:
    """Compare each folded batch norm with its original, on random inputs of its own channels.

    The inputs are drawn, always the same, with the running mean and variance of the original, so
    no input shape is needed. ``folded`` is the state as it will load; ``dense_dtype``, what it was
    rounded to, sets the tolerance, see `TOLERANCES`.

    Raises:
        PackError: the outputs of a channel differ; the message names it.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    for name, norm in batch_norms(net).items():
        prefix = f"{name}." if name else ""
        _, _, mean, variance = _vectors(original, prefix, torch.float32)
        noise = torch.randn(
            (_SAMPLES, len(mean)), generator=generator, dtype=torch.float32, device="cpu"
        )
        inputs = mean + noise * (variance + norm.eps).sqrt()
        scale, shift = affine_map(original, prefix, norm.eps)
        expected = inputs.double() * scale + shift
        weight, bias, mean, variance = _vectors(folded, prefix, torch.float32)
        found = torch.nn.functional.batch_norm(inputs, mean, variance, weight, bias, eps=norm.eps)
        difference = (found.double() - expected).abs().amax(0)
        limit = TOLERANCES[dense_dtype] * expected.abs().amax(0)
        bad = ~(difference <= limit + torch.finfo(torch.float32).tiny)
        if bad.any():
            channel = int(bad.int().argmax())
            raise PackError(
                f"{name or type(norm).__name__}: expected the outputs of each folded channel "
                f"within {TOLERANCES[dense_dtype]:g} of the largest, found {int(bad.sum())} of "
                f"{len(bad)} beyond (channel {channel} differs by {float(difference[channel]):g}, "
                f"allowed {float(limit[channel]):g}); {_WAY_OUT}"
            )


def check_network(
    arch: str,
    arch_options: Mapping[str, Any],
    original: State,
    folded: State,
    dense_dtype: str | None,
) -> None:
    """Compare a folded network of a registered architecture with its original, in evaluation mode.

    The inputs are standard normal, always the same; arguments as for `check_batch_norms`.

    Raises:
        PackError: the outputs differ, or the state is not one of ``arch``.
    """
    from pabzip.models import build, input_shape

    generator = torch.Generator("cpu").manual_seed(0)
    shape = (_BATCH, *input_shape(arch, arch_options))
    inputs = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
    outputs = []
    for state in (original, folded):
        net = build(arch, arch_options, device="cpu").eval()
        try:
            net.load_state_dict(dict(state), strict=True)
        except RuntimeError as error:
            raise PackError(
                f"expected the tensors of {arch}, which the network is named for, found others: "
                f"{' '.join(str(error).split())}; build the network with its own options"
            ) from error
        with torch.no_grad():
            outputs.append(net(inputs).double())
    largest = float(outputs[0].abs().max())
    difference = float((outputs[1] - outputs[0]).abs().max())
    if not difference <= TOLERANCES[dense_dtype] * largest:
        raise PackError(
            f"expected the outputs of the folded network within {TOLERANCES[dense_dtype]:g} of the "
            f"largest, {largest:g}, found a difference of {difference:g}; {_WAY_OUT}"
        )


_WAY_OUT = "pack without fold_bn, or fold without rounding the dense tensors"


def _rounded(name: str, value: torch.Tensor, dense_dtype: str | None) -> torch.Tensor:
    """Return a tensor as a file in ``dense_dtype`` gives it back."""
    if value.dtype not in (torch.float32, torch.float64):
        return value  # half-precision tensors are stored as they are
    dtype = str(value.dtype).removeprefix("torch.")
    values = MemorySource({name: value}).read(name)
    stored = rounded(DenseTensor(name, values, dtype, dtype), dense_dtype)
    assert isinstance(stored, DenseTensor)
    return torch.from_numpy(stored.values)
