"""cluttered-digits: color images painted from scikit-learn's digits by integer arithmetic.

Integers alone, 64 bits wide, so every machine paints the same bits. Positions have 8 fractional
bits (a pixel is 256), places in a digit 16 (a cell of its 8x8 grid is 65,536), opacities and
weights 8 (256 is opaque). Shifts round towards minus infinity.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from pabzip.data.augment import RandomCrop
from pabzip.data.digits import read_digits
from pabzip.data.download import Root
from pabzip.data.images import Images, Splits
from pabzip.registry import register_dataset
from pabzip.seeds.compiled import compiled
from pabzip.seeds.kernels import philox_words
from pabzip.seeds.philox import split_seed

SIZE = 32  # pixels across an image
CELLS = 8  # cells across a digit
_PEAK_BITS = 4  # a cell is 0 to 2**4

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
def between(word: np.uint32, low: int, high: int) -> np.int64:
    """Return an integer ``low`` to ``high``, both included, from a uniform word."""
    return low + ((np.int64(word) * (high - low + 1)) >> 32)


@compiled
def paint_gradient(
    canvas: NDArray[np.int64], first: NDArray[np.int64], second: NDArray[np.int64],
    toward_x: int, toward_y: int,
) -> None:  # fmt: skip
    """Fill ``[3, 32, 32]`` with colors that go from ``first`` to ``second``.

    The direction has parts of -256 to 256; its larger one decides how fast the color turns.
    """
    for y in range(SIZE):
        for x in range(SIZE):
            along = (2 * x - SIZE + 1) * toward_x + (2 * y - SIZE + 1) * toward_y
            weight = min(max(128 + along // (4 * SIZE), 0), 256)
            for channel in range(3):
                turn = (second[channel] - first[channel]) * weight
                canvas[channel, y, x] = first[channel] + (turn >> 8)


@compiled
def add_texture(
    canvas: NDArray[np.int64], words: NDArray[np.uint32], pitch: int, gains: NDArray[np.int64]
) -> None:
    """Add smooth noise: a grid of random bytes, one every ``pitch`` pixels, blended in between.

    ``gains`` is the largest change of each channel; the grid takes ``(32 // pitch + 1)**2`` words.
    """
    across = SIZE // pitch + 1
    for y in range(SIZE):
        for x in range(SIZE):
            corner = y // pitch * across + x // pitch
            right, down = x % pitch, y % pitch
            value = (pitch - down) * (
                (pitch - right) * np.int64(words[corner] >> np.uint32(24))
                + right * np.int64(words[corner + 1] >> np.uint32(24))
            ) + down * (
                (pitch - right) * np.int64(words[corner + across] >> np.uint32(24))
                + right * np.int64(words[corner + across + 1] >> np.uint32(24))
            )
            centered = 2 * value // pitch**2 - 255
            for channel in range(3):
                canvas[channel, y, x] += (centered * gains[channel]) >> 8


@compiled
def pose(turn: int, shear: int, wide: int, high: int) -> tuple[int, int, int, int]:
    """Return the matrix from pixels to cells of a digit turned, sheared and scaled.

    Args:
        turn: the tangent of half the angle, with 12 fractional bits. The rational form of a turn
            needs no sine: ``cos = (1 - t**2) / (1 + t**2)``, ``sin = 2 t / (1 + t**2)``.
        shear: cells to the side a cell of height, with 8 fractional bits.
        wide: pixels of a cell's width, with 8 fractional bits.
        high: pixels of a cell's height, likewise.
    """
    one = 1 << 12
    whole = one * one + turn * turn
    cosine = ((one * one - turn * turn) << 16) // whole
    sine = ((2 * turn * one) << 16) // whole
    across, along = (1 << 24) // wide, (1 << 24) // high
    return (
        ((cosine - ((shear * sine) >> 8)) * across) >> 16,
        ((sine + ((shear * cosine) >> 8)) * across) >> 16,
        (-sine * along) >> 16,
        (cosine * along) >> 16,
    )


@compiled
def paint_digit(
    canvas: NDArray[np.int64], digit: NDArray[np.uint8], matrix: tuple[int, int, int, int],
    center: tuple[int, int], window: tuple[int, int, int, int], color: NDArray[np.int64],
    opacity: int,
) -> None:  # fmt: skip
    """Paint the part of a digit that lies in ``window``, cells blended in between.

    Args:
        canvas: ``[3, 32, 32]``.
        digit: ``[8, 8]``, 0 to 16; outside lies 0.
        matrix: from `pose`.
        center: where the middle of the window goes, in pixels with 8 fractional bits.
        window: left, top, right and bottom cell, the last two left out.
        color: of full ink.
        opacity: of full ink, 0 to 256.
    """
    left, top, right, bottom = window
    middle_u, middle_v = (left + right - 1) << 15, (top + bottom - 1) << 15
    for y in range(SIZE):
        for x in range(SIZE):
            dx, dy = (x << 8) - center[0], (y << 8) - center[1]
            u = middle_u + ((matrix[0] * dx + matrix[1] * dy) >> 8)
            v = middle_v + ((matrix[2] * dx + matrix[3] * dy) >> 8)
            column, row = u >> 16, v >> 16
            if column < left - 1 or column >= right or row < top - 1 or row >= bottom:
                continue
            part_u, part_v = (u >> 8) & 255, (v >> 8) & 255
            ink = np.int64(0)
            for below in range(2):
                for beside in range(2):
                    i, j = row + below, column + beside
                    if top <= i < bottom and left <= j < right:
                        weight = (part_v if below else 256 - part_v) * (
                            part_u if beside else 256 - part_u
                        )
                        ink += weight * np.int64(digit[i, j])
            cover = ((ink >> (8 + _PEAK_BITS)) * opacity) >> 8
            for channel in range(3):
                distance = color[channel] - canvas[channel, y, x]
                canvas[channel, y, x] += (distance * cover) >> 8


@compiled
def paint_stroke(
    canvas: NDArray[np.int64], ends: tuple[int, int, int, int], thickness: int,
    color: NDArray[np.int64], opacity: int,
) -> None:  # fmt: skip
    """Paint a straight stroke with round ends whose edge fades over a pixel.

    ``ends`` is x and y of both ends and ``thickness`` half the width, with 8 fractional bits.
    """
    from_x, from_y, to_x, to_y = ends
    along_x, along_y = to_x - from_x, to_y - from_y
    length = max(along_x * along_x + along_y * along_y, 1)
    inner, outer = thickness * thickness, (thickness + 256) * (thickness + 256)
    for y in range(SIZE):
        for x in range(SIZE):
            dx, dy = (x << 8) - from_x, (y << 8) - from_y
            place = min(max(dx * along_x + dy * along_y, 0), length)
            away_x, away_y = dx - along_x * place // length, dy - along_y * place // length
            fade = ((outer - away_x * away_x - away_y * away_y) << 8) // (outer - inner)
            cover = (min(max(fade, 0), 256) * opacity) >> 8
            for channel in range(3):
                distance = color[channel] - canvas[channel, y, x]
                canvas[channel, y, x] += (distance * cover) >> 8


@compiled
def finish(
    canvas: NDArray[np.int64], words: NDArray[np.uint32], strength: int, out: NDArray[np.uint8]
) -> None:
    """Add noise to every value of the canvas, cut to 0 to 255, and store.

    The noise is the sum of the four bytes of a word, nearly normal; its standard deviation is
    ``0.577 * strength`` gray levels.
    """
    place = 0
    for channel in range(3):
        for y in range(SIZE):
            for x in range(SIZE):
                word = np.int64(words[place])
                place += 1
                total = (word & 255) + (word >> 8 & 255) + (word >> 16 & 255) + (word >> 24)
                noisy = canvas[channel, y, x] + (((total - 510) * strength) >> 8)
                out[channel, y, x] = min(max(noisy, 0), 255)


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
            ends = (
                between(drawn[1], 0, _EDGE), between(drawn[2], 0, _EDGE),
                between(drawn[3], 0, _EDGE), between(drawn[4], 0, _EDGE),
            )  # fmt: skip
            thickness = between(drawn[5], *_THICKNESS)
            opacity = between(drawn[11], *_STROKE_OPACITY)
            paint_stroke(canvas, ends, thickness, _color(base, drawn[6:11]), opacity)


@compiled
def paint_images(
    key: tuple[np.uint32, np.uint32], first: int, digits: NDArray[np.uint8],
    classes: NDArray[np.int64], out: NDArray[np.uint8],
) -> None:  # fmt: skip
    """Paint images ``first`` onwards; the label of image ``i`` is ``i % 10``.

    Image ``i`` is a function of ``i``, the key and the digits alone: its words are stream ``i``.
    ``digits``, ``[M, 8, 8]``, are sorted: those of label ``l`` are numbers ``classes[l]`` to
    ``classes[l + 1]``. ``out`` is ``[N, 3, 32, 32]``.
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


TRAIN_IMAGES, TEST_IMAGES = 50_000, 10_000  # as in CIFAR-10

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
    """Paint images ``first`` to ``first + count`` of the dataset, ``uint8[count, 3, 32, 32]``.

    ``digits`` are 8x8 images of all ten digits, values 0 to 16.
    """
    order = torch.argsort(digits.labels, stable=True)
    sizes = torch.bincount(digits.labels, minlength=_CLASSES).numpy()
    classes = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
    cells = np.ascontiguousarray(digits.images[order].numpy().reshape(-1, CELLS, CELLS))
    low, high = split_seed(_SEED)
    out = np.empty((count, 3, SIZE, SIZE), dtype=np.uint8)
    paint_images((np.uint32(low), np.uint32(high)), first, cells, classes, out)
    return out
