from .augment import RandomCrop, RandomResizedCrop, crop_and_flip
from .image_files import ImageFiles
from .images import AnyAugmentation, AnyImages, Images, Splits, batches
from .order import permutation
from .registry import Geometry, geometry, load, names
from .validation import hold_out

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
    "hold_out",
    "load",
    "names",
    "permutation",
]
