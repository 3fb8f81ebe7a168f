"""Tables of where the chunks of context-coded tensors lie, for the kernels that decode them.

All tensors of a file are decoded by the same three launches, so that the chunks of every tensor
are in flight together: a ResNet has a few chunks a tensor, and one tensor's alone would leave most
of the GPU idle. So the tables run over the chunks of all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pabzip.errors import FormatError
from pabzip.formats.coder import Payload
from pabzip.formats.context.geometry import ActivePlan
from pabzip.formats.context.model import COUNT, Description
from pabzip.formats.limits import tensor_place
from pabzip.formats.seeded import SeededEntry
from pabzip.seeds.cuda import KINDS

PIECE = 1024
"""Active weights that one program of the parallel kernels handles."""

CHUNK_FIELDS = (
    "count",  # active weights
    "begin",  # first active row, in `DecodeTables.rows`
    "end",  # one past the last
    "piece",  # number of its first piece
    "tensor",  # number of its tensor
    "stream",
    "kind",
    "factor",  # the bits of a float32
    "scored",  # whether buckets follow from scores
    "first",  # uncertain bucket
    "last",  # one past the last uncertain bucket
    "chances",  # of the tensor's buckets, in `DecodeTables.chances`
    "signs",  # how they are coded
    "flip_chance",
    "coded",  # first range-coded byte, in `DecodeTables.data`
    "plain",  # one past the last, and first byte of plain signs
    "survivors",
    "out",  # address of the tensor's weights
)
"""The int64 columns of `DecodeTables.chunks`."""

_COUNT, _BEGIN, _END, _PIECE = map(CHUNK_FIELDS.index, ("count", "begin", "end", "piece"))
_CODED, _PLAIN = map(CHUNK_FIELDS.index, ("coded", "plain"))

ROW_FIELDS = 4
"""The int64 columns of `DecodeTables.rows`: the row's first element, the active weights of the
tensor before it, its first place in `DecodeTables.places`, and the levels that it adds."""


class CodedTensor(NamedTuple):
    """One tensor to decode.

    Attributes:
        entry: what the header says of it.
        description: what the side stream says of it.
        payload: its section of the file.
        out: address of its weights on the device, which are all zeros.
    """

    entry: SeededEntry
    description: Description
    payload: Payload
    out: int


class DecodeTables(NamedTuple):
    """Everything that the kernels read, over all tensors.

    Attributes:
        data: uint8, all payloads.
        chunks: int64, (chunks, len(CHUNK_FIELDS)).
        chunk_of: int32, the chunk of each piece.
        rows: int64, (active rows, ROW_FIELDS).
        places: int64, place within a row of each active place.
        place_offsets: int32, levels that each active place adds.
        chances: int32, probability of survival times 65536 of each bucket of each tensor.
    """

    data: NDArray[np.uint8]
    chunks: NDArray[np.int64]
    chunk_of: NDArray[np.int32]
    rows: NDArray[np.int64]
    places: NDArray[np.int64]
    place_offsets: NDArray[np.int32]
    chances: NDArray[np.int32]


def decode_tables(tensors: Sequence[CodedTensor]) -> DecodeTables:
    """Lay out the chunks of all tensors, of which there is at least one."""
    parts = [_of_tensor(number, tensor) for number, tensor in enumerate(tensors)]
    data_before, rows_before, places_before, pieces_before = 0, 0, 0, 0
    for data, chunks, rows, places, *_ in parts:
        chunks[:, [_CODED, _PLAIN]] += data_before
        chunks[:, [_BEGIN, _END]] += rows_before
        chunks[:, _PIECE] += pieces_before
        rows[:, 2] += places_before
        data_before += len(data)
        rows_before += len(rows)
        places_before += len(places)
        pieces_before += int(_pieces(chunks[:, _COUNT]).sum())
    joined = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
    data, chunks, rows, places, place_offsets, chances = joined
    chunk_of = np.repeat(np.arange(len(chunks), dtype=np.int32), _pieces(chunks[:, _COUNT]))
    return DecodeTables(data, chunks, chunk_of, rows, places, place_offsets, chances)


def _of_tensor(number: int, tensor: CodedTensor) -> tuple[NDArray[Any], ...]:
    """Return one tensor's part of the tables, as if it were the first."""
    description, spec = tensor.description, tensor.entry.spec
    try:
        spans = description.spans(len(tensor.payload))
    except FormatError as error:
        raise FormatError(tensor_place(tensor.entry.name), error.problem) from None
    plan = ActivePlan.of(description.active)
    predictor = description.predictor(plan)
    starts = np.concatenate([np.zeros(1, np.int64), plan.ends[:-1]])[: len(plan.rows)]
    places = plan.starts[plan.group]
    rows = np.stack([plan.rows * plan.width, starts, places, predictor.row_offsets], axis=1)
    begin, end, coded, plain, _, survivors = np.array(spans, dtype=np.int64).reshape(-1, 6).T
    counts = plan.ends[end - 1] - starts[begin]
    fields = {
        "count": counts,
        "begin": begin,
        "end": end,
        "piece": np.cumsum(_pieces(counts)) - _pieces(counts),
        "tensor": number,
        "stream": spec.stream,
        "kind": KINDS[spec.distribution],
        "factor": int(spec.factor.view(np.int32)),
        "scored": predictor.scored,
        "first": predictor.first,
        "last": predictor.last,
        "chances": number * COUNT,
        "signs": predictor.signs,
        "flip_chance": predictor.flip_chance,
        "coded": coded,
        "plain": plain,
        "survivors": survivors,
        "out": tensor.out,
    }
    chunks = np.empty((len(spans), len(CHUNK_FIELDS)), dtype=np.int64)
    for column, name in enumerate(CHUNK_FIELDS):
        chunks[:, column] = fields[name]
    data = np.frombuffer(tensor.payload, dtype=np.uint8)
    chances = predictor.chances.astype(np.int32)
    return data, chunks, rows, plan.places, predictor.place_offsets, chances


def _pieces(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the pieces that so many active weights take."""
    return -(-counts // PIECE)
