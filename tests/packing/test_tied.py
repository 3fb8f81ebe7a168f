"""Tensors that a network holds under two names are in the file once."""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pabzip
from pabzip.errors import PackError
from pabzip.packing.sources import MemorySource
from pabzip.packing.tensors import find_ties
from pabzip.seeds import InitSpec
from pabzip.ticket import DenseTensor, SeededTensor, Ticket, TiedTensor

CODES = np.array([[0, 1, -1], [1, 0, 0]], dtype=np.int8)
VALUES = np.array([[0.5, -2.0], [-0.0, 4.0]], dtype=np.float32)


def make() -> Ticket:
    return Ticket(
        seed=3,
        tensors=[
            SeededTensor("w", InitSpec("normal", 0.5, 0), CODES),
            DenseTensor("b", VALUES, "float32", "float32"),
            TiedTensor("w2", "w"),
            DenseTensor("n", np.array([1, 2], np.int64), "int64", "int64"),
            TiedTensor("b2", "b"),
            TiedTensor("w3", "w"),
        ],
    )


def saved(ticket: Ticket, **options: Any) -> bytes:
    file = io.BytesIO()
    ticket.save(file, **options)
    return file.getvalue()


@pytest.fixture(params=["memory", "huffman", "context"])
def ticket(request: pytest.FixtureRequest) -> Ticket:
    if request.param == "memory":
        return make()
    return Ticket.open(saved(make(), coder=request.param))


def test_a_second_name_answers_as_the_first(ticket: Ticket) -> None:
    assert [ticket.tied(name) for name in ticket.names] == [None, None, "w", None, "b", "w"]
    for name, target in [("w2", "w"), ("w3", "w"), ("b2", "b")]:
        assert ticket.kind(name) == ticket.kind(target)
        assert ticket.shape(name) == ticket.shape(target)
        assert ticket.dtype(name) == ticket.dtype(target)
        for backend in ("numba", "numpy"):
            found, expected = ticket.weight(name, backend=backend), ticket.weight(target)
            assert found.tobytes() == expected.tobytes()
    assert ticket.spec("w2") == ticket.spec("w")
    assert np.array_equal(ticket.codes("w3"), CODES)
    assert ticket.dense("b2").name == "b2"
    with pytest.raises(KeyError, match="expected a dense tensor"):
        ticket.dense("w2")
    with pytest.raises(KeyError):
        ticket.tied("x")


def test_arrays_and_digest_have_every_name(ticket: Ticket) -> None:
    arrays = ticket.arrays()
    assert list(arrays) == ["w", "b", "w2", "n", "b2", "w3"]
    assert list(ticket.arrays(backend="numpy")) == list(arrays)
    state = hashlib.sha256()  # from formats/SPEC.md alone
    for name, values in arrays.items():
        dtype = values.dtype.name.encode()
        state.update(struct.pack("<I", len(name)) + name.encode())
        state.update(struct.pack("<B", len(dtype)) + dtype)
        state.update(struct.pack(f"<B{values.ndim}Q", values.ndim, *values.shape))
        state.update(values.tobytes())
    assert ticket.sha256() == ticket.verify() == state.hexdigest()
    assert not np.shares_memory(arrays["w"], arrays["w2"])


def test_the_numbers_count_a_tensor_once(ticket: Ticket) -> None:
    info = ticket.info()
    assert (info["weights"], info["survivors"], info["huffman_bytes"]) == (6, 3, 2)
    assert info["float32_bytes"] == 3 * 24 + 2 * 16 + 16
    rows = {row["name"]: row for row in info["tensors"]}
    assert rows["w2"] == {
        "name": "w2", "shape": [2, 3], "dtype": "float32", "kind": "tied", "coder": None,
        "bytes": 0, "weights": 6, "survivors": None, "target": "w",
    }  # fmt: skip
    assert rows["b2"]["target"] == "b"
    assert "target" not in rows["w"]
    breakdown = ticket.breakdown()
    assert [row["name"] for row in breakdown] == [*ticket.names, None]
    parts = ("mask", "factors", "signs", "dense", "header")
    assert sum(row[part] for row in breakdown for part in parts) == info["bytes"]
    assert not any(breakdown[2][part] for part in parts)


