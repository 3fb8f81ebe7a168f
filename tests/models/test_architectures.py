"""The published architectures: sizes that the papers give, shapes, and what a net remembers."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pabzip import models
from pabzip.errors import ArchitectureError, SeedError

SMALL = {
    "lenet-300-100": {"width": 9},
    "conv2": {"width": 4},
    "conv4": {"width": 4},
    "conv6": {"width": 4},
    "conv8": {"width": 2},
    "resnet18": {"width": 4},
    "resnet20": {"width": 4},
    "resnet34": {"width": 2},
    "resnet50": {"width": 2},
}


def weight_count(net: nn.Module) -> int:
    """Number of convolution and Linear weights."""
    layers = (m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    return sum(layer.weight.numel() for layer in layers)


def test_names_are_those_a_file_may_hold():
    from pabzip.formats import registry

    accepted = set(registry.ARCHITECTURES)
    assert accepted == {*models.names(), "custom"}


@pytest.mark.parametrize(
    ("name", "options", "weights"),
    [
        # LeCun et al. 1998: 784-300-100-10.
        ("lenet-300-100", {"in_channels": 1, "image_size": 28}, 784 * 300 + 300 * 100 + 100 * 10),
        # Frankle & Carbin 2019, Figure 2: 4.3 M, 2.4 M and 1.7 M parameters.
        ("conv2", {}, 38_592 + 16_384 * 256 + 256 * 256 + 2_560),
        ("conv4", {}, 259_776 + 8_192 * 256 + 256 * 256 + 2_560),
        ("conv6", {}, 1_144_512 + 4_096 * 256 + 256 * 256 + 2_560),
        ("conv8", {}, 4_683_456 + 2_048 * 256 + 256 * 256 + 2_560),
        # Peek-a-Boo, Table 1: 42.59 MiB of float32.
        ("resnet18", {}, 11_164_352),
        # He et al. 2016, Table 6: 0.27 M; 2,560 of these are the two 1x1 shortcuts.
        ("resnet20", {}, 270_896),
        ("resnet34", {}, 21_265_088),
        ("resnet50", {}, 23_467_712),
    ],
)
def test_number_of_weights(name, options, weights):
    assert weight_count(models.build(name, device="meta", **options)) == weights


def test_resnet50_convolutions_and_the_papers_size():
    net = models.build("resnet50", device="meta")
    assert weight_count(net) - net.fc.weight.numel() == 23_447_232
    # Table 1 gives 89.54 MB for the dense ResNet-50.
    assert weight_count(net) * 4 / 2**20 == pytest.approx(89.54, abs=0.05)


@pytest.mark.parametrize("name", models.names())
def test_forward_and_backward(name):
    options = {"num_classes": 7, "in_channels": 2, "image_size": 16, **SMALL[name]}
    net = models.build(name, **options)
    shape = models.input_shape(name, options)
    assert shape == (2, 16, 16)
    logits = net(torch.ones(3, *shape))
    assert logits.shape == (3, 7)
    assert logits.dtype == torch.float32
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.parametrize("name", models.names())
def test_the_net_remembers_what_it_is(name):
    net = models.build(name, **SMALL[name])
    remembered, options = net.pabzip_arch
    assert remembered == name
    assert options == {**models.defaults(name), **SMALL[name]}
    assert {"num_classes", "in_channels", "image_size", "width"} <= set(options)
    assert json.loads(json.dumps(options)) == options
    again = models.build(name, **options)
    assert again.state_dict().keys() == net.state_dict().keys()
    assert all(torch.equal(again.state_dict()[k], v) for k, v in net.state_dict().items())
    assert copy.deepcopy(net).pabzip_arch == net.pabzip_arch
    assert "pabzip_arch" not in net.state_dict()


@pytest.mark.parametrize("name", ["resnet18", "resnet20", "resnet50"])
@pytest.mark.parametrize("size", [5, 8, 33])
def test_residual_networks_take_any_size(name, size):
    net = models.build(name, **SMALL[name]).eval()
    assert net(torch.ones(1, 3, size, size)).shape == (1, 10)


def test_batch_norm_is_an_option_of_the_conv_networks():
    with_norm = models.build("conv4", width=2)
    without = models.build("conv4", width=2, batch_norm=False)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in with_norm.modules()) == 4
    assert not any(isinstance(m, nn.BatchNorm2d) for m in without.modules())
    assert with_norm.features[0].bias is None
    assert without.features[0].bias is not None


@pytest.mark.parametrize("name", models.names())
def test_the_classifier_is_the_last_linear_layer(name):
    net = models.build(name, num_classes=13, device="meta")
    last = [m for m in net.modules() if isinstance(m, nn.Linear)][-1]
    assert last.out_features == 13


@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
def test_same_dense_seed_same_parameters(seed):
    one = models.build("conv2", dense_seed=seed, width=4, image_size=8)
    torch.rand(3)
    two = models.build("conv2", dense_seed=seed, width=4, image_size=8)
    other = models.build("conv2", dense_seed=seed ^ 1, width=4, image_size=8)
    assert torch.equal(one.fc1.bias, two.fc1.bias)
    assert torch.equal(one.fc1.weight, two.fc1.weight)
    assert not torch.equal(one.fc1.bias, other.fc1.bias)


def test_global_state_is_left_alone():
    before = torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        net = models.build("conv2", width=4, image_size=8)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.dtype == torch.float32 for p in net.parameters())
    plain = models.build("conv2", width=4, image_size=8)
    assert all(torch.equal(plain.state_dict()[k], v) for k, v in net.state_dict().items())


def test_the_default_device_is_followed():
    with torch.device("meta"):
        net = models.build("resnet20", width=4)
        on_cpu = models.build("resnet20", width=4, device="cpu")
    assert {t.device.type for t in net.state_dict().values()} == {"meta"}
    assert {t.device.type for t in on_cpu.state_dict().values()} == {"cpu"}


def test_options_as_a_mapping_and_as_keywords():
    net = models.build("conv2", {"width": 4, "image_size": 8}, width=6)
    assert net.pabzip_arch[1]["width"] == 6
    assert net.pabzip_arch[1]["image_size"] == 8
    for word in ("device", "dense_seed", "options", "name"):
        with pytest.raises(ArchitectureError, match=f"found '{word}'"):
            models.build("conv2", {word: "meta"})


def test_meta_device_allocates_nothing():
    net = models.build("lenet-300-100", device="meta", width=2**14, image_size=2**12)
    assert net.fc1.weight.device.type == "meta"
    assert net.fc1.weight.numel() > 2**39


@pytest.mark.parametrize("name", ["resnet19", "custom", "", "ResNet18", None])
def test_unknown_architecture(name):
    with pytest.raises(ArchitectureError, match=r"expected one of lenet-300-100, conv2, .*found"):
        models.build(name)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet18", {"batch_norm": True}, r"options among num_classes.*width, found 'batch_norm'"),
        ("conv2", {"depth": 3}, r"options among .*batch_norm, found 'depth'"),
        ("conv2", {"width": 0}, r"option width: expected a whole number from 1 to 16384, found 0"),
        ("conv2", {"width": 2**14 + 1}, r"option width: .* found 16385"),
        ("conv2", {"width": 4.0}, r"option width: .* found 4\.0"),
        ("conv2", {"width": True}, r"option width: .* found True"),
        ("conv2", {"width": "4"}, r"option width: .* found '4'"),
        ("conv2", {"num_classes": None}, r"option num_classes: .* found None"),
        ("conv2", {"in_channels": -1}, r"option in_channels: .* found -1"),
        ("conv2", {"batch_norm": 1}, r"option batch_norm: expected true or false, found 1"),
        ("conv8", {"image_size": 15}, r"option image_size: .* from 16 to 4096, found 15"),
        ("lenet-300-100", {"width": 2}, r"option width: .* from 3 to 16384, found 2"),
    ],
)
def test_bad_options(name, options, message):
    with pytest.raises(ArchitectureError, match=message):
        models.build(name, **options)
    with pytest.raises(ArchitectureError, match=message):
        models.input_shape(name, options)


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, True])
def test_bad_dense_seed(seed):
    with pytest.raises(SeedError, match="seed"):
        models.build("conv2", dense_seed=seed)


@settings(max_examples=20, deadline=None)
@given(
    name=st.sampled_from(models.names()),
    num_classes=st.integers(1, 12),
    in_channels=st.integers(1, 4),
    image_size=st.integers(16, 20),
    width=st.integers(3, 5),
)
def test_any_valid_options_build(name, num_classes, in_channels, image_size, width):
    options = {
        "num_classes": num_classes,
        "in_channels": in_channels,
        "image_size": image_size,
        "width": width,
    }
    net = models.build(name, **options).eval()
    with torch.no_grad():
        logits = net(torch.zeros(1, *models.input_shape(name, options)))
    assert logits.shape == (1, num_classes)


def test_names_and_shapes_do_not_load_torch():
    code = (
        "import sys, pabzip.models as m; m.names(); m.defaults('conv2'); m.input_shape('conv2');"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
