"""Latent signs against a plain numpy statement and an autograd one of Ivan & Florian's rule."""

import copy
import io

import numpy as np
import pytest
import torch
from torch import nn

import pabzip
from pabzip.errors import RecipeError, SeedError
from pabzip.unmask import LatentSigns, PsgConfig, apply_psg


def pruned_linear(seed=0, inputs=20, outputs=30):
    net = pabzip.init_(nn.Linear(inputs, outputs, bias=False), seed)
    keep = torch.from_numpy(np.random.default_rng(seed).random((outputs, inputs)) < 0.5)
    pabzip.search.apply_masks(net, {"weight": keep})
    return net


def numpy_latents(drawn, t, gradients, rate, momentum, decay):
    """Yield weights, t and flips by Ivan & Florian's form: the weight is w0 sign(t)."""
    buffer, signs = None, np.sign(t)
    for gradient in gradients:
        step = gradient * drawn + decay * t  # dL/dt = dL/dw * w0, as sign'(t) counts as 1
        buffer = step if buffer is None else momentum * buffer + step
        t = t - rate * buffer
        flips = int((np.sign(t) * signs < 0).sum())
        signs = np.sign(t)
        yield drawn * signs, t, flips


@pytest.mark.parametrize(("momentum", "decay"), [(0.0, 0.0), (0.9, 0.0), (0.9, 0.05)])
def test_every_step_matches_numpy(momentum, decay):
    net = pruned_linear()
    drawn = net.weight.detach().numpy().copy()
    gradients = np.random.default_rng(1).normal(size=(10, *drawn.shape)).astype(np.float32)
    latent = LatentSigns(net, 0.02, momentum, decay, 0.1)
    t = (latent.state[net.weight]["latent"].numpy() * np.sign(drawn)).astype(np.float64)
    t[drawn == 0] = 0.05  # of pruned weights Ivan & Florian's form has them, ours has none
    expected = numpy_latents(drawn.astype(np.float64), t, gradients, 0.02, momentum, decay)
    total = 0
    for gradient, (weights, t, flips) in zip(gradients, expected, strict=True):
        net.weight.grad = torch.from_numpy(gradient.copy())
        latent.step()
        found = net.weight.detach().numpy()
        assert np.array_equal(found, weights)
        assert not np.signbit(found[drawn == 0]).any()
        assert int(latent.flips) == flips
        u = latent.state[net.weight]["latent"].numpy()
        survives = drawn != 0
        np.testing.assert_allclose(
            u[survives], (t * np.sign(drawn))[survives], rtol=2e-5, atol=1e-8
        )
        assert not u[~survives].any()
        total += flips
    assert total > 30


