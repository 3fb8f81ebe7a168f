"""Variants of networks: binary activations, plain batch norm, no biases, and published forms."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pabzip
from pabzip import models
from pabzip.errors import ArchitectureError
from pabzip.models.binary import OnlyBinary, RealReLU, Sign, sign
from pabzip.search import synflow

GRAY = {"in_channels": 1, "image_size": 8}  # as the digits are
DIGITS = {
    "lenet-300-100": {"width": 12},
    "conv4": {"width": 4},
    "resnet20": {"width": 4},
    "wideresnet28": {"width": 4, "widen": 1},
    "vgg-small": {"width": 4},
    "mobilenetv2": {"width": 8},
}
"""Small networks, one of each family, that fit the digits."""


def layers(net: nn.Module) -> list[nn.Module]:
    """Return the modules of a network that have none inside, in order."""
    return [module for module in net.modules() if not list(module.children())]


def kinds(net: nn.Module) -> list[str]:
    """Return their classes' names."""
    return [type(module).__name__ for module in layers(net)]


def spline(values: np.ndarray) -> np.ndarray:
    """Equation 2 of Multi-Prize Tickets with t = 1, in plain numpy."""
    rising = np.where(values < 0, values**2 + 2 * values, -(values**2) + 2 * values)
    return np.where(values < -1, -1.0, np.where(values >= 1, 1.0, rising))


def test_the_sign_and_its_gradient_against_plain_numpy():
    values = np.array([-3.0, -1.0, -0.75, -1e-30, -0.0, 0.0, 1e-30, 0.25, 0.5, 1.0, 7.0])
    upstream = np.linspace(-2, 3, len(values))
    inputs = torch.tensor(values, requires_grad=True)
    outputs = sign(inputs)
    assert np.array_equal(outputs.detach().numpy(), np.sign(values))
    (gradient,) = torch.autograd.grad(outputs, inputs, torch.tensor(upstream), create_graph=True)
    derivative = (spline(values + 1e-7) - spline(values - 1e-7)) / 2e-7
    np.testing.assert_allclose(gradient.detach().numpy(), upstream * derivative, atol=1e-6)
    inner = np.abs(values) < 1
    exact = np.where(inner, 2 - 2 * np.abs(values), 0.0)
    assert np.array_equal(gradient.detach().numpy(), upstream * exact)
    # GraSP differentiates the gradient again.
    (second,) = torch.autograd.grad(gradient.sum(), inputs)
    assert np.array_equal(second.numpy(), np.where(inner, -2 * np.sign(values), 0.0) * upstream)


def test_the_sign_without_a_gradient_and_in_other_dtypes():
    values = torch.tensor([-2.0, 0.0, 0.5])
    assert not sign(values).requires_grad
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        inputs = values.to(dtype).requires_grad_()
        sign(inputs).sum().backward()
        assert inputs.grad.dtype == dtype
        assert inputs.grad.tolist() == [0.0, 2.0, 1.0]
    assert torch.equal(torch.vmap(sign)(values), values.sign())


def test_binary_conv_networks_pool_right_after_the_convolution():
    net = models.build("conv4", width=4, binary_activations=True)
    block = ["Conv2d", "BatchNorm2d", "Sign", "Conv2d", "MaxPool2d", "BatchNorm2d", "Sign"]
    assert kinds(net.features) == 2 * block
    head = [net.fc1, *net.act1, net.fc2, *net.act2, net.fc3]
    assert [type(layer) for layer in head] == [
        nn.Linear, nn.BatchNorm1d, Sign, nn.Linear, nn.BatchNorm1d, Sign, nn.Linear,
    ]  # fmt: skip
    assert net.pabzip_arch[1]["head_batch_norm"] is True
    seen = []
    for layer in [*net.features, net.fc2, net.fc3]:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_pre_hook(lambda _, given: seen.append(given[0].unique()))
    net(torch.randn(8, 3, 32, 32))
    assert all(values.tolist() in ([-1, 1], [-1, 0, 1]) for values in seen[1:])
    assert len(seen[0]) > 3  # the images stay as they are


def test_binary_residual_networks_keep_their_order():
    names = [name for name in kinds(models.build("resnet20", width=4)) if name != "Identity"]
    binary = kinds(models.build("resnet20", width=4, binary_activations=True))
    assert [name for name in binary if name != "Identity"] == [
        {"ReLU": "Sign"}.get(name, name) for name in names
    ]


