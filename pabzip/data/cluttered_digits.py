"""cluttered-digits: color images painted from scikit-learn's digits by integer arithmetic."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from pabzip.data.augment import RandomCrop
from pabzip.data.clutter_kernels import (
    CELLS,
    SIZE,
    add_texture,
    between,
    finish,
    paint_digit,
    paint_gradient,
    paint_stroke,
    pose,
)
from pabzip.data.digits import read_digits
from pabzip.data.download import Root
from pabzip.data.images import Images, Splits
from pabzip.registry import register_dataset
from pabzip.seeds.compiled import compiled
from pabzip.seeds.kernels import philox_words
from pabzip.seeds.philox import split_seed

# How hard the images are; any change makes another dataset. A pair is the least and the most of a
# uniform draw. Turns have 12 fractional bits, lengths, shears and opacities 8; a color is 0 to 255.
_TURN = 1000  # largest tangent of half the angle, either way: 27 degrees
_SHEAR = 60  # largest, either way
_CELL = (500, 850)  # pixels of a cell of the digit, each way: digits of 16 to 27 pixels
_SHIFT = 4 << 8  # largest shift of the digit from the middle, each way
_CONTRAST = (55, 120)  # distance of the digit's gray from the background's
_CHROMA = 40  # largest change of a channel of any color, either way
_BASE = (30, 225)  # a channel of the background's first color
_GRADIENT = 80  # largest change of a channel from one side to the other
_TEXTURE = 30  # largest change of a channel by either texture
_PIECES = (1, 3)  # number of pieces of other digits
_PIECE_CELLS = (3, 5)  # cells across a piece, each way
_PIECE_OPACITY = (100, 220)
_STROKES = (0, 2)  # number of strokes
_STROKE_OPACITY = (80, 200)
_THICKNESS = (60, 200)  # half the width of a stroke
_OVER = 40  # chance in 256 that a piece or a stroke lies over the digit and not under it
_NOISE = (5, 22)  # strength of the noise, as in `finish`

# Blocks of Philox, four words each: first the scene, then one word a value for the noise.
_SCENE_BLOCKS = 96
_BLOCKS = _SCENE_BLOCKS + 3 * SIZE * SIZE // 4
# Words of the scene, by what is drawn from them; so many for each piece or stroke.
_BACKGROUND, _COARSE, _FINE, _DIGIT, _CLUTTER, _ITEM = 0, 20, 45, 126, 146, 20
_EDGE = (SIZE - 1) << 8  # the last pixel's place


@compiled
def _color(near: NDArray[np.int64], words: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Draw a color at a distance in gray from ``near``; takes five words."""
    color = np.empty(3, dtype=np.int64)
    distance = between(words[0], *_CONTRAST)
    gray = (near[0] + near[1] + near[2]) // 3
    brighter = words[1] >> np.uint32(31) != 0
    if gray + distance > 255:
        brighter = False
    elif gray < distance:
        brighter = True
    for channel in range(3):
        value = near[channel] + (distance if brighter else -distance)
        value += between(words[2 + channel], -_CHROMA, _CHROMA)
        color[channel] = min(max(value, 0), 255)
    return color


@compiled
def _paint_background(
    canvas: NDArray[np.int64], words: NDArray[np.uint32], base: NDArray[np.int64]
) -> None:
    """Paint the gradient and both textures; writes the color in the middle to ``base``."""
    first, second = np.empty(3, dtype=np.int64), np.empty(3, dtype=np.int64)
    coarse, fine = np.empty(3, dtype=np.int64), np.empty(3, dtype=np.int64)
    for channel in range(3):
        start = words[_BACKGROUND + 4 * channel : _BACKGROUND + 4 * channel + 4]
        first[channel] = between(start[0], *_BASE)
        second[channel] = first[channel] + between(start[1], -_GRADIENT, _GRADIENT)
        coarse[channel] = between(start[2], -_TEXTURE, _TEXTURE)
        fine[channel] = between(start[3], -_TEXTURE, _TEXTURE)
        base[channel] = (first[channel] + second[channel]) >> 1
    toward_x = between(words[_BACKGROUND + 12], -256, 256)
    toward_y = between(words[_BACKGROUND + 13], -256, 256)
    paint_gradient(canvas, first, second, toward_x, toward_y)
    add_texture(canvas, words[_COARSE:_FINE], 8, coarse)
    add_texture(canvas, words[_FINE:_DIGIT], 4, fine)


@compiled
def _paint_turned(
    canvas: NDArray[np.int64], digit: NDArray[np.uint8], window: tuple[int, int, int, int],
    turn: int, center: tuple[int, int], opacity: int, words: NDArray[np.uint32],
    base: NDArray[np.int64],
) -> None:  # fmt: skip
    """Paint a part of a digit, posed and colored by eleven words.

    ``turn`` is the largest turn either way, ``center`` the least and the most of x and y where the
    middle of the window goes.
    """
    matrix = pose(
        between(words[0], -turn, turn),
        between(words[1], -_SHEAR, _SHEAR),
        between(words[2], *_CELL),
        between(words[3], *_CELL),
    )
    place = between(words[4], *center), between(words[5], *center)
    color = _color(base, words[6:11])
    paint_digit(canvas, digit, matrix, place, window, color, opacity)


