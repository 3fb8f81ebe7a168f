"""How the dense tensors share the sections of a file, and what must be true of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pabzip.errors import FormatError
from pabzip.formats.checks import check_integer, check_name_of
from pabzip.formats.entries import DenseEntry, DenseGroup
from pabzip.formats.registry import DENSE_ENCODINGS, DENSE_SECTION_BYTES, MAX_INTEGER

_DEFLATE_EXPANSION = 1032  # 258 bytes from 2 bits: deflate cannot make more of its input


def check_groups(dense: Sequence[DenseEntry], groups: Sequence[DenseGroup]) -> None:
    """Check that the dense sections take up the dense tensors exactly.

    Raises:
        FormatError: the first rule that is broken, with the section at fault.
    """
    for number, group in enumerate(groups):
        place = f"dense section {number}"
        check_integer(place, "number of tensors", group.count, 1, len(dense))
        check_name_of("encoding", group.encoding, DENSE_ENCODINGS, place)
        check_integer(place, "bytes", group.length, 0, MAX_INTEGER)
    if sum(group.count for group in groups) != len(dense):
        raise FormatError(
            "header",
            f"expected the dense sections to hold {len(dense)} tensors, found "
            f"{sum(group.count for group in groups)}",
        )
    for number, (group, entries) in enumerate(grouped(dense, groups)):
        size = sum(entry.stored_bytes for entry in entries)
        _check_group_size(f"dense section {number}", group, size)


def grouped(
    dense: Sequence[DenseEntry], groups: Sequence[DenseGroup]
) -> Iterator[tuple[DenseGroup, Sequence[DenseEntry]]]:
    """Yield each dense section with the tensors in it."""
    start = 0
    for group in groups:
        yield group, dense[start : start + group.count]
        start += group.count


def _check_group_size(place: str, group: DenseGroup, size: int) -> None:
    """Check that a dense section can hold ``size`` bytes, and is no larger than it may be."""
    if group.count > 1 and size > DENSE_SECTION_BYTES:
        raise FormatError(
            place, f"expected at most {DENSE_SECTION_BYTES} bytes in a shared section, found {size}"
        )
    if group.encoding == "raw" and group.length != size:
        raise FormatError(place, f"expected {size} raw bytes, found {group.length}")
    if group.length > size:
        raise FormatError(place, f"expected at most {size} bytes, found {group.length}")
    if group.encoding == "deflate" and size > _DEFLATE_EXPANSION * group.length:
        raise FormatError(
            place, f"expected at most {_DEFLATE_EXPANSION} times {group.length} bytes, found {size}"
        )
