"""The ticket: in memory and in files, lazily, with the numbers that stay stable."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from pabzip.errors import FormatError, PackError, SeedError
from pabzip.seeds import DISTRIBUTIONS, InitSpec, regenerate
from pabzip.ticket import DenseTensor, SeededTensor, Ticket, TicketReport

SPEC = InitSpec("normal", 0.25, 3)
CODES = np.array([[0, 1, -1], [1, 0, 0]], np.int8)
VALUES = np.array([0.5, -1.0], np.float32)


def seeded(name: str = "w", codes: Any = CODES, spec: Any = SPEC) -> SeededTensor:
    return SeededTensor(name, spec, codes)


def dense(name: str = "b", values: Any = VALUES, dtype: str = "float32") -> DenseTensor:
    return DenseTensor(name, values, dtype, dtype)


@pytest.fixture
def ticket() -> Ticket:
    return Ticket(
        seed=7,
        tensors=[dense("first"), seeded(), dense()],
        arch="conv2",
        arch_options={"num_classes": 10},
        metadata={"epochs": 3},
    )


@pytest.fixture
def path(ticket: Ticket, tmp_path: Path) -> Path:
    ticket.save(tmp_path / "m.pabz", coder="huffman")
    return tmp_path / "m.pabz"


def check_content(ticket: Ticket) -> None:
    assert (ticket.seed, ticket.arch) == (7, "conv2")
    assert ticket.arch_options == {"num_classes": 10}
    assert ticket.metadata == {"epochs": 3}
    assert ticket.names == ("first", "w", "b")
    assert [ticket.kind(name) for name in ticket.names] == ["dense", "seeded", "dense"]
    assert [ticket.shape(name) for name in ticket.names] == [(2,), (2, 3), (2,)]
    assert [ticket.dtype(name) for name in ticket.names] == ["float32"] * 3
    assert ticket.spec("w") == SPEC
    assert ticket.codes("w").dtype == np.int8
    np.testing.assert_array_equal(ticket.codes("w"), CODES)
    np.testing.assert_array_equal(ticket.dense("b").values, VALUES)
    expected = regenerate(7, SPEC, CODES, backend="numpy")
    for backend in ("numpy", "numba"):
        np.testing.assert_array_equal(ticket.weight("w", backend=backend), expected)
    arrays = ticket.arrays(threads=1)
    assert list(arrays) == ["first", "w", "b"]
    np.testing.assert_array_equal(arrays["w"], expected)


def test_in_memory(ticket: Ticket) -> None:
    check_content(ticket)
    assert ticket.verify() == ticket.sha256()
    assert repr(ticket) == "<Ticket conv2, seed 7, 3 tensors>"
    ticket.close()


def test_from_a_path(path: Path) -> None:
    for source in (path, str(path)):
        with Ticket.open(source) as ticket:
            check_content(ticket)
            assert repr(ticket) == f"<Ticket conv2, seed 7, 3 tensors in '{path}'>"


def test_from_bytes(path: Path) -> None:
    data = path.read_bytes()
    for source in (data, bytearray(data), memoryview(data)):
        check_content(Ticket.open(source))


def test_from_streams(path: Path) -> None:
    class Slow(io.RawIOBase):
        """A stream that cannot seek and hands out few bytes at a time."""

        def __init__(self, data: bytes) -> None:
            self.rest = data

        def read(self, size: int = -1) -> bytes:
            piece, self.rest = self.rest[: min(size, 7)], self.rest[min(size, 7) :]
            return piece

    data = path.read_bytes()
    check_content(Ticket.open(io.BytesIO(data)))
    check_content(Ticket.open(Slow(data)))
    stream = io.BytesIO(b"before" + data)
    stream.seek(6)
    check_content(Ticket.open(stream))


def test_from_a_named_pipe(path: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(path.read_bytes()))
    writer.start()
    with Ticket.open(pipe) as ticket:
        check_content(ticket)
    writer.join()


def test_from_something_else() -> None:
    with pytest.raises(TypeError, match="expected a path, bytes or a binary stream, found int"):
        Ticket.open(3)  # type: ignore[arg-type]


def test_an_endless_stream_is_not_read_to_its_end(path: Path) -> None:
    class Endless(io.RawIOBase):
        taken = 0

        def read(self, size: int = -1) -> bytes:
            self.taken += size
            return bytes(size)

    stream = Endless()
    with pytest.raises(FormatError, match="magic"):
        Ticket.open(stream)
    assert stream.taken < 100

    class Following(Endless):
        data = io.BytesIO(path.read_bytes())

        def read(self, size: int = -1) -> bytes:
            return self.data.read(size) or super().read(size)

    following = Following()
    with pytest.raises(FormatError, match="something follows the last section"):
        Ticket.open(following)
    assert following.taken < 100


def test_tensors_are_read_when_asked_for(path: Path) -> None:
    data = bytearray(path.read_bytes())
    info = Ticket.open(bytes(data)).info()
    data[info["header_bytes"] - 2 * 4] ^= 1  # the first payload: the codes of w
    path.write_bytes(data)
    with Ticket.open(path) as ticket:
        assert ticket.info() == info
        np.testing.assert_array_equal(ticket.weight("b"), VALUES)
        with pytest.raises(FormatError, match=r"m\.pabz: codes of 'w': expected its CRC-32"):
            ticket.weight("w")
        with pytest.raises(FormatError, match=r"m\.pabz: codes of 'w'"):
            ticket.verify()


def test_a_file_that_changes_while_it_is_open(path: Path) -> None:
    with Ticket.open(path) as ticket:
        with path.open("r+b") as stream:
            stream.truncate(60)
        with pytest.raises(FormatError, match="found the file cut"):
            ticket.arrays()


def test_a_file_that_is_replaced_while_it_is_open(path: Path, tmp_path: Path) -> None:
    with Ticket.open(path) as ticket:
        Ticket(seed=1, tensors=[dense("x")]).save(path)
        check_content(ticket)


def test_after_close(path: Path) -> None:
    ticket = Ticket.open(path)
    ticket.close()
    ticket.close()
    assert ticket.names == ("first", "w", "b")
    with pytest.raises(ValueError, match="read of a closed ticket"):
        ticket.codes("w")


def test_a_refused_file_is_closed(tmp_path: Path) -> None:
    bad = tmp_path / "bad.pabz"
    bad.write_bytes(b"nonsense")
    before = set(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else set()
    for _ in range(20):
        with pytest.raises(FormatError):
            Ticket.open(bad)
    after = set(os.listdir("/proc/self/fd")) if before else set()
    assert len(after) <= len(before) + 1


def test_names_of_the_wrong_kind(ticket: Ticket) -> None:
    with pytest.raises(KeyError, match="b: expected a seeded tensor, found a dense one"):
        ticket.codes("b")
    with pytest.raises(KeyError, match="b: expected a seeded tensor"):
        ticket.spec("b")
    with pytest.raises(KeyError, match="w: expected a dense tensor, found a seeded one"):
        ticket.dense("w")
    for method in (ticket.kind, ticket.shape, ticket.dtype, ticket.spec, ticket.weight):
        with pytest.raises(KeyError, match="absent"):
            method("absent")


def test_a_ticket_in_a_file_answers_as_one_in_memory(ticket: Ticket, path: Path) -> None:
    with Ticket.open(path) as opened:
        for either in (ticket, opened):
            for call in (either.weights, either.coded, either.scales):
                name: Any = ["b"] if call == either.weights else "b"
                with pytest.raises(KeyError, match="b: expected a seeded tensor, found a dense"):
                    call(name)
            assert either.scales("w") is None
            assert either.weights(iter(["w"]))["w"].tolist() == either.weight("w").tolist()
        assert ticket.coded("w") is None
        assert opened.coded("w") is not None
        assert opened.verify() == ticket.verify()
    stream = io.BytesIO()
    ticket.save(stream)
    assert Ticket.open(stream.getvalue()).breakdown() == ticket.breakdown()


def test_info(ticket: Ticket, path: Path) -> None:
    info = Ticket.open(path).info()
    assert list(info) == [
        "bytes",
        "codes_bytes",
        "dense_bytes",
        "header_bytes",
        "weights",
        "survivors",
        "huffman_bytes",
        "float32_bytes",
        "seed",
        "arch",
        "sha256",
        "base",
        "tensors",
        "negative_zeros_dropped",
    ]
    assert info["bytes"] == path.stat().st_size
    assert info["bytes"] == info["header_bytes"] + info["codes_bytes"] + info["dense_bytes"]
    assert (info["weights"], info["survivors"]) == (6, 3)
    assert info["codes_bytes"] == info["huffman_bytes"] == 2  # 9 bits
    assert info["float32_bytes"] == 4 * 10
    assert (info["seed"], info["arch"], info["sha256"]) == (7, "conv2", ticket.sha256())
    assert info["tensors"][1] == {
        "name": "w",
        "shape": [2, 3],
        "dtype": "float32",
        "kind": "seeded",
        "coder": "huffman",
        "bytes": 2,
        "weights": 6,
        "survivors": 3,
    }
    assert info["tensors"][2]["coder"] in ("raw", "deflate", "adaptive")
    assert info["tensors"][2]["survivors"] is None
    payloads = sum(row["bytes"] for row in info["tensors"])
    assert payloads == info["codes_bytes"] + info["dense_bytes"]


def test_info_is_a_report_and_a_mapping(ticket: Ticket, path: Path) -> None:
    found = ticket.save(io.BytesIO(), coder="huffman")
    with Ticket.open(path) as opened:
        assert found == opened.info()
    assert isinstance(found, TicketReport)
    assert found.bytes == found["bytes"] == path.stat().st_size
    assert (found.weights, found.survivors) == (6, 3)
    assert dict(found) == json.loads(json.dumps(dict(found)))
    assert list(found) == [
        *("bytes", "codes_bytes", "dense_bytes", "header_bytes", "weights", "survivors"),
        *("huffman_bytes", "float32_bytes", "seed", "arch", "sha256", "base", "tensors"),
        "negative_zeros_dropped",
    ]
    assert all(getattr(found, key) == value for key, value in found.items())
    with pytest.raises(KeyError, match="keys"):
        found["keys"]  # a method of a mapping, none of its keys
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.bytes = 0  # type: ignore[misc]


def test_info_of_a_ticket_in_memory_is_that_of_its_file(ticket: Ticket, tmp_path: Path) -> None:
    expected = ticket.save(tmp_path / "auto.pabz")
    assert ticket.info() == expected
    assert Ticket.open(tmp_path / "auto.pabz").info() == expected


def test_save_to_a_stream(ticket: Ticket, path: Path) -> None:
    class Trickle(io.RawIOBase):
        """A stream that takes few bytes at a time, as a pipe may."""

        def __init__(self) -> None:
            self.taken = bytearray()

        def write(self, data: Any) -> int:
            self.taken += bytes(data[:5])
            return min(5, len(data))

    stream = Trickle()
    info = ticket.save(stream, coder="huffman")
    assert bytes(stream.taken) == path.read_bytes()
    assert info["bytes"] == len(stream.taken)


def test_equal_tickets_give_equal_files(ticket: Ticket, path: Path, tmp_path: Path) -> None:
    with Ticket.open(path) as again:
        again.save(tmp_path / "again.pabz", coder="huffman")
    assert (tmp_path / "again.pabz").read_bytes() == path.read_bytes()


def test_the_digest_is_what_the_specification_says(ticket: Ticket) -> None:
    state = hashlib.sha256()
    for name in ticket.names:
        values = ticket.weight(name, backend="numpy")
        state.update(struct.pack("<I", len(name)) + name.encode())
        state.update(struct.pack("<B", 7) + b"float32")
        state.update(struct.pack("<B", values.ndim))
        state.update(b"".join(struct.pack("<Q", size) for size in values.shape))
        state.update(values.astype("<f4").tobytes())
    assert ticket.sha256() == state.hexdigest()


def test_one_digest_for_every_backend_and_thread_count() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(-1, 2, (3, 2**19 + 1)).astype(np.int8)
    big = Ticket(seed=3, tensors=[seeded(codes=codes)])
    digests = {
        big.sha256(backend="numpy"),
        big.sha256(threads=1),
        big.sha256(threads=2),
    }
    assert len(digests) == 1


def test_a_tensor_longer_than_one_range_of_the_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Ticket(seed=3, tensors=[seeded(codes=np.ones((5, 7), np.int8))])
    expected = whole.sha256()
    monkeypatch.setattr("pabzip.formats.seeded._RANGE", 4)
    assert whole.sha256() == expected


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_ticket_round_trips(data: Any) -> None:
    shapes = st_numpy.array_shapes(min_dims=1, max_dims=4, max_side=6)
    tensors: list[SeededTensor | DenseTensor] = []
    for number in range(data.draw(st.integers(0, 5))):
        name = data.draw(st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1))
        if data.draw(st.booleans()):
            spec = InitSpec(
                data.draw(st.sampled_from(DISTRIBUTIONS)),
                data.draw(st.floats(2.0**-60, 2.0**60, width=32)),
                data.draw(st.integers(0, 2**32 - 1)),
            )
            codes = data.draw(st_numpy.arrays(np.int8, shapes, elements=st.integers(-1, 1)))
            tensors.append(SeededTensor(f"{number}{name}", spec, codes))
        else:
            elements = st.floats(allow_nan=False, allow_infinity=False, width=32)
            values = data.draw(st_numpy.arrays(np.float32, shapes | st.just(()), elements=elements))
            tensors.append(dense(f"{number}{name}", values))
    ticket = Ticket(seed=data.draw(st.integers(0, 2**64 - 1)), tensors=tensors)
    stream = io.BytesIO()
    info = ticket.save(stream)
    loaded = Ticket.open(stream.getvalue())
    assert loaded.verify() == ticket.sha256()
    assert loaded.info() == info
    assert (loaded.seed, loaded.names) == (ticket.seed, ticket.names)
    for name in loaded.names:
        if loaded.kind(name) == "seeded":
            assert loaded.spec(name) == ticket.spec(name)
            np.testing.assert_array_equal(loaded.codes(name), ticket.codes(name))
        else:
            assert loaded.dense(name).values.tobytes() == ticket.dense(name).values.tobytes()


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([seeded(), seeded()], "expected each name once, found 'w' twice"),
        ([seeded("")], "expected a name that is not empty"),
        ([seeded(codes=np.array([2, 0], np.int8))], "'w': expected codes 0, .* found 1 others"),
        ([seeded(codes=np.array([-128], np.int8))], "found 1 others"),
        (
            [seeded(codes=np.array([1], np.int16))],
            "'w': expected a numpy array of int8, found int16",
        ),
        ([seeded(codes=[1, 0])], "expected a numpy array of int8, found list"),
        ([seeded(codes=np.array(1, np.int8))], "expected 1 to 32 dimensions, found 0"),
        ([seeded(codes=np.zeros((0, 3), np.int8))], "expected the size of a dimension from 1"),
        ([seeded(spec="normal")], "expected an InitSpec, found str"),
        ([dense(values=np.zeros((2, 0), np.float32))], "expected the size of a dimension from 1"),
        ([dense(values=np.zeros(2, np.float64))], "'b': expected a numpy array of float32"),
        ([dense(values=np.zeros(2, np.complex64), dtype="complex64")], "expected a known dtype"),
        ([DenseTensor("b", VALUES, "float32", "int8")], "expected a known stored dtype"),
        (["w"], "expected SeededTensor, TernaryTensor, DenseTensor, DeltaTensor or TiedTensor, "),
    ],
)
def test_tensors_that_make_no_ticket(tensors: Any, message: str) -> None:
    with pytest.raises(PackError, match=message):
        Ticket(seed=0, tensors=tensors)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arch": "vgg"}, "expected a known architecture"),
        ({"arch_options": {"a": [1]}}, "options 'a': expected text, a number"),
        ({"metadata": {"a": np.int64(3)}}, "metadata 'a': expected text, a number"),
        ({"metadata": {"a": float("nan")}}, "metadata 'a': expected a finite number"),
        ({"metadata": {3: 1}}, "expected a key that is not empty, found 3"),
        ({"metadata": {"a": 10**400}}, "found an integer of 1329 bits"),
        ({"metadata": {str(n): n for n in range(1025)}}, "at most 1024 keys, found 1025"),
    ],
)
def test_descriptions_that_make_no_ticket(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PackError, match=message):
        Ticket(seed=0, tensors=[], **options)


def test_metadata_beyond_the_header_limit(tmp_path: Path) -> None:
    metadata = {str(n): "x" * (1 << 20) for n in range(17)}
    with pytest.raises(PackError, match="header: expected at most 16777216 bytes"):
        Ticket(seed=0, tensors=[], metadata=metadata).save(tmp_path / "m.pabz")


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, True, None])
def test_seeds_out_of_range(seed: Any) -> None:
    with pytest.raises(SeedError, match="seed: expected an integer"):
        Ticket(seed=seed, tensors=[])


def test_arrays_of_any_layout_are_taken(tmp_path: Path) -> None:
    codes = np.asfortranarray(np.array([[0, 1, -1], [1, 0, 0]], np.int8))
    values = np.array([0.5, -1.0], ">f4")
    ticket = Ticket(seed=7, tensors=[seeded(codes=codes), dense(values=values)])
    plain = Ticket(seed=7, tensors=[seeded(), dense()])
    assert ticket.sha256() == plain.sha256()
    assert Ticket(seed=7, tensors=[seeded(codes=codes[:, ::-1])]).codes("w").tolist() == [
        [-1, 1, 0],
        [0, 0, 1],
    ]


def test_importing_loads_neither_torch_nor_numba() -> None:
    script = (
        "import sys, pabzip.ticket, pabzip.formats; "
        "print([name for name in ('torch', 'numba', 'onnx') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_the_callers_random_state_is_left_alone(path: Path) -> None:
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].tobytes()  # type: ignore[index] # noqa: NPY002
    with Ticket.open(path) as ticket:
        ticket.verify()
    assert np.random.get_state()[1].tobytes() == before  # type: ignore[index] # noqa: NPY002


def test_several_threads_read_one_ticket(path: Path) -> None:
    results: list[str] = []
    with Ticket.open(path) as ticket:
        run: Callable[[], None] = lambda: results.append(ticket.sha256())  # noqa: E731
        threads = [threading.Thread(target=run) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(results) == {ticket.info()["sha256"]}
    assert len(results) == 8
