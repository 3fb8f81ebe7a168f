"""The published architectures: sizes that the papers give, shapes, and what a net remembers."""

from __future__ import annotations

import copy
import importlib
import json
import subprocess
import sys

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pabzip import models
from pabzip.errors import ArchitectureError, MissingDependencyError, SeedError
from pabzip.formats import ARCHITECTURES
from pabzip.models.registry import _RANGES, _variants
from pabzip.models.wide_resnet import WideBlock

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
    "wideresnet28": {"width": 2, "widen": 2},
    "vgg11": {"width": 2, "image_size": 32},
    "vgg13": {"width": 2, "image_size": 33},
    "vgg16": {"width": 2, "image_size": 32},
    "vgg19": {"width": 2, "image_size": 32},
    "vgg-small": {"width": 2},
    "mobilenetv2": {"width": 3},
    "resnet18-imagenet": {"num_classes": 5, "image_size": 32},
    "resnet34-imagenet": {"num_classes": 5, "image_size": 32},
    "resnet50-imagenet": {"num_classes": 5, "image_size": 32},
    "wideresnet50-imagenet": {"num_classes": 5, "image_size": 32},
}
"""Options that keep each network small, or as small as it gets."""

PLAIN = [name for name in models.names() if not name.endswith("-imagenet")]
IMAGENET = [name for name in models.names() if name.endswith("-imagenet")]


def weight_count(net: nn.Module) -> int:
    """Number of convolution and Linear weights."""
    layers = (m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    return sum(layer.weight.numel() for layer in layers)


def test_names_are_those_a_file_may_hold():
    assert set(ARCHITECTURES) == {*models.names(), "custom"}


def test_every_option_of_a_published_network_has_a_range():
    # Options read from a file must never overflow a size.
    for name in models.names():
        for option, default in models.defaults(name).items():
            assert isinstance(default, bool) or option in _RANGES, (name, option)


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


@pytest.mark.parametrize(
    ("name", "options", "parameters"),
    [
        # Zagoruyko & Komodakis 2016, Table 4: 36.5 M.
        ("wideresnet28", {}, 36_479_194),
        # As they are quoted for CIFAR: 9.2, 9.4, 14.7 and 20.0 M.
        ("vgg11", {}, 9_228_362),
        ("vgg13", {}, 9_413_066),
        ("vgg16", {}, 14_724_042),
        ("vgg19", {}, 20_035_018),
        # 4.6 M, as the binary networks quote it.
        ("vgg-small", {}, 4_660_106),
        # torchvision's documentation gives 3,504,872 for the ImageNet form, which has as many.
        ("mobilenetv2", {"num_classes": 1000}, 3_504_872),
        ("mobilenetv2", {}, 2_236_682),
        # torchvision's documentation.
        ("resnet18-imagenet", {}, 11_689_512),
        ("resnet34-imagenet", {}, 21_797_672),
        ("resnet50-imagenet", {}, 25_557_032),
        ("wideresnet50-imagenet", {}, 68_883_240),
    ],
)
def test_number_of_parameters(name, options, parameters):
    net = models.build(name, device="meta", **options)
    assert sum(parameter.numel() for parameter in net.parameters()) == parameters


def test_resnet50_convolutions_and_the_papers_size():
    net = models.build("resnet50", device="meta")
    assert weight_count(net) - net.fc.weight.numel() == 23_447_232
    # Table 1 gives 89.54 MB for the dense ResNet-50.
    assert weight_count(net) * 4 / 2**20 == pytest.approx(89.54, abs=0.05)


@pytest.mark.parametrize("name", [*PLAIN, "resnet18-imagenet"])
def test_forward_and_backward(name):
    options = {"image_size": 16, **SMALL[name], "num_classes": 7, "in_channels": 2}
    net = models.build(name, **options)
    shape = models.input_shape(name, options)
    assert shape == (2, options["image_size"], options["image_size"])
    logits = net(torch.ones(3, *shape))
    assert logits.shape == (3, 7)
    assert logits.dtype == torch.float32
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.parametrize("name", [*PLAIN, "resnet18-imagenet"])
def test_the_net_remembers_what_it_is(name):
    net = models.build(name, **SMALL[name])
    remembered, options = net.pabzip_arch
    assert remembered == name
    recorded = {k: v for k, v in models.defaults(name).items() if k not in _variants(name)}
    assert options == {**recorded, **SMALL[name]}
    assert {"num_classes", "in_channels", "image_size"} <= set(options)
    assert ("width" in options) == (name in PLAIN)
    assert json.loads(json.dumps(options)) == options
    again = models.build(name, **options)
    assert again.state_dict().keys() == net.state_dict().keys()
    assert all(torch.equal(again.state_dict()[k], v) for k, v in net.state_dict().items())
    assert copy.deepcopy(net).pabzip_arch == net.pabzip_arch
    assert "pabzip_arch" not in net.state_dict()


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet20", "resnet50", "wideresnet28", "mobilenetv2"]
)
@pytest.mark.parametrize("size", [5, 8, 33])
def test_networks_with_global_pooling_take_any_size(name, size):
    net = models.build(name, **SMALL[name]).eval()
    assert net(torch.ones(1, 3, size, size)).shape == (1, 10)


