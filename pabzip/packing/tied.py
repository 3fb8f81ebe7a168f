"""Tied weights: a weight that has several names is stored once.

A state dict lists a shared weight under each of its names. Tensors are compared by their bits, not
by their place in memory, so ties are found after checkpoints and moves between devices, too.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pabzip.seeds import InitSpec

if TYPE_CHECKING:
    import torch


def find_ties(
    state: Mapping[str, Any], specs: Mapping[str, InitSpec]
) -> tuple[dict[str, str], dict[str, InitSpec]]:
    """Find tensors of two or more dimensions that equal an earlier one, bit for bit.

    Two weights that are seeded by different specs are no tie, even if they are equal now (both
    pruned to nothing, say): training on tells them apart.

    Args:
        state: tensors by name, of any dtypes, on any devices; other values are passed over.
        specs: init specs of the seeded weights, by name.

    Returns:
        Of each second name, the first name, which is no second name itself; and the init specs of
        the others. Where a first name has none and a second has one, it passes to the first: an
        embedding that shares the weight of a seeded Linear after it.
    """
    import torch

    targets: dict[str, str] = {}
    found = dict(specs)
    firsts: dict[tuple[Any, ...], list[str]] = {}
    for name, value in state.items():
        if not isinstance(value, torch.Tensor) or value.dim() < 2:
            continue
        data = _bytes(value)
        key = (tuple(value.shape), value.dtype, zlib.crc32(data.data))
        for first in firsts.setdefault(key, []):
            differ = first in found and name in specs and found[first] != specs[name]
            if not differ and np.array_equal(_bytes(state[first]), data):
                targets[name] = first
                if name in specs:
                    found.setdefault(first, found.pop(name))
                break
        else:
            firsts[key].append(name)
    return targets, found


def _bytes(value: torch.Tensor) -> NDArray[np.uint8]:
    """Return a tensor's bytes, uint8 of one dimension."""
    import torch

    flat = value.detach().cpu().contiguous().reshape(-1)
    return np.asarray(flat.view(torch.uint8).numpy())