@compiled
def _paint_piece(
    canvas: NDArray[np.int64], digits: NDArray[np.uint8], words: NDArray[np.uint32],
    base: NDArray[np.int64],
) -> None:  # fmt: skip
    """Paint a rectangle cut out of some digit, turned any way, anywhere."""
    digit = digits[between(words[1], 0, len(digits) - 1)]
    wide, high = between(words[2], *_PIECE_CELLS), between(words[3], *_PIECE_CELLS)
    left, top = between(words[4], 0, CELLS - wide), between(words[5], 0, CELLS - high)
    window = (left, top, left + wide, top + high)
    opacity = between(words[17], *_PIECE_OPACITY)
    _paint_turned(canvas, digit, window, 4096, (0, _EDGE), opacity, words[6:17], base)


@compiled
def _paint_line(
    canvas: NDArray[np.int64], words: NDArray[np.uint32], base: NDArray[np.int64]
) -> None:
    """Paint a stroke between two places anywhere."""
    ends = (
        between(words[1], 0, _EDGE),
        between(words[2], 0, _EDGE),
        between(words[3], 0, _EDGE),
        between(words[4], 0, _EDGE),
    )
    thickness = between(words[5], *_THICKNESS)
    color = _color(base, words[6:11])
    paint_stroke(canvas, ends, thickness, color, between(words[11], *_STROKE_OPACITY))


@compiled
def _paint_clutter(
    canvas: NDArray[np.int64], digits: NDArray[np.uint8], words: NDArray[np.uint32],
    base: NDArray[np.int64], over: np.bool_,
) -> None:  # fmt: skip
    """Paint the pieces and strokes that lie over the digit, or those that lie under it."""
    pieces = between(words[_CLUTTER], *_PIECES)
    strokes = between(words[_CLUTTER + 1], *_STROKES)
    for item in range(pieces + strokes):
        begin = _CLUTTER + 2 + _ITEM * item
        drawn = words[begin : begin + _ITEM]
        if (between(drawn[0], 0, 255) < _OVER) != over:
            continue
        if item < pieces:
            _paint_piece(canvas, digits, drawn, base)
        else:
            _paint_line(canvas, drawn, base)


@compiled
def paint_images(
    key: tuple[np.uint32, np.uint32], first: int, digits: NDArray[np.uint8],
    classes: NDArray[np.int64], out: NDArray[np.uint8],
) -> None:  # fmt: skip
    """Paint images ``first`` onwards; the label of image ``i`` is ``i % 10``.

    Image ``i`` is a function of ``i``, the key and the digits alone: its words are stream ``i``.

    Args:
        key: of Philox.
        first: number of the first image.
        digits: ``[M, 8, 8]``, sorted by label, 0 to 16.
        classes: ``[11]``; those of label ``l`` are ``classes[l]`` to ``classes[l + 1]``.
        out: ``[N, 3, 32, 32]``, written whole.
    """
    places = np.arange(_BLOCKS).astype(np.uint32)
    words = np.empty(4 * _BLOCKS, dtype=np.uint32)
    canvas = np.empty((3, SIZE, SIZE), dtype=np.int64)
    base = np.empty(3, dtype=np.int64)
    whole, center = (0, 0, CELLS, CELLS), (_EDGE // 2 - _SHIFT, _EDGE // 2 + _SHIFT)
    for index in range(len(out)):
        philox_words(key, np.uint32(first + index), np.uint64(0), places, _BLOCKS, words)
        label = (first + index) % 10
        chosen = between(words[_DIGIT + 11], classes[label], classes[label + 1] - 1)
        _paint_background(canvas, words, base)
        _paint_clutter(canvas, digits, words, base, np.False_)
        _paint_turned(canvas, digits[chosen], whole, _TURN, center, 256, words[_DIGIT:], base)
        _paint_clutter(canvas, digits, words, base, np.True_)
        strength = between(words[_DIGIT + 12], *_NOISE)
        finish(canvas, words[4 * _SCENE_BLOCKS :], strength, out[index])


TRAIN_IMAGES = 50_000
"""Number of training images, as in CIFAR-10."""
TEST_IMAGES = 10_000
"""Number of test images."""

_CLASSES = 10
_SEED = 1797
# Of the training images; a test recomputes them.
_MEAN = (0.4934, 0.4929, 0.4919)
_STD = (0.2440, 0.2447, 0.2445)


@register_dataset("cluttered-digits", classes=10, shape=(3, 32, 32), augmented=True)
def load_cluttered_digits(name: str, *, root: Root = None, download: bool = False) -> Splits:
    """Paint 50,000 training and 10,000 test images, three channels of 32x32 pixels, 10 classes.

    A stand-in where CIFAR cannot be had: a digit of scikit-learn's, turned, sheared, scaled,
    shifted and colored, on a background of gradients and textures, with pieces of other digits
    and strokes under and over it, and noise. Training images show the 1,400 training digits of
    `pabzip.data.digits` alone, test images its 397 test digits alone, pieces included. Every class
    has equally many images: image ``i`` has label ``i % 10``.

    The images are a function of pabzip's generator in integer arithmetic, so they are the same bit
    for bit on every machine. They are painted in about two seconds (on the first call, compiling
    adds some seconds) and kept in memory alone; ``root`` and ``download`` are not used.

    The augmentation shifts by up to 2 pixels and mirrors nothing: a mirrored digit is no digit.

    Raises:
        MissingDependencyError: scikit-learn is not installed.

    Source: ours. The digits are those of `pabzip.data.digits`.
    """
    train_digits, test_digits = read_digits()

    def part(source: Images, first: int, count: int) -> Images:
        pixels = torch.from_numpy(paint(source, first, count))
        labels = (first + torch.arange(count)) % _CLASSES
        return Images(pixels, labels, 255, _MEAN, _STD)

    return Splits(
        name=name,
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
    paint_images((np.uint32(low), np.uint32(high)), first, cells, classes, out)
    return out