def test_the_stem_of_a_binary_imagenet_network_pools_before_the_sign():
    net = models.build("resnet18-imagenet", num_classes=5, image_size=32, binary_activations=True)
    assert kinds(nn.Sequential(net.bn1, net.relu, net.maxpool)) == [
        "BatchNorm2d", "Identity", "MaxPool2d", "Sign",
    ]  # fmt: skip
    assert not any(isinstance(layer, nn.ReLU) for layer in net.modules())
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, 5)


def test_batch_norm_cannot_be_left_out_of_a_binary_network():
    message = r"binary_activations: expected batch_norm True with it, found False; leave batch_norm"
    with pytest.raises(ArchitectureError, match=message):
        models.build("conv2", binary_activations=True, batch_norm=False)
    net = models.build("conv2", binary_activations=True, batch_norm=True, width=2, image_size=8)
    assert isinstance(net.features[2], Sign)


def test_synflow_takes_the_sign_for_the_identity():
    # As it takes ReLU; otherwise all gradients would be 0.
    found = []
    for binary in (False, True):
        net = models.build("resnet20", {**GRAY, "width": 4}, binary_activations=binary)
        pabzip.init_(net, seed=2)
        found.append(synflow(net, 0.2, input_shape=(1, 8, 8), iterations=5))
    assert all(torch.equal(mask, found[1][name]) for name, mask in found[0].items())


@pytest.mark.parametrize("name", ["conv4", "resnet18", "mobilenetv2", "resnet18-imagenet"])
def test_batch_norm_without_weight_and_bias(name):
    options = {"num_classes": 4} if name.endswith("imagenet") else {"width": 4}
    plain, net = models.build(name, options), models.build(name, options, affine=False)
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert norms
    assert all(m.weight is None and m.bias is None and not m.affine for m in norms)
    assert all(m.running_mean is not None for m in norms)
    # All else is drawn as without the option, and computes the same at first.
    state = plain.state_dict()
    assert all(torch.equal(state[key], value) for key, value in net.state_dict().items())
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(net(images), plain(images))
    assert models.build(name, options, affine=False, device="meta").state_dict().keys() < set(state)


@pytest.mark.parametrize("name", [*DIGITS, "resnet18-imagenet", "vgg11"])
def test_no_layer_has_a_bias(name):
    net = models.build(name, bias=False, device="meta")
    assert not any(
        key.endswith("bias")
        for key, module in net.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None
    )
    count = sum(isinstance(m, nn.Conv2d | nn.Linear) for m in net.modules())
    assert count == sum(
        isinstance(m, nn.Conv2d | nn.Linear) for m in models.build(name, device="meta").modules()
    )


def test_variants_that_would_change_nothing_are_refused():
    with pytest.raises(ArchitectureError, match=r"affine: expected a network with batch norm, fou"):
        models.build("lenet-300-100", affine=False)
    with pytest.raises(ArchitectureError, match=r"affine: expected true or false, found 0"):
        models.build("conv2", affine=0)


def test_only_variants_that_are_used_are_recorded():
    # Files of a plain network stay as they were before the variants came, byte for byte.
    plain = models.build("resnet20", width=4, affine=True, binary_activations=False)
    assert plain.pabzip_arch[1] == {
        "num_classes": 10, "in_channels": 3, "image_size": 32, "width": 4,
    }  # fmt: skip
    other = models.build("resnet20", width=4, affine=False, padded_shortcuts=True)
    extra = {"affine": False, "padded_shortcuts": True}
    assert other.pabzip_arch[1] == {**plain.pabzip_arch[1], **extra}
    assert set(models.defaults("resnet20")) == {
        *plain.pabzip_arch[1], "affine", "bias", "binary_activations", "padded_shortcuts",
        "norm_after_sum",
    }  # fmt: skip


