"""Ternary networks without a seed: recognized, stored as codes, loaded bit for bit."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import pabzip
from pabzip.errors import PackError, SeedError
from pabzip.packing.ternary import TernaryPacker
from pabzip.seeds import InitSpec
from pabzip.ticket import DenseTensor, SeededTensor, Ticket


def ternary(shape: tuple[int, ...], *, rows: bool, keep: float = 0.5, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    signs = rng.choice(np.array([-1, 0, 1], np.float32), shape, p=[keep / 2, 1 - keep, keep / 2])
    scales = rng.uniform(0.01, 2, shape[0] if rows else 1).astype(np.float32)
    return signs * scales.reshape(-1, *[1] * (len(shape) - 1)) + np.float32(0)  # no -0.0


def state(**tensors: np.ndarray) -> dict[str, torch.Tensor]:
    return {name.replace("_", "."): torch.from_numpy(values) for name, values in tensors.items()}


def packed(source: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    pabzip.pack(source, file, ternary=True, **options)
    return file.getvalue()


def full() -> dict[str, torch.Tensor]:
    rows = ternary((24, 5, 3, 3), rows=True)
    rows[3] = 0
    return state(
        conv_weight=rows,
        conv_bias=np.linspace(-1, 1, 24, dtype=np.float32),
        fc_weight=ternary((10, 24), rows=False),
        other_weight=np.random.default_rng(0).normal(size=(6, 20)).astype(np.float32),
    )


@pytest.mark.parametrize("coder", ["auto", "huffman", "context"])
def test_every_reader_gives_the_same_bits(coder: str) -> None:
    expected = full()
    file = packed(expected, coder=coder)
    with Ticket.open(file) as ticket:
        kinds = [ticket.kind(name) for name in ticket.names]
        assert kinds == ["seeded", "dense", "seeded", "dense"]
        assert ticket.spec("conv.weight") == InitSpec("signed_constant", 1.0, 0)
        assert ticket.spec("fc.weight").stream == 1
        scales = ticket.scales("conv.weight")
        assert scales is not None
        assert scales[3] == 1
        assert ticket.scales("fc.weight") is None
        found = [ticket.arrays(), ticket.arrays(backend="numpy"), pabzip.load_arrays(file)]
        found.append({name: ticket.weight(name) for name in ticket.names})
        memory = [ticket.tensor(name) for name in ticket.names]
        copy = Ticket(seed=ticket.seed, tensors=memory)
        found += [copy.arrays(), copy.arrays(backend="numpy")]
        digests = {ticket.verify(), ticket.sha256(backend="numpy"), copy.sha256()}
        assert digests == {ticket.info()["sha256"]}
    found.append({name: value.numpy() for name, value in pabzip.load_file(file).items()})
    for arrays in found:
        for name, value in expected.items():
            assert arrays[name].tobytes() == value.numpy().tobytes(), name


def test_the_digest_scales_every_range(monkeypatch: pytest.MonkeyPatch) -> None:
    file = packed(state(w=ternary((7, 50), rows=True)))
    monkeypatch.setattr("pabzip.formats.seeded._RANGE", 64)  # ranges that begin within rows
    Ticket.open(file).verify()


def test_the_interpreted_gpu_path_gives_the_same_bits(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    (tmp_path / "a.pabz").write_bytes(packed(full(), coder="context"))
    script = """
import sys, torch
from pabzip.runtime.cuda_state import read_tensors
from pabzip.ticket import Ticket
ticket = Ticket.open(sys.argv[1])
for dtype in (None, torch.float16, torch.float64):
    made = read_tensors(ticket, ticket.names, device="cpu", dtype=dtype)
    for name, value in ticket.arrays().items():
        assert torch.equal(made[name], torch.from_numpy(value).to(dtype)), (name, dtype)
