"""What a cluttered digit is painted with: gradients, textures, strokes, pieces of digits, noise.

Integers alone, 64 bits wide, so every machine paints the same bits. Positions have 8 fractional
bits (a pixel is 256), places in a digit 16 (a cell of its 8x8 grid is 65,536), opacities and
weights 8 (256 is opaque). Shifts round towards minus infinity.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pabzip.seeds.compiled import compiled

SIZE = 32  # pixels across an image
CELLS = 8  # cells across a digit
_PEAK_BITS = 4  # a cell is 0 to 2**4


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
