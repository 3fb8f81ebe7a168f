"""The one validator: what must be true of a header, whoever wrote it.

The writer calls it before a byte is written and the reader before anything is allocated, so that
neither can hold a ticket that the other would refuse. All arithmetic is on Python's integers,
which do not overflow, and stays within `MAX_INTEGER`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pabzip.errors import FormatError, SeedError
from pabzip.formats.checks import (
    check_integer,
    check_name_of,
    check_text,
    check_unicode,
    is_variance,
    shown,
)
from pabzip.formats.coders import coder_named, shares_side
from pabzip.formats.dense import check_groups
from pabzip.formats.entries import (
    Contents,
    DenseEntry,
    Entry,
    Header,
    SeededEntry,
    StoredEntry,
    TiedEntry,
)
from pabzip.formats.registry import (
    ARCHITECTURES,
    DENSE_TYPES,
    HALF_TYPES,
    MAX_INTEGER,
    MAX_NAME_BYTES,
    MAX_OPTIONS,
    MAX_RANK,
    MAX_TENSORS,
    MAX_TEXT_BYTES,
)
from pabzip.formats.scales import check_scaled_spec
from pabzip.seeds import InitSpec, check_seed


def check_contents(contents: Contents) -> None:
    """Check everything about a ticket that does not depend on how it is coded.

    Raises:
        FormatError: the first rule that is broken, with the tensor at fault.
    """
    try:
        check_seed(contents.seed)
    except SeedError as error:
        raise FormatError("header", str(error)) from None
    check_name_of("architecture", contents.arch, ARCHITECTURES, "header")
    _check_mapping("options", contents.options)
    _check_mapping("metadata", contents.metadata)
    if len(contents.entries) > MAX_TENSORS:
        raise FormatError(
            "header", f"expected at most {MAX_TENSORS} tensors, found {len(contents.entries)}"
        )
    seen: dict[str, Entry] = {}
    for number, entry in enumerate(contents.entries):
        check_text(f"tensor {number}", "name", entry.name, MAX_NAME_BYTES)
        if entry.name in seen:
            raise FormatError(
                f"tensor {number}", f"expected each name once, found {shown(entry.name)} twice"
            )
        place = f"tensor {shown(entry.name)}"
        if isinstance(entry, TiedEntry):
            if tied_target(place, entry.name, entry.like.name, seen) != entry.like:
                raise FormatError(
                    place, f"expected it to be like {shown(entry.like.name)}, found a difference"
                )
        else:
            _check_entry(place, entry)
        seen[entry.name] = entry
    if contents.loaded_bytes > MAX_INTEGER:
        raise FormatError("header", f"expected at most {MAX_INTEGER} bytes of tensors, found more")


def check_header(header: Header) -> None:
    """Check a whole header: the contents, and the sections that hold them.

    Raises:
        FormatError: the first rule that is broken, with the tensor or section at fault.
    """
    check_contents(header.contents)
    if not isinstance(header.sha256, str) or not re.fullmatch("[0-9a-f]{64}", header.sha256):
        raise FormatError(
            "header", f"expected the SHA-256 as 64 hexadecimal digits, found {shown(header.sha256)}"
        )
    _check_codings(header)
    check_groups(header.contents.dense, header.groups)


def tied_target(place: str, name: str, target: object, earlier: Mapping[str, Entry]) -> StoredEntry:
    """Return the tensor that a tied one is a second name of.

    Args:
        place: where the tied tensor is, for messages.
        name: of the tied tensor.
        target: what it names.
        earlier: the tensors before it, by name.

    Raises:
        FormatError: the target is no earlier tensor, or tied itself; or the tied tensor is a
            variance by its name, and the target is not.
    """
    found = earlier.get(target) if isinstance(target, str) else None
    if found is None:
        raise FormatError(
            place, f"expected it tied to an earlier tensor, found it tied to {shown(target)}"
        )
    if isinstance(found, TiedEntry):
        raise FormatError(
            place,
            f"expected it tied to a tensor of its own, found {shown(target)}, which is tied to "
            f"{shown(found.like.name)}",
        )
    if isinstance(name, str) and is_variance(name) and not is_variance(found.name):
        raise FormatError(place, f"expected a variance tied to one, found {shown(target)}")
    return found


def _check_entry(place: str, entry: StoredEntry) -> None:
    """Check one tensor's shape and types."""
    count = _check_shape(place, entry.shape, scalar=isinstance(entry, DenseEntry))
    if isinstance(entry, SeededEntry):
        if not isinstance(entry.spec, InitSpec):
            raise FormatError(place, f"expected an InitSpec, found {type(entry.spec).__name__}")
        check_integer(place, "number of survivors", entry.survivors, 0, count)
        if entry.scaled:
            check_scaled_spec(entry.name, entry.spec)
        return
    check_name_of("dtype", entry.dtype, DENSE_TYPES, place)
    if entry.stored == entry.dtype:
        return
    check_name_of("stored dtype", entry.stored, HALF_TYPES, place)
    if entry.dtype not in ("float64", "float32"):
        raise FormatError(
            place, f"expected {entry.dtype} stored as it is, found it stored as {entry.stored}"
        )


