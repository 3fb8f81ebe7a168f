"""A decoder of the ``context`` coder written from SPEC.md alone, in plain Python.

It shares no code with the package but the reference generator of magnitudes, and checks every rule
of the specification that a damaged file could break.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from pabzip.seeds import InitSpec, magnitudes

EDGES = sorted(
    {
        sign * edge
        for edge in (0, 1, 3, 6, 10, 16, 24, 34, 48, 66, 90, 122, 166, 230, 320)
        for sign in (1, -1)
    }
)
FRACTIONS = [math.floor(256 * math.log2(1 + j / 256)) for j in range(256)]


def probability_scale() -> list[int]:
    small = [32768]
    while len(small) < 64:
        small.append(29 * small[-1] // 32)
    return [small[63 - i] if i < 64 else 65536 - small[i - 64] for i in range(128)]


SCALE = probability_scale()
CHUNK_WEIGHTS = 65536


class RefusedError(Exception):
    """The stream breaks a rule."""


def need(condition: bool) -> None:
    if not condition:
        raise RefusedError


class Bits:
    """Section 3, "Range coder"."""

    def __init__(self, data: bytes) -> None:
        self.data, self.taken = data, 0
        self.code, self.span = 0, 2**32 - 1
        for _ in range(4):
            self.code = 256 * self.code + self.byte()

    def byte(self) -> int:
        self.taken += 1
        return self.data[self.taken - 1] if self.taken <= len(self.data) else 0

    def bit(self, chance: int) -> int:
        assert 0 < chance < 65536
        bound = (self.span // 65536) * chance
        if self.code < bound:
            self.span, found = bound, 1
        else:
            self.code, self.span, found = self.code - bound, self.span - bound, 0
        while self.span < 2**24:
            self.span *= 256
            self.code = (256 * self.code + self.byte()) % 2**32
        return found

    def end(self) -> None:
        need(len(self.data) <= self.taken)
        need(not self.data or self.data[-1] != 0)


class Side:
    """Bits under contexts, numbers and scattered values."""

    def __init__(self, data: bytes) -> None:
        self.bits = Bits(data)
        self.chances, self.seen = [32768] * 1470, [0] * 1470

    def under(self, context: int) -> int:
        found = self.bits.bit(self.chances[context])
        weight = 131072 // (2 * self.seen[context] + 3)
        target = 65536 if found else 0
        moved = self.chances[context] + (target - self.chances[context]) * weight // 65536
        self.chances[context] = min(max(moved, 64), 65472)
        self.seen[context] = min(self.seen[context] + 1, 24)
        return found

    def plain(self, width: int) -> int:
        found = 0
        for _ in range(width):
            found = 2 * found + self.bits.bit(32768)
        return found

    def two(self, base: int) -> int:
        high = self.under(base)
        return 2 * high + self.under(base + 1 + high)

    def number(self, base: int) -> int:
        width = 0
        while self.under(base + width):
            width += 1
            need(width < 48)
        return 2**width + self.plain(width) - 1

    def signed(self, base: int) -> int:
        folded = self.number(base)
        return folded // 2 if folded % 2 == 0 else -(folded + 1) // 2

    def offset(self) -> int:
        found = self.signed(71)
        need(abs(found) <= 2**24)
        return found

    def scattered(self, expected: list[int], base: int) -> tuple[list[int], list[int]]:
        middle, kind = self.offset(), self.plain(4)
        residuals = [self.residual(base, kind) for _ in expected]
        values = [e + middle + r for e, r in zip(expected, residuals, strict=True)]
        return values, residuals

    def residual(self, base: int, kind: int) -> int:
        first = base + 22 * kind
        if not self.under(first):
            return 0
        negative, high = self.under(first + 1), 0
        while high < 20 and self.under(first + 2 + high):
            high += 1
        if high == 20:
            more = self.number(base + 352)
            need(more <= 2**24)
            high += more
        shift = max(0, kind - 2)
        size = (high << shift) + self.plain(shift) + 1
        need(size <= 2**24)
        return -size if negative else size


@dataclass
class Told:
    """What the side stream tells of a tensor."""

    shape: tuple[int, ...]
    survivors: int
    layout: tuple[int, int, int, int] = (0, 0, 0, 0)  # groups, rows, columns, positions
    rows: list[int] = field(default_factory=list)
    columns: list[int] = field(default_factory=list)  # over all groups
    mode: int = 0
    chance: int = 0
    threshold: int = 0
    unit: int = 4
    row_factors: dict[int, int] = field(default_factory=dict)
    column_factors: dict[int, int] = field(default_factory=dict)
    positions: list[int] = field(default_factory=list)
    foretold: list[int] = field(default_factory=list)
    first: int = 0
    last: int = 0
    chances: list[int] = field(default_factory=list)
    signs: int = 0
    flip: int = 0
    chunks: list[tuple[list[int], int, int]] = field(default_factory=list)

    def columns_of(self, row: int) -> list[int]:
        """Active columns, over all groups, that a row sees."""
        groups, rows, columns, _ = self.layout
        group = row // (rows // groups)
        return [a for a in self.columns if a // columns == group]

    def weights_of(self, row: int) -> int:
        return len(self.columns_of(row)) * self.layout[3]


def read_side(data: bytes, tensors: list[tuple[tuple[int, ...], int]]) -> list[Told]:
    """Read a side stream of tensors given as shape and number of survivors."""
    side, told = Side(data), []
    for shape, survivors in tensors:
        told.append(read_tensor(side, shape, survivors, told))
    side.bits.end()
    return told


def read_tensor(side: Side, shape: tuple[int, ...], survivors: int, before: list[Told]) -> Told:
    rows, groups = shape[0], 1
    columns = shape[1] if len(shape) > 1 else 1
    positions = math.prod(shape[2:])
    if not side.under(7):
        width = columns * positions
        groups, positions = side.number(22), side.number(22)
        need(groups > 0 and positions > 0 and rows % groups == 0 and width % positions == 0)
        columns = width // positions
    told = Told(shape, survivors, (groups, rows, columns, positions))
    everything = groups * columns
    told.rows = list(range(rows))
    if not side.under(8):
        told.rows = [row for row in range(rows) if side.under(10)]
    earlier = [other for other in reversed(before) if other.layout[1] == everything][:2]
    told.columns = list(range(everything))
    if not side.under(9):
        flags = []
        for column in range(everything):
            states = [1 + (column in other.rows) for other in earlier] + [0, 0]
            flags.append(side.under(13 + 3 * states[0] + states[1]))
        told.columns = [column for column, flag in enumerate(flags) if flag]
    need(
        {row // (rows // groups) for row in told.rows}
        == {column // columns for column in told.columns}
    )
    if told.rows:
        read_mask(side, told, earlier)
        told.signs = side.two(3)
        need(told.signs < 3)
        if told.signs == 2:
            told.flip = SCALE[side.plain(7)]
    read_chunks(side, told)
    return told


def read_mask(side: Side, told: Told, earlier: list[Told]) -> None:
    told.mode = side.two(0)
    if told.mode == 1:
        told.chance = side.plain(16)
        need(told.chance > 0)
    if told.mode == 2:
        told.threshold = side.offset()
    if told.mode == 3:
        read_factors(side, told, earlier)
    if told.mode in (2, 3):
        told.first, told.last = side.plain(5), side.plain(5)
        need(told.first <= told.last <= 30)
        told.chances = [SCALE[side.plain(7)] for _ in range(told.first, told.last)]


def read_factors(side: Side, told: Told, earlier: list[Told]) -> None:
    told.unit = 8 if side.under(6) else 4
    values, residuals = side.scattered([0] * len(told.rows), 120)
    told.row_factors = dict(zip(told.rows, values, strict=True))
    told.foretold = [0] * told.layout[1]
    for row, residual in zip(told.rows, residuals, strict=True):
        told.foretold[row] = 7 * told.unit * residual // 8
    expected = [0] * len(told.columns)
    for context, other in enumerate(other for other in earlier if other.mode == 3):
        if side.under(11 + context):
            half = told.unit // 2
            expected = [(other.foretold[column] + half) // told.unit for column in told.columns]
            break
    values, _ = side.scattered(expected, 521)
    told.column_factors = dict(zip(told.columns, values, strict=True))
    told.positions = [0]
    if told.layout[3] > 1:
        told.positions, _ = side.scattered([0] * told.layout[3], 922)


def read_chunks(side: Side, told: Told) -> None:
    runs: list[list[int]] = []
    weights: list[int] = []
    for row in told.rows:
        size = told.weights_of(row)
        if weights and weights[-1] + size <= CHUNK_WEIGHTS:
            runs[-1].append(row)
            weights[-1] += size
        else:
            runs.append([row])
            weights.append(size)
    need(bool(runs) or told.survivors == 0)
    coded, survivors = [], []
    for place, size in enumerate(weights):
        if place == 0:
            coded.append(side.number(1323))
        else:
            coded.append(coded[-1] * size // weights[place - 1] + side.signed(1372))
    for place, size in enumerate(weights[:-1]):
        share = (told.survivors - sum(survivors)) * size // sum(weights[place:])
        survivors.append(share + side.signed(1421))
    survivors += [told.survivors - sum(survivors)] if runs else []
    for size, length, kept in zip(weights, coded, survivors, strict=True):
        need(0 <= kept <= size and 0 <= length <= 4 * size + 4)
    told.chunks = list(zip(runs, coded, survivors, strict=True))


def level(magnitude: int) -> int:
    octave = magnitude.bit_length() - 1
    return 256 * octave + FRACTIONS[magnitude * 256 // 2**octave - 256]


def decode(
    told: Told, payload: bytes, seed: int, spec: InitSpec, frozen: list[int | None] | None = None
) -> list[int]:
    """Return the codes of a tensor in row-major order.

    ``frozen`` are the codes of frozen places, None of a learned one.
    """
    count = math.prod(told.shape)
    need(len(payload) <= 2 * count + 16)
    frozen = frozen or [None] * count
    codes, at = [0 if code is None else code for code in frozen], 0
    known: Any = magnitudes(seed, spec, 0, count, backend="numpy").tolist()
    for rows, length, survivors in told.chunks:
        signs = (survivors + 7) // 8 if told.signs == 1 else 0
        need(at + length + signs <= len(payload))
        decode_chunk(
            told, rows, survivors, payload[at : at + length],
            payload[at + length : at + length + signs], known, codes, frozen,
        )  # fmt: skip
        at += length + signs
    need(at == len(payload))
    return codes


def decode_chunk(
    told: Told,
    rows: list[int],
    survivors: int,
    coded: bytes,
    signs: bytes,
    known: list[int],
    codes: list[int],
    frozen: list[int | None],
) -> None:
    _, _, columns, positions = told.layout
    bits, found = Bits(coded), 0
    for row in rows:
        for column in told.columns_of(row):
            for position in range(positions):
                index = (row * columns + column % columns) * positions + position
                if frozen[index] is not None:
                    continue
                if not survives(told, bits, known[index], row, column, position):
                    continue
                need(found < survivors)
                negative = 0
                if told.signs == 1:
                    negative = signs[found // 8] >> found % 8 & 1
                elif told.signs == 2:
                    negative = bits.bit(told.flip)
                codes[index] = -1 if negative else 1
                found += 1
    need(found == survivors)
    bits.end()
    need(not signs or signs[-1] >> ((survivors - 1) % 8 + 1) == 0)


def survives(told: Told, bits: Bits, magnitude: int, row: int, column: int, position: int) -> bool:
    if told.mode == 0:
        return True
    if told.mode == 1:
        return bits.bit(told.chance) == 1
    score = level(magnitude) + told.threshold
    if told.mode == 3:
        score += told.unit * (told.row_factors[row] + told.column_factors[column])
        score += told.positions[position]
    bucket = sum(edge <= score for edge in EDGES)
    if bucket < told.first or bucket >= told.last:
        return bucket >= told.last
    return bits.bit(told.chances[bucket - told.first]) == 1
