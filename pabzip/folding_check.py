"""Fold, and check that the network is still the same function before its file is kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from pabzip.errors import PackError
from pabzip.folding import State, affine_map, batch_norms, fold
from pabzip.formats import DenseTensor, rounded

if TYPE_CHECKING:
    from torch import nn

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


def structure(arch: str, arch_options: Mapping[str, Any]) -> nn.Module:
    """Build the network of a checkpoint on the meta device, for its structure alone.

    Raises:
        PackError: the architecture is custom.
    """
    if arch == "custom":
        raise PackError(
            "fold_bn: expected a registered architecture, found a checkpoint of a custom one, "
            "which does not tell its batch norms; build the network, load the checkpoint with "
            "pabzip.train.network_from_checkpoint(checkpoint, net=network), and pack the network"
        )
    from pabzip.models import build

    return build(arch, arch_options, device="meta")


def fold_checked(
    net: nn.Module,
    state: State,
    arch: str,
    arch_options: Mapping[str, Any],
    dense_dtype: str | None,
) -> dict[str, torch.Tensor]:
    """Fold a state as `pabzip.folding.fold` does, and check the outputs.

    Args:
        net: gives the structure alone; it is neither run nor changed.
        state: its ``state_dict``.
        arch: name of a registered architecture, whose whole network is then compared, too; or
            ``"custom"``.
        arch_options: its options.
        dense_dtype: what the file will round dense tensors to, or None.

    Returns:
        The folded state, not rounded.

    Raises:
        PackError: nothing can be folded, a value overflows ``dense_dtype``, or outputs differ.
    """
    folded = fold(net, state)
    names = {
        f"{name}.{key}" if name else key
        for name in batch_norms(net)
        for key in ("weight", "bias", "running_mean", "running_var")
    }
    loaded = {
        name: _rounded(name, value, dense_dtype) if name in names else value
        for name, value in folded.items()
    }
    steps: list[tuple[State, str | None]] = [(folded, None)]
    if dense_dtype is not None:  # the strict check of the folding itself is never left out
        steps.append((loaded, dense_dtype))
    for found, rounded_to in steps:
        check_batch_norms(net, state, found, rounded_to)
        if arch != "custom":
            check_network(arch, arch_options, state, found, rounded_to)
    return folded


def check_batch_norms(
    net: nn.Module, original: State, folded: State, dense_dtype: str | None
) -> None:
    """Compare each folded batch norm with its original, on random inputs of its own channels.

    The inputs are drawn, always the same, with the running mean and variance of the original, so
    no input shape is needed.

    Args:
        net: gives the structure alone; it is neither run nor changed.
        original: its state.
        folded: the state as it will load, rounded if it is to be.
        dense_dtype: what it was rounded to; sets the tolerance, see `TOLERANCES`.

    Raises:
        PackError: the outputs of a channel differ; the message names it.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    for name, norm in batch_norms(net).items():
        prefix = f"{name}." if name else ""
        mean = original[f"{prefix}running_mean"].detach().to("cpu", torch.float32)
        variance = original[f"{prefix}running_var"].detach().to("cpu", torch.float32)
        noise = torch.randn(
            (_SAMPLES, len(mean)), generator=generator, dtype=torch.float32, device="cpu"
        )
        inputs = mean + noise * (variance + norm.eps).sqrt()
        scale, shift = affine_map(original, prefix, norm.eps)
        expected = inputs.double() * scale + shift
        found = _evaluated(inputs, folded, prefix, norm.eps).double()
        difference = (found - expected).abs().amax(0)
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
                f"expected the tensors of {arch}, whose name the network bears, found others: "
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


def _evaluated(inputs: torch.Tensor, state: State, prefix: str, eps: float) -> torch.Tensor:
    """Return what batch norm in evaluation mode makes of ``(samples, channels)`` inputs."""
    weight, bias, mean, variance = (
        state[prefix + key].detach().to("cpu", torch.float32)
        for key in ("weight", "bias", "running_mean", "running_var")
    )
    return torch.nn.functional.batch_norm(inputs, mean, variance, weight, bias, eps=eps)


def _rounded(name: str, value: torch.Tensor, dense_dtype: str | None) -> torch.Tensor:
    """Return a tensor as a file in ``dense_dtype`` gives it back."""
    if value.dtype not in (torch.float32, torch.float64):
        return value  # half-precision tensors are stored as they are
    dtype = str(value.dtype).removeprefix("torch.")
    tensor = DenseTensor(name, value.detach().cpu().numpy(), dtype, dtype)
    stored = rounded(tensor, dense_dtype)
    assert isinstance(stored, DenseTensor)
    return torch.from_numpy(stored.values)