def _check_shape(place: str, shape: Sequence[Any], *, scalar: bool) -> int:
    """Check the dimensions, and return their product."""
    if len(shape) > MAX_RANK or (not shape and not scalar):
        lowest = 0 if scalar else 1
        raise FormatError(place, f"expected {lowest} to {MAX_RANK} dimensions, found {len(shape)}")
    count = 1
    for size in shape:
        check_integer(place, "size of a dimension", size, 1, MAX_INTEGER)
        count *= size
        if count > MAX_INTEGER:
            raise FormatError(place, f"expected at most {MAX_INTEGER} elements, found more")
    return count


def _check_codings(header: Header) -> None:
    """Check how the codes of every seeded tensor are kept."""
    seeded = header.contents.seeded
    if len(header.codings) != len(seeded):
        raise FormatError("header", f"expected {len(seeded)} codings, found {len(header.codings)}")
    sharing: set[str] = set()
    for entry, coding in zip(seeded, header.codings, strict=True):
        place = f"tensor {shown(entry.name)}"
        coder = coder_named(coding.coder, place)
        check_integer(place, "bytes of codes", coding.length, 0, MAX_INTEGER)
        coder.check_length(entry, coding.length)
        if shares_side(coding.coder):
            sharing.add(coding.coder)
    check_integer("header", "bytes of the side stream", header.side, 0, MAX_INTEGER)
    if len(sharing) > 1:
        raise FormatError(
            "header", f"expected one coder with a side stream, found {', '.join(sorted(sharing))}"
        )
    if header.side and not sharing:
        raise FormatError(
            "header", f"expected no side stream without a coder that reads it, found {header.side}"
        )


def _check_mapping(what: str, mapping: Mapping[Any, Any]) -> None:
    """Check options or metadata: flat, and each value a JSON scalar."""
    if not isinstance(mapping, Mapping):
        raise FormatError(what, f"expected a flat mapping, found {shown(mapping)}")
    if len(mapping) > MAX_OPTIONS:
        raise FormatError(what, f"expected at most {MAX_OPTIONS} keys, found {len(mapping)}")
    for key, value in mapping.items():
        check_text(what, "key", key, MAX_NAME_BYTES)
        place = f"{what} {shown(key)}"
        if isinstance(value, str):
            check_unicode(place, "text", value, MAX_TEXT_BYTES)
        elif type(value) is int:
            check_integer(place, "value", value, -MAX_INTEGER, MAX_INTEGER)
        elif isinstance(value, float):
            if not math.isfinite(value):
                raise FormatError(place, f"expected a finite number, found {value}")
        elif value is not None and type(value) is not bool:
            raise FormatError(
                place, f"expected text, a number, true, false or null, found {shown(value)}"
            )
