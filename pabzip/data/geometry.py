"""The shape of a dataset's images and the number of its classes, without the dataset."""

from __future__ import annotations

from dataclasses import dataclass

from pabzip.errors import DataError


@dataclass(frozen=True, slots=True)
class Geometry:
    """What a network must fit.

    Attributes:
        num_classes: number of labels.
        in_channels: channels of an input.
        image_size: height and width of an input in pixels.
    """

    num_classes: int
    in_channels: int
    image_size: int

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an input."""
        return self.in_channels, self.image_size, self.image_size


GEOMETRIES = {
    "digits": Geometry(10, 1, 8),
    "cluttered-digits": Geometry(10, 3, 32),
    "cifar10": Geometry(10, 3, 32),
    "cifar100": Geometry(100, 3, 32),
    "mnist": Geometry(10, 1, 28),
    "fashion-mnist": Geometry(10, 1, 28),
    "svhn": Geometry(10, 3, 32),
    "tiny-imagenet": Geometry(200, 3, 64),
    "caltech101": Geometry(101, 3, 224),
    "imagenet": Geometry(1000, 3, 224),
}
"""By name of the dataset; an image folder's is known once it is read."""


def geometry(name: str) -> Geometry:
    """Return the geometry of a published dataset; nothing is read from disk.

    Raises:
        DataError: no such dataset, or one whose geometry is its files' (a folder).
    """
    found = GEOMETRIES.get(name)
    if found is None:
        raise DataError(f"data: expected one of {', '.join(GEOMETRIES)}, found {name!r}")
    return found