@pytest.mark.parametrize("name", DIGITS)
@pytest.mark.parametrize("binary", [False, True])
def test_they_pack_load_by_name_and_export(name, binary):
    from pabzip.export import build_onnx

    options = {**GRAY, **DIGITS[name], "bias": False, "binary_activations": binary}
    if name != "lenet-300-100" or binary:
        options["affine"] = False
    net = pabzip.init_(models.build(name, options), seed=3)
    images = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(4))
    net(images).square().sum().backward()
    assert all(weight.grad.any() for weight in pabzip.seeded_parameters(net).values())
    net.eval()
    file = io.BytesIO()
    pabzip.pack(net, file)
    loaded = pabzip.load(file.getvalue(), verify=True).eval()
    assert loaded.pabzip_arch == net.pabzip_arch
    assert kinds(loaded) == kinds(net)
    with torch.no_grad():
        assert torch.equal(loaded(images), net(images))
    model = build_onnx(net, input_shape=(1, 8, 8))
    assert (b"Sign" in model.data) == binary


@pytest.mark.parametrize(
    ("name", "options", "parameters"),
    [
        # Weights as of the plain networks; what goes are the vectors of batch norm and the biases.
        ("vgg-small", {"published": True}, 4_660_106 - 3_584 - 10),
        ("vgg-small", {"published": True, "binary_activations": True}, 4_660_106 - 3_584 - 10),
        ("vgg-small", {"binary_activations": True}, 4_660_106 - 3_584 - 10),
        ("conv4", {"binary_activations": True}, 259_776 + 8_192 * 256 + 256 * 256 + 2_560),
        ("resnet18", {"binary_activations": True}, 11_164_352),
        ("resnet18", {"binary_activations": True, "norm_after_sum": True}, 11_164_352),
        ("resnet20", {"padded_shortcuts": True}, 270_896 - 2_560),
        ("vgg16", {}, 14_724_042 - 2 * 4_224 - 10),
        # Rare Gems, Table 5: a stem, three stages of four blocks, 32, 64 and 128 channels wide.
        ("wideresnet28", {"widen": 2}, 1_463_984),
    ],
)
def test_networks_of_the_score_methods_have_weights_alone(name, options, parameters):
    net = models.build(name, options, affine=False, bias=False, device="meta")
    assert sum(parameter.numel() for parameter in net.parameters()) == parameters
    assert {key.rpartition(".")[2] for key, _ in net.named_parameters()} == {"weight"}


