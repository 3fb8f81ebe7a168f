"""Scales of the rows of a seeded tensor: what its signs are multiplied by."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from pabzip.errors import FormatError
from pabzip.formats.checks import shown
from pabzip.formats.tensors import DenseTensor, SeededTensor, Tensor
from pabzip.seeds import InitSpec, regenerate
from pabzip.seeds.spec import MAX_SCALE, MIN_SCALE

DISTRIBUTION = "signed_constant"
"""The only distribution of a tensor with scales of its rows; its own scale is 1."""


def check_scales(name: str, scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return scales, float32 (rows,), each within the range of an init spec's scale.

    Raises:
        FormatError: some are not; the message names the tensor and the count.
    """
    bad = int(np.count_nonzero(~((scales >= MIN_SCALE) & (scales <= MAX_SCALE))))  # NaN, too
    if bad:
        raise FormatError(
            f"tensor {shown(name)}",
            f"expected scales with 2**-64 <= scale <= 2**64, found {bad} others",
        )
    return scales


def check_scaled_spec(name: str, spec: InitSpec) -> None:
    """Check that a tensor of this init spec may have scales of its rows.

    Raises:
        FormatError: it may not.
    """
    if spec.distribution != DISTRIBUTION or spec.scale != 1.0:
        raise FormatError(
            f"tensor {shown(name)}",
            f"expected {DISTRIBUTION} of scale 1 where rows have scales, found "
            f"{spec.distribution} of scale {spec.scale!r}",
        )


def stored_dense(tensors: Iterable[Tensor]) -> Iterator[DenseTensor]:
    """Yield what the dense sections hold: dense tensors, and the scales of seeded ones."""
    for tensor in tensors:
        if isinstance(tensor, DenseTensor):
            yield tensor
        elif isinstance(tensor, SeededTensor) and tensor.scales is not None:
            yield DenseTensor(tensor.name, tensor.scales, "float32", "float32")


def scale_rows(weights: NDArray[np.float32], scales: NDArray[np.float32] | None) -> None:
    """Multiply each row by its scale, in place: float32 (rows, ...) by float32 (rows,).

    Exact for weights of 0, +1 and -1; 0 stays +0.0.
    """
    if scales is not None:
        weights *= scales.reshape(-1, *[1] * (weights.ndim - 1))


def scale_range(
    weights: NDArray[np.float32], scales: NDArray[np.float32], size: int, start: int
) -> None:
    """Multiply a range of weights by the scales of their rows, in place.

    Args:
        weights: successive ones of a tensor in row-major order, flat.
        scales: of all rows of the tensor.
        size: weights a row.
        start: index of the first weight in the tensor.
    """
    row, within = divmod(start, size)
    if within:  # the rest of a row
        head = weights[: size - within]
        head *= scales[row]
        weights, row = weights[len(head) :], row + 1
    whole = len(weights) // size
    scale_rows(weights[: whole * size].reshape(whole, size), scales[row : row + whole])
    tail = weights[whole * size :]
    if len(tail):
        tail *= scales[row + whole]


def regenerated(
    seed: int,
    tensor: SeededTensor,
    start: int = 0,
    stop: int | None = None,
    *,
    backend: str = "numba",
    threads: int | None = None,
) -> NDArray[np.float32]:
    """Return the weights ``start`` to ``stop`` of a seeded tensor in row-major order.

    Args:
        seed: the ticket's seed.
        tensor: with or without scales.
        start: the first weight.
        stop: the one after the last; None for the last weight's.
        backend: of `pabzip.seeds.regenerate`; every backend gives the same bits.
        threads: likewise.

    Returns:
        float32, flat.
    """
    codes = tensor.codes.reshape(-1)[start:stop]
    weights = regenerate(seed, tensor.spec, codes, start=start, backend=backend, threads=threads)
    if tensor.scales is not None:
        scale_range(weights, tensor.scales, tensor.codes.size // tensor.scales.size, start)
    return weights
