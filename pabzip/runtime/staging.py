"""Many arrays to a device in one copy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

_ALIGNMENT = 16  # bytes: of the widest load that a kernel makes


def send(arrays: Sequence[NDArray[Any]], device: torch.device) -> list[torch.Tensor]:
    """Copy arrays to ``device`` together, by way of page-locked memory where it is a GPU.

    The copy is queued on the device's current stream; nothing is waited for, and the arrays may
    change as soon as this returns.

    Args:
        arrays: of any shapes and of dtypes that torch knows.
        device: where to.

    Returns:
        Flat tensors on ``device``. They share one allocation, which lives as long as any of them:
        clone what is to be kept.
    """
    starts, size = [], 0
    for array in arrays:
        starts.append(size)
        size += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
    host = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
    view = host.numpy()
    for start, array in zip(starts, arrays, strict=True):
        flat = np.ascontiguousarray(array).reshape(-1)
        view[start : start + flat.nbytes] = flat.view(np.uint8)
    sent = host.to(device, non_blocking=True)
    return [
        sent[start : start + array.nbytes].view(_torch_type(array.dtype))
        for start, array in zip(starts, arrays, strict=True)
    ]


def _torch_type(dtype: np.dtype[Any]) -> torch.dtype:
    """Return torch's name of a numpy dtype."""
    return torch.from_numpy(np.empty(0, dtype=dtype)).dtype