"""
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "a.pabz")],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        check=True,
        timeout=300,
    )


def test_a_channel_costs_its_entropy_and_its_scales() -> None:
    values = ternary((128, 1152), rows=True, keep=0.5)
    info = Ticket.open(packed({"w": torch.from_numpy(values)})).info()
    share = np.count_nonzero(values) / values.size
    entropy = -share * np.log2(share / 2) - (1 - share) * np.log2(1 - share)
    assert info["codes_bytes"] == pytest.approx(values.size * entropy / 8, rel=0.01)
    assert info["dense_bytes"] <= 4 * 128
    (row,) = info["tensors"]
    assert row["bytes"] == info["codes_bytes"] + info["dense_bytes"] - _side(
        packed({"w": torch.from_numpy(values)})
    )


def _side(file: bytes) -> int:
    with Ticket.open(file) as ticket:
        return len(ticket._tensors.side_stream())  # type: ignore[attr-defined]


def test_the_breakdown_is_the_file() -> None:
    file = packed(full())
    with Ticket.open(file) as ticket:
        rows, info = ticket.breakdown(), ticket.info()
    parts = ("mask", "factors", "signs", "dense", "header")
    assert sum(row[part] for row in rows for part in parts) == len(file) == info["bytes"]
    assert sum(row["dense"] for row in rows) == info["dense_bytes"]
    assert rows[0]["dense"] > 0
    assert rows[2]["dense"] == 0


def test_scales_are_never_rounded() -> None:
    tensors = state(w=ternary((8, 20), rows=True), b=np.full(8, 1.001, np.float32))
    found = pabzip.load_arrays(packed(tensors, dense_dtype="bfloat16"))
    assert found["w"].tobytes() == tensors["w"].numpy().tobytes()
    assert found["b"][0] == 1.0


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 8)
        self.second = nn.Linear(32, 8, bias=False)


def test_a_network_with_and_without_a_record(tmp_path: Path) -> None:
    net = Net()
    with torch.no_grad():
        net.second.weight.copy_(torch.from_numpy(ternary((8, 32), rows=True)))
    with pytest.raises(SeedError, match="call pabzip.init_"):
        pabzip.pack(net, io.BytesIO())
    assert Ticket.open(packed(net)).kind("first.weight") == "dense"
    assert packed(net) == packed(net.state_dict()) == packed(nn.DataParallel(net))

    pabzip.init_(net, seed=9, skip=["second"])
    file = packed(net)
    with Ticket.open(file) as ticket:
        assert ticket.seed == 9
        assert ticket.spec("first.weight").stream == 0
        assert ticket.spec("second.weight").stream == 1
    again = pabzip.load_into(Net(), file, verify=True)
    assert list(pabzip.seeding(again).specs) == ["first.weight"]
    assert packed(again) == file

    torch.save(net.state_dict(), tmp_path / "state.pt")
    pabzip.save_checkpoint(net, tmp_path / "model.pt")
    assert packed(tmp_path / "model.pt") == file
    found = pabzip.load_arrays(packed(tmp_path / "state.pt"))
    assert all(np.array_equal(found[k], v.numpy()) for k, v in net.state_dict().items())


def test_what_is_refused(tmp_path: Path) -> None:
    plain = {"w": torch.randn(4, 20), "b": torch.zeros(4), "z": torch.zeros(4, 20)}
    with pytest.raises(PackError, match="expected a ternary tensor, found none among 3"):
        packed(plain)
    assert pabzip.pack(plain, io.BytesIO()).weights == 0  # nothing is asked for
    with pytest.raises(PackError, match="leave out fold_bn"):
        packed(plain, fold_bn=True)
    torch.save({"w": torch.ones(2, 2), "epoch": 3}, tmp_path / "mixed.pt")
    with pytest.raises(pabzip.PabzError, match="expected a checkpoint, found a table"):
        packed(tmp_path / "mixed.pt")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0.5, -0.5], [0, 0.5]], np.float32), "tensor"),
        (np.array([[0.5, 0.5], [1, 0]], np.float32), None),  # rows too short for scales
        (np.zeros((2, 20), np.float32), None),
        (np.array([[0.5, -0.5]], np.float64), None),
        (np.array([0.5, -0.5], np.float32), None),
        (np.array([[np.nan, 1]], np.float32), None),
        (np.array([[np.inf, -np.inf]], np.float32), None),
        (np.array([[2.0**-70]], np.float32), None),
        (np.array([[1, np.nextafter(np.float32(1), np.float32(2))]], np.float32), None),
        (np.repeat(np.array([[1], [2], [0]], np.float32), 16, axis=1), "rows"),
        (np.repeat(np.array([[1], [1], [2], [2]], np.float32), 16, axis=1), "rows"),
    ],
)
def test_what_is_ternary(values: np.ndarray, expected: str | None) -> None:
    found: Any = TernaryPacker().recognize("w", values, str(values.dtype))
    if expected is None:
        assert found is None
        return
    assert isinstance(found, SeededTensor)
    assert (found.scales is not None) == (expected == "rows")
    assert found.array(0).tobytes() == values.tobytes()


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 6),
    columns=st.integers(16, 40),
    seed=st.integers(0, 99),
    channel=st.booleans(),
)
def test_codes_give_the_values_back(rows: int, columns: int, seed: int, channel: bool) -> None:
    values = ternary((rows, columns), rows=channel, seed=seed)
    packer = TernaryPacker(seed=2**40 + seed, taken={0, 1})
    tensor: Any = packer.recognize("w", values, "float32")
    if tensor is None:
        assert not values.any()
        return
    assert tensor.spec.stream == 2
    again: Any = packer.recognize("w", values, "float32")
    assert again.spec == tensor.spec
    found = Ticket(seed=2**40 + seed, tensors=[tensor]).weight("w")
    assert found.tobytes() == values.tobytes()


@pytest.mark.parametrize(
    ("scales", "spec", "message"),
    [
        (np.ones(3, np.float32), ("signed_constant", 1.0, 0), r"one scale per row, shape \[2\]"),
        (np.ones(2), ("signed_constant", 1.0, 0), "expected a numpy array of float32"),
        ([1.0, 1.0], ("signed_constant", 1.0, 0), "expected a numpy array of float32, found list"),
        (np.float32([1, 0]), ("signed_constant", 1.0, 0), "scale <= 2..64, found 1 others"),
        (np.float32([-1, np.nan]), ("signed_constant", 1.0, 0), "found 2 others"),
        (np.ones(2, np.float32), ("signed_constant", 0.5, 0), "scale 1 where rows have scales"),
        (np.ones(2, np.float32), ("normal", 1.0, 0), "expected signed_constant of scale 1"),
    ],
)
def test_scales_that_make_no_ticket(scales: Any, spec: tuple[Any, ...], message: str) -> None:
    tensor = SeededTensor("w", InitSpec(*spec), np.ones((2, 4), np.int8), scales)
    with pytest.raises(PackError, match=message):
        Ticket(seed=0, tensors=[tensor])


def test_a_dense_tensor_has_no_scales() -> None:
    ticket = Ticket(seed=0, tensors=[DenseTensor("b", np.ones(2, np.float32), *["float32"] * 2)])
    with pytest.raises(KeyError, match="expected a seeded tensor"):
        ticket.scales("b")
