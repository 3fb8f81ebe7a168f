"""PSG against plain numpy: the quantizer, and the gradients of linear maps and convolutions."""

import copy
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    checkpoint_wrapper,
)

import pabzip.init
from pabzip.errors import RecipeError, SeedError
from pabzip.models import build
from pabzip.search import synflow
from pabzip.unmask import Bop, PsgConfig, apply_psg, quantize, remove_psg
from pabzip.unmask.psg_functions import levels

EXACT = PsgConfig(32, 32, 32, threshold=0.0, behavior="all")


def numpy_quantize(values, bits):
    levels = 2 ** (bits - 1) - 1
    step = np.abs(values).max() / levels
    return np.rint(values / step) * step if step > 0 else np.zeros_like(values)


def numpy_treat(predicted, exact, config):
    limit = config.threshold * (np.abs(predicted).max() if config.adaptive else 1.0)
    small = np.abs(predicted) < limit
    replacement = {"all": predicted, "remove": 0.0, "correct": exact}[config.behavior]
    return np.where(small, replacement, predicted)


def tensor(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Doubled(nn.Linear):
    """A subclass of one's own, with a forward of its own."""

    def forward(self, x, scale=2.0):
        return F.linear(input=x, weight=self.weight * scale, bias=self.bias)


class Standardized(nn.Conv2d):
    """Weight standardization, through the hook that torch's convolutions offer."""

    def forward(self, x):
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 1000),
    bits=st.integers(2, 24),
    scale=st.sampled_from([1e-12, 1.0, 1e9]),
)
def test_quantizer_matches_numpy(seed, bits, scale):
    values = tensor((7, 9), seed) * scale
    values[0, :3] = 0.0
    found = quantize(values, bits)
    np.testing.assert_allclose(found.numpy(), numpy_quantize(values.numpy(), bits), rtol=1e-12)
    assert len(found.abs().unique()) <= 2 ** (bits - 1)
    assert not found[0, :3].any()
    assert bool((found * values >= 0).all())
    step = values.abs().max() / (2 ** (bits - 1) - 1)
    assert bool(((found - values).abs() <= step / 2 * (1 + 1e-9)).all())
    torch.testing.assert_close(found.abs().max(), values.abs().max(), rtol=1e-12, atol=0)