def test_one_step_is_exact_to_the_last_place():
    net = pruned_linear()
    weight = net.weight.detach().numpy().copy()
    latent = LatentSigns(net, 0.03, 0.0, 0.0)
    u = latent.state[net.weight]["latent"].numpy().copy()
    gradient = np.random.default_rng(2).normal(size=weight.shape).astype(np.float32)
    net.weight.grad = torch.from_numpy(gradient.copy())
    latent.step()
    step = np.abs(weight) * gradient
    expected = u - np.float32(0.03) * step
    # One rounding or two, as the machine fuses the product into the sum or not.
    room = np.spacing(np.abs(u) + np.abs(np.float32(0.03) * step))
    assert np.all(np.abs(latent.state[net.weight]["latent"].numpy() - expected) <= room)


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, t):
        return torch.sign(t)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def test_it_is_the_straight_through_estimator_with_torchs_own_sgd():
    net = pruned_linear(3)
    drawn = net.weight.detach().clone()
    latent = LatentSigns(net, 0.05, 0.9, 1e-3)
    start = (latent.state[net.weight]["latent"] * torch.sign(drawn)).clone()
    t = nn.Parameter(start)
    sgd = torch.optim.SGD([t], 0.05, 0.9, weight_decay=1e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        inputs = torch.randn(16, 20, generator=generator)
        target = torch.randn(16, 30, generator=generator)
        for loss in (
            (net(inputs) - target).square().mean(),
            (inputs @ (drawn * StraightThrough.apply(t)).T - target).square().mean(),
        ):
            loss.backward()
        latent.step()
        sgd.step()
        latent.zero_grad()
        sgd.zero_grad()
    assert torch.equal(net.weight, drawn * torch.sign(t) + 0.0)
    assert int((net.weight != drawn).sum()) > 20


def test_magnitudes_stay_and_a_zero_latent_leaves_its_sign():
    net = pruned_linear()
    before = net.weight.detach().clone()
    latent = LatentSigns(net, 1.0, 0.0)
    with torch.no_grad():
        latent.state[net.weight]["latent"].zero_()
    net.weight.grad = torch.zeros_like(net.weight)
    latent.step()
    assert torch.equal(net.weight, before)
    net.weight.grad = torch.randn(before.shape, generator=torch.Generator().manual_seed(0))
    latent.step()
    assert not torch.equal(net.weight, before)
    assert torch.equal(net.weight.abs(), before.abs())


def test_the_start_follows_the_seed_and_the_signs():
    net = pruned_linear()
    first, again = LatentSigns(net), LatentSigns(copy.deepcopy(net), start=0.2)
    u = first.state[net.weight]["latent"]
    assert torch.equal(torch.sign(u), torch.sign(net.weight.detach()))
    sizes = u.abs()[u != 0]
    assert 0 < float(sizes.min()) < 0.02
    assert 0.08 < float(sizes.max()) <= 0.1
    doubled = next(iter(again.state.values()))["latent"]
    torch.testing.assert_close(doubled, 2 * u, rtol=1e-6, atol=0)
    other = LatentSigns(pruned_linear(seed=1))
    assert not torch.equal(next(iter(other.state.values()))["latent"].abs(), u.abs())


def test_the_state_comes_back_to_the_bit():
    net = pruned_linear()
    latent = LatentSigns(net, 0.05, 0.9)
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(6, *net.weight.shape, generator=generator)
    for gradient in gradients[:3]:
        net.weight.grad = gradient.clone()
        latent.step()
    file = io.BytesIO()
    torch.save(latent.state_dict(), file)
    file.seek(0)
    twin = copy.deepcopy(net)
    resumed = LatentSigns(twin, 0.7)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for gradient in gradients[3:]:
        net.weight.grad, twin.weight.grad = gradient.clone(), gradient.clone()
        latent.step()
        resumed.step()
        assert int(latent.flips) == int(resumed.flips)
    assert torch.equal(net.weight, twin.weight)
    ours, theirs = latent.state[net.weight], resumed.state[twin.weight]
    assert all(torch.equal(ours[key], theirs[key]) for key in ("latent", "momentum_buffer"))


def test_works_with_predictive_gradients():
    net = pruned_linear()
    before = net.weight.detach().clone()
    latent = LatentSigns(net, 0.5)
    handle = apply_psg(net, PsgConfig())
    for _ in range(3):
        latent.zero_grad()
        net(torch.ones(4, 20)).square().sum().backward()
        assert latent.step(lambda: 1.5) == 1.5
    handle.remove()
    assert not torch.equal(net.weight, before)
    assert torch.equal(net.weight.abs(), before.abs())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": -1.0}, r"lr: expected zero or more, and finite, found -1"),
        ({"weight_decay": float("nan")}, r"weight_decay: .*found nan"),
        ({"momentum": 1.0}, r"momentum: expected 0 <= momentum < 1, found 1\.0"),
        ({"start": 0.0}, r"start: expected a number from .* found 0\.0"),
    ],
)
def test_values_out_of_range_are_refused(arguments, message):
    with pytest.raises(RecipeError, match=f"LatentSigns: {message}"):
        LatentSigns(pruned_linear(), **arguments)


def test_networks_without_a_seed_and_half_precision_weights_are_refused():
    with pytest.raises(SeedError, match=r"call pabzip\.init_"):
        LatentSigns(nn.Linear(2, 2))
    with pytest.raises(RecipeError, match=r"weight: expected a float32 weight, found torch\.bf"):
        LatentSigns(pruned_linear().bfloat16())
