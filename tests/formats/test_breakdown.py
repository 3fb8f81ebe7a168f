from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pabzip import DenseTensor, FormatError, InitSpec, SeededTensor, Ticket
from pabzip.formats import CODERS
from pabzip.formats.report import PARTS
from pabzip.seeds import magnitudes

SEED = 5


def seeded(name, shape, keep=0.1, flips=0.5, stream=0):
    """Survivors are the largest weights, so that the magnitudes foretell the mask."""
    rng = np.random.default_rng(stream)
    spec = InitSpec("normal", 0.25, stream)
    levels = magnitudes(SEED, spec, 0, int(np.prod(shape)))
    mask = levels >= np.quantile(levels, 1 - keep)
    signs = np.where(rng.random(mask.size) < flips, np.int8(-1), np.int8(1))
    return SeededTensor(name, spec, (mask * signs).astype(np.int8).reshape(shape))


def dense(name, count):
    values = np.random.default_rng(count).normal(size=count).astype(np.float32)
    return DenseTensor(name, values, "float32", "float32")


def written(tensors, coder="auto"):
    file = io.BytesIO()
    info = Ticket(seed=SEED, tensors=tensors).save(file, coder=coder)
    with Ticket.open(file.getvalue()) as ticket:
        return info, ticket.breakdown(), len(file.getvalue())


def summed(rows, part):
    return sum(row[part] for row in rows)


@pytest.mark.parametrize("coder", ["auto", *CODERS])
def test_the_sum_is_the_file(coder):
    tensors = [
        dense("before", 7),
        seeded("conv", (32, 16, 3, 3)),
        dense("bias", 32),
        seeded("fc", (10, 512), keep=0.4, flips=0.1, stream=1),
        dense("norm", 10),
    ]
    info, rows, size = written(tensors, coder)
    assert [row["name"] for row in rows] == ["before", "conv", "bias", "fc", "norm", None]
    assert all(set(row) == {"name", *PARTS} for row in rows)
    assert all(row[part] >= 0 for row in rows for part in PARTS)
    assert sum(summed(rows, part) for part in PARTS) == size == info["bytes"]
    assert summed(rows, "dense") == info["dense_bytes"]
    assert rows[-1]["header"] == info["header_bytes"] == summed(rows, "header")
    assert sum(summed(rows, part) for part in ("mask", "factors", "signs")) == info["codes_bytes"]
    for row, tensor in zip(rows, info["tensors"], strict=False):
        own = row["mask"] + row["signs"] if tensor["kind"] == "seeded" else row["dense"]
        assert own == tensor["bytes"]


def test_huffman_is_a_bit_a_weight_and_a_bit_a_sign():
    tensor = seeded("w", (64, 100))
    _, rows, _ = written([tensor], "huffman")
    survivors = np.count_nonzero(tensor.codes)
    assert rows[0]["mask"] == pytest.approx(6400 / 8, abs=1)
    assert rows[0]["signs"] == pytest.approx(survivors / 8, abs=1)
    assert rows[0]["factors"] == 0


def test_context_tells_plain_signs_exactly_and_coded_ones_closely():
    tensor = seeded("w", (256, 256))
    survivors = int(np.count_nonzero(tensor.codes))
    _, rows, _ = written([tensor], "context")
    assert rows[0]["signs"] == (survivors + 7) // 8
    assert rows[0]["mask"] < 30
    assert 0 < rows[0]["factors"] < 60

    few = seeded("w", (256, 256), flips=0.1)
    _, rows, _ = written([few], "context")
    share = np.count_nonzero(few.codes < 0) / survivors
    entropy = -share * np.log2(share) - (1 - share) * np.log2(1 - share)
    assert rows[0]["signs"] == pytest.approx(survivors * entropy / 8, rel=0.02)
    assert rows[0]["mask"] < 40


def test_signs_alone_leave_no_mask():
    _, rows, _ = written([seeded("w", (64, 64), keep=1.0, flips=0.1)], "context")
    assert rows[0]["mask"] == 0
    assert rows[0]["signs"] > 0


def test_a_tensor_with_nothing_left_takes_next_to_nothing():
    empty = SeededTensor("empty", InitSpec("normal", 0.25, 1), np.zeros((50, 50), np.int8))
    _, rows, _ = written([empty, seeded("w", (64, 64))], "context")
    assert rows[0]["mask"] == rows[0]["signs"] == 0
    assert rows[0]["factors"] <= 16


def test_a_ticket_in_no_file_tells_what_it_would_take():
    tensors = [seeded("w", (64, 64)), dense("b", 64)]
    ticket = Ticket(seed=SEED, tensors=tensors)
    assert ticket.breakdown() == written(tensors)[1]


def test_a_damaged_side_stream_is_refused():
    file = io.BytesIO()
    ticket = Ticket(seed=SEED, tensors=[seeded("w", (64, 64))])
    info = ticket.save(file, coder="context")
    data = bytearray(file.getvalue())
    with Ticket.open(bytes(data)) as opened:
        start = opened._tensors.header_bytes
    assert start < info["bytes"]
    data[start] ^= 1
    with Ticket.open(bytes(data)) as damaged, pytest.raises(FormatError, match="side stream"):
        damaged.breakdown()


@settings(max_examples=20, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=4),
    keep=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    flips=st.sampled_from([0.0, 0.1, 0.5]),
    coder=st.sampled_from(["auto", *CODERS]),
)
def test_any_file_adds_up(shapes, keep, flips, coder):
    tensors = [seeded(f"w{at}", shape, keep, flips, stream=at) for at, shape in enumerate(shapes)]
    _, rows, size = written(tensors, coder)
    assert sum(summed(rows, part) for part in PARTS) == size
    assert min(row[part] for row in rows for part in PARTS) >= 0
