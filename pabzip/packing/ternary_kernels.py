"""Compiled loops that find out whether weights are ternary, and how their survivors lie.

Weights are their bit patterns as unsigned integers; the *size* of one is its pattern without the
sign. Every loop stops within a few thousand weights of the first that does not fit, so what is not
ternary costs next to nothing.
"""

from __future__ import annotations

import numpy as np

from pabzip.seeds.compiled import compiled

_PIECE = 4096


@compiled
def other_size(bits, sign, size):  # type: ignore[no-untyped-def]
    """Return the place of the first weight whose size is neither 0 nor ``size``; -1 if none is."""
    mask, size = bits.dtype.type(sign - 1), bits.dtype.type(size)
    for begin in range(0, bits.size, _PIECE):
        end = min(begin + _PIECE, bits.size)
        wrong = 0
        for place in range(begin, end):
            found = bits[place] & mask
            wrong |= (found != 0) & (found != size)
        if wrong:
            for place in range(begin, end):
                found = bits[place] & mask
                if found != 0 and found != size:
                    return place
    return -1


@compiled
def negative_zeros(bits, sign):  # type: ignore[no-untyped-def]
    """Return how many weights are -0.0."""
    count, found = 0, bits.dtype.type(sign)
    for place in range(bits.size):
        count += bits[place] == found
    return count


@compiled
def run_sizes(bits, sign, run, sizes):  # type: ignore[no-untyped-def]
    """Write the size of each run of ``run`` successive weights, 0 where all are 0.

    Returns whether every weight of a run has its size, or is 0.
    """
    mask = bits.dtype.type(sign - 1)
    for number in range(sizes.size):
        begin, end = number * run, (number + 1) * run
        place = begin
        while place < end and bits[place] & mask == 0:
            place += 1
        sizes[number] = 0
        while place < end:
            size = bits[place] & mask
            if sizes[number] == 0:
                sizes[number] = size
            size = sizes[number]
            stop = min(place + _PIECE, end)
            wrong = 0
            for at in range(place, stop):
                found = bits[at] & mask
                wrong |= (found != 0) & (found != size)
            if wrong:
                return False
            place = stop
    return True


@compiled
def column_sizes(bits, sign, sizes):  # type: ignore[no-untyped-def]
    """Write the size of each column, 0 where all are 0; ``sizes`` are zeros at first.

    ``bits`` are of whole rows. Returns whether every weight of a column has its size, or is 0.
    """
    mask, width = bits.dtype.type(sign - 1), sizes.size
    for begin in range(0, bits.size, width):
        wrong = 0
        for column in range(width):
            found = bits[begin + column] & mask
            size = sizes[column]
            wrong |= (found != 0) & (size != 0) & (found != size)
            sizes[column] = size if found == 0 else found
        if wrong:
            return False
    return True


@compiled
def count_survivors(bits, sign, columns, step, rows, of_rows, of_columns, of_places):  # type: ignore[no-untyped-def]
    """Count weights that are not 0, by row, by column, and by place within a column.

    A row is ``columns`` columns of ``len(of_places)`` weights each. Every ``step``-th of ``rows``
    rows counts; the arrays are int64 zeros at first.
    """
    mask, places = bits.dtype.type(sign - 1), of_places.size
    width = columns * places
    for number in range(of_rows.size):
        begin = number * step * width
        if places == 1:
            total = 0
            for column in range(width):
                one = (bits[begin + column] & mask) != 0
                of_columns[column] += one
                total += one
            of_rows[number] = total
        else:
            for column in range(columns):
                for place in range(places):
                    one = np.int64((bits[begin + column * places + place] & mask) != 0)
                    of_columns[column] += one
                    of_places[place] += one
                    of_rows[number] += one
    if places == 1:
        of_places[0] = of_rows.sum()
