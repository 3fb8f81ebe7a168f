"""What the packed codes of a ternary tensor stand for: elements as stored, and plain weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pabzip.errors import ArchitectureError
from pabzip.formats.dense import DenseTensor, from_stored, to_stored
from pabzip.formats.ternary_layouts import FLOATS, LAYOUTS

if TYPE_CHECKING:
    from pabzip.formats.ternary import TernaryTensor


def loops(backend: str) -> ModuleType:
    """Return what turns packed codes into elements: compiled loops, or plain numpy."""
    if backend == "numpy":
        from pabzip.formats import plain_trits

        return plain_trits
    from pabzip.formats import trits

    return trits


def stored_elements(
    tensor: TernaryTensor, backend: str = "numba"
) -> tuple[Callable[[int, NDArray[Any]], None], int]:
    """Return what writes stored elements from a place onwards, and the elements of a block.

    Places, and lengths but the last, are multiples of a block's elements.
    """
    trits: Any = loops(backend)
    size = LAYOUTS[tensor.layout].block_bytes
    if tensor.layout == "bitnet":
        plane = math.prod(tensor.shape)
        return lambda start, out: trits.unpack_planes(tensor.packed, plane, start, out), 1
    if size:
        assert tensor.scales is not None
        scales, ternary = tensor.scales.view("<u2"), tensor.layout == "tq1_0"

        def blocks(start: int, out: NDArray[Any]) -> None:
            into = out.reshape(-1, size)
            trits.unpack_blocks(tensor.packed, ternary, scales, start // size, into)

        return blocks, size
    if tensor.scales is None:
        return lambda start, out: trits.unpack_codes(tensor.packed, 5, start, out), 1
    kind = f"<u{tensor.scales.itemsize}"
    patterns = tensor.scales.view(kind)
    sign = 1 << (8 * patterns.itemsize - 1)

    def floats(start: int, out: NDArray[Any]) -> None:
        into = out.view(kind)
        trits.unpack_floats(tensor.packed, tensor.per_byte, patterns, tensor.run, sign, start, into)

    return floats, 1


def plain_weights(
    tensor: TernaryTensor,
    scale: DenseTensor | None,
    scaling: str | None,
    *,
    backend: str = "numba",
    threads: int | None = None,
) -> DenseTensor:
    """Return the weights of a tensor as ordinary numbers: `TernaryTensor.plain`."""
    if tensor.layout == "plain":
        values = tensor.array(backend=backend, threads=threads)
        return DenseTensor(tensor.name, values, tensor.dtype, tensor.dtype)
    dtype, run, patterns = "float16", tensor.run, tensor.scales
    if tensor.layout == "bitnet":
        own = tensor.scaling if tensor.scaling != "none" else scaling
        if scaling not in (None, own):
            raise ArchitectureError(
                f"{tensor.name}: expected bitnet_scale to be {own}, as the file says, found "
                f"{scaling}; leave out bitnet_scale (--bitnet-scale)"
            )
        dtype, size = _bitnet_weight(tensor, scale, own)
        run, patterns = math.prod(tensor.weights_shape), np.full(1, size)
    assert patterns is not None
    held = replace(
        tensor,
        shape=tensor.weights_shape,
        dtype=dtype,
        scales=patterns,
        layout="plain",
        scaling="runs",
        run=run,
    )
    values = held.array(backend=backend, threads=threads)
    if tensor.layout != "bitnet" and not patterns.all():
        values[values == 0] = 0  # a block of scale 0 has no negative zeros either
    return DenseTensor(tensor.name, values, dtype, dtype)


def _bitnet_weight(
    tensor: TernaryTensor, scale: DenseTensor | None, scaling: str | None
) -> tuple[str, Any]:
    """Return the one size of the weights of a tensor in transformers' layout.

    ``scaling`` is ``"divide"`` or ``"multiply"``, and ``scale`` the tensor called as ours with
    ``"_scale"`` added, one value; other values of both are refused.

    Returns:
        Torch's name of the element type of ``scale``, and the size in it, rounded once to nearest
        even; bfloat16 as a bit pattern.

    Raises:
        ArchitectureError: it is not known how codes are scaled, or there is no such scale.
    """
    if scaling not in ("divide", "multiply"):
        raise ArchitectureError(
            f"{tensor.name}: expected to know whether its codes are divided or multiplied by "
            f"{tensor.scale_name}, found neither in the file; say it with bitnet_scale "
            "(--bitnet-scale: BitLinear divides, AutoBitLinear multiplies), or take it as "
            "stored (--as-stored)"
        )
    if scale is None or scale.values.size != 1 or scale.dtype not in FLOATS:
        found = "none" if scale is None else f"{scale.values.size} values of {scale.dtype}"
        raise ArchitectureError(
            f"{tensor.name}: expected one floating value in {tensor.scale_name}, found "
            f"{found}; take the tensor as stored (--as-stored)"
        )
    exact = from_stored(scale.values.reshape(-1), "float64", scale.dtype)
    with np.errstate(divide="ignore", over="ignore"):
        # A quotient of 53 bits can be rounded to 24 as if it were exact.
        wide = 1 / exact if scaling == "divide" else exact
        single = scale.dtype == "float32"
        size = wide.astype("<f4") if single else to_stored(wide, "float64", scale.dtype)
    positive = from_stored(size, "float64", scale.dtype)[0]
    if not (np.isfinite(positive) and positive > 0):
        raise ArchitectureError(
            f"{tensor.name}: expected a weight that {scale.dtype} holds, found "
            f"{tensor.scale_name} of {float(exact[0])!r}; take the tensor as stored "
            "(--as-stored)"
        )
    return scale.dtype, size[0]
