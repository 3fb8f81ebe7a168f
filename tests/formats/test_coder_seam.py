"""The registry of coders: the choice of the smallest, and a coder with a side stream."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pabzip.errors import FormatError, PackError, SeedError
from pabzip.formats import coder
from pabzip.formats.coder import OnTensor, Payload, Spent, Task, run_tasks
from pabzip.formats.context import Context
from pabzip.formats.huffman import Huffman
from pabzip.formats.seeded import SeededEntry, SeededTensor
from pabzip.registry import Registry
from pabzip.seeds import InitSpec, regenerate
from pabzip.ticket import Ticket

EXPECTED = Path(__file__).parents[1] / "expected"


class Repeating:
    """Codes that are all equal: no payload, and one byte a tensor in the side stream."""

    def check_length(self, entry: SeededEntry, length: int) -> None:
        if length not in (0, entry.count):
            raise FormatError(entry.name, f"expected 0 or {entry.count} bytes, found {length}")

    def encode(
        self, seed: int, tensors: Sequence[SeededTensor], on_tensor: OnTensor | None = None
    ) -> tuple[list[bytes], bytes]:
        same = [tensor.codes.min() == tensor.codes.max() for tensor in tensors]
        pairs = zip(tensors, same, strict=True)
        payloads = [b"" if equal else tensor.codes.tobytes() for tensor, equal in pairs]
        return payloads, bytes(int(tensor.codes.flat[0]) + 1 for tensor in tensors)

    def decoder(self, seed: int, entries: Sequence[SeededEntry], side: bytes) -> RepeatingDecoder:
        if len(side) != len(entries):
            raise FormatError("side stream", f"expected {len(entries)} bytes, found {len(side)}")
        first = {entry.name: side[at] - 1 for at, entry in enumerate(entries)}
        return RepeatingDecoder(seed, first)

    def breakdown(self, tensors: Sequence[tuple[SeededEntry, int]], side: bytes) -> list[Spent]:
        return [Spent(length, 1, 0) for _, length in tensors]


class RepeatingDecoder:
    """Decodes `Repeating`'s tensors, one task each."""

    def __init__(self, seed: int, first: dict[str, int]):
        self._seed, self._first = seed, first

    def codes(self, entry: SeededEntry, payload: Payload, out: Any) -> list[Task]:
        def task() -> None:
            out[:] = np.frombuffer(payload, np.int8) if payload else self._first[entry.name]

        return [task]

    def weights(self, entry: SeededEntry, payload: Payload, out: Any) -> list[Task]:
        def task() -> None:
            codes = np.zeros(entry.count, np.int8)
            run_tasks(self.codes(entry, payload, codes), 1)
            regenerate(self._seed, entry.spec, codes, threads=1, out=out)

        return [task]


