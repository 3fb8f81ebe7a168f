"""`cluttered-digits`: handwritten digits in colour among clutter, painted from a seed."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from pabzip.data.augment import RandomCrop
from pabzip.data.clutter import Difficulty, paint_images
from pabzip.data.clutter_kernels import CELLS, SIZE
from pabzip.data.digits import read_digits
from pabzip.data.splits import Images, Splits
from pabzip.seeds.philox import split_seed

TRAIN_IMAGES = 50_000
"""Number of training images, as in CIFAR-10."""
TEST_IMAGES = 10_000
"""Number of test images."""

DIFFICULTY = Difficulty(
    turn=1000,  # 27 degrees
    shear=60,
    cell=(500, 850),  # digits of 16 to 27 pixels
    shift=4 << 8,
    contrast=(55, 120),
    chroma=40,
    background=(30, 225),
    gradient=80,
    texture=30,
    pieces=(1, 3),
    piece_cells=(3, 5),
    piece_opacity=(100, 220),
    strokes=(0, 2),
    stroke_opacity=(80, 200),
    thickness=(60, 200),
    over=40,
    noise=(5, 22),
)
"""How hard the images are; any change makes another dataset."""

_CLASSES = 10
_SEED = 1797
_PEAK = 255
# Of the training images; a test recomputes them.
_MEAN = (0.4934, 0.4929, 0.4919)
_STD = (0.2440, 0.2447, 0.2445)


def load_cluttered_digits() -> Splits:
    """Paint 50,000 training and 10,000 test images, three channels of 32x32 pixels, 10 classes.

    A stand-in where CIFAR cannot be had: a digit of scikit-learn's, turned, sheared, scaled,
    shifted and coloured, on a background of gradients and textures, with pieces of other digits
    and strokes under and over it, and noise. Training images show the 1,400 training digits of
    `pabzip.data.digits` alone, test images its 397 test digits alone, pieces included. Every class
    has equally many images: image ``i`` has label ``i % 10``.

    The images are a function of pabzip's generator in integer arithmetic, so they are the same bit
    for bit on every machine. They are painted in about two seconds (on the first call, compiling
    adds some seconds) and kept in memory alone.

    The augmentation shifts by up to 2 pixels and mirrors nothing: a mirrored digit is no digit.

    Raises:
        MissingDependencyError: scikit-learn is not installed.

    Source: ours. The digits are those of `pabzip.data.digits`.
    """
    train_digits, test_digits = read_digits()

    def part(source: Images, first: int, count: int) -> Images:
        pixels = torch.from_numpy(paint(source, first, count))
        labels = (first + torch.arange(count)) % _CLASSES
        return Images(pixels, labels, _PEAK, _MEAN, _STD)

    return Splits(
        name="cluttered-digits",
        train=part(train_digits, 0, TRAIN_IMAGES),
        test=part(test_digits, TRAIN_IMAGES, TEST_IMAGES),
        num_classes=_CLASSES,
        augmentation=RandomCrop(padding=2, mirror=False),
    )


def paint(digits: Images, first: int, count: int) -> NDArray[np.uint8]:
    """Paint images ``first`` to ``first + count`` of the dataset from the given digits.

    Args:
        digits: 8x8 images of all ten digits, values 0 to 16.
        first: number of the first image; training images begin at 0, test images at 50,000.
        count: number of images.

    Returns:
        ``uint8[count, 3, 32, 32]``. Image ``i`` shows a digit of label ``i % 10``.
    """
    order = torch.argsort(digits.labels, stable=True)
    sizes = torch.bincount(digits.labels, minlength=_CLASSES).numpy()
    classes = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
    cells = np.ascontiguousarray(digits.images[order].numpy().reshape(-1, CELLS, CELLS))
    low, high = split_seed(_SEED)
    out = np.empty((count, 3, SIZE, SIZE), dtype=np.uint8)
    paint_images((np.uint32(low), np.uint32(high)), first, cells, classes, DIFFICULTY, out)
    return out