@pytest.mark.parametrize("late", [False, True])
def test_a_late_stride_takes_more_macs_and_as_many_weights(late):
    net = models.build("wideresnet28", width=2, widen=1, late_stride=late)
    block = net.stages[1][0]
    assert block.conv1.stride == ((1, 1) if late else (2, 2))
    assert block.conv2.stride == ((2, 2) if late else (1, 1))
    assert block(torch.ones(1, 2, 7, 7)).shape == (1, 4, 4, 4)
    assert net(torch.ones(1, 3, 8, 8)).shape == (1, 10)


def test_a_wide_block_activates_before_the_shortcut():
    block = WideBlock(2, 3, 1, late_stride=False, raw_shortcut=False).eval()
    with torch.no_grad():
        block.conv2.weight.zero_()
        images = torch.randn(1, 2, 4, 4)
        expected = block.shortcut(torch.relu(images / (1 + 1e-5) ** 0.5))
        torch.testing.assert_close(block(images), expected)
        same = WideBlock(2, 2, 1, late_stride=False, raw_shortcut=False).eval()
        same.conv2.weight.zero_()
        assert torch.equal(same(images), images)


def test_mobilenet_blocks_are_depthwise_and_add_where_the_shape_stays():
    blocks = models.build("mobilenetv2", device="meta").blocks
    depthwise = [m for m in blocks.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert len(blocks) == len(depthwise) == 17
    assert all(m.groups == m.in_channels == m.out_channels for m in depthwise)
    assert [m.out_channels for m in depthwise][:3] == [32, 96, 144]
    assert sum(m.stride == (2, 2) for m in depthwise) == 3
    assert [block.adds for block in blocks].count(True) == 10


def test_vgg_small_has_the_widths_of_the_binary_networks():
    net = models.build("vgg-small", device="meta")
    widths = [m.out_channels for m in net.features if isinstance(m, nn.Conv2d)]
    assert widths == [128, 128, 256, 256, 512, 512]
    assert net.fc.in_features == 512 * 4 * 4


@pytest.mark.parametrize("name", IMAGENET)
def test_imagenet_forms_are_torchvisions(name):
    net = models.build(name, device="meta")
    constructor = {"wideresnet50-imagenet": "wide_resnet50_2"}.get(name, name.partition("-")[0])
    with torch.device("meta"):
        theirs = getattr(torchvision.models, constructor)()
    ours = {key: value.shape for key, value in net.state_dict().items()}
    assert ours == {key: value.shape for key, value in theirs.state_dict().items()}
    assert net(torch.ones(2, 3, 224, 224, device="meta")).shape == (2, 1000)


def test_a_stem_for_other_channels_is_drawn_as_torchvisions():
    torch.manual_seed(3)
    stem = models.build("resnet18-imagenet", {"in_channels": 1}).conv1.weight
    assert stem.shape == (64, 1, 7, 7)
    # Kaiming normal, fan-out 64 x 7 x 7; nn.Conv2d itself draws three times as wide.
    assert float(stem.detach().std()) == pytest.approx((2 / (64 * 49)) ** 0.5, rel=0.1)


def test_torchvision_that_does_not_match_torch(monkeypatch):
    real = importlib.import_module

    def broken(name):
        if name.startswith("torchvision"):
            raise RuntimeError("operator torchvision::nms does not exist")
        return real(name)

    monkeypatch.setattr("pabzip._optional.importlib.import_module", broken)
    message = r"architecture resnet18: expected a torchvision that matches torch .*nms.*reinstall"
    with pytest.raises(MissingDependencyError, match=message):
        models.build("resnet18-imagenet", device="meta")


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


@pytest.mark.parametrize("name", ["conv2", "wideresnet28", "mobilenetv2", "resnet18-imagenet"])
def test_global_state_is_left_alone(name):
    before = torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        net = models.build(name, SMALL[name])
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.dtype == torch.float32 for p in net.parameters())
    plain = models.build(name, SMALL[name])
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


def test_a_mistyped_name_is_answered_with_the_nearest():
    with pytest.raises(ArchitectureError, match=r"found 'resnet81'; did you mean resnet18\?"):
        models.build("resnet81")


@pytest.mark.parametrize("name", ["resnet19", "custom", "", "ResNet18", None])
def test_unknown_architecture(name):
    with pytest.raises(ArchitectureError, match=r"expected one of lenet-300-100, conv2, .*found"):
        models.build(name)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "resnet18",
            {"batch_norm": True},
            r"options among num_classes.*width, .*ions, found 'batch_norm'",
        ),
        ("conv2", {"depth": 3}, r"options among .*batch_norm, .*found 'depth'"),
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
        ("vgg16", {"image_size": 31}, r"option image_size: .* from 32 to 4096, found 31"),
        ("wideresnet28", {"widen": 65}, r"option widen: .* from 1 to 64, found 65"),
        ("wideresnet28", {"late_stride": 1}, r"option late_stride: expected true or false"),
        (
            "resnet18-imagenet",
            {"width": 32},
            r"options among .*image_size, affine, .*found 'width'",
        ),
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
    name=st.sampled_from(PLAIN),
    num_classes=st.integers(1, 12),
    in_channels=st.integers(1, 4),
    image_size=st.integers(32, 36),
    width=st.integers(3, 5),
)
def test_any_valid_options_build(name, num_classes, in_channels, image_size, width):
    options = {
        "num_classes": num_classes,
        "in_channels": in_channels,
        "image_size": image_size,
        "width": width,
    }
    if name == "wideresnet28":
        options["widen"] = 1
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
