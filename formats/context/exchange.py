"""The side stream of a file: how each tensor's description stands in it, both ways."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pabzip.errors import FormatError
from pabzip.formats.context import contexts
from pabzip.formats.context.buckets import COUNT
from pabzip.formats.context.chunk_exchange import pass_coded_bytes, pass_survivors
from pabzip.formats.context.description import Description, MaskMode
from pabzip.formats.context.factor_exchange import pass_factors, pass_threshold
from pabzip.formats.context.layout import Layout, LiveBlock
from pabzip.formats.context.predictor import SIGNS_CODED, SIGNS_KEPT, SIGNS_PLAIN
from pabzip.formats.context.side_stream import SideStream
from pabzip.formats.entries import SeededEntry

_EARLIER = 2  # tensors whose rows may be what feeds a tensor's columns


@dataclass(frozen=True, slots=True, eq=False)
class _EarlierRows:
    """What the rows of an earlier tensor say of the columns that they may feed.

    Attributes:
        alive: bool, whether each row is live.
        foretold: int32, levels by which a column's factor is likely to differ from the middle
            one; None where the tensor has no factors.
    """

    alive: NDArray[np.bool_]
    foretold: NDArray[np.int32] | None


class Exchange:
    """The side stream of a whole file: tensors in order, each through `tensor`.

    Args:
        data: the stream to read, or None to write one.
    """

    def __init__(self, data: bytes | None = None):
        self.stream = SideStream(data, contexts.COUNT)
        self._earlier: dict[int, list[_EarlierRows]] = {}

    def tensor(
        self, shape: tuple[int, ...], survivors: int, known: Description | None = None
    ) -> Description:
        """Pass one tensor's description: write ``known``, or read and return one.

        Args:
            shape: of the tensor.
            survivors: of the whole tensor, as the header has them.
            known: what to write; None reads.

        Raises:
            FormatError: the stream holds a description that cannot be.
        """
        layout = self._layout(Layout.of_shape(shape), known)
        told = Description(self._live(layout, known))
        foretold = None
        if told.live.count():
            foretold = self._mask(told, known)
            self._signs(told, known)
        self._chunks(told, survivors, known)
        kept = self._earlier.get(layout.rows, [])[: _EARLIER - 1]
        self._earlier[layout.rows] = [_EarlierRows(told.live.row_alive, foretold), *kept]
        return told

    def _choice(self, value: int, base: int) -> int:
        """Pass a value of two bits, under three contexts."""
        high = self.stream.bit(value >> 1, base)
        return 2 * high + self.stream.bit(value & 1, base + 1 + high)

    def _layout(self, plain: Layout, known: Description | None) -> Layout:
        """Pass how the tensor is seen: plainly, or as groups and places within its columns."""
        wanted = known.live.layout if known else plain
        if self.stream.bit(int(wanted == plain), contexts.PLAIN_LAYOUT):
            return plain
        groups = self.stream.number(wanted.groups, contexts.LAYOUT)
        positions = self.stream.number(wanted.positions, contexts.LAYOUT)
        if groups < 1 or positions < 1 or plain.rows % groups or plain.width % positions:
            raise FormatError(
                "side stream",
                f"expected groups that divide {plain.rows} rows and positions that divide "
                f"{plain.width} places, found {groups} and {positions}",
            )
        return Layout(plain.rows, plain.width // positions, positions, groups)

    def _live(self, layout: Layout, known: Description | None) -> LiveBlock:
        """Pass which rows and columns are live; one bit where all are."""
        rows = known.live.row_alive if known else np.zeros(layout.rows, dtype=bool)
        rows = self._flags(rows, contexts.ALL_ROWS, np.full(layout.rows, contexts.ROW))
        # A dead output channel of an earlier layer is a dead input channel of a later one. Nothing
        # says which layer feeds which; the latest two with as many rows are as good a guess as any.
        column_contexts = np.full(layout.all_columns, contexts.COLUMN)
        for weight, earlier in zip((3, 1), self._earlier.get(layout.all_columns, []), strict=False):
            column_contexts += weight * (1 + earlier.alive)
        columns = known.live.column_alive if known else np.zeros(layout.all_columns, dtype=bool)
        columns = self._flags(columns, contexts.ALL_COLUMNS, column_contexts)
        live = LiveBlock(layout, rows, columns)
        by_row = rows.reshape(layout.groups, -1).any(axis=1)
        if np.any(by_row != columns.reshape(layout.groups, -1).any(axis=1)):
            raise FormatError(
                "side stream",
                "expected live rows and live columns in the same groups, found one without others",
            )
        return live

    def _flags(
        self, values: NDArray[np.bool_], all_context: int, each: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Pass whether all flags are set, and if not, each."""
        if self.stream.bit(int(values.all()), all_context):
            return np.ones(len(values), dtype=bool)
        return self.stream.bits(values.astype(np.uint8), each).astype(bool)

    def _mask(self, told: Description, known: Description | None) -> NDArray[np.int32] | None:
        """Pass how the mask is told, with its numbers; return what its rows say to later ones."""
        told.mask = MaskMode(self._choice(known.mask if known else 0, contexts.MODE))
        foretold = None
        factors = known.factors if known else None
        if told.mask is MaskMode.EVEN:
            told.chance = self.stream.plain(known.chance if known else 0, 16)
            if told.chance == 0:
                raise FormatError("side stream", "expected a probability above 0, found 0")
        elif told.mask is MaskMode.THRESHOLD:
            told.factors = pass_threshold(self.stream, factors)
        elif told.mask is MaskMode.FACTORS:
            before = self._earlier.get(told.live.layout.all_columns, [])
            earlier = [rows.foretold for rows in before if rows.foretold is not None]
            told.factors, foretold = pass_factors(self.stream, told.live, earlier, factors)
        if told.factors is not None:
            self._buckets(told, known)
        return foretold

    def _buckets(self, told: Description, known: Description | None) -> None:
        """Pass the uncertain buckets and the probability of each."""
        told.first = self.stream.plain(known.first if known else 0, 5)
        told.last = self.stream.plain(known.last if known else 0, 5)
        if not told.first <= told.last <= COUNT:
            raise FormatError(
                "side stream",
                f"expected uncertain buckets in 0 to {COUNT}, found {told.first} to {told.last}",
            )
        wanted = known.indices if known else np.zeros(told.last - told.first, dtype=np.int64)
        told.indices = np.array([self.stream.plain(int(index), 7) for index in wanted], np.int64)

    def _signs(self, told: Description, known: Description | None) -> None:
        """Pass how the flips are told."""
        told.signs = self._choice(known.signs if known else 0, contexts.SIGNS)
        if told.signs not in (SIGNS_KEPT, SIGNS_PLAIN, SIGNS_CODED):
            raise FormatError("side stream", f"expected a way to tell signs, found {told.signs}")
        if told.signs == SIGNS_CODED:
            told.flip_index = self.stream.plain(known.flip_index if known else 0, 7)

    def _chunks(self, told: Description, survivors: int, known: Description | None) -> None:
        """Pass the coded bytes and the survivors of each chunk."""
        weights = told.live.chunk_weights().tolist()
        if weights:
            told.coded_bytes = pass_coded_bytes(
                self.stream, weights, known.coded_bytes if known else None
            )
            told.survivors = pass_survivors(
                self.stream, weights, survivors, known.survivors if known else None
            )
        elif survivors:
            raise FormatError(
                "side stream", f"expected {survivors} survivors, found no live weight"
            )


def read_descriptions(data: bytes, entries: Sequence[SeededEntry]) -> Iterator[Description]:
    """Yield the description of each tensor of a side stream, in order, and check its end.

    Args:
        data: the side stream.
        entries: the tensors that it tells of, in order.

    Raises:
        FormatError: the stream holds what cannot be, or goes on after the last tensor.
    """
    exchange = Exchange(data)
    for entry in entries:
        yield exchange.tensor(entry.shape, entry.survivors)
    exchange.stream.close()
