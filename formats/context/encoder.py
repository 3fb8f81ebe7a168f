"""Encode the tensors of a file: each alone and in parallel, then the side stream in order."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pabzip.formats.coder import OnTensor
from pabzip.formats.context.choose import describe, layouts
from pabzip.formats.context.chunk_writer import encode_chunk
from pabzip.formats.context.description import Description
from pabzip.formats.context.exchange import Exchange
from pabzip.formats.context.layout import Layout, find_live
from pabzip.formats.context.live import LivePlan, gather_live
from pabzip.formats.tensors import SeededTensor
from pabzip.seeds import InitSpec
from pabzip.seeds.backends import thread_count
from pabzip.seeds.cpu import generator_arguments


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """A tensor as one layout sees it.

    Attributes:
        plan: its live weights.
        levels: int16, of each.
        codes: int8, of each.
        told: how its codes are told, but for the chunks.
        bits: about how many bits the mask and all that tells it take.
    """

    plan: LivePlan
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
        for begin, end in told.live.chunks
    ]
    told.coded_bytes = np.array([len(coded) for coded, _, _ in chunks], dtype=np.int64)
    told.survivors = np.array([count for _, _, count in chunks], dtype=np.int64)
    return told, b"".join(coded + signs for coded, signs, _ in chunks)


def _see(seed: int, spec: InitSpec, flat: NDArray[np.int8], layout: Layout) -> _Seen:
    """Choose how a tensor's codes are told under one layout."""
    live = find_live(flat, layout)
    plan = LivePlan.of(live)
    levels = np.zeros(plan.count, dtype=np.int16)
    codes = np.zeros(plan.count, dtype=np.int8)
    if not plan.count:
        return _Seen(plan, levels, codes, Description(live), 0.0)
    gather_live(
        *generator_arguments(seed, spec), plan.rows, plan.group, plan.places, plan.starts,
        plan.width, flat, levels, codes,
    )  # fmt: skip
    told, bits = describe(live, plan, levels, codes)
    for flags in (live.row_alive, live.column_alive):
        bits += 0 if flags.all() else len(flags)
    return _Seen(plan, levels, codes, told, bits)
