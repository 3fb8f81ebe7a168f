"""Random arrays as an exact function of seed, stream and place: `randn`, `rand` and `signs`.

torch, numpy and CUDA promise nothing of their random numbers across versions and devices, so
matrices that are drawn once and frozen (VeRA's, random projections, hashes) must be stored with
what was trained on them. These need not be: a seed, a stream and a shape give the same bits for
ever, on any device, for any version of anything. The generator is that of seeded weights, which the
file format states (formats/SPEC.md, section 6).

Element i, counted in row-major order, is made of 32 bits u: word i mod 4 of block i div 4 of
Philox4x32-10, with the seed as its key and the stream in its counter. With t the lower 31 bits of
u, and the top bit of u as the sign (1 is negative):

- `randn`: the sign times the upper-tail quantile of the normal distribution at (2 t + 1) / 2^33, by
  table, 28 bits after the point (error at most 2.4e-8), rounded to nearest in float32;
- `rand`: floor(t / 2^7) / 2^24, in [0, 1), exact in float32;
- `signs`: the sign times 1.

An element depends on the seed, the stream and i alone, not on the shape that is asked for.
"""

from __future__ import annotations

import importlib
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from pabzip._optional import require
from pabzip.errors import MissingDependencyError, SeedError, shown
from pabzip.seeds import InitSpec, check_seed, magnitudes, weights
from pabzip.seeds.generation import check_range, over_ranges

if TYPE_CHECKING:
    import torch
    from numpy.typing import DTypeLike

_NUMPY: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(np.uint16),  # bit patterns
    "int8": np.dtype(np.int8),
}

_FLOATING = ("float32", "float64", "float16", "bfloat16")
_BLOCK = 1 << 16  # elements made at a time for other types than float32

Shape = SupportsIndex | Sequence[SupportsIndex] | None
"""Of the result; None where ``out`` has one."""


def randn(
    shape: Shape,
    seed: SupportsIndex,
    stream: SupportsIndex = 0,
    *,
    dtype: DTypeLike | torch.dtype | None = None,
    device: torch.device | str | None = None,
    out: NDArray[Any] | torch.Tensor | None = None,
    start: SupportsIndex = 0,
    threads: int | None = None,
) -> Any:
    """Return standard normal numbers, the same bits on every machine, device and version.

    Args:
        shape: of the result, an integer or several; None for that of ``out``.
        seed: ``0 <= seed < 2**64``.
        stream: of the seed, ``0 <= stream < 2**32``; different ones are independent.
        dtype: ``"float32"`` (the default), ``"float64"``, ``"float16"`` or ``"bfloat16"``, by name
            or as numpy's or torch's type. All are made of the float32 value: widened exactly, or
            rounded to nearest even. numpy has no bfloat16, so there it is uint16 bit patterns.
        device: of a torch tensor, which is then returned; a CUDA device draws its own numbers
            (by Triton), others get those of the CPU.
        out: where to write, and what is returned: a C-contiguous numpy array or torch tensor (a
            parameter, too) of that shape. A uint16 array is taken for bfloat16's bit patterns.
        start: index of the first element in row-major order. Rows r and on of a matrix of n columns
            are those from ``start=r * n``, without drawing the rows before.
        threads: at most so many on the CPU; None takes every CPU that the process may use.

    Returns:
        A torch tensor where ``device`` is given, or ``dtype`` or ``out`` is torch's; otherwise a
        numpy array, for which torch need not be installed.

    Raises:
        SeedError: an argument out of range, a dtype not named above, or an ``out`` that does not
            fit.
        MissingDependencyError: ``device`` needs torch, which is not installed.
    """
    return _draw("randn", shape, seed, stream, dtype, device, out, start, threads)


