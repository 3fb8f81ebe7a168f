"""Packing: codes read from the weights, and everything that is not plus or minus the seed's."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import pabzip
from pabzip.errors import CheckpointError, PackError, SeedError


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)


@pytest.fixture
def net() -> Net:
    made = pabzip.init_(Net(), seed=12, skip=["head"])
    assert isinstance(made, Net)
    with torch.no_grad():
        made.stem.weight.view(-1)[::3] = 0
        made.stem.weight.view(-1)[1::3] *= -1
    return made


def test_codes_are_what_became_of_the_signs(net: Net) -> None:
    drawn = pabzip.init_(Net(), seed=12, skip=["head"]).stem.weight.detach().numpy()
    file = io.BytesIO()
    report = pabzip.pack(net, file)
    with pabzip.open(file.getvalue()) as ticket:
        codes = ticket.codes("stem.weight")
    assert np.array_equal(codes * drawn, net.stem.weight.detach().numpy())
    assert codes.reshape(-1)[:6].tolist() == [0, -1, 1, 0, -1, 1]
    assert (report["weights"], report["survivors"]) == (36, 24)
    assert [row["kind"] for row in report["tensors"]].count("seeded") == 1


def test_save_file_and_load_file_are_the_verbs_of_safetensors(net: Net, tmp_path: Path) -> None:
    file, packed = tmp_path / "saved.pabz", io.BytesIO()
    report = pabzip.save_file(net, file, {"note": "mine"})
    assert report == pabzip.pack(net, packed, metadata={"note": "mine"})
    assert file.read_bytes() == packed.getvalue()
    loaded = pabzip.load_file(file, "cpu")
    assert list(loaded) == list(net.state_dict())
    assert all(torch.equal(loaded[name], value) for name, value in net.state_dict().items())


def test_save_file_takes_a_ticket_with_its_own_metadata(net: Net, tmp_path: Path) -> None:
    pabzip.save_file(net, tmp_path / "first.pabz", {"note": "mine"})
    with pabzip.open(tmp_path / "first.pabz") as ticket:
        pabzip.save_file(ticket, tmp_path / "second.pabz")
        with pytest.raises(PackError, match="third.pabz: expected no metadata beside a Ticket"):
            pabzip.save_file(ticket, tmp_path / "third.pabz", {"note": "yours"})
    assert (tmp_path / "second.pabz").read_bytes() == (tmp_path / "first.pabz").read_bytes()
    assert not (tmp_path / "third.pabz").exists()


def test_save_file_takes_tensors_by_name(tmp_path: Path) -> None:
    file = tmp_path / "ternary.pabz"
    state = {"w": torch.tensor([[0.5, 0.0], [-0.5, 0.5]]), "b": torch.tensor([0.1, 0.2])}
    report = pabzip.save_file(state, file)
    assert [row["kind"] for row in report.tensors] == ["seeded", "dense"]
    assert all(torch.equal(value, state[name]) for name, value in pabzip.load_file(file).items())
    assert pabzip.save_file({"b": state["b"]}, file).weights == 0
    assert torch.equal(pabzip.load_file(file)["b"], state["b"])


def test_minus_zero_is_pruned_and_loads_as_zero(net: Net) -> None:
    with torch.no_grad():
        net.stem.weight.view(-1)[0] = -0.0
        net.stem.weight.view(-1)[6] = -0.0
    file = io.BytesIO()
    report = pabzip.pack(net, file)
    loaded = pabzip.load_arrays(file.getvalue())["stem.weight"]
    assert not np.signbit(loaded.reshape(-1)[[0, 6]]).any()
    assert report.negative_zeros_dropped == 2
    with torch.no_grad():
        net.stem.weight[net.stem.weight == 0] = 0.0
    same = io.BytesIO()
    assert pabzip.pack(net, same).negative_zeros_dropped == 0
    assert same.getvalue() == file.getvalue()


def damage(net: Net, change: Callable[[torch.Tensor], None]) -> None:
    with torch.no_grad():
        change(net.stem.weight.view(-1))


def one_bit(weight: torch.Tensor) -> None:
    weight.view(torch.int32)[5] ^= 1


def not_a_number(weight: torch.Tensor) -> None:
    weight[5] = float("nan")


def scaled(weight: torch.Tensor) -> None:
    weight *= 1.5


@pytest.mark.parametrize(("change", "count"), [(one_bit, 1), (not_a_number, 1), (scaled, 24)])
def test_other_magnitudes_are_refused_and_counted(
    net: Net, change: Callable[[torch.Tensor], None], count: int, tmp_path: Path
) -> None:
    damage(net, change)
    (tmp_path / "model.pabz").write_bytes(b"old")
    message = rf"stem\.weight: expected every surviving weight .* seed 12, found {count} of 24 that"
    with pytest.raises(PackError, match=message):
        pabzip.pack(net, tmp_path / "model.pabz")
    assert (tmp_path / "model.pabz").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["model.pabz"]


def test_a_wrong_seed_is_refused(net: Net) -> None:
    record = pabzip.seeding(net)
    pabzip.attach_seeding(net, pabzip.Seeding(13, record.specs))
    with pytest.raises(PackError, match=r"stem\.weight: .* drawn from seed 13, found 24 of 24"):
        pabzip.pack(net, io.BytesIO())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_refused(net: Net, dtype: torch.dtype) -> None:
    with pytest.raises(PackError, match=rf"stem\.weight: expected a float32 .* found {dtype}"):
        pabzip.pack(net.to(dtype), io.BytesIO())


def test_a_network_without_a_seed_is_refused() -> None:
    with pytest.raises(SeedError, match="call pabzip.init_"):
        pabzip.pack(Net(), io.BytesIO())


class Remembering(nn.BatchNorm2d):
    def get_extra_state(self) -> dict[str, int]:
        return {"a": 1}


def test_extra_state_is_refused(net: Net) -> None:
    net.norm = Remembering(4)
    with pytest.raises(PackError, match=r"norm\._extra_state: expected a tensor, found dict"):
        pabzip.pack(net, io.BytesIO())


def test_a_path_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"text")
    with pytest.raises(CheckpointError, match=r"model\.pt"):
        pabzip.pack(tmp_path / "model.pt", io.BytesIO())


def test_network_checkpoint_and_wrapper_give_the_same_file(net: Net, tmp_path: Path) -> None:
    pabzip.save_checkpoint(net, tmp_path / "model.pt")
    files = [io.BytesIO() for _ in range(3)]
    for source, file in zip((net, tmp_path / "model.pt", nn.DataParallel(net)), files, strict=True):
        pabzip.pack(source, file)
    assert files[0].getvalue() == files[1].getvalue() == files[2].getvalue()


def test_metadata_travels(net: Net) -> None:
    file = io.BytesIO()
    pabzip.pack(net, file, metadata={"note": "first", "accuracy": 0.5})
    assert pabzip.open(file.getvalue()).metadata == {"note": "first", "accuracy": 0.5}
