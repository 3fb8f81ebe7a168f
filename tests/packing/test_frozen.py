"""A network whose masks the seed freezes in part: its record, its checkpoint, and its file."""

from __future__ import annotations

import copy
import io
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import pabzip
from pabzip.errors import CheckpointError, PackError, SeedError
from pabzip.init import Seeding
from pabzip.seeds import Frozen
from pabzip.seeds.frozen import KEPT, PRUNED

FROZEN = Frozen.of(0.5, 0.2)


def frozen_net(keep: float = 0.3) -> nn.Module:
    """A small network with random masks, whose convolutions are frozen and whose head is not."""
    net = pabzip.models.build("conv2", in_channels=1, image_size=8, width=4)
    pabzip.init_(net, seed=11)
    record = pabzip.seeding(net)
    frozen = {name: FROZEN for name in record.specs if name != "fc3.weight"}
    pabzip.attach_seeding(net, replace(record, frozen=frozen))
    rng = np.random.default_rng(3)
    with torch.no_grad():
        for name, weight in pabzip.seeded_parameters(net).items():
            kept = rng.random(weight.numel()) < keep
            if name in frozen:
                marks = FROZEN.marks(11, record.specs[name].stream, 0, weight.numel())
                kept = np.where(marks == 0, kept, marks == KEPT)
            weight.mul_(torch.from_numpy(kept).view(weight.shape)).add_(0.0)
    return net.eval()


def packed(net: nn.Module, **options: object) -> bytes:
    file = io.BytesIO()
    pabzip.pack(net, file, **options)  # type: ignore[arg-type]
    return file.getvalue()


def test_the_record_survives_copies_wrappers_and_files(tmp_path: Path) -> None:
    net = frozen_net()
    record = pabzip.seeding(net)
    assert set(record.specs) - set(record.frozen) == {"fc3.weight"}
    assert pabzip.seeding(copy.deepcopy(net)) == record
    assert pabzip.seeding(pickle.loads(pickle.dumps(net))) == record
    assert pabzip.seeding(nn.DataParallel(net)) == record
    pabzip.save_checkpoint(net, tmp_path / "model.pt")
    assert pabzip.load_checkpoint(tmp_path / "model.pt").seeding == record
    assert pabzip.seeding(pabzip.load(packed(net))) == record


def test_a_checkpoint_without_frozen_masks_says_nothing_of_them(tmp_path: Path) -> None:
    net = pabzip.init_(nn.Linear(4, 3), 1)
    pabzip.save_checkpoint(net, tmp_path / "model.pt")
    assert "frozen" not in torch.load(tmp_path / "model.pt", weights_only=True)


def test_files_hold_the_learned_part_alone_and_load_the_same(tmp_path: Path) -> None:
    net = frozen_net()
    pabzip.save_checkpoint(net, tmp_path / "model.pt")
    report = pabzip.pack(tmp_path / "model.pt", tmp_path / "model.pabz", coder="huffman")
    for row in report["tensors"]:
        if row["kind"] == "seeded" and row["name"] != "fc3.weight":
            assert 0.5 < row["frozen"] / row["weights"] < 0.9
    free = frozen_net()
    pabzip.attach_seeding(free, replace(pabzip.seeding(free), frozen={}))
    whole = pabzip.pack(free, io.BytesIO(), coder="huffman")
    assert report["codes_bytes"] < 0.45 * whole["codes_bytes"]  # fc3 is not frozen
    loaded = pabzip.load(tmp_path / "model.pabz", verify=True)
    for name, value in net.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert packed(loaded, coder="huffman") == packed(net, coder="huffman")


def test_a_folded_network_keeps_its_frozen_masks() -> None:
    net = frozen_net()
    images = torch.linspace(-1, 1, 2 * 64).view(2, 1, 8, 8)
    file = packed(net, fold_bn=True)
    with pabzip.open(file) as ticket:
        frozen = {name for name in ticket.names if ticket.kind(name) == "seeded"}
        assert {name for name in frozen if ticket.frozen(name)} == set(pabzip.seeding(net).frozen)
    loaded = pabzip.load(file)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), net(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("mark", "factor", "words"),
    [(KEPT, 0.0, "pruned instead of kept"), (KEPT, -1.0, "flipped instead of kept")],
)
def test_a_frozen_place_that_moved_is_refused(mark: int, factor: float, words: str) -> None:
    net = frozen_net()
    weight = net.get_parameter("fc1.weight")
    spec = pabzip.seeding(net).specs["fc1.weight"]
    place = int(np.argmax(FROZEN.marks(11, spec.stream, 0, weight.numel()) == mark))
    with torch.no_grad():
        weight.view(-1)[place] *= factor
    message = rf"fc1\.weight: .* seed 11 fixes it, found 1 of \d+ .* index {place}: {words}"
    with pytest.raises(PackError, match=message):
        packed(net)


def test_a_frozen_pruned_place_that_came_back_is_refused() -> None:
    net = pabzip.init_(nn.Linear(30, 20), 11)
    pabzip.attach_seeding(net, replace(pabzip.seeding(net), frozen={"weight": Frozen.of(0.5, 0.0)}))
    count = int((Frozen.of(0.5, 0.0).marks(11, 0, 0, 600) == PRUNED).sum())
    with pytest.raises(PackError, match=f"found {count} of {count} .* kept instead of pruned"):
        packed(net)


def test_a_tied_weight_keeps_its_frozen_mask() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(20, 30)
            self.head = nn.Linear(30, 20, bias=False)
            self.head.weight = self.embed.weight

    net = pabzip.init_(Tied(), 11)
    frozen = Frozen.of(0.0, 0.6)
    pabzip.attach_seeding(net, replace(pabzip.seeding(net), frozen={"head.weight": frozen}))
    with pabzip.open(packed(net)) as ticket:
        assert ticket.tied("head.weight") == "embed.weight"
        assert ticket.frozen("embed.weight") == ticket.frozen("head.weight") == frozen


def test_a_record_freezes_only_what_it_seeds() -> None:
    net = nn.Linear(3, 2)
    with pytest.raises(SeedError, match="found unknown names bias"):
        pabzip.attach_seeding(net, Seeding(1, {}, {"bias": FROZEN}))


@pytest.mark.parametrize(
    ("frozen", "message"),
    [
        (3, "frozen: expected a table, found 'int'"),
        ({"fc1.weight": 3}, r"frozen: fc1\.weight: expected a table"),
        ({"fc1.weight": {"pruned": 1}}, r"frozen: fc1\.weight: .*kept"),
        ({"fc1.weight": {"pruned": -1, "kept": 0}}, r"frozen: fc1\.weight: frozen: pruned: expe"),
        ({"fc1.weight": {"pruned": 0.5, "kept": 0}}, r"frozen: fc1\.weight: frozen: pruned: expe"),
        ({"fc1.weight": {"pruned": 65536, "kept": 1}}, r"frozen: fc1\.weight: .*at most 65536"),
        ({"fc1.bias": {"pruned": 1, "kept": 1}}, r"frozen: fc1\.bias: expected the name of a wei"),
    ],
)
def test_a_checkpoint_of_hostile_values_is_refused(
    tmp_path: Path, frozen: object, message: str
) -> None:
    pabzip.save_checkpoint(frozen_net(), tmp_path / "model.pt")
    values = torch.load(tmp_path / "model.pt", weights_only=True)
    torch.save({**values, "frozen": frozen}, tmp_path / "bad.pt")
    with pytest.raises(CheckpointError, match=rf"bad\.pt: {message}"):
        pabzip.load_checkpoint(tmp_path / "bad.pt")