@pytest.fixture
def two_coders(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry("coder", "register_coder", "pabzip.formats", error=PackError)
    registry.register("huffman")(Huffman)
    registry.register("repeating", shares_side=True)(Repeating)
    monkeypatch.setattr(coder, "CODERS", registry)


def ticket_of(*codes: Any) -> Ticket:
    return Ticket(
        seed=3,
        tensors=[
            SeededTensor(f"w{n}", InitSpec("uniform", 1.0, n), np.array(values, np.int8))
            for n, values in enumerate(codes)
        ],
    )


MIXED = ([0, 1, -1, 0, 1, 0, 0, -1], [1] * 100, [0] * 100, [-1, 1])


@pytest.mark.usefixtures("two_coders")
def test_auto_takes_the_smallest_for_each_tensor(save: Any, take_apart: Any) -> None:
    ticket = ticket_of(*MIXED)
    file = save(ticket, coder="auto")
    info = Ticket.open(file).info()
    assert [row["coder"] for row in info["tensors"]] == [
        "huffman",
        "repeating",
        "repeating",
        "huffman",
    ]
    parts = take_apart(file)
    assert parts.fields["side"] == 2  # encoded again, for the chosen tensors alone
    assert parts.payloads[0] == b"\x02\x01"
    assert info["codes_bytes"] == 2 + 2 + 1
    assert info["bytes"] == len(file)
    assert info["bytes"] == info["header_bytes"] + info["codes_bytes"] + info["dense_bytes"]
    loaded = Ticket.open(file)
    assert [row["factors"] for row in loaded.breakdown()] == [0, 1, 1, 0, 0]
    assert loaded.verify() == ticket.sha256()
    for name in reversed(ticket.names):
        np.testing.assert_array_equal(loaded.codes(name), ticket.codes(name))


@pytest.mark.usefixtures("two_coders")
def test_a_side_stream_must_earn_its_keep(save: Any, take_apart: Any) -> None:
    parts = take_apart(save(ticket_of([1]), coder="auto"))  # one byte either way
    assert "side" not in parts.fields
    assert parts.fields["tensors"][0][5] == "huffman"


@pytest.mark.usefixtures("two_coders")
def test_a_named_coder_is_used_for_every_tensor(save: Any) -> None:
    file = save(ticket_of(*MIXED), coder="repeating")
    assert {row["coder"] for row in Ticket.open(file).info()["tensors"]} == {"repeating"}


@pytest.mark.usefixtures("two_coders")
def test_a_damaged_side_stream_is_refused_and_other_tensors_read(
    save: Any, take_apart: Any
) -> None:
    file = bytearray(save(ticket_of(*MIXED), coder="auto"))
    file[Ticket.open(file).info()["header_bytes"] - 4 * len(take_apart(file).payloads)] ^= 1
    ticket = Ticket.open(bytes(file))
    with pytest.raises(FormatError, match="side stream: expected its CRC-32"):
        ticket.codes("w1")
    assert ticket.codes("w0").tolist() == MIXED[0]


@pytest.mark.usefixtures("two_coders")
def test_a_side_stream_that_does_not_fit(save: Any, take_apart: Any) -> None:
    parts = take_apart(save(ticket_of(*MIXED), coder="auto"))
    parts.payloads[0], parts.fields["side"] = b"\x02", 1
    with pytest.raises(FormatError, match="side stream: expected 2 bytes, found 1"):
        Ticket.open(parts.sign()).codes("w1")


@pytest.mark.parametrize("name", ["zip", "", None])
def test_unknown_coder_for_writing(name: Any, small_ticket: Ticket, save: Any) -> None:
    with pytest.raises(PackError, match="coder: expected auto or one of huffman"):
        save(small_ticket, coder=name)


def test_both_coders_are_registered() -> None:
    assert coder.CODERS.names == ("huffman", "context")
    assert coder.CODERS.get("huffman") is Huffman
    assert coder.CODERS.get("context") is Context
    assert not coder.shares_side("huffman")
    assert coder.shares_side("context")


@pytest.mark.parametrize("name", ["v1-lenet-huffman", "v1-context"])
def test_a_header_is_read_without_compiled_code(name: str) -> None:
    file = EXPECTED / f"{name}.pabz"
    script = (
        "import sys; from pabzip import Ticket; "
        f"print(Ticket.open({str(file)!r}).info()['weights'] > 0, 'numba' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "True False\n"


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.usefixtures("two_coders")
def test_weights_come_from_any_coder(save: Any, threads: int) -> None:
    ticket = ticket_of(*MIXED)
    with Ticket.open(save(ticket, coder="auto")) as loaded:
        arrays = loaded.arrays(threads=threads)
    for name, array in ticket.arrays(backend="numpy").items():
        assert arrays[name].tobytes() == array.tobytes()


@pytest.mark.parametrize("threads", [None, 1, 2, 5])
def test_tasks_all_run_and_the_first_fault_is_raised(threads: int | None) -> None:
    done: list[int] = []

    def working(number: int) -> Task:
        def task() -> None:
            if number == 7:
                raise FormatError("place", "seven")
            done.append(number)

        return task

    run_tasks([working(number) for number in range(7)], threads)
    assert sorted(done) == list(range(7))
    with pytest.raises(FormatError, match="place: seven"):
        run_tasks([working(number) for number in range(9)], threads)
    run_tasks([], threads)


def test_threads_must_be_positive() -> None:
    with pytest.raises(SeedError, match="threads: expected None or an integer of at least 1"):
        run_tasks([], 0)


@pytest.mark.parametrize("coder", ["huffman", "context", "auto"])
def test_every_tensor_is_told_once(coder: str) -> None:
    told: list[str] = []
    ticket = ticket_of(*MIXED)
    ticket.save(io.BytesIO(), coder=coder, on_tensor=told.append)
    assert sorted(told) == sorted(ticket.names)