def rand(
    shape: Shape,
    seed: SupportsIndex,
    stream: SupportsIndex = 0,
    *,
    dtype: DTypeLike | torch.dtype | None = None,
    device: torch.device | str | None = None,
    out: NDArray[Any] | torch.Tensor | None = None,
    start: SupportsIndex = 0,
    threads: int | None = None,
) -> Any:
    """Return numbers uniform on [0, 1): multiples of 2**-24, exact in float32 and float64.

    Rounded to float16 or bfloat16 the largest become 1. Arguments, result and errors are those of
    `randn`.
    """
    return _draw("rand", shape, seed, stream, dtype, device, out, start, threads)


def signs(
    shape: Shape,
    seed: SupportsIndex,
    stream: SupportsIndex = 0,
    *,
    dtype: DTypeLike | torch.dtype | None = None,
    device: torch.device | str | None = None,
    out: NDArray[Any] | torch.Tensor | None = None,
    start: SupportsIndex = 0,
    threads: int | None = None,
) -> Any:
    """Return +1 and -1 with equal chances: the signs of what `randn` gives for the same arguments.

    ``dtype`` may also be ``"int8"``. Arguments, result and errors are otherwise those of `randn`.
    """
    return _draw("signs", shape, seed, stream, dtype, device, out, start, threads)


_SPECS = {"randn": "normal", "rand": "uniform", "signs": "signed_constant"}
"""The distribution of weights that each function's numbers come from."""


def _draw(
    kind: str,
    shape: Shape,
    seed: SupportsIndex,
    stream: SupportsIndex,
    dtype: DTypeLike | torch.dtype | None,
    device: torch.device | str | None,
    out: NDArray[Any] | torch.Tensor | None,
    start: SupportsIndex,
    threads: int | None,
) -> Any:
    """Return what `randn` and the others say, by the function's name."""
    key, spec = check_seed(seed), InitSpec(_SPECS[kind], 1.0, _integer("stream", stream))
    name = _type_name(kind, dtype, out)
    sizes = _sizes(shape, out)
    first = _integer("start", start)
    check_range(first, first + int(np.prod(sizes, dtype=object)))
    if isinstance(out, np.ndarray) or (
        out is None and device is None and not _is_torch(dtype, "dtype")
    ):
        if out is not None and device is not None:
            raise SeedError(f"device: expected none with a numpy array as out, found {device!r}")
        result: NDArray[Any] = np.empty(sizes, dtype=_NUMPY[name]) if out is None else out
        if not (result.flags.c_contiguous and result.flags.writeable):
            raise SeedError("out: expected a writable C-contiguous array, found another")
        _fill(kind, key, spec, first, result.reshape(-1), name, threads)
        return result
    torch = require("torch", extra="torch", purpose=f"{kind} of a torch tensor")
    if out is None:
        place = _device("cpu" if device is None else device)
        out = torch.empty(sizes, dtype=getattr(torch, name), device=place)
    elif device is not None and _device(device).type != out.device.type:
        raise SeedError(f"device: expected that of out, {out.device}, found {device}")
    assert not isinstance(out, np.ndarray)
    flat = out.detach()
    if not flat.is_contiguous():
        raise SeedError("out: expected a contiguous tensor, found another")
    flat = flat.view(-1)
    if flat.device.type == "cpu":
        bits = flat.view(torch.uint16) if name == "bfloat16" else flat
        _fill(kind, key, spec, first, bits.numpy(), name, threads)
    elif not _drawn_by_triton(kind, key, spec, first, flat):
        held = _draw(kind, sizes, key, stream, getattr(torch, name), None, None, first, threads)
        flat.copy_(held.view(-1))
    return out


def _device(device: torch.device | str) -> Any:
    """Return a device of torch's; refuse what names none, and one that is not there."""
    backend: Any = importlib.import_module("torch")
    try:
        found: torch.device = backend.device(device)
        backend.empty(0, device=found)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise SeedError(
            f"device: expected one that torch has here, such as 'cpu', found {device!r} ({reason})"
        ) from error
    return found