def published_wide_resnet(net: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The forward pass of Peek-a-Boo's WideResNet in evaluation, stated once more by functions."""
    state = net.state_dict()

    def norm(values: torch.Tensor, name: str) -> torch.Tensor:
        parts = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(values, *(state[f"{name}.{part}"] for part in parts))

    hidden = F.conv2d(images, state["conv1.weight"], padding=1)
    for stage in range(3):
        for block in range(4):
            name, stride = f"stages.{stage}.{block}", 2 if stage and not block else 1
            inner = F.conv2d(F.relu(norm(hidden, f"{name}.bn1")), state[f"{name}.conv1.weight"],
                             padding=1)  # fmt: skip
            inner = F.conv2d(F.relu(norm(inner, f"{name}.bn2")), state[f"{name}.conv2.weight"],
                             padding=1, stride=stride)  # fmt: skip
            if block == 0:
                hidden = F.conv2d(hidden, state[f"{name}.shortcut.weight"], stride=stride)
            hidden = inner + hidden
    pooled = F.avg_pool2d(F.relu(norm(hidden, "bn")), 8).flatten(1)
    return F.linear(pooled, state["fc.weight"], state["fc.bias"])


def test_the_published_wide_resnet():
    net = models.build("wideresnet28", width=4, widen=2, published=True)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    momenta = [m.momentum for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert momenta == [*[0.1] * 24, 0.9]
    net(images)  # running statistics other than 0 and 1
    net.eval()
    with torch.no_grad():
        torch.testing.assert_close(net(images), published_wide_resnet(net, images))
        for options in ({}, {"late_stride": True}):
            other = models.build("wideresnet28", width=4, widen=2, **options).eval()
            other.load_state_dict(net.state_dict())
            difference = (other(images) - net(images)).abs().max()
            assert difference > 1e-3 * net(images).abs().max()


def test_the_published_conv_4_of_peek_a_boo():
    net = models.build("conv4", head_batch_norm=True, bias=False)
    assert kinds(net)[-7:] == [
        "Linear", "Linear", "Linear", "BatchNorm1d", "ReLU", "BatchNorm1d", "ReLU",
    ]  # fmt: skip
    sizes = {key: tuple(value.shape) for key, value in net.named_parameters()}
    assert not any(key.endswith("bias") for key in sizes if key.startswith("fc"))
    # Weights of convolutions and 1x1 convolutions, and two vectors a batch norm.
    weights = 259_776 + 8_192 * 256 + 256 * 256 + 2_560
    norms = 2 * (64 + 64 + 128 + 128 + 256 + 256)
    assert sum(parameter.numel() for parameter in net.parameters()) == weights + norms
    inner = torch.randn(4, 256, generator=torch.Generator().manual_seed(1))
    assert torch.equal(net.act1(inner), torch.relu(net.act1[0](inner)))


def test_conv_networks_of_the_score_methods_have_neither_norm_nor_bias():
    net = models.build("conv6", batch_norm=False, bias=False)
    assert {key.rpartition(".")[2] for key in net.state_dict()} == {"weight"}
    assert kinds(net.features)[:5] == ["Conv2d", "ReLU", "Conv2d", "ReLU", "MaxPool2d"]


def test_vgg_with_the_biases_of_its_convolutions():
    net = models.build("vgg16", conv_bias=True)
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 13
    assert all(m.bias is not None and m.bias.any() for m in convolutions)
    assert sum(p.numel() for p in net.parameters()) == 14_724_042 + 4_224


def test_vgg_small_of_multi_prize_tickets():
    stage = ["Conv2d", "OnlyBinary", "Conv2d", "MaxPool2d", "BatchNorm2d", "OnlyBinary"]
    expected = [*stage, *stage, *stage]
    expected[1], expected[-1] = "ReLU", "RealReLU"
    net = models.build("vgg-small", published=True, width=4)
    assert kinds(net.features) == expected
    binary = models.build("vgg-small", published=True, width=4, binary_activations=True)
    names = {"ReLU": "Sign", "OnlyBinary": "Sign"}
    assert kinds(binary.features) == [names.get(name, name) for name in expected]
    assert torch.equal(OnlyBinary()(torch.tensor([-2.0])), torch.tensor([-2.0]))
    with_norms = models.build("vgg-small", width=4, binary_activations=True)
    assert kinds(with_norms.features) == [
        *["Conv2d", "BatchNorm2d", "Sign", "Conv2d", "MaxPool2d", "BatchNorm2d", "Sign"] * 2,
        *["Conv2d", "BatchNorm2d", "Sign", "Conv2d", "MaxPool2d", "BatchNorm2d", "RealReLU"],
    ]
    assert RealReLU()(torch.tensor(-1.0)) == 0


def test_resnet20_with_shortcuts_that_pad():
    net = models.build("resnet20", padded_shortcuts=True)
    weights = [m.weight.numel() for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert sum(weights) == 270_896 - 2_560
    images = torch.randn(2, 16, 5, 5)
    padded = net.stages[1][0].shortcut(images)
    assert padded.shape == (2, 32, 3, 3)
    assert torch.equal(padded[:, 8:24], images[:, :, ::2, ::2])
    assert not padded[:, :8].any()
    assert not padded[:, 24:].any()


def test_batch_norm_after_the_sum():
    block = models.build("resnet20", width=4, norm_after_sum=True).stages[1][0].eval()
    inputs = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        block.bn2.running_mean.fill_(0.5)
        hidden = block.conv2(torch.relu(block.bn1(block.conv1(inputs))))
        expected = torch.relu(block.bn2(hidden + block.shortcut(inputs)))
        torch.testing.assert_close(block(inputs), expected)


def test_mobilenet_of_rare_gems():
    net = models.build("mobilenetv2", full_blocks=True)
    first = [m for m in net.blocks[0].layers if isinstance(m, nn.Conv2d)]
    assert [m.weight.shape[:2] for m in first] == [(32, 32), (32, 1), (16, 32)]
    assert sum(block.adds for block in net.blocks) == 14
    projected = [block for block in net.blocks if not isinstance(block.shortcut, nn.Identity)]
    assert len(projected) == 4
    block = projected[1].eval()
    inputs = torch.randn(2, 16, 4, 4)
    torch.testing.assert_close(block(inputs), block.layers(inputs) + block.shortcut(inputs))
    # kuangliu's network, which theirs is, has 2,296,922 parameters.
    assert sum(p.numel() for p in net.parameters()) == 2_296_922
