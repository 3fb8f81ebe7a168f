"""The `context` coder: predicts the mask from the magnitudes that the seed gives.

The seed gives every magnitude, and a mask found by SynFlow, SNIP or magnitude is nearly a function
of them. So the file holds a few factors a channel, in a side stream that all tensors share, the few
bits that prediction leaves open, and the signs. SPEC.md states every byte.

This module is light; the encoder and the decoder, and numba with them, are loaded on use.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pabzip.errors import FormatError
from pabzip.formats.checks import shown
from pabzip.formats.coder import Decoder, OnTensor, Payload, Task
from pabzip.formats.context.fit import describe, layouts
from pabzip.formats.context.geometry import ActivePlan, Layout, find_active, gather_active
from pabzip.formats.context.model import Description
from pabzip.formats.context.payload import chunk_tasks, encode_chunk
from pabzip.formats.context.side_information import Exchange, read_descriptions
from pabzip.formats.entries import SeededEntry
from pabzip.formats.tensors import SeededTensor
from pabzip.seeds import InitSpec
from pabzip.seeds.cpu import generator_arguments
from pabzip.seeds.generation import thread_count


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """A tensor as one layout sees it.

    Attributes:
        plan: its active weights.
        levels: int16, of each.
        codes: int8, of each.
        told: how its codes are told, but for the chunks.
        bits: about how many bits the mask and all that tells it take.
    """

    plan: ActivePlan
    levels: NDArray[np.int16]
    codes: NDArray[np.int8]
    told: Description
    bits: float


def encode_tensors(
    seed: int, tensors: Sequence[SeededTensor], on_tensor: OnTensor | None = None
) -> tuple[list[bytes], bytes]:
    """Encode the tensors of one file.

    Args:
        seed: the file's seed.
        tensors: those that this coder is to hold, in the order of the file.
        on_tensor: told the name of each tensor that is done, from the thread that did it.

    Returns:
        One payload a tensor, and the side stream.
    """
    if not tensors:
        return [], b""
    rows_before = [None, *(tensor.shape[0] for tensor in tensors[:-1])]

    def encode(index: int) -> tuple[Description, bytes]:
        tensor = tensors[index]
        done = encode_tensor(seed, tensor.spec, tensor.codes, rows_before=rows_before[index])
        if on_tensor is not None:
            on_tensor(tensor.name)
        return done

    # The largest first, so that no thread is left with one at the end.
    order = sorted(range(len(tensors)), key=lambda index: -tensors[index].codes.size)
    with ThreadPoolExecutor(thread_count(None), thread_name_prefix="pabzip-encode") as pool:
        encoded = dict(zip(order, pool.map(encode, order), strict=True))
    exchange = Exchange()
    for index, tensor in enumerate(tensors):
        told = encoded[index][0]
        exchange.tensor(tensor.shape, int(told.survivors.sum()), told)
    return [encoded[index][1] for index in range(len(tensors))], exchange.stream.getvalue()


def encode_tensor(
    seed: int, spec: InitSpec, codes: NDArray[np.int8], *, rows_before: int | None = None
) -> tuple[Description, bytes]:
    """Encode one tensor: what the side stream must tell of it, and its payload.

    Args:
        seed: the file's seed.
        spec: the tensor's init spec.
        codes: int8, the shape of the tensor, values 0, +1 and -1.
        rows_before: output channels of the tensor before it in the file, if there is one.
    """
    flat = np.ascontiguousarray(codes).reshape(-1)
    seen = [_see(seed, spec, flat, layout) for layout in layouts(codes.shape, rows_before)]
    best = min(seen, key=lambda one: one.bits)
    told, plan = best.told, best.plan
    predictor = told.predictor(plan)
    chunks = [
        encode_chunk(plan, predictor, best.levels, best.codes, begin, end)
        for begin, end in told.active.chunks
    ]
    told.coded_bytes = np.array([len(coded) for coded, _, _ in chunks], dtype=np.int64)
    told.survivors = np.array([count for _, _, count in chunks], dtype=np.int64)
    return told, b"".join(coded + signs for coded, signs, _ in chunks)


def _see(seed: int, spec: InitSpec, flat: NDArray[np.int8], layout: Layout) -> _Seen:
    """Choose how a tensor's codes are told under one layout."""
    active = find_active(flat, layout)
    plan = ActivePlan.of(active)
    levels = np.zeros(plan.count, dtype=np.int16)
    codes = np.zeros(plan.count, dtype=np.int8)
    if not plan.count:
        return _Seen(plan, levels, codes, Description(active), 0.0)
    gather_active(
        *generator_arguments(seed, spec), plan.rows, plan.group, plan.places, plan.starts,
        plan.width, flat, levels, codes,
    )  # fmt: skip
    told, bits = describe(active, plan, levels, codes)
    for flags in (active.row_active, active.column_active):
        bits += 0 if flags.all() else len(flags)
    return _Seen(plan, levels, codes, told, bits)


class ContextDecoder:
    """`pabzip.formats.coder.Decoder` of the tensors that this coder holds in one file.

    Args:
        seed: the file's seed.
        entries: of those tensors, in the order of the file.
        side: the file's side stream.

    Raises:
        FormatError: the side stream is damaged, or does not fit the entries.
    """

    def __init__(self, seed: int, entries: Sequence[SeededEntry], side: bytes):
        self._seed = seed
        told = read_descriptions(side, entries)
        self.descriptions: dict[str, Description] = {
            entry.name: description for entry, description in zip(entries, told, strict=True)
        }

    def codes(self, entry: SeededEntry, payload: Payload, out: NDArray[np.int8]) -> list[Task]:
        """Return the work that writes codes to ``out``, one piece a chunk."""
        return self._tasks(entry, payload, out, np.zeros(0, dtype=np.float32))

    def weights(self, entry: SeededEntry, payload: Payload, out: NDArray[np.float32]) -> list[Task]:
        """Return the work that writes weights to ``out``, one piece a chunk."""
        return self._tasks(entry, payload, np.zeros(0, dtype=np.int8), out)

    def _tasks(
        self,
        entry: SeededEntry,
        payload: Payload,
        codes: NDArray[np.int8],
        weights: NDArray[np.float32],
    ) -> list[Task]:
        """Return the work of one tensor."""
        return chunk_tasks(
            self.descriptions[entry.name], payload, self._seed, entry.spec, codes, weights
        )


class Context:
    """`pabzip.formats.coder.Coder` that predicts masks from magnitudes."""

    name = "context"
    shares_side = True

    def check_length(self, entry: SeededEntry, length: int) -> None:
        """Check that the payload has room for the plain signs at most.

        What a payload needs at least follows from the side stream, and is checked with it.

        Raises:
            FormatError: it has more bytes than any encoder would use.
        """
        most = 2 * entry.count + 16
        if length > most:
            raise FormatError(
                f"tensor {shown(entry.name)}",
                f"expected at most {most} bytes of codes for {entry.count} weights, found {length}",
            )

    def encode(
        self,
        seed: int,
        tensors: Sequence[SeededTensor],
        on_tensor: OnTensor | None = None,
    ) -> tuple[list[bytes], bytes]:
        """Return one payload a tensor, and the side stream."""
        from pabzip.formats.context.coder import encode_tensors

        return encode_tensors(seed, tensors, on_tensor)

    def decoder(self, seed: int, entries: Sequence[SeededEntry], side: bytes) -> Decoder:
        """Read the side stream.

        Raises:
            FormatError: it is damaged, or does not fit the entries.
        """
        from pabzip.formats.context.coder import ContextDecoder

        return ContextDecoder(seed, entries, side)
