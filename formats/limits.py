"""What a file may say: the names it may use, the sizes it may not exceed, and checks of both.

A name in a file is only ever looked up here; nothing is imported because a file says so.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pabzip.errors import FormatError, LimitError, shown

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

DENSE_ENCODINGS = ("raw", "deflate", "adaptive", "planes")
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

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


def tensor_place(name: Any) -> str:
    """Return where a tensor is, for messages."""
    return f"tensor {shown(name)}"


def check_text(place: str, what: str, text: Any, limit: int) -> None:
    """Check a name or key: Unicode, not empty, no control characters."""
    if not isinstance(text, str) or not text:
        raise FormatError(place, f"expected a {what} that is not empty, found {shown(text)}")
    check_unicode(place, what, text, limit)
    if _CONTROL.search(text):
        raise FormatError(
            place, f"expected a {what} without control characters, found {shown(text)}"
        )


def check_unicode(place: str, what: str, text: str, limit: int) -> None:
    """Check that text is Unicode (JSON's escapes can make half a character) and short enough."""
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError:
        raise FormatError(place, f"expected a {what} in UTF-8, found {shown(text)}") from None
    if size > limit:
        raise FormatError(place, f"expected a {what} of at most {limit} bytes, found {size}")


def check_name_of(what: str, found: Any, known: Any, place: str) -> None:
    """Check a name against a registry."""
    if not isinstance(found, str) or found not in known:
        raise FormatError(
            place,
            f"expected a known {what} ({', '.join(known)}), found {shown(found)}; if the file "
            "comes from a newer pabzip, upgrade pabzip",
        )


def check_integer(place: str, what: str, found: Any, lowest: int, highest: int) -> None:
    """Check an integer's type and range."""
    if type(found) is not int or not lowest <= found <= highest:
        raise FormatError(
            place, f"expected the {what} from {lowest} to {highest}, found {shown(found)}"
        )


def check_shape(place: str, shape: Sequence[Any], *, lowest_rank: int) -> int:
    """Check the dimensions of a tensor, and return their product."""
    if not lowest_rank <= len(shape) <= MAX_RANK:
        raise FormatError(
            place, f"expected {lowest_rank} to {MAX_RANK} dimensions, found {len(shape)}"
        )
    count = 1
    for size in shape:
        check_integer(place, "size of a dimension", size, 1, MAX_INTEGER)
        count *= size
        if count > MAX_INTEGER:
            raise FormatError(place, f"expected at most {MAX_INTEGER} elements, found more")
    return count


def as_array(place: str, array: Any, expected: np.dtype[Any]) -> NDArray[Any]:
    """Return an array as C-contiguous and in the file's byte order; its type must be right."""
    if not isinstance(array, np.ndarray) or not np.can_cast(array.dtype, expected, "equiv"):
        found = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise FormatError(place, f"expected a numpy array of {expected.name}, found {found}")
    return np.asarray(array, dtype=expected, order="C")


def is_variance(name: str) -> bool:
    """Return whether a tensor's values are variances, by its name."""
    return name == "running_var" or name.endswith(".running_var")


def check_loaded_bytes(
    loaded_bytes: int, expanded_bytes: int, max_bytes: int | None, file_bytes: int
) -> None:
    """Refuse a loaded state of more bytes than ``max_bytes``, with a LimitError.

    A tensor with no survivors takes next to no bytes, so that a small file may declare a huge
    state. None allows `MAX_EXPANSION` times the bytes of the file, or `ALWAYS_ALLOWED_BYTES` where
    that is more, for ``expanded_bytes``, which leave out what a base brings.
    """
    if max_bytes is not None and loaded_bytes > max_bytes:
        raise LimitError(
            "header",
            f"expected at most {max_bytes} bytes of tensors (max_bytes), found "
            f"{loaded_bytes} declared; raise the limit if you trust the file",
        )
    limit = max(MAX_EXPANSION * file_bytes, ALWAYS_ALLOWED_BYTES)
    if max_bytes is None and expanded_bytes > limit:
        raise LimitError(
            "header",
            f"expected at most {limit} bytes of tensors from a file of {file_bytes} bytes, found "
            f"{expanded_bytes} declared; if you trust the file, allow them with max_bytes",
        )


def deflate(data: bytes) -> bytes:
    """Return ``data`` as a raw deflate stream (RFC 1951), as small as zlib makes it."""
    return zlib.compress(data, 9, -zlib.MAX_WBITS)


def inflate(payload: bytes | memoryview, size: int, place: str) -> bytes:
    """Return exactly ``size`` bytes from a raw deflate stream that ends with the payload."""
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = stream.decompress(payload, size + 1)  # one more, to see a stream that goes on
    except zlib.error as error:
        raise FormatError(place, f"expected a deflate stream, found a fault: {error}") from None
    if len(data) != size or not stream.eof:
        found = "more" if len(data) > size else f"{len(data)} bytes, or no end"
        raise FormatError(place, f"expected {size} bytes once inflated, found {found}")
    if stream.unused_data:
        raise FormatError(
            place,
            f"expected the deflate stream to end the section, found "
            f"{len(stream.unused_data)} bytes after it",
        )
    return data
