"""Codes of every shape and structure come back, through both decoders; weights to the bit."""

from __future__ import annotations

import io
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pabzip.formats.coder import run_tasks
from pabzip.formats.context import Context
from pabzip.formats.context import geometry as layout
from pabzip.seeds import DISTRIBUTIONS, regenerate
from pabzip.ticket import Ticket

# Each list of shapes is a file: what comes first decides how a later tensor may be seen.
NETWORKS: list[list[tuple[int, ...]]] = [
    [(1,)],
    [(17,)],
    [(1, 1)],
    [(6, 5)],
    [(1, 40), (40, 1)],
    [(50, 8)],  # an embedding
    [(8, 3, 3, 3), (8, 8, 3, 3), (12, 8, 1, 1), (5, 12)],
    [(6, 4, 5), (6, 6, 3)],
    [(4, 3, 2, 3, 2), (3, 4, 1, 2, 2)],
    [(8, 4, 3, 3), (8, 2, 3, 3), (4, 8)],  # grouped: 8 channels, 2 a group
    [(9, 4), (9, 1, 3, 3), (6, 9, 1, 1)],  # depthwise
    [(6, 3, 3, 3), (7, 6 * 4)],  # a Linear after a flatten
    [(2, 3, 1, 1, 1, 1)],
]

networks = st.sampled_from(NETWORKS)
structures = st.sampled_from(["random", "magnitude", "synflow", "empty", "all empty", "all active"])
signs = st.sampled_from(["kept", "flipped", "random", "few flips"])
keeps = st.sampled_from([0.0, 0.02, 0.1, 0.3, 0.5, 0.9, 1.0])


@settings(max_examples=120, deadline=None)
@given(data=st.data(), shapes=networks)
def test_any_network_comes_back(
    data: Any, shapes: list[tuple[int, ...]], make: Any, encode: Any, plain: ModuleType
) -> None:
    tensors = [
        make(
            f"w{place}",
            shape,
            distribution=data.draw(st.sampled_from(DISTRIBUTIONS)),
            stream=place,
            structure=data.draw(structures),
            keep=data.draw(keeps),
            signs=data.draw(signs),
        )
        for place, shape in enumerate(shapes)
    ]
    written = encode(tensors)
    for one, found, plainly in zip(
        tensors, written.decode(), written.decode_plainly(plain), strict=True
    ):
        np.testing.assert_array_equal(found, one.codes)
        np.testing.assert_array_equal(plainly, one.codes)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), rows=st.integers(1, 12), columns=st.integers(1, 12))
def test_any_codes_come_back(
    data: Any, rows: int, columns: int, make: Any, encode: Any, plain: ModuleType
) -> None:
    one = make("w", (rows, columns))
    values = data.draw(st.lists(st.sampled_from([0, 1, -1]), min_size=144, max_size=144))
    one.codes[:] = np.array(values[: rows * columns]).reshape(rows, columns)
    written = encode([one])
    np.testing.assert_array_equal(written.decode()[0], one.codes)
    np.testing.assert_array_equal(written.decode_plainly(plain)[0], one.codes)


def residual_network(make: Any, **options: Any) -> list[Any]:
    """Layers with enough weights for every mask mode, and factors that earlier rows foretell."""
    shapes = [(24, 8, 3, 3), (24, 24, 3, 3), (24, 24, 1, 1), (24, 24, 3, 3), (40, 24 * 4)]
    kinds = ["magnitude", "synflow", "random", "empty", "synflow"]
    return [
        make(f"w{place}", shape, stream=place, structure=kind, **options)
        for place, (shape, kind) in enumerate(zip(shapes, kinds, strict=True))
    ]


@pytest.mark.parametrize("keep", [0.05, 0.4])
@pytest.mark.parametrize("chunk", [1, 100, 1000])
def test_chunks_of_any_size(
    make: Any,
    encode: Any,
    plain: ModuleType,
    seed: int,
    monkeypatch: pytest.MonkeyPatch,
    keep: float,
    chunk: int,
) -> None:
    """Both decoders agree, and fused weights are those of the codes, on one thread and two."""
    monkeypatch.setattr(layout, "CHUNK_WEIGHTS", chunk)
    monkeypatch.setattr(plain, "CHUNK_WEIGHTS", chunk)
    written = encode(residual_network(make, keep=keep))
    decoder = Context().decoder(seed, written.entries, written.side)
    assert max(len(decoder.descriptions[f"w{n}"].survivors) for n in range(5)) > 2
    for found, plainly, one in zip(
        written.decode(), written.decode_plainly(plain), written.tensors, strict=True
    ):
        np.testing.assert_array_equal(found, one.codes)
        np.testing.assert_array_equal(plainly, one.codes)
    for threads in (1, 2):
        outs = [np.zeros(entry.count, np.float32) for entry in written.entries]
        triples = zip(written.entries, written.payloads, outs, strict=True)
        tasks = [task for triple in triples for task in decoder.weights(*triple)]
        run_tasks(tasks, threads)
        for one, out in zip(written.tensors, outs, strict=True):
            expected = regenerate(seed, one.spec, one.codes, backend="numpy").reshape(-1)
            assert out.tobytes() == expected.tobytes()  # +0.0 and -0.0 differ here


def test_every_mask_mode_occurs(make: Any, encode: Any) -> None:
    """What the tests above go through: otherwise they would prove little."""
    modes = encode(residual_network(make, keep=0.2)).modes()
    assert set(modes) == {1, 2, 3}
    assert encode([make("w", (5, 5), structure="all active")]).modes() == [0]


def test_equal_input_gives_equal_bytes(make: Any, encode: Any) -> None:
    first, second = (encode(residual_network(make)) for _ in range(2))
    assert (first.payloads, first.side) == (second.payloads, second.side)


@pytest.mark.parametrize("coder", ["huffman", "context", "auto"])
def test_all_coders_give_the_same_ticket(make: Any, coder: str, seed: int) -> None:
    tensors = residual_network(make, signs="few flips")
    ticket = Ticket(seed=seed, tensors=tensors)
    stream = io.BytesIO()
    ticket.save(stream, coder=coder)
    with Ticket.open(stream.getvalue()) as loaded:
        assert loaded.sha256() == ticket.sha256(backend="numpy")
        for one in tensors:
            np.testing.assert_array_equal(loaded.codes(one.name), one.codes)
            numpys = ticket.weight(one.name, backend="numpy")
            np.testing.assert_array_equal(loaded.weight(one.name, threads=2), numpys)


def test_one_decoder_serves_several_threads(make: Any, encode: Any, seed: int) -> None:
    written = encode(residual_network(make))
    decoder = Context().decoder(seed, written.entries, written.side)
    outs = [np.zeros(entry.count, np.int8) for entry in written.entries for _ in range(8)]
    pairs = [pair for pair in zip(written.entries, written.payloads, strict=True) for _ in range(8)]

    def work(place: int) -> Any:
        def task() -> None:
            for piece in decoder.codes(*pairs[place], outs[place]):
                piece()

        return task

    run_tasks([work(place) for place in range(len(outs))], 4)
    for place, out in enumerate(outs):
        np.testing.assert_array_equal(out, written.tensors[place // 8].codes.reshape(-1))


def test_no_tensors(encode: Any) -> None:
    written = encode([])
    assert (written.payloads, written.side, written.decode()) == ([], b"", [])
