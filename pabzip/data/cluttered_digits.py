"""cluttered-digits: color images painted from scikit-learn's digits by integer arithmetic."""

from __future__ import annotations

from typing import NamedTuple

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


class Difficulty(NamedTuple):
    """How hard the images are. A pair is the least and the most of a uniform draw.

    Fractional bits as in `pabzip.data.clutter_kernels`: 12 for turns, 8 for all else. A color
    is 0 to 255.

    Attributes:
        turn: largest tangent of half the angle, either way.
        shear: largest shear, either way.
        cell: pixels of a cell of the digit, each way.
        shift: largest shift of the digit from the middle, each way.
        contrast: distance of the digit's gray from the background's.
        chroma: largest change of a channel of any color, either way.
        background: a channel of the background's first color.
        gradient: largest change of a channel from one side to the other.
        texture: largest change of a channel by either texture.
        pieces: number of pieces of other digits.
        piece_cells: cells across a piece, each way.
        piece_opacity: opacity of a piece.
        strokes: number of strokes.
        stroke_opacity: opacity of a stroke.
        thickness: half the width of a stroke.
        over: chance in 256 that a piece or a stroke lies over the digit and not under it.
        noise: strength of the noise, as in `finish`.
    """

    turn: int
    shear: int
    cell: tuple[int, int]
    shift: int
    contrast: tuple[int, int]
    chroma: int
    background: tuple[int, int]
    gradient: int
    texture: int
    pieces: tuple[int, int]
    piece_cells: tuple[int, int]
    piece_opacity: tuple[int, int]
    strokes: tuple[int, int]
    stroke_opacity: tuple[int, int]
    thickness: tuple[int, int]
    over: int
    noise: tuple[int, int]


# Blocks of Philox, four words each: first the scene, then one word a value for the noise.
_SCENE_BLOCKS = 96
_BLOCKS = _SCENE_BLOCKS + 3 * SIZE * SIZE // 4
# Words of the scene, by what is drawn from them; so many for each piece or stroke.
_BACKGROUND, _COARSE, _FINE, _DIGIT, _CLUTTER, _ITEM = 0, 20, 45, 126, 146, 20
_EDGE = (SIZE - 1) << 8  # the last pixel's place


@compiled
def _color(
    near: NDArray[np.int64], words: NDArray[np.uint32], hard: Difficulty
) -> NDArray[np.int64]:
    """Draw a color at a distance in gray from ``near``; takes five words."""
    color = np.empty(3, dtype=np.int64)
    distance = between(words[0], *hard.contrast)
    gray = (near[0] + near[1] + near[2]) // 3
    brighter = words[1] >> np.uint32(31) != 0
    if gray + distance > 255:
        brighter = False
    elif gray < distance:
        brighter = True
    for channel in range(3):
        value = near[channel] + (distance if brighter else -distance)
        value += between(words[2 + channel], -hard.chroma, hard.chroma)
        color[channel] = min(max(value, 0), 255)
    return color


@compiled
def _paint_background(
    canvas: NDArray[np.int64], words: NDArray[np.uint32], hard: Difficulty, base: NDArray[np.int64]
) -> None:
    """Paint the gradient and both textures; writes the color in the middle to ``base``."""
    first, second = np.empty(3, dtype=np.int64), np.empty(3, dtype=np.int64)
    coarse, fine = np.empty(3, dtype=np.int64), np.empty(3, dtype=np.int64)
    for channel in range(3):
        start = words[_BACKGROUND + 4 * channel : _BACKGROUND + 4 * channel + 4]
        first[channel] = between(start[0], *hard.background)
        second[channel] = first[channel] + between(start[1], -hard.gradient, hard.gradient)
        coarse[channel] = between(start[2], -hard.texture, hard.texture)
        fine[channel] = between(start[3], -hard.texture, hard.texture)
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
    hard: Difficulty, base: NDArray[np.int64],
) -> None:  # fmt: skip
    """Paint a part of a digit, posed and colored by eleven words.

    ``turn`` is the largest turn either way, ``center`` the least and the most of x and y where the
    middle of the window goes.
    """
    matrix = pose(
        between(words[0], -turn, turn),
        between(words[1], -hard.shear, hard.shear),
        between(words[2], *hard.cell),
        between(words[3], *hard.cell),
    )
    place = between(words[4], *center), between(words[5], *center)
    color = _color(base, words[6:11], hard)
    paint_digit(canvas, digit, matrix, place, window, color, opacity)


