"""What changed between a tensor and its base's: the forms of a change, and their arithmetic.

A change is one of three forms. ``equal``: nothing changed. ``steps``: each element is the base's
plus a whole number of steps, rounded as the element type rounds, with one step size for the tensor
or for each row; fine-tunes whose change was quantized (ComPEFT: to 0 and plus or minus one scale)
are of this form. ``difference``: any other change, as differences of the elements' bit patterns in
the order of their values, which are small whole numbers where the values moved little.

Source: formats/SPEC.md, section "Deltas". ComPEFT (Yadav, Choshen, Raffel, Bansal 2023,
arXiv 2311.13171), Section 2: top-k signs of the task vector times one scalar.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pabzip.errors import FormatError, shown
from pabzip.formats.dense import from_stored, to_stored
from pabzip.formats.limits import DENSE_TYPES, check_name_of, tensor_place

FORMS = ("equal", "steps", "difference")
MAX_STEPS = 127
"""Most steps that an element may be away from the base's, either way."""


def working_type(dtype: str) -> str:
    """Return the type that steps are added in: float64 for float64, else float32."""
    return "float64" if dtype == "float64" else "float32"


@dataclass(frozen=True, slots=True)
class Change:
    """How the elements of one delta are made: the fifth value of its row.

    Attributes:
        form: one of `FORMS`.
        rows: of steps, whether each row along the first dimension has a step size of its own.
        product: of steps, the type that a number of steps times their size is rounded to: the
            working type, or the tensor's own half type.
        everywhere: of steps, whether 0 steps are added, too, which turns -0.0 into +0.0; otherwise
            such an element is the base's, bit for bit.
        stored: element type of the stored numbers; of steps ``int8``, or ``trits``: -1 to 1, five
            a byte (`pabzip.formats.trits`).
    """

    form: str
    rows: bool = False
    product: str = ""
    everywhere: bool = False
    stored: str = ""

    def to_detail(self) -> list[Any]:
        """Return it as a list of JSON values."""
        if self.form == "equal":
            return [self.form]
        if self.form == "difference":
            return [self.form, self.stored]
        return [self.form, int(self.rows), self.product, int(self.everywhere), self.stored]

    @classmethod
    def from_detail(cls, place: str, detail: Any) -> Change:
        """Return what a list of JSON values says."""
        if isinstance(detail, list) and detail and isinstance(detail[0], str):
            form, *rest = detail
            if form not in FORMS:
                check_name_of("change", form, FORMS, place)
            if form == "equal" and not rest:
                return cls(form)
            if form == "difference" and len(rest) == 1:
                return cls(form, stored=rest[0])
            if form == "steps" and len(rest) == 4 and {type(rest[0]), type(rest[2])} == {int}:
                rows, product, everywhere, stored = rest
                if rows in (0, 1) and everywhere in (0, 1):
                    return cls(form, bool(rows), product, bool(everywhere), stored)
        raise FormatError(place, f"expected a change from the base, found {shown(detail)}")


def stepped(
    base: NDArray[Any], numbers: NDArray[np.int8], scales: NDArray[Any], dtype: str, change: Change
) -> NDArray[Any]:
    """Return elements of ``dtype``, each so many steps from the base's; may overflow to infinity.

    Product and sum are each rounded to nearest even in the working type, the product then in
    ``change.product``, the sum in ``dtype``.

    Args:
        base: flat elements; bfloat16 as bit patterns.
        numbers: how many steps each is away.
        scales: sizes of a step, in the working type: one an element, or one.
        dtype: of base and result.
        change: how a product is rounded, and what becomes of elements without a step.
    """
    work = working_type(dtype)
    with np.errstate(all="ignore"):
        products = numbers.astype(DENSE_TYPES[work].numpy) * scales
        products = from_stored(to_stored(products, work, change.product), work, change.product)
        sums = to_stored(from_stored(base, work, dtype) + products, work, dtype)
    return sums if change.everywhere else np.where(numbers == 0, base, sums)


def differing(
    base: NDArray[Any], numbers: NDArray[Any], dtype: str, name: str = ""
) -> NDArray[Any]:
    """Return the elements that differ from the base's, both flat, by the given numbers."""
    width = DENSE_TYPES[dtype].itemsize
    narrow = numbers.view(f"<u{numbers.itemsize}").astype(f"<u{width}")
    one = narrow.dtype.type(1)
    steps = (narrow >> one) ^ (~(narrow & one) + one)
    found = _from_ordered(ordered(base, dtype) + steps, dtype)
    if dtype == "bool" and (found > 1).any():
        raise FormatError(tensor_place(name), "expected booleans of 0 or 1, found other bytes")
    return found.view(DENSE_TYPES[dtype].numpy)


def differences(base: NDArray[Any], tuned: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Return by what elements differ from the base's: the inverse of `differing`.

    Arrays of one shape, in the numpy type of ``dtype``; unsigned integers of the same width: 0, 1,
    2, 3, 4 ... for differences of 0, -1, +1, -2, +2 ... places in the order of all values.
    """
    steps = ordered(tuned, dtype) - ordered(base, dtype)
    one, top = steps.dtype.type(1), steps.dtype.type(8 * steps.itemsize - 1)
    return np.asarray((steps << one) ^ (~(steps >> top) + one))


def ordered(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Return the bit patterns of elements, of floats in the order of their values, unsigned."""
    bits = values.view(f"<u{DENSE_TYPES[dtype].itemsize}")
    if not DENSE_TYPES[dtype].floating:
        return bits
    top = bits.dtype.type(1 << (8 * bits.itemsize - 1))
    return np.where(bits & top, ~bits, bits | top)


def _from_ordered(patterns: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Return the bit patterns that `ordered` put into order."""
    if not DENSE_TYPES[dtype].floating:
        return patterns
    top = patterns.dtype.type(1 << (8 * patterns.itemsize - 1))
    return np.where(patterns & top, patterns ^ top, ~patterns)
