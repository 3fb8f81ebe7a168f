"""A network that another package registers, from its registration to a file."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import pabzip
from pabzip import models
from pabzip.errors import ArchitectureError, CheckpointError
from pabzip.registry import NETWORKS, register_network


@pytest.fixture
def tiny(monkeypatch):
    """A registered class of this module's, gone afterwards; it knows nothing of devices."""
    monkeypatch.setattr(NETWORKS, "_own", dict(NETWORKS._own))

    @register_network("tiny", options={"hidden": 8}, least={"hidden": 2}, layers=1)
    @register_network("tiny-deep", options={"hidden": 4}, layers=3)
    class Tiny(nn.Module):
        def __init__(self, *, layers, num_classes, in_channels, image_size, hidden):
            super().__init__()
            sizes = [in_channels * image_size**2, *[hidden] * layers, num_classes]
            pairs = itertools.pairwise(sizes)
            self.layers = nn.Sequential(nn.Flatten(), *(nn.Linear(*pair) for pair in pairs))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.layers(images)
            return logits

    return Tiny


@pytest.mark.usefixtures("tiny")
def test_it_is_built_by_its_name_like_any_other():
    assert {"tiny", "tiny-deep"} < set(models.names())
    assert models.defaults("tiny") == {
        "num_classes": 10, "in_channels": 3, "image_size": 32, "hidden": 8,
    }  # fmt: skip
    net = models.build("tiny-deep", {"image_size": 8}, dense_seed=2, in_channels=1)
    assert [layer.in_features for layer in net.layers[1:]] == [64, 4, 4, 4]
    again = models.build("tiny-deep", {"image_size": 8}, dense_seed=2, in_channels=1)
    assert torch.equal(net.layers[1].weight, again.layers[1].weight)
    meta = models.build("tiny", device="meta")
    assert {value.device.type for value in meta.parameters()} == {"meta"}
    assert models.input_shape("tiny", {"image_size": 5}) == (3, 5, 5)


@pytest.mark.usefixtures("tiny")
def test_its_options_are_checked():
    with pytest.raises(ArchitectureError, match=r"hidden: .*number from 2 to 1048576, found 1"):
        models.build("tiny", hidden=1)
    with pytest.raises(ArchitectureError, match=r"image_size, hidden, found 'layers'"):
        models.build("tiny", layers=2)


@pytest.mark.usefixtures("tiny")
def test_its_variants_are_its_own_and_recorded_where_they_are_used():
    @register_network("tiny-biased", options={"hidden": 4}, variants={"bias": False})
    def tiny_biased(*, num_classes, in_channels, image_size, hidden, bias):
        return nn.Linear(in_channels * image_size**2, num_classes, bias=bias)

    assert models.build("tiny-biased").bias is None
    assert models.build("tiny-biased", bias=True).bias is not None
    assert "bias" not in models.build("tiny-biased", bias=False).pabzip_arch[1]
    assert models.build("tiny-biased", bias=True).pabzip_arch[1]["bias"] is True
    with pytest.raises(ArchitectureError, match="hidden, bias, found 'affine'"):
        models.build("tiny-biased", affine=False)


@pytest.mark.usefixtures("tiny")
def test_to_files_and_checkpoints_it_is_custom(tmp_path):
    def build():
        return models.build("tiny", in_channels=1, image_size=8)

    net = pabzip.init_(build(), seed=3)
    assert net.pabzip_arch == (
        "custom",
        models.defaults("tiny") | {"in_channels": 1, "image_size": 8},
    )
    pabzip.pack(net, tmp_path / "net.pabz")
    with pabzip.open(tmp_path / "net.pabz") as ticket:
        assert ticket.arch == "custom"
    with pytest.raises(ArchitectureError, match="custom architecture"):
        pabzip.load(tmp_path / "net.pabz")
    loaded = pabzip.load_into(build(), tmp_path / "net.pabz")
    assert torch.equal(loaded.layers[1].weight, net.layers[1].weight)
    pabzip.save_checkpoint(net, tmp_path / "net.pt")
    assert pabzip.load_checkpoint(tmp_path / "net.pt").arch == "custom"
    content = torch.load(tmp_path / "net.pt", weights_only=True)
    torch.save({**content, "arch": "tiny"}, tmp_path / "net.pt")
    with pytest.raises(CheckpointError, match=r"arch: expected one of .*custom, found 'tiny'"):
        pabzip.load_checkpoint(tmp_path / "net.pt")


def test_a_name_of_pabzips_own_cannot_be_taken():
    with pytest.raises(ArchitectureError, match="'resnet18', which pabzip.models.resnet has reg"):
        register_network("resnet18")(lambda: nn.Identity())