@compiled
def _paint_piece(
    canvas: NDArray[np.int64], digits: NDArray[np.uint8], words: NDArray[np.uint32],
    hard: Difficulty, base: NDArray[np.int64],
) -> None:  # fmt: skip
    """Paint a rectangle cut out of some digit, turned any way, anywhere."""
    digit = digits[between(words[1], 0, len(digits) - 1)]
    wide, high = between(words[2], *hard.piece_cells), between(words[3], *hard.piece_cells)
    left, top = between(words[4], 0, CELLS - wide), between(words[5], 0, CELLS - high)
    window = (left, top, left + wide, top + high)
    opacity = between(words[17], *hard.piece_opacity)
    _paint_turned(canvas, digit, window, 4096, (0, _EDGE), opacity, words[6:17], hard, base)


@compiled
def _paint_line(
    canvas: NDArray[np.int64], words: NDArray[np.uint32], hard: Difficulty, base: NDArray[np.int64]
) -> None:
    """Paint a stroke between two places anywhere."""
    ends = (
        between(words[1], 0, _EDGE),
        between(words[2], 0, _EDGE),
        between(words[3], 0, _EDGE),
        between(words[4], 0, _EDGE),
    )
    thickness = between(words[5], *hard.thickness)
    color = _color(base, words[6:11], hard)
    paint_stroke(canvas, ends, thickness, color, between(words[11], *hard.stroke_opacity))


@compiled
def _paint_clutter(
    canvas: NDArray[np.int64], digits: NDArray[np.uint8], words: NDArray[np.uint32],
    hard: Difficulty, base: NDArray[np.int64], over: np.bool_,
) -> None:  # fmt: skip
    """Paint the pieces and strokes that lie over the digit, or those that lie under it."""
    pieces = between(words[_CLUTTER], *hard.pieces)
    strokes = between(words[_CLUTTER + 1], *hard.strokes)
    for item in range(pieces + strokes):
        begin = _CLUTTER + 2 + _ITEM * item
        drawn = words[begin : begin + _ITEM]
        if (between(drawn[0], 0, 255) < hard.over) != over:
            continue
        if item < pieces:
            _paint_piece(canvas, digits, drawn, hard, base)
        else:
            _paint_line(canvas, drawn, hard, base)


@compiled
def paint_images(
    key: tuple[np.uint32, np.uint32], first: int, digits: NDArray[np.uint8],
    classes: NDArray[np.int64], hard: Difficulty, out: NDArray[np.uint8],
) -> None:  # fmt: skip
    """Paint images ``first`` onwards; the label of image ``i`` is ``i % 10``.

    Image ``i`` is a function of ``i``, the key and the digits alone: its words are stream ``i``.

    Args:
        key: of Philox.
        first: number of the first image.
        digits: ``[M, 8, 8]``, sorted by label, 0 to 16.
        classes: ``[11]``; those of label ``l`` are ``classes[l]`` to ``classes[l + 1]``.
        hard: see `Difficulty`.
        out: ``[N, 3, 32, 32]``, written whole.
    """
    places = np.arange(_BLOCKS).astype(np.uint32)
    words = np.empty(4 * _BLOCKS, dtype=np.uint32)
    canvas = np.empty((3, SIZE, SIZE), dtype=np.int64)
    base = np.empty(3, dtype=np.int64)
    whole, center = (0, 0, CELLS, CELLS), (_EDGE // 2 - hard.shift, _EDGE // 2 + hard.shift)
    for index in range(len(out)):
        philox_words(key, np.uint32(first + index), np.uint64(0), places, _BLOCKS, words)
        label = (first + index) % 10
        chosen = between(words[_DIGIT + 11], classes[label], classes[label + 1] - 1)
        _paint_background(canvas, words, hard, base)
        _paint_clutter(canvas, digits, words, hard, base, np.False_)
        _paint_turned(
            canvas, digits[chosen], whole, hard.turn, center, 256, words[_DIGIT:], hard, base
        )
        _paint_clutter(canvas, digits, words, hard, base, np.True_)
        strength = between(words[_DIGIT + 12], *hard.noise)
        finish(canvas, words[4 * _SCENE_BLOCKS :], strength, out[index])


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
# Of the training images; a test recomputes them.
_MEAN = (0.4934, 0.4929, 0.4919)
_STD = (0.2440, 0.2447, 0.2445)


@register_dataset("cluttered-digits", classes=10, shape=(3, 32, 32))
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
    paint_images((np.uint32(low), np.uint32(high)), first, cells, classes, DIFFICULTY, out)
    return out
