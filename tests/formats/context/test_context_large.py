"""Tensors above 2**31 elements, of which a few rows are active: decoded without the memory."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from pabzip.errors import FormatError
from pabzip.formats.coder import run_tasks
from pabzip.formats.context import geometry as layouts
from pabzip.formats.context.decoder import chunk_tasks
from pabzip.formats.context.encoder import describe, encode_chunks
from pabzip.formats.context.geometry import (
    PIECE,
    ActiveBlock,
    ActivePlan,
    ActiveWeights,
    Layout,
    next_piece,
)
from pabzip.formats.context.model import MaskMode
from pabzip.formats.context.side_information import SideInformation
from pabzip.seeds import InitSpec, magnitudes, weights
from pabzip.seeds.kernels import Generator, picked_magnitudes

SEED = 77
SPEC = InitSpec("normal", 0.5, 3)
ROWS, WIDTH = 70_001, 66_000  # 4.6e9 weights: beyond 2**32
ACTIVE_ROWS = [0, 1, 35_000, 69_999, 70_000]
ACTIVE_COLUMNS = [0, 3, 4, 40_000, 65_998, 65_999, *range(1000, 1600)]


def block() -> ActiveBlock:
    rows, columns = np.zeros(ROWS, dtype=bool), np.zeros(WIDTH, dtype=bool)
    rows[ACTIVE_ROWS], columns[ACTIVE_COLUMNS] = True, True
    return ActiveBlock(Layout(ROWS, WIDTH, 1), rows, columns)


def elements() -> np.ndarray:
    """Where the active weights are, in Python's integers first."""
    return np.array([row * WIDTH + c for row in ACTIVE_ROWS for c in sorted(ACTIVE_COLUMNS)])


def reference(places: np.ndarray) -> np.ndarray:
    """Magnitudes of single elements, by the generator that defines them."""
    found = [magnitudes(SEED, SPEC, int(e), int(e) + 1, backend="numpy")[0] for e in places]
    return np.array(found)


def test_pieces_reach_beyond_2_to_the_32() -> None:
    plan = ActivePlan.of(block())
    element, offsets = np.empty(PIECE, dtype=np.int64), np.empty(PIECE, dtype=np.int32)
    row_offsets = np.arange(len(plan.rows), dtype=np.int32) * 1000
    place_offsets = np.arange(len(plan.places), dtype=np.int32)
    summed = (row_offsets[:, None] + place_offsets).reshape(-1).tolist()
    words, found = (np.empty(PIECE, dtype=np.uint32) for _ in range(2))
    row, place, seen, added = 0, 0, [], []
    while True:
        count, row, place = next_piece(
            plan, row_offsets, place_offsets, row, place, len(plan.rows), element, offsets,
        )  # fmt: skip
        if not count:
            break
        piece = element[:count].copy()
        picked_magnitudes(Generator.of(SEED, SPEC), piece, words, found)
        np.testing.assert_array_equal(found[:count], reference(piece))
        seen += piece.tolist()
        added += offsets[:count].tolist()
    assert seen == elements().tolist()
    assert added == summed
    assert seen[-1] > 2**32


@pytest.mark.parametrize("chunk", [100, 1 << 16])
def test_a_chunk_beyond_2_to_the_32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain: ModuleType, chunk: int
) -> None:
    """Codes and weights land where they belong, in a sparse file of the tensor's full size."""
    monkeypatch.setattr(layouts, "CHUNK_WEIGHTS", chunk)
    active, places = block(), elements()
    known = reference(places)
    levels = np.array([plain.level(n) for n in known.tolist()], dtype=np.int16)
    rng = np.random.default_rng(1)
    codes = np.where(known > np.quantile(known, 0.7), 1, 0).astype(np.int8)
    codes[rng.random(len(codes)) < 0.01] = 1
    codes *= rng.choice(np.array([1, -1], np.int8), len(codes))
    active_weights = ActiveWeights(ActivePlan.of(active), levels, codes)
    description, _ = describe(active, active_weights)
    assert description.mask is MaskMode.THRESHOLD
    payload = encode_chunks(description, active_weights)
    survivors = int(description.survivors.sum())
    writer = SideInformation()
    writer.tensor((ROWS, WIDTH), survivors, description)
    read = SideInformation(writer.stream.getvalue()).tensor((ROWS, WIDTH), survivors)

    none: Any = np.zeros(0, np.int8)
    # Pages of the file that nothing is written to take no room.
    sparse = np.asarray(np.memmap(tmp_path / "codes", np.int8, "w+", shape=(ROWS * WIDTH,)))
    run_tasks(chunk_tasks(read, payload, SEED, SPEC, sparse, none.astype(np.float32)), 2)
    np.testing.assert_array_equal(sparse[places], codes)
    assert not sparse[places[:-1] + 1][np.diff(places) > 1].any()

    dense = np.asarray(np.memmap(tmp_path / "weights", np.float32, "w+", shape=(ROWS * WIDTH,)))
    run_tasks(chunk_tasks(read, payload, SEED, SPEC, none, dense), 2)
    for place, code in zip(places[::50].tolist(), codes[::50].tolist(), strict=True):
        expected = weights(SEED, SPEC, place, place + 1, backend="numpy")[0] * code
        assert dense[place] == expected

    with pytest.raises(FormatError, match="expected"):  # another seed is noticed
        run_tasks(chunk_tasks(read, payload, SEED + 1, SPEC, none, none.astype(np.float32)), 1)
