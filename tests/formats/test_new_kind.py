"""A kind of tensor that the package does not know: its two classes are all that a file needs."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest

import pabzip
from pabzip.errors import FormatError, PackError, shown
from pabzip.formats import (
    Contents,
    DenseEntry,
    DenseTensor,
    Reader,
    SeededTensor,
    TiedTensor,
    breakdown,
    encode_ticket,
    gather,
    header,
    open_source,
    report,
    resolve,
    save,
    verify,
)
from pabzip.formats import (
    contents as holding,
)
from pabzip.formats.contents import KINDS
from pabzip.formats.kind import EntryKind, StoredKind
from pabzip.formats.limits import as_array, check_integer, check_shape
from pabzip.packing.unpack import FORMATS, described
from pabzip.seeds import InitSpec


@dataclass(frozen=True, slots=True)
class FewBitsEntry(EntryKind):
    """``[name, shape, "few bits", bits, 0]``: integers of few bits, packed, times one scale."""

    name: str
    shape: tuple[int, ...]
    bits: int

    kind: ClassVar[str] = "few bits"
    row_lengths: ClassVar[tuple[int, ...]] = (5,)
    dtype: ClassVar[str] = "float32"
    survivors: ClassVar[None] = None

    @property
    def parts(self) -> Sequence[DenseEntry]:
        size = -(-self.count * self.bits // 8)
        return (
            DenseEntry(self.name, (size,), "uint8", "uint8"),
            DenseEntry(self.name, (), "float32", "float32"),
        )

    def check(self, place: str, earlier: Mapping[str, Any]) -> None:
        check_shape(place, self.shape, lowest_rank=1)
        check_integer(place, "bits", self.bits, 1, 8)

    def to_row(self, coding: Any) -> list[Any]:
        return [self.name, list(self.shape), "few bits", self.bits, 0]

    @classmethod
    def from_row(cls, place: str, row: list[Any], earlier: Mapping[str, Any]) -> Any:
        if not isinstance(row[1], list) or row[2] != "few bits":
            return None
        if row[4] != 0:
            raise FormatError(place, f"expected a 0, found {shown(row[4])}")
        return cls(row[0], tuple(row[1]), row[3]), None

    def tensor(self, codes: Any, parts: Sequence[DenseTensor]) -> FewBits:
        packed, scale = (part.values for part in parts)
        bits = np.unpackbits(packed, count=self.count * self.bits).reshape(-1, self.bits)
        levels = (bits @ (1 << np.arange(self.bits))).astype(np.uint8).reshape(self.shape)
        return FewBits(self.name, levels, self.bits, np.asarray(scale))


@dataclass(frozen=True, slots=True, eq=False)
class FewBits(StoredKind):
    name: str
    levels: np.ndarray
    bits: int
    scale: np.ndarray

    dtype: ClassVar[str] = "float32"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.levels.shape

    @property
    def parts(self) -> Sequence[DenseTensor]:
        bits = (self.levels.reshape(-1, 1) >> np.arange(self.bits)) & 1
        packed = np.packbits(bits.astype(np.uint8))
        return (
            DenseTensor(self.name, packed, "uint8", "uint8"),
            DenseTensor(self.name, self.scale, "float32", "float32"),
        )

    def tidy(self, place: str) -> FewBits:
        return replace(self, levels=as_array(place, self.levels, np.dtype(np.uint8)))

    def entry(self, earlier: Mapping[str, Any], seed: int = 0) -> FewBitsEntry:
        return FewBitsEntry(self.name, self.shape, self.bits)

    def check_values(self) -> None:
        if (self.levels >> self.bits).any():
            raise FormatError(self.name, f"expected levels of {self.bits} bits, found a wider one")

    def array(self, seed: int, **_: Any) -> np.ndarray:
        return self.levels.astype(np.float32) * self.scale


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header, "KINDS", (*KINDS, FewBitsEntry))
    monkeypatch.setattr(holding, "Tensor", holding.Tensor | FewBits)


def tensors(bits: int = 3, highest: int = 7) -> list[Any]:
    levels = (np.arange(24, dtype=np.uint8) % (highest + 1)).reshape(4, 6)
    codes = np.array([[1, 0, -1], [0, 0, 1]], np.int8)
    return [
        SeededTensor("w", InitSpec("normal", 0.5, 0), codes),
        FewBits("q", levels, bits, np.array(0.25, np.float32)),
        DenseTensor("b", np.ones(3, np.float32), "float32", "float32"),
        TiedTensor("q2", "q"),
    ]


def contents() -> Contents:
    return Contents(5, "custom", {}, {}, ())


def test_a_new_kind_is_written_read_verified_and_reported() -> None:
    file = io.BytesIO()
    info = save(encode_ticket(contents(), tensors()), file)
    reader = Reader(open_source(file.getvalue()))
    found: Any = reader["q"]
    np.testing.assert_array_equal(found.array(5), tensors()[1].array(5))
    tied: Any = resolve(reader, "q2")
    assert (tied.name, tied.levels.tolist()) == ("q2", found.levels.tolist())
    assert reader["b"].values.tolist() == [1, 1, 1]  # type: ignore[union-attr]
    assert verify(reader) == info["sha256"]
    assert report(reader.header, reader.header_bytes) == info
    row = info["tensors"][1]
    assert (row["kind"], row["dtype"], row["shape"]) == ("few bits", "float32", [4, 6])
    assert 0 < row["bytes"] <= 9 + 4  # 24 levels of 3 bits, and the scale
    assert info["float32_bytes"] == 4 * (6 + 24 + 3 + 24)
    rows = breakdown(reader.header, reader.header_bytes, reader.side_stream())
    assert rows[1]["dense"] == row["bytes"]
    assert sum(sum(v for k, v in one.items() if k != "name") for one in rows) == info["bytes"]


def test_a_ticket_hands_it_to_every_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = tensors()[1].array(5)
    file = io.BytesIO()
    pabzip.Ticket(seed=5, tensors=tensors()).save(file)
    data = file.getvalue()
    found = pabzip.load_arrays(data, verify=True)
    np.testing.assert_array_equal(found["q2"], expected)
    with pabzip.open(data) as ticket:
        assert (ticket.kind("q2"), ticket.tied("q2")) == ("few bits", "q")
        assert ticket.tensor("q").levels.tolist() == tensors()[1].levels.tolist()
        with pytest.raises(KeyError, match="q: expected a seeded tensor, found a few bits one"):
            ticket.spec("q")
        with pytest.raises(KeyError, match="q2: expected a dense tensor, found a few bits one"):
            ticket.dense("q2")
        exact = [ticket.exact(name) for name in ticket.names]
        for name in set(FORMATS) - {"gguf"}:  # which writes what was packed of one
            FORMATS[name](described(ticket, as_stored=True), exact, io.BytesIO())
    torch = pytest.importorskip("torch")
    state = pabzip.load_file(data, dtype=torch.float64)
    np.testing.assert_array_equal(state["q"], expected)
    pytest.importorskip("triton")
    from pabzip.runtime import cuda_state

    monkeypatch.setattr(cuda_state.cuda, "kernel_device", torch.device)
    with pabzip.open(data) as ticket:  # by the path to a GPU; what is seeded needs a real one
        sent = cuda_state.read_tensors(ticket, ["q2", "b", "q"], device="cpu")
    np.testing.assert_array_equal(sent["q2"], expected)
    assert list(sent) == ["q2", "b", "q"]


def test_its_rules_hold_for_writer_and_reader() -> None:
    with pytest.raises(PackError, match="expected levels of 2 bits, found a wider one"):
        encode_ticket(contents(), tensors(bits=2))
    with pytest.raises(FormatError, match="'q': expected the bits from 1 to 8, found 9"):
        gather(5, tensors(bits=9), "custom", {}, {})
    text = header.to_json(encode_ticket(contents(), tensors()).header)
    with pytest.raises(FormatError, match="'q': expected the bits from 1 to 8, found 11"):
        header.from_json(text.replace(b'"few bits",3', b'"few bits",11'))
    with pytest.raises(FormatError, match="tensor 1: expected a 0, found 7"):
        header.from_json(text.replace(b'"few bits",3,0', b'"few bits",3,7'))
    with pytest.raises(FormatError, match="tensor 1: expected a row of 2, 3, 4, 5, 8 or 9 values"):
        header.from_json(text.replace(b"few bits", b"many bits"))