def test_saving_again_keeps_ties() -> None:
    first = saved(make())
    assert saved(Ticket.open(first)) == first
    rounded = Ticket.open(saved(Ticket.open(first), dense_dtype="bfloat16"))
    assert rounded.tied("b2") == "b"
    assert {row["kind"] for row in rounded.info()["tensors"]} == {"seeded", "dense", "tied"}


@pytest.mark.parametrize(
    ("tie", "message"),
    [
        (TiedTensor("t", "x"), "'t': expected it tied to an earlier tensor, found .* 'x'"),
        (TiedTensor("t", "t"), "expected it tied to an earlier tensor, found it tied to 't'"),
        (TiedTensor("t", "w2"), "found 'w2', which is tied to 'w'"),
        (TiedTensor("w", "b"), "expected each name once, found 'w' twice"),
        (TiedTensor("a.running_var", "b"), "expected a variance tied to one, found 'b'"),
        (TiedTensor(3, "b"), "expected a name that is not empty"),  # type: ignore[arg-type]
        (TiedTensor("t", ["w"]), "tied to an earlier"),  # type: ignore[arg-type]
    ],
)
def test_ties_that_make_no_ticket(tie: TiedTensor, message: str) -> None:
    tensors = [
        SeededTensor("w", InitSpec("normal", 0.5, 0), CODES),
        DenseTensor("b", VALUES, "float32", "float32"),
        TiedTensor("w2", "w"),
    ]
    with pytest.raises(PackError, match=message):
        Ticket(seed=3, tensors=[*tensors, tie])


class Language(nn.Module):
    """An output layer that shares the embedding's weight; the embedding comes first."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 12)
        self.middle = nn.Linear(12, 12)
        self.head = nn.Linear(12, 40, bias=False)
        self.head.weight = self.embedding.weight


@pytest.fixture
def net() -> Language:
    made = pabzip.init_(Language(), seed=5)
    with torch.no_grad():
        made.head.weight[::2] *= -1
    assert isinstance(made, Language)
    return made


def copied(net: Language, tmp_path: Path) -> Any:
    pabzip.save_checkpoint(net, tmp_path / "model.pt")
    return tmp_path / "model.pt"


@pytest.mark.parametrize("through", [lambda net, _: net, copied])
def test_a_shared_weight_is_packed_once(
    net: Language, through: Callable[[Language, Path], Any], tmp_path: Path
) -> None:
    file = io.BytesIO()
    info = pabzip.pack(through(net, tmp_path), file)
    kinds = {row["name"]: row["kind"] for row in info["tensors"]}
    assert kinds["embedding.weight"] == kinds["middle.weight"] == "seeded"
    assert kinds["head.weight"] == "tied"
    assert info["weights"] == 40 * 12 + 12 * 12
    fresh = pabzip.load_into(Language(), file.getvalue(), verify=True)
    assert fresh.head.weight is fresh.embedding.weight
    for name, value in net.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value), name
    assert set(pabzip.seeding(fresh).specs) == {"embedding.weight", "middle.weight"}
    again = io.BytesIO()
    pabzip.pack(fresh, again)
    assert again.getvalue() == file.getvalue()


def test_only_equal_bits_of_one_type_and_shape_are_ties() -> None:
    ones, zeros = torch.ones(2, 3), torch.zeros(2, 3)
    state = {
        "a": ones,
        "other type": ones.double(),
        "other shape": torch.ones(3, 2),
        "minus": -zeros,
        "zeros": zeros,
        "vector": torch.ones(3),
        "vector again": torch.ones(3),
        "view": torch.ones(3, 2).T,
    }
    assert find_ties(MemorySource(state), {}) == ({"view": "a"}, {})


def test_weights_of_two_specs_stay_two() -> None:
    first, second = InitSpec("normal", 0.5, 0), InitSpec("normal", 0.5, 1)
    state = dict.fromkeys(["a", "b", "c", "d"], torch.zeros(2, 3))
    ties, specs = find_ties(MemorySource(state), {"b": first, "c": second, "d": second})
    assert ties == {"b": "a", "d": "c"}
    assert specs == {"a": first, "c": second}