def _drawn_by_triton(kind: str, seed: int, spec: InitSpec, start: int, flat: torch.Tensor) -> bool:
    """Fill a CUDA tensor where Triton is installed, and return whether it is."""
    if flat.device.type != "cuda":
        return False
    try:
        cuda = importlib.import_module("pabzip.seeds.cuda")
    except MissingDependencyError:
        return False
    cuda.draw(seed, spec, start, flat, fraction=kind == "rand")
    return True


def _fill(
    kind: str,
    seed: int,
    spec: InitSpec,
    start: int,
    flat: NDArray[Any],
    name: str,
    threads: int | None,
) -> None:
    """Write the elements from ``start`` on to a flat array of the dtype called ``name``."""
    if name == "float32" and kind != "rand":
        weights(seed, spec, start, start + flat.size, out=flat, threads=threads)
        return

    def work(begin: int, end: int) -> None:
        for at in range(begin, end, _BLOCK):
            stop = min(at + _BLOCK, end)
            if kind == "rand":
                drawn = magnitudes(seed, spec, start + at, start + stop, threads=1)
                values = (drawn >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)
            else:
                values = weights(seed, spec, start + at, start + stop, threads=1)
            flat[at:stop] = _bfloat16(values) if name == "bfloat16" else values

    over_ranges(work, flat.size, threads)


def _bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Round finite float32 values to the upper half of their bits, to nearest even."""
    bits = values.view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    return (bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)


def _is_torch(value: object, kind: str) -> bool:
    """Return whether a value is a torch ``dtype`` or ``Tensor``, without importing torch."""
    return any(
        each.__module__.partition(".")[0] == "torch" and each.__name__ == kind
        for each in type(value).__mro__
    )


def _type_name(kind: str, dtype: Any, out: Any) -> str:
    """Return torch's name of the element type that is asked for."""
    known = (*_FLOATING, "int8") if kind == "signs" else _FLOATING
    found = None if dtype is None else _name_of(dtype)
    if out is not None:
        if not isinstance(out, np.ndarray) and not _is_torch(out, "Tensor"):
            raise SeedError(
                f"out: expected a numpy array or a torch tensor, found {type(out).__name__}"
            )
        name = _name_of(out.dtype)
        name = "bfloat16" if isinstance(out, np.ndarray) and name == "uint16" else name
        if found not in (None, name):
            raise SeedError(f"dtype: expected that of out, {name}, found {found}")
        found = name
    name = found or "float32"
    if name not in known:
        raise SeedError(f"dtype: expected one of {', '.join(known)}, found {shown(name)}")
    return name


def _name_of(dtype: Any) -> str:
    """Return the name of an element type of numpy's or torch's, or of a name itself."""
    if dtype == "bfloat16" or _is_torch(dtype, "dtype"):
        return str(dtype).removeprefix("torch.")
    try:
        found = np.dtype(dtype)
    except TypeError:
        return str(dtype)
    return found.name if found.isnative else f"{found.name} of the other byte order"


def _integer(argument: str, value: SupportsIndex) -> int:
    """Return an argument as a plain integer."""
    try:
        return operator.index(value)
    except TypeError:
        raise SeedError(f"{argument}: expected an integer, found {shown(value)}") from None


def _sizes(shape: Shape, out: Any) -> tuple[int, ...]:
    """Return the shape that is asked for, as plain integers."""
    if shape is None:
        if out is None:
            raise SeedError("shape: expected one where there is no out, found None")
        return tuple(out.shape)
    try:
        given = shape if isinstance(shape, Sequence) else (shape,)
        sizes = tuple(operator.index(size) for size in given)
    except TypeError:
        sizes = (-1,)
    if any(size < 0 for size in sizes):
        raise SeedError(f"shape: expected integers of at least 0, found {shown(str(shape))}")
    if out is not None and tuple(out.shape) != sizes:
        raise SeedError(f"shape: expected that of out, {tuple(out.shape)}, found {sizes}")
    return sizes
