"""The names that a file may use, and the sizes it may not exceed.

A name in a file is only ever looked up here; nothing is imported because a file says so.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

GENERATOR = "philox4x32-10"
"""The only generator of base weights that format version 1 knows."""

ARCHITECTURES = (
    "lenet-300-100",
    "conv2",
    "conv4",
    "conv6",
    "conv8",
    "resnet18",
    "resnet20",
    "resnet34",
    "resnet50",
    "wideresnet28",
    "vgg11",
    "vgg13",
    "vgg16",
    "vgg19",
    "vgg-small",
    "mobilenetv2",
    "resnet18-imagenet",
    "resnet34-imagenet",
    "resnet50-imagenet",
    "wideresnet50-imagenet",
    "custom",
)
"""Names of network families; ``custom`` leaves the network to whoever loads the file."""


@dataclass(frozen=True, slots=True)
class DenseType:
    """One element type of dense tensors.

    Attributes:
        numpy: how arrays of it are carried, little-endian; bfloat16 as its uint16 bit pattern.
        floating: whether values must be finite, and may be stored in half precision if wider.
    """

    numpy: np.dtype[np.generic]
    floating: bool = False

    @property
    def itemsize(self) -> int:
        """Bytes per element."""
        return self.numpy.itemsize


DENSE_TYPES = {
    "float64": DenseType(np.dtype("<f8"), floating=True),
    "float32": DenseType(np.dtype("<f4"), floating=True),
    "float16": DenseType(np.dtype("<f2"), floating=True),
    "bfloat16": DenseType(np.dtype("<u2"), floating=True),
    "int64": DenseType(np.dtype("<i8")),
    "int32": DenseType(np.dtype("<i4")),
    "int16": DenseType(np.dtype("<i2")),
    "int8": DenseType(np.dtype("i1")),
    "uint8": DenseType(np.dtype("u1")),
    "bool": DenseType(np.dtype("?")),
}
"""Element types of dense tensors, by the name that torch gives them."""

HALF_TYPES = ("float16", "bfloat16")
"""What float32 and float64 tensors may be rounded to for storage."""

DENSE_ENCODINGS = ("raw", "deflate", "adaptive")
"""How the bytes of a dense section are kept."""

MAX_HEADER_BYTES = 16 << 20
"""Of the header, both as stored and inflated."""

MAX_INTEGER = 2**53 - 1
"""Of every integer in the header, and of every product and sum of sizes: the largest range that
every JSON parser keeps exact."""

MAX_TENSORS = 1 << 17
"""Enough for the largest networks, and few enough that a hostile header costs little time."""

MAX_EXPANSION = 1 << 16
"""Bytes of loaded state a byte of the file, for readers whose caller sets no limit."""

ALWAYS_ALLOWED_BYTES = 256 << 20
"""Of loaded state, however small the file."""

MAX_RANK = 32
MAX_NAME_BYTES = 1024
MAX_TEXT_BYTES = 1 << 20
MAX_OPTIONS = 1024

DENSE_SECTION_BYTES = 1 << 20
"""Most bytes that several dense tensors may share one section for; a larger tensor is alone."""
