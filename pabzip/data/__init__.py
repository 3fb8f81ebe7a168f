"""Image datasets, in memory or in files, with fixed splits and batches in a reproducible order."""

from __future__ import annotations

from pabzip.data.augment import RandomCrop, RandomResizedCrop, crop_and_flip
from pabzip.data.batches import batches
from pabzip.data.image_files import ImageFiles
from pabzip.data.order import permutation
from pabzip.data.registry import Geometry, geometry, load, names
from pabzip.data.splits import AnyAugmentation, AnyImages, Images, Splits

__all__ = [
    "AnyAugmentation",
    "AnyImages",
    "Geometry",
    "ImageFiles",
    "Images",
    "RandomCrop",
    "RandomResizedCrop",
    "Splits",
    "batches",
    "crop_and_flip",
    "geometry",
    "load",
    "names",
    "permutation",
]
