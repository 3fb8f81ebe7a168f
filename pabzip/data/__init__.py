"""Image datasets in memory, with fixed splits and batches in a reproducible order."""

from __future__ import annotations

from pabzip.data.augment import RandomCrop, crop, crop_and_flip
from pabzip.data.batches import batches
from pabzip.data.order import permutation
from pabzip.data.registry import load, names
from pabzip.data.splits import Images, Splits

__all__ = [
    "Images",
    "RandomCrop",
    "Splits",
    "batches",
    "crop",
    "crop_and_flip",
    "load",
    "names",
    "permutation",
]