def test_quantizer_at_the_edges():
    assert quantize(torch.zeros(3), 8).tolist() == [0.0, 0.0, 0.0]
    assert quantize(torch.zeros(0), 8).shape == (0,)
    values = torch.tensor([0.1, -0.7])
    assert quantize(values, 32).data_ptr() == values.data_ptr()
    assert quantize(values, 2).tolist() == [0.0, -values.abs().max()]
    assert quantize(torch.tensor([1.0, float("nan")]), 8).isnan().all()
    assert quantize(torch.tensor([1.0, 2.0, 3.0]), 2).tolist() == [0.0, 3.0, 3.0]
    half = quantize(torch.tensor([1.0, -0.3], dtype=torch.float16), 16)
    assert half.dtype == torch.float16
    assert half.tolist() == pytest.approx([1.0, -0.3], rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_levels_are_whole_numbers_and_a_unit(dtype):
    values = tensor((7, 9)).to(dtype)
    found, unit = levels(values, 8)
    assert found.dtype == dtype
    assert unit.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    whole = found.double() * (128 if dtype == torch.float16 else 1)
    assert torch.equal(whole, whole.round())
    assert float(whole.abs().max()) == 127
    torch.testing.assert_close(
        found.double() * unit, quantize(values.double(), 8), rtol=1e-6, atol=0
    )
    same, unit = levels(values, 32)
    assert same.data_ptr() == values.data_ptr()
    assert float(unit) == 1.0
    for problem in (float("nan"), float("inf")):
        found, unit = levels(torch.tensor([1.0, problem]), 8)
        assert (found * unit).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_of_eight_bits_are_exact(dtype):
    layer = nn.Conv2d(3, 5, 3, padding=1, bias=False)
    apply_psg(layer, PsgConfig(8, 8, 8, behavior="all"), weights=["weight"])
    x, g = tensor((4, 3, 8, 8), 1).to(dtype).requires_grad_(), tensor((4, 5, 8, 8), 2).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        layer(x).backward(g)
    (gl, g_unit), (xl, x_unit) = levels(g, 8), levels(x, 8)
    wl, w_unit = levels(layer.weight.to(dtype), 8)
    whole = torch.zeros(5, 3, 3, 3, dtype=torch.int64)
    padded = F.pad(xl.long(), (1, 1, 1, 1))
    for i in range(3):
        for j in range(3):
            window = padded[:, :, i : i + 8, j : j + 8]
            whole[:, :, i, j] = torch.einsum("nohw,nchw->oc", gl.long(), window)
    assert int(whole.abs().max()) < 2**24
    wanted = whole.to(dtype).mul_(g_unit * x_unit)
    assert torch.equal(layer.weight.grad, wanted.float())
    back = F.conv_transpose2d(gl.double(), wl.double(), padding=1)
    assert torch.equal(x.grad, back.to(dtype).mul_(g_unit * w_unit))


@pytest.mark.parametrize("behavior", ["all", "remove", "correct"])
@pytest.mark.parametrize("adaptive", [True, False])
def test_linear_gradients_match_numpy(behavior, adaptive):
    config = PsgConfig(4, 3, 5, threshold=0.3, behavior=behavior, adaptive=adaptive)
    layer = nn.Linear(6, 5, dtype=torch.float64)
    apply_psg(layer, config, weights=["weight"])
    x, g = tensor((2, 3, 6), 1).requires_grad_(), tensor((2, 3, 5), 2)
    output = layer(x)
    assert torch.equal(output, F.linear(x, layer.weight, layer.bias))
    output.backward(g)
    w, flat_x, flat_g = layer.weight.detach().numpy(), x.detach().numpy().reshape(6, 6), g.numpy()
    flat_g = flat_g.reshape(6, 5)
    gq, xq = numpy_quantize(flat_g, 5), numpy_quantize(flat_x, 4)
    expected = numpy_treat(gq.T @ xq, flat_g.T @ flat_x, config)
    np.testing.assert_allclose(layer.weight.grad.numpy(), expected, rtol=1e-10, atol=1e-14)
    expected = (gq @ numpy_quantize(w, 3)).reshape(2, 3, 6)
    np.testing.assert_allclose(x.grad.numpy(), expected, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(layer.bias.grad.numpy(), flat_g.sum(0), rtol=1e-12)


@pytest.mark.parametrize("behavior", ["all", "remove", "correct"])
def test_convolution_gradients_match_numpy_by_unfolding(behavior):
    config = PsgConfig(4, 5, 6, threshold=0.2, behavior=behavior)
    layer = nn.Conv2d(3, 4, 3, stride=2, padding=1, dtype=torch.float64)
    apply_psg(layer, config, weights=["weight"])
    x = tensor((2, 3, 7, 7), 1).requires_grad_()
    output = layer(x)
    g = tensor(output.shape, 2)
    output.backward(g)

    flat_g = g.numpy().reshape(2, 4, -1)
    w = layer.weight.detach().numpy().reshape(4, -1)

    def columns(image):
        image = np.pad(image, ((0, 0), (0, 0), (1, 1), (1, 1)))
        patches = np.lib.stride_tricks.sliding_window_view(image, (3, 3), (2, 3))[:, :, ::2, ::2]
        return patches.transpose(0, 1, 4, 5, 2, 3).reshape(2, 27, -1)

    gq, xq = numpy_quantize(flat_g, 6), numpy_quantize(x.detach().numpy(), 4)
    predicted = np.einsum("nok,nik->oi", gq, columns(xq))
    exact = np.einsum("nok,nik->oi", flat_g, columns(x.detach().numpy()))
    found = layer.weight.grad.numpy().reshape(4, -1)
    np.testing.assert_allclose(found, numpy_treat(predicted, exact, config), atol=1e-12)
    np.testing.assert_allclose(layer.bias.grad.numpy(), flat_g.sum((0, 2)), rtol=1e-12)

    back = np.einsum("oi,nok->nik", numpy_quantize(w, 5), gq).reshape(2, 3, 3, 3, 4, 4)
    image = np.zeros((2, 3, 9, 9))
    for i in range(3):
        for j in range(3):
            image[:, :, i : i + 8 : 2, j : j + 8 : 2] += back[:, :, i, j]
    np.testing.assert_allclose(x.grad.numpy(), image[:, :, 1:-1, 1:-1], atol=1e-12)


LAYERS = [
    (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), (2, 4, 9)),
    (lambda: nn.Conv2d(4, 6, 3, dilation=2, bias=False), (2, 4, 9, 9)),
    (lambda: nn.Conv2d(4, 6, 3, padding="same"), (2, 4, 5, 6)),
    (lambda: nn.Conv2d(4, 6, (2, 4), padding="same", dilation=(1, 3)), (2, 4, 11, 13)),
    (lambda: nn.Conv2d(4, 6, 3, padding="valid"), (2, 4, 5, 6)),
    (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (2, 4, 5, 6)),
    (lambda: nn.Conv2d(4, 6, 3, padding="same", padding_mode="circular"), (2, 4, 5, 6)),
    (lambda: nn.Conv2d(4, 6, 3), (4, 5, 6)),
    (lambda: nn.Conv3d(4, 6, 2, stride=(1, 2, 1)), (2, 4, 3, 4, 5)),
    (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, output_padding=1), (2, 4, 5)),
    (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, groups=2), (2, 4, 5, 5)),
    (lambda: nn.Linear(4, 6), (4,)),
    (lambda: nn.Linear(4, 6, bias=False), (2, 3, 4)),
    (lambda: Doubled(4, 6), (3, 4)),
    (lambda: Standardized(4, 6, 3), (2, 4, 5, 5)),
]


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize(("make", "shape"), LAYERS)
def test_full_precision_is_the_layer_itself(make, shape):
    torch.manual_seed(0)
    plain = make().double()
    changed = copy.deepcopy(plain)
    apply_psg(changed, EXACT, weights=["weight"])
    results = []
    for layer in (plain, changed):
        x = tensor(shape, 3).requires_grad_()
        output = layer(x)
        output.backward(tensor(output.shape, 4))
        results.append([output, x.grad, *(p.grad for p in layer.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize(("make", "shape"), LAYERS)
def test_gradients_are_close_to_the_exact_ones_but_not_equal(make, shape):
    torch.manual_seed(0)
    plain = make()
    changed = copy.deepcopy(plain)
    apply_psg(changed, weights=["weight"])
    for layer in (plain, changed):
        output = layer(tensor(shape, 3).float())
        output.backward(tensor(output.shape, 4).float())
    error = (plain.weight.grad - changed.weight.grad).abs().max() / plain.weight.grad.abs().max()
    assert 0 < float(error) < 0.02


def test_only_what_is_needed_is_computed():
    config = PsgConfig(behavior="correct", threshold=0.1)
    layer = nn.Conv2d(3, 4, 3)
    apply_psg(layer, config, weights=["weight"])
    x = tensor((1, 3, 5, 5)).float()
    layer(x).sum().backward()
    assert x.grad is None
    assert layer.weight.grad is not None
    layer.requires_grad_(False)
    layer.weight.grad = None
    x.requires_grad_()
    layer(x).sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is None
    layer.bias.requires_grad_()
    layer.bias.grad = None
    layer(x.detach()).sum().backward()
    assert layer.bias.grad.tolist() == [9.0] * 4
    assert not layer(x.detach()).detach().requires_grad


def seeded_net():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        Standardized(4, 4, 3),
        nn.Flatten(),
        nn.Linear(16, 2),
    )
    return pabzip.init.init_(net, 11, skip=["5"])


def test_the_seeded_layers_by_default_and_back_again():
    net = seeded_net()
    keys = list(net.state_dict())
    handle = apply_psg(net)
    assert list(handle.modules) == ["0", "3"]
    assert isinstance(net[0], nn.Conv2d)
    assert isinstance(net[3], Standardized)
    assert type(net[0]) is not nn.Conv2d
    assert type(net[5]) is nn.Linear
    assert list(net.state_dict()) == keys
    handle.remove()
    handle.remove()
    assert type(net[0]) is nn.Conv2d
    assert type(net[3]) is Standardized
    assert vars(net[0]).keys() == vars(nn.Conv2d(1, 1, 1)).keys()
    apply_psg(net, weights=["5.weight"]).remove()


def test_copies_and_pickles_keep_psg():
    net = seeded_net()
    apply_psg(net, PsgConfig(input_bits=3))
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert type(other[0]) is type(net[0])
        gradients = []
        for each in (net, other):
            each.zero_grad()
            each(tensor((2, 3, 6, 6)).float()).sum().backward()
            gradients.append(each[0].weight.grad)
        assert torch.equal(*gradients)
        remove_psg(other)
        assert type(other[3]) is Standardized
        assert type(net[3]) is not Standardized
        assert pabzip.init.seeding(other) == pabzip.init.seeding(net)


def test_two_networks_do_not_share_a_configuration():
    one, two = seeded_net(), seeded_net()
    apply_psg(one, EXACT)
    apply_psg(two, PsgConfig(2, 2, 2))
    plain = seeded_net()
    gradients = []
    for net in (plain, one, two):
        net[5].load_state_dict(plain[5].state_dict())
        net(tensor((2, 3, 6, 6)).float()).sum().backward()
        gradients.append(net[0].weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1])
    assert (gradients[0] - gradients[2]).abs().max() > 0.1 * gradients[0].abs().max()


def test_evaluation_mode_is_exact_and_search_is_not_disturbed():
    plain, changed = seeded_net(), seeded_net()
    changed.load_state_dict(plain.state_dict())
    apply_psg(changed, PsgConfig(2, 2, 2))
    one, two = (synflow(net, 0.3, input_shape=(3, 6, 6), iterations=5) for net in (plain, changed))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    net, plain = seeded_net(), seeded_net()
    plain.load_state_dict(net.state_dict())
    apply_psg(net)
    gradients = []
    for each in (net, plain):
        x = tensor((2, 3, 6, 6)).float().requires_grad_()
        with torch.autocast("cpu", dtype=dtype):
            output = each[0](x)
            assert output.dtype == dtype
            loss = each(x).float().square().sum()
        loss.backward()
        assert each[0].weight.grad.dtype == torch.float32
        assert x.grad.dtype == torch.float32
        gradients.append(each[0].weight.grad)
    error = (gradients[0] - gradients[1]).abs().max() / gradients[1].abs().max()
    assert float(error) < 0.1


def test_trains_with_bop_and_keeps_every_magnitude():
    net = seeded_net()
    synflow(net, 0.5, input_shape=(3, 6, 6), iterations=5)
    seeded = pabzip.init.seeded_parameters(net)
    before = {name: p.detach().clone() for name, p in seeded.items()}
    apply_psg(net)
    bop = Bop(net, adaptivity_rate=0.1)
    flips = 0
    for step in range(5):
        net.zero_grad()
        output = net(tensor((8, 3, 6, 6), step).float())
        F.cross_entropy(output, torch.arange(8) % 2).backward()
        bop.step()
        flips += int(bop.flips)
    assert flips > 0
    for name, p in seeded.items():
        assert torch.equal(p.detach().abs(), before[name].abs())
        assert not torch.signbit(p[before[name] == 0]).any()


def test_every_layer_of_a_shared_weight_has_psg():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    handle = apply_psg(net, weights=["0.weight"])
    assert [type(layer).__name__ for layer in net] == ["PsgLinear", "PsgLinear"]
    handle.remove()
    assert [type(layer) for layer in net] == [nn.Linear, nn.Linear]


def test_a_layer_under_two_names_is_changed_once():
    net = nn.Sequential(nn.Linear(4, 4))
    net.again = net[0]
    handle = apply_psg(net, weights=["0.weight", "again.weight"])
    assert type(net[0]).__mro__[1] is nn.Linear
    handle.remove()
    assert type(net[0]) is nn.Linear
    assert net.train()(torch.ones(2, 4)).shape == (2, 4)


def test_an_exact_input_gradient_needs_no_quantized_weight():
    gradients = []
    nets = [seeded_net(), seeded_net()]
    nets[1].load_state_dict(nets[0].state_dict())
    for net, weight_bits in zip(nets, (2, 16), strict=True):
        apply_psg(net, PsgConfig(4, weight_bits, 8, input_gradient="exact"))
        net(tensor((2, 3, 6, 6)).float()).square().sum().backward()
        gradients.append([p.grad for p in net.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_published_choices_under_autocast(dtype):
    x, g = tensor((4, 3, 8, 8), 1).float().relu(), tensor((4, 5, 8, 8), 2).to(dtype)
    found = []
    for config in (EXACT, PsgConfig(8, 8, 8, behavior="all", quantizer="published")):
        torch.manual_seed(0)
        layer = nn.Conv2d(3, 5, 3, padding=1)
        apply_psg(layer, config, weights=["weight"])
        inputs = x.clone().requires_grad_()
        with torch.autocast("cpu", dtype=dtype):
            layer(inputs).backward(g)
        assert inputs.grad.dtype == layer.weight.grad.dtype == torch.float32
        found.append((inputs.grad, layer.weight.grad))
    for exact, rough in zip(*found, strict=True):
        assert 0 < float((exact - rough).norm() / exact.norm()) < 0.05


def gradient_error(config):
    """How far the seeded gradients of a whole network are from exact ones, as a fraction."""
    net = pabzip.init.init_(build("resnet20", width=8), 0)
    images = tensor((16, 3, 32, 32)).float()
    gradients = []
    for each in (None, config):
        handle = None if each is None else apply_psg(net, each)
        net.zero_grad()
        F.cross_entropy(net(images), torch.arange(16) % 10).backward()
        parts = pabzip.init.seeded_parameters(net).values()
        gradients.append(torch.cat([p.grad.flatten() for p in parts]))
        if handle is not None:
            handle.remove()
    exact, rough = gradients
    return float((rough - exact).norm() / exact.norm())


def test_four_bits_keep_the_gradient_of_a_whole_network_as_published():
    ours = gradient_error(PsgConfig(4, 4, 8))
    exact = gradient_error(PsgConfig(4, 4, 8, input_gradient="exact"))
    published = gradient_error(PsgConfig(4, 4, 8, input_gradient="exact", quantizer="published"))
    assert published < exact < ours
    assert published < ours / 2


def test_second_application_is_refused_and_changes_nothing():
    net = seeded_net()
    handle = apply_psg(net, weights=["3.weight"])
    with pytest.raises(RecipeError, match=r"'3.weight': .* one that has it already; call remove"):
        apply_psg(net)
    assert type(net[0]) is nn.Conv2d
    handle.remove()
    apply_psg(net)


def test_names_that_are_no_layer():
    net = seeded_net()
    with pytest.raises(RecipeError, match=r"'1.weight': expected the weight of a Conv or Linear"):
        apply_psg(net, weights=["0.weight", "1.weight"])
    assert type(net[0]) is nn.Conv2d
    with pytest.raises(SeedError, match=r"call pabzip.init_"):
        apply_psg(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"input_bits": 1}, "input_bits: expected an integer from 2 to 32, found 1"),
        ({"weight_bits": 33}, "weight_bits: expected an integer from 2 to 32, found 33"),
        ({"gradient_bits": 8.0}, "gradient_bits: expected an integer from 2 to 32, found 8.0"),
        ({"threshold": -1.0}, "threshold: expected zero or more, and finite, found -1.0"),
        ({"threshold": float("nan")}, "threshold: .* found nan"),
        ({"behavior": "drop"}, "behavior: expected one of all, correct, remove, found 'drop'"),
        ({"input_gradient": "no"}, "input_gradient: expected one of quantized, exact, found 'no'"),
        ({"quantizer": "int"}, "quantizer: expected one of symmetric, published, found 'int'"),
    ],
)
def test_configuration_out_of_range(values, problem):
    with pytest.raises(RecipeError, match=problem):
        PsgConfig(**values)


def test_gradients_of_gradients_are_refused():
    layer = nn.Linear(2, 2)
    apply_psg(layer, weights=["weight"])
    (gradient,) = torch.autograd.grad(
        layer(torch.ones(1, 2)).square().sum(), [layer.weight], create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("behavior", ["all", "remove", "correct"])
@pytest.mark.parametrize("impl", list(CheckpointImpl))
@pytest.mark.parametrize(
    "make", [lambda: nn.Linear(6, 6), lambda: nn.Conv1d(4, 4, 3, padding=1)], ids=["linear", "conv"]
)
def test_gradients_under_activation_checkpointing(make, impl, behavior):
    torch.manual_seed(0)
    plain = pabzip.init_(nn.Sequential(nn.Sequential(make(), nn.ReLU(), make()), make()), seed=1)
    net = copy.deepcopy(plain)
    net[0] = checkpoint_wrapper(net[0], impl)
    x = torch.randn(2, 4, 6, requires_grad=True)
    for each in (plain, net):
        apply_psg(each, PsgConfig(behavior=behavior))
        each(x).square().mean().backward()
    pairs = zip(plain.parameters(), net.parameters(), strict=True)
    assert all(torch.equal(expected.grad, found.grad) for expected, found in pairs)
