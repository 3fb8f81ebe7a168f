"""What a file can hold of a network's state: the rules that drawing and packing share.

`pabzip.init_` asks them of the whole network before it draws a weight, so that nothing is trained
which `pabzip.pack` refuses; packing asks them again. Sizes, names and values are the format's own
rules (`pabzip.formats`), which are only called from here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from pabzip.errors import FormatError, PackError
from pabzip.formats import Contents, DenseEntry, DenseTensor
from pabzip.formats.contents import check_contents
from pabzip.formats.limits import DENSE_TYPES

FLOATING = [name for name, kind in DENSE_TYPES.items() if kind.floating]
"""Torch's names of the floating types that a file holds."""

_STATE = "keep it out of the state_dict (register_buffer(..., persistent=False))"


def check_state(state: Mapping[str, Any], seeded: Collection[str]) -> None:
    """Check that a state is of tensors that can be read, and its seeded ones float32.

    Args:
        state: tensors by name; anything may be in it.
        seeded: names of those that are drawn from a seed.

    Raises:
        PackError: names the tensor, what was found, and the way out.
    """
    missing = [name for name in seeded if name not in state]
    if missing:
        raise PackError(
            f"{missing[0]}: expected this seeded weight in the state, found "
            f"{', '.join(list(state)[:4])}, ...; was the network changed after init_?"
        )
    for name, value in state.items():
        check_tensor(name, value, seeded=name in seeded)


def check_tensor(name: str, value: Any, *, seeded: bool) -> None:
    """Check that one value of a state is a tensor that can be read; float32 if it is ``seeded``.

    Raises:
        PackError: as `check_state`.
    """
    problem = _problem(value)
    if problem:
        raise PackError(f"{name}: {problem}")
    if seeded:
        check_seeded_dtype(name, str(value.dtype).removeprefix("torch."))


def check_seeded_dtype(name: str, dtype: str) -> None:
    """Check that a seeded weight is float32.

    Raises:
        PackError: as `check_state`.
    """
    if dtype != "float32":
        way_out = (
            "call net.float() before pabzip.init_, and keep the network float32 until it is "
            "packed. The file loads in any dtype: "
            f"pabzip.load_into(MyNet().to(torch.{dtype}), file)"
        )
        raise PackError(
            f"{name}: expected a float32 seeded weight, found torch.{dtype}; "
            f"{way_out if dtype in FLOATING else 'leave it out with skip='}"
        )


def _problem(value: Any) -> str | None:
    """Return what keeps a value of a state out of any file, and the way out; None for nothing."""
    if not isinstance(value, torch.Tensor):
        return (
            f"expected a tensor, found {type(value).__name__}; extra state cannot be stored in a "
            ".pabz file, keep it outside the network's state_dict"
        )
    if is_lazy(value):
        return (
            "expected a tensor with a shape, found a lazy one that has none yet; run the network "
            "once on a batch"
        )
    if value.is_meta:
        return (
            "expected a tensor with values, found one on the meta device; give it memory with "
            "net.to_empty(device=...) and load or initialize it"
        )
    wrapped: bool = is_traceable_wrapper_subclass(value)
    if wrapped or value.is_nested:
        return (
            f"expected a plain tensor, found a {type(value).__name__}; gather or convert it first, "
            "as by full_tensor() or dequantize()"
        )
    if value.layout is not torch.strided:
        return f"expected a dense tensor, found {value.layout}; call to_dense(), or {_STATE}"
    dtype = str(value.dtype).removeprefix("torch.")
    if value.is_quantized or dtype not in DENSE_TYPES:
        known = ", ".join(DENSE_TYPES)
        return f"expected one of {known}, found {value.dtype}; convert it, or {_STATE}"
    return None


def numpy_of(value: torch.Tensor) -> NDArray[Any]:
    """Return a tensor's values, C-contiguous, in its own memory if they lie there so.

    Of the same element type; bfloat16, which numpy lacks, as uint16 bit patterns.
    """
    value = value.detach().cpu().resolve_neg().contiguous()
    if value.dtype == torch.bfloat16:
        return np.asarray(value.view(torch.int16).numpy().view(np.uint16))
    return np.asarray(value.numpy())


def torch_of(values: NDArray[Any], dtype: str) -> torch.Tensor:
    """Return values of `numpy_of` as a tensor of the torch dtype of this name, in their memory."""
    if dtype == "bfloat16":
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(values)


def check_network(net: nn.Module, seeded: Collection[str]) -> None:
    """Check that a file can hold the whole state of a network, before weights are drawn.

    Args:
        net: the network; what its seeded weights hold does not matter, as it is to be replaced.
        seeded: names of the weights and buffers to draw.

    Raises:
        PackError: names the tensor, what was found, and the way out.
    """
    state = net.state_dict()
    check_state(state, seeded)
    arch, options = getattr(net, "pabzip_arch", ("custom", {}))
    dtypes = {name: str(value.dtype).removeprefix("torch.") for name, value in state.items()}
    entries = [
        DenseEntry(name, tuple(value.shape), dtypes[name], dtypes[name])
        for name, value in state.items()
    ]
    held = _held(net)
    drawn = {id(held[name]) for name in seeded}
    try:
        check_contents(Contents(0, arch, options, {}, tuple(entries)))
        for name, value in state.items():
            if id(held.get(name)) not in drawn and value.is_floating_point():
                DenseTensor(name, numpy_of(value), dtypes[name], dtypes[name]).check_values()
    except FormatError as error:
        raise PackError(f"{error}; mend it, or take it out of the state_dict") from None
    _refuse_shared_memory(held, drawn)


def _held(net: nn.Module) -> dict[str, torch.Tensor]:
    """Return the parameters and buffers of a network by all their names."""
    parameters = net.named_parameters(remove_duplicate=False)
    return {**dict(parameters), **dict(net.named_buffers(remove_duplicate=False))}


def _refuse_shared_memory(held: Mapping[str, torch.Tensor], drawn: Collection[int]) -> None:
    """Refuse a tensor to draw that shares memory with another, or its elements with each other.

    One parameter under several names is no such case. Views with gaps are not looked into.
    """
    ends: dict[tuple[torch.device, bool], tuple[int, str]] = {}
    for start, end, name in sorted(_spans(held)):
        value = held[name]
        own, device = id(value) in drawn, value.device
        # Where all tensors so far end, and where those to draw do.
        last, other = ends.get((device, not own), (start, ""))
        itself = own and end - start < value.nbytes
        if last > start or itself:
            raise PackError(
                f"{name}: expected memory of its own, found that it shares some with "
                f"{'itself' if itself else other}; make tied weights one parameter, or leave this "
                "one out with skip="
            )
        for part in {False, own}:
            ends[device, part] = max(ends.get((device, part), (0, "")), (end, name))


def _spans(held: Mapping[str, torch.Tensor]) -> Iterator[tuple[int, int, str]]:
    """Yield the first byte of each tensor, the one after its last, and one of its names.

    Those that lie in memory with gaps are left out.
    """
    for name, value in {id(value): (name, value) for name, value in held.items()}.values():
        steps = zip(value.shape, value.stride(), strict=True)
        reach = (1 + sum((size - 1) * step for size, step in steps)) * value.itemsize
        if value.device.type in ("cpu", "cuda") and reach <= value.nbytes:
            yield value.data_ptr(), value.data_ptr() + reach, name
