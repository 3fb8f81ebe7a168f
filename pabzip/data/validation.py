"""Training images that are held out, to choose settings by without a look at the test images."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from math import floor

import numpy as np

from pabzip.data.images import Splits
from pabzip.data.order import order_stream, permutation
from pabzip.errors import RecipeError

# An order of its own, far beyond any epoch that is trained; the searches' samples have the next.
_EPOCH = 2**30 - 2


def hold_out(splits: Splits, fraction: float, *, seed: int) -> Splits:
    """Return ``splits`` with a part of the training images as validation images.

    Of ``n`` training images ``floor(fraction * n)`` are held out, and of each label its share,
    rounded down or up: the largest remainders are rounded up, lower labels first. Which ones the
    seed says, by pabzip's own generator. ``fraction`` counts as the decimal number that it is
    written as and all else is whole numbers, so that every machine holds out the same images.
    Both parts stay in the stored order, and keep the constants that normalize all of them.

    Args:
        splits: without validation images.
        fraction: above 0 and below 1.
        seed: ``0 <= seed < 2**64``.

    Raises:
        RecipeError: a fraction out of range, or one that holds out no image; or ``splits`` has
            validation images already.
        SeedError: ``seed`` out of range.
    """
    if splits.validation is not None:
        raise RecipeError(
            f"validation: expected 0 for {splits.name}, which brings {len(splits.validation)} "
            f"validation images, found {fraction!r}"
        )
    if not 0 < fraction < 1:
        raise RecipeError(
            f"validation: expected a fraction above 0 and below 1 to hold out, found {fraction!r}"
        )
    labels = splits.train.labels.cpu().numpy()
    share = Fraction(repr(float(fraction)))
    counts = np.bincount(labels, minlength=splits.num_classes)
    shares = [share * int(count) for count in counts]
    taken = [floor(each) for each in shares]
    total = floor(share * len(labels))
    if not total:
        raise RecipeError(
            f"validation: expected a fraction that holds out at least one of the {len(labels)} "
            f"training images of {splits.name}, found {fraction!r}; raise it, or leave it out"
        )
    by_remainder = sorted(range(len(taken)), key=lambda label: taken[label] - shares[label])
    for label in by_remainder[: total - sum(taken)]:
        taken[label] += 1
    order = permutation(len(labels), seed=seed, stream=order_stream(_EPOCH))
    by_label = order[np.argsort(labels[order], kind="stable")]
    held = np.zeros(len(labels), dtype=bool)
    for end, count, number in zip(np.cumsum(counts), counts, taken, strict=True):
        held[by_label[end - count : end - count + number]] = True
    return dataclasses.replace(
        splits,
        train=splits.train.take(np.flatnonzero(~held)),
        validation=splits.train.take(np.flatnonzero(held)),
    )
