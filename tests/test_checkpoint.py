"""Checkpoints: there and back, and everything that is refused."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pabzip
from pabzip import models
from pabzip.checkpoint import load_checkpoint, network_from_checkpoint, save_checkpoint
from pabzip.errors import ArchitectureError, CheckpointError, SeedError
from pabzip.seeds import Frozen
from pabzip.train import Recipe, to_dict


def small(seed: int = 5) -> nn.Module:
    net = models.build("conv2", width=4, image_size=8, in_channels=1)
    return pabzip.init_(net, seed, skip=["fc3"])


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.module(x)


def content(tmp_path: Path, net: nn.Module | None = None) -> dict[str, Any]:
    """What a good checkpoint holds, to be spoilt."""
    save_checkpoint(
        net or small(), tmp_path / "good.pt", settings=to_dict(Recipe()), results={"epochs": 3}
    )
    return torch.load(tmp_path / "good.pt", weights_only=True)


def spoilt(tmp_path: Path, values: Any) -> Path:
    torch.save(values, tmp_path / "bad.pt")
    return tmp_path / "bad.pt"


def same(first: Any, second: Any) -> bool:
    return list(first) == list(second) and all(torch.equal(first[k], second[k]) for k in first)


def test_there_and_back(tmp_path: Path) -> None:
    net, file = small(), tmp_path / "model.pt"
    results = {"data": "digits", "test_accuracy": 0.5, "seconds": 1.0, "output": "model.pt"}
    pabzip.save_checkpoint(net, file, settings=to_dict(Recipe(epochs=3)), results=results)
    found = pabzip.load_checkpoint(file)
    assert (found.arch, found.arch_options) == net.pabzip_arch
    assert found.seeding == pabzip.seeding(net)
    assert (found.seed, found.init) == (5, pabzip.seeding(net).specs)
    assert found.settings == to_dict(Recipe(epochs=3))
    assert found.results == results
    assert found.metadata() == {"data": "digits", "test_accuracy": 0.5}
    assert same(found.state_dict, net.state_dict())
    built = network_from_checkpoint(found)
    assert not built.training
    assert same(built.state_dict(), net.state_dict())
    assert pabzip.seeding(built) == pabzip.seeding(net)


@pytest.mark.parametrize("seed", [0, 2**63 - 1, 2**63, 2**64 - 1])
def test_every_seed_survives(tmp_path: Path, seed: int) -> None:
    save_checkpoint(small(seed), tmp_path / "model.pt")
    assert load_checkpoint(tmp_path / "model.pt").seed == seed
    raw = torch.load(tmp_path / "model.pt", weights_only=True)["seed"]
    assert isinstance(raw, int if seed < 2**63 else str)


def test_wrappers_are_understood(tmp_path: Path) -> None:
    net = small()
    plain, wrapped = tmp_path / "plain.pt", tmp_path / "wrapped.pt"
    save_checkpoint(net, plain)
    save_checkpoint(nn.DataParallel(net), wrapped)
    assert same(load_checkpoint(plain).state_dict, load_checkpoint(wrapped).state_dict)
    assert load_checkpoint(wrapped).arch == "conv2"


@pytest.mark.parametrize("both", [True, False])
def test_a_prefix_in_the_file_is_dropped(tmp_path: Path, both: bool) -> None:
    values = content(tmp_path)
    for key in ("state_dict", "init") if both else ("state_dict",):
        values[key] = {f"module.{name}": value for name, value in values[key].items()}
    found = load_checkpoint(spoilt(tmp_path, values))
    assert same(found.state_dict, small().state_dict())
    assert found.seeding == pabzip.seeding(small())


@pytest.mark.parametrize("arch", ["conv2", "custom"])
def test_a_prefix_is_dropped_from_all_that_names_weights(tmp_path: Path, arch: str) -> None:
    net = small()
    record, scores = pabzip.seeding(net), {"fc1.weight": net.fc1.weight}
    pabzip.init.attach_seeding(net, pabzip.init.Seeding(5, {}))
    part = {"fc1.weight": Frozen(2, 1)}
    file = tmp_path / "good.pt"
    save_checkpoint(net, file, drawn=record.specs, scores=scores, drawn_frozen=part)
    values = {**torch.load(file, weights_only=True), "arch": arch}
    # DataParallel's network, but what was drawn is named as in the network inside.
    prefixed = ["state_dict", "scores", "frozen"] + ["drawn"] * (arch == "conv2")
    for key in prefixed:
        values[key] = {f"module.{name}": value for name, value in values[key].items()}
    found = load_checkpoint(spoilt(tmp_path, values))
    assert same(found.state_dict, net.state_dict())
    assert found.drawn == record.specs
    assert same(found.scores, scores)
    assert found.drawn_frozen == part
    assert not found.seeding.frozen
    assert found.at_initialization().seeding == pabzip.init.Seeding(5, record.specs, part)


def test_a_child_that_is_called_module_keeps_its_name(tmp_path: Path) -> None:
    net = pabzip.init_(Own(), 1)
    save_checkpoint(net, tmp_path / "own.pt")
    found = load_checkpoint(tmp_path / "own.pt")
    assert found.arch == "custom"
    assert list(found.state_dict) == ["module.weight", "module.bias"]
    built = network_from_checkpoint(found, Own())
    assert same(built.state_dict(), net.state_dict())


def test_a_custom_architecture_needs_its_network(tmp_path: Path) -> None:
    save_checkpoint(pabzip.init_(Own(), 1), tmp_path / "own.pt")
    found = load_checkpoint(tmp_path / "own.pt")
    with pytest.raises(ArchitectureError, match=r"custom architecture.*pass it as net="):
        network_from_checkpoint(found)
    with pytest.raises(ArchitectureError, match=r"does not fit Linear: .*build the network"):
        network_from_checkpoint(found, nn.Linear(4, 2))


def test_a_stream_will_do() -> None:
    stream = io.BytesIO()
    save_checkpoint(small(), stream)
    stream.seek(0)
    assert torch.load(stream, weights_only=True)["format"] == "pabzip-checkpoint"


def test_what_cannot_be_written_is_refused_and_the_old_file_stays(tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    file.write_bytes(b"old")
    with pytest.raises(SeedError, match=r"call pabzip\.init_"):
        save_checkpoint(models.build("conv2"), file)
    with pytest.raises(CheckpointError, match="results: expected texts, numbers, lists"):
        save_checkpoint(small(), file, results={"net": nn.Linear(1, 1)})
    with pytest.raises(IsADirectoryError):
        save_checkpoint(small(), tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.pt"]
    assert file.read_bytes() == b"old"


class Malicious:
    def __init__(self, victim: Path):
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.victim),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_is_never_run(tmp_path: Path, protocol: int, zipped: bool) -> None:
    victim, file = tmp_path / "victim", tmp_path / "model.pt"
    values = {"format": "pabzip-checkpoint", "version": 1, "arch": Malicious(victim)}
    if zipped:
        torch.save(values, file, pickle_protocol=protocol)
    else:
        file.write_bytes(pickle.dumps(values, protocol=protocol))
    with pytest.raises(CheckpointError, match=r"model\.pt: .*asks to run code") as caught:
        load_checkpoint(file)
    assert "weights_only" not in str(caught.value)
    assert not victim.exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "found an empty file"),
        (b"\x89PABZ\r\n\x1a" + bytes(20), r"found a \.pabz file; read it with pabzip\.load"),
        (b"hello, world, this is text", "found something else"),
        (bytes(range(200, 256)), r"model\.pt: expected"),
        (b"\x80", r"model\.pt: expected"),
    ],
    ids=["empty", "ticket", "text", "noise", "a byte of pickle"],
)
def test_other_files_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "model.pt").write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "model.pt")


def test_another_zip_archive_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    with pytest.raises(CheckpointError, match="a zip archive that holds none"):
        load_checkpoint(tmp_path / "model.pt")


def test_a_cut_checkpoint_is_refused(tmp_path: Path) -> None:
    content(tmp_path)
    whole = (tmp_path / "good.pt").read_bytes()
    for length in range(1, len(whole), 997):
        (tmp_path / "cut.pt").write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"cut\.pt: expected"):
            load_checkpoint(tmp_path / "cut.pt")


def test_a_missing_file_stays_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "model.pt")


def test_foreign_contents_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"a bare state dict of 10 tensors.*save_checkpoint"):
        load_checkpoint(spoilt(tmp_path, models.build("conv2", batch_norm=False).state_dict()))
    with pytest.raises(CheckpointError, match=r"keys 'model', 'epoch'; save the network"):
        load_checkpoint(spoilt(tmp_path, {"model": {}, "epoch": 3}))
    with pytest.raises(CheckpointError, match="found a Tensor"):
        load_checkpoint(spoilt(tmp_path, torch.zeros(3)))
    with pytest.raises(CheckpointError, match="found a list"):
        load_checkpoint(spoilt(tmp_path, [1]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "version: expected 1 or less, found 2; upgrade pabzip"),
        ({"version": "1"}, "version: expected 1, found '1'"),
        ({"version": True}, "version: expected 1, found True"),
        ({"arch": "resnet19"}, "arch: expected one of lenet-300-100, .* found 'resnet19'"),
        ({"arch": 3}, "arch: expected one of"),
        ({"arch_options": [1]}, "arch_options: expected a table, found 'list'"),
        ({"state_dict": {"fc1.weight": 3}}, r"state_dict: fc1\.weight: expected a dense tensor"),
        ({"state_dict": {"a": torch.zeros(2, device="meta")}}, "state_dict: a: expected a dense"),
        ({"state_dict": {3: torch.zeros(2)}}, "state_dict: expected a table"),
        ({"state_dict": {"a": torch.zeros(2)}}, "init: .*: expected the name of a tensor"),
        ({"seed": -1}, "seed: "),
        ({"seed": "-1"}, "seed: "),
        ({"seed": "9" * 20}, "seed: "),
        ({"seed": 1.5}, "seed: "),
        ({"init": {"fc1.weight": {"scale": 1.0}}}, r"init: fc1\.weight: "),
        (
            {"init": {"fc1.weight": {"distribution": "cauchy", "scale": 1.0, "stream": 0}}},
            r"init: fc1\.weight: .*cauchy",
        ),
        ({"init": {"fc1.weight": 3}}, r"init: fc1\.weight: expected a table"),
        ({"recipe": 3}, "recipe: expected a table"),
        ({"results": [1]}, "results: expected a table"),
        (
            {"scores": {"fc1.weight": torch.zeros(3)}},
            r"scores: fc1\.weight: expected the shape of the weight, \[.*\], found \[3\]",
        ),
        ({"scores": {"fc1.weight": 3}}, r"scores: fc1\.weight: expected a dense tensor"),
        (
            {"frozen": {"fc1.weight": {"pruned": 0, "kept": 0}}},
            r"frozen: fc1\.weight: expected pruned or kept above 0, found 'neither'",
        ),
        (
            {"frozen": {"fc3.weight": {"pruned": 1, "kept": 0}}},
            r"frozen: fc3\.weight: expected the name of a weight in init or drawn, found 'none",
        ),
    ],
)
def test_a_bad_part_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=rf"bad\.pt: {message}"):
        load_checkpoint(spoilt(tmp_path, {**content(tmp_path), **changes}))


@pytest.mark.parametrize("key", ["arch", "state_dict", "seed", "init", "recipe", "results"])
def test_a_missing_key_is_refused_by_name(tmp_path: Path, key: str) -> None:
    values = content(tmp_path)
    del values[key]
    with pytest.raises(CheckpointError, match=f"found none called {key}; save the network"):
        load_checkpoint(spoilt(tmp_path, values))


def test_a_trained_checkpoint_packs_and_a_half_precision_one_does_not(tmp_path: Path) -> None:
    save_checkpoint(small(), tmp_path / "model.pt")
    report = pabzip.pack(tmp_path / "model.pt", tmp_path / "model.pabz")
    assert report["weights"] == sum(p.numel() for p in pabzip.seeded_parameters(small()).values())
    save_checkpoint(small().half(), tmp_path / "half.pt")
    with pytest.raises(pabzip.PabzError, match=r"float32.*float16"):
        pabzip.pack(tmp_path / "half.pt", tmp_path / "half.pabz")
