"""One SHA-256 of nested plain values and tensors: to find damage, and ranks that disagree."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch


def digest(value: Any) -> str:
    """Return the SHA-256, in hexadecimal, of nested tables, lists, plain values and tensors.

    The same values give the same digest on every device and after `torch.save` and `torch.load`:
    order, types, shapes and every bit count, strides and devices do not.

    Args:
        value: anything built of mappings, lists, tuples, tensors, and what ``repr`` tells apart.
    """
    hasher = hashlib.sha256()
    _feed(hasher, value)
    return hasher.hexdigest()


def _feed(hasher: Any, value: Any) -> None:
    """Add one value, with enough of its type and size that no two structures look alike."""
    match value:
        case torch.Tensor():
            hasher.update(f"tensor {value.dtype} {tuple(value.shape)}\n".encode())
            flat = value.detach().cpu().contiguous().reshape(-1)
            hasher.update(flat.view(torch.uint8).numpy())
        case Mapping():
            hasher.update(f"table {len(value)}\n".encode())
            for key, item in value.items():
                _feed(hasher, key)
                _feed(hasher, item)
        case list() | tuple():
            hasher.update(f"{type(value).__name__} {len(value)}\n".encode())
            for item in value:
                _feed(hasher, item)
        case _:
            text = repr(value).encode()
            hasher.update(f"{type(value).__name__} {len(text)}\n".encode() + text)
