"""Bop with a cost of flips against a plain numpy statement of its rule, step by step."""

import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import pabzip
from pabzip.errors import RecipeError
from pabzip.unmask import Bop
from pabzip.unmask.bop_update import price, seed_signs, update


def numpy_priced(weights, initial, gradients, rate, threshold, cost, start):
    """Yield weights and flips after each gradient, by the rule in words, weight by weight.

    A flip of w lowers the loss by about 2 |w| times what the average asks for. A weight that has
    its initial sign flips where that, less what ``threshold`` stands for, pays for the bits; one
    that is flipped returns unless staying does.
    """
    w = weights.astype(np.float64)
    average = np.zeros_like(w)
    for step, gradient in enumerate(gradients):
        gamma = 1.0 if step == 0 and start == "first-gradient" else rate
        average = (1 - gamma) * average + gamma * gradient.astype(np.float64)
        survives = w != 0
        flipped = survives & (np.sign(w) != initial)
        others = survives & ~flipped
        left, stayed = int(flipped.sum()), int(others.sum())
        bits = max(math.log2((stayed + 0.5) / (left + 0.5)), 0.0)
        asks = average * np.sign(w)  # how strongly the gradient wants the other sign
        margin = cost * bits / (2 * np.maximum(np.abs(w), 1e-30))
        leaves = others & (asks >= threshold + margin)
        returns = flipped & (asks >= threshold - margin)
        w = np.where(leaves | returns, -w, w)
        yield w, int((leaves | returns).sum()), int((survives & (np.sign(w) != initial)).sum())


def random_problem(seed, steps=12, size=600):
    generator = np.random.default_rng(seed)
    weights = generator.normal(size=size).astype(np.float32)
    weights[generator.random(size) < 0.3] = 0.0
    drift = generator.normal(scale=1e-4, size=size)
    noise = generator.normal(scale=1e-4, size=(steps, size))
    return weights, (drift + noise).astype(np.float32)


def total_flipped(net, signs):
    """Return how many survivors do not have their initial sign."""
    weights = pabzip.seeded_parameters(net)
    return sum(int((w.detach().sign() * signs[name] < 0).sum()) for name, w in weights.items())


@pytest.mark.parametrize("start", ["first-gradient", "zero"])
@pytest.mark.parametrize("cost", [3e-6, 3e-5, 1e-4])
@pytest.mark.parametrize(("rate", "threshold"), [(0.3, 2e-5), (0.1, 1e-6)])
def test_every_step_matches_numpy(start, cost, rate, threshold):
    weights, gradients = random_problem(1)
    parameter = nn.Parameter(torch.from_numpy(weights.copy()))
    bop = Bop([parameter], rate, threshold, start, flip_cost=cost)
    expected = numpy_priced(weights, np.sign(weights), gradients, rate, threshold, cost, start)
    seen, back = 0, 0
    for gradient, (w, flips, away) in zip(gradients, expected, strict=True):
        parameter.grad = torch.from_numpy(gradient.copy())
        bop.step()
        assert np.array_equal(parameter.detach().numpy(), w)
        assert int(bop.flips) == flips
        seen += flips
        back += flips - away
    if cost < 1e-4 and start == "first-gradient":
        assert seen > 0


def test_weights_return_when_the_gradient_no_longer_speaks():
    parameter = nn.Parameter(torch.ones(64))
    bop = Bop([parameter], 1.0, 1e-3, flip_cost=2e-3)
    gradient = torch.zeros(64)
    gradient[:8] = 1.0
    parameter.grad = gradient
    bop.step()
    assert int(bop.flips) == 8
    assert parameter[:8].tolist() == [-1.0] * 8
    # The price is log2(56.5 / 8.5) = 2.73 bits: they return unless the gradient reaches 1.73e-3.
    parameter.grad = torch.where(torch.arange(64) < 4, -1.8e-3, 1.7e-3) * parameter.sign().neg()
    parameter.grad[:8] = torch.tensor([1.8e-3] * 4 + [1.7e-3] * 4)
    bop.step()
    assert parameter[:4].tolist() == [-1.0] * 4
    assert parameter[4:8].tolist() == [1.0] * 4


def test_the_price_is_what_one_more_flip_adds():
    flipped = torch.tensor([0, 100, 250, 500, 501, 1000, 0])
    survivors = torch.tensor([1000, 1000, 1000, 1000, 1000, 1000, 0])
    found = price(flipped, survivors)
    assert found.dtype == torch.float32
    wanted = [math.log2(2001), math.log2(9), math.log2(3), 0.0, 0.0, 0.0, 0.0]
    np.testing.assert_allclose(found.numpy(), wanted, atol=0.01)
    # It is what one more flip adds to the entropy of the signs.
    for n in (50, 200, 400):
        p = np.array([n, n + 1]) / 1000
        bits = 1000 * -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
        one = float(price(torch.tensor(n), torch.tensor(1000)))
        assert one == pytest.approx(bits[1] - bits[0], abs=0.01)


@pytest.mark.parametrize("start", ["first-gradient", "zero"])
def test_no_cost_is_plain_bop_to_the_bit(start):
    weights, gradients = random_problem(3)
    one, two = (nn.Parameter(torch.from_numpy(weights.copy())) for _ in range(2))
    plain = Bop([one], 0.1, 1e-5, start)
    priced = Bop([two], 0.1, 1e-5, start, flip_cost=0.0)
    tiny = nn.Parameter(torch.from_numpy(weights.copy()))
    nearly = Bop([tiny], 0.1, 1e-5, start, flip_cost=1e-30)
    for gradient in gradients:
        for parameter, bop in ((one, plain), (two, priced), (tiny, nearly)):
            parameter.grad = torch.from_numpy(gradient.copy())
            bop.step()
        assert torch.equal(one, two)
        assert torch.equal(one, tiny)
        assert torch.equal(plain.flips, nearly.flips)
    assert set(plain.state[one]) == set(priced.state[two]) == {"moving_average"}
    assert nearly.state[tiny]["initial_sign"].dtype == torch.int8


def test_a_higher_cost_flips_fewer():
    weights, gradients = random_problem(4, steps=40, size=5000)
    gradients *= np.random.default_rng(0).lognormal(sigma=2, size=5000).astype(np.float32)
    away = []
    for cost in (0.0, 1e-5, 1e-4, 3e-4, 1e-3, 1e-1):
        parameter = nn.Parameter(torch.from_numpy(weights.copy()))
        bop = Bop([parameter], 0.2, 1e-5, "zero", flip_cost=cost)
        for gradient in gradients:
            parameter.grad = torch.from_numpy(gradient.copy())
            bop.step()
        away.append(int((parameter.detach().numpy() != weights).sum()))
    assert away == sorted(away, reverse=True)
    assert away[0] > 1.5 * away[3] > 0
    assert away[-1] == 0


def test_with_constant_averages_the_flips_end():
    # With averages that stand still, all moves after the first go one way, and they end.
    weights, gradients = random_problem(5, steps=1, size=5000)
    for begin in (0.0, 0.5):
        initial = np.sign(weights).astype(np.int8)
        chosen = np.random.default_rng(0).random(5000) < begin
        parameter = nn.Parameter(torch.from_numpy(np.where(chosen, -weights, weights)))
        bop = Bop([parameter], 1.0, 1e-5, flip_cost=4e-5)
        bop.state[parameter]["initial_sign"] = torch.from_numpy(initial)
        moves = []
        for _ in range(60):
            before = int((parameter.detach().sign() * torch.from_numpy(initial) < 0).sum())
            parameter.grad = torch.from_numpy(gradients[0].copy())
            bop.step()
            after = int((parameter.detach().sign() * torch.from_numpy(initial) < 0).sum())
            assert not moves or abs(after - before) == int(bop.flips)
            moves.append(after - before)
        assert moves[-1] == 0
        assert all(move >= 0 for move in moves[1:]) or all(move <= 0 for move in moves[1:])


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rate=st.floats(1e-3, 1.0),
    threshold=st.sampled_from([0.0, 1e-6, 1e-4]),
    cost=st.sampled_from([1e-7, 1e-5, 1e-3]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
)
def test_magnitudes_never_change_and_zeros_stay_positive(seed, rate, threshold, cost, dtype):
    weights, gradients = random_problem(seed, size=64)
    before = torch.from_numpy(weights).to(dtype)
    parameter = nn.Parameter(before.clone())
    bop = Bop([parameter], rate, threshold, flip_cost=cost)
    for gradient in gradients:
        parameter.grad = torch.from_numpy(gradient).to(dtype)
        bop.step()
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    after = parameter.detach()
    assert torch.equal(after.abs().view(bits), before.abs().view(bits))
    assert not torch.signbit(after[before == 0]).any()


@pytest.mark.parametrize("cost", [0.0, 2e-5])
@pytest.mark.parametrize("threshold", [0.0, 1e-5])
def test_the_kernel_and_the_lists_agree_to_the_bit(cost, threshold):
    weights, gradients = random_problem(6, size=1003)
    signs = torch.from_numpy(np.sign(weights).astype(np.int8))
    every = torch.from_numpy(weights).repeat_interleave(2)
    fast = torch.from_numpy(weights.copy())
    slow = every.clone()[::2]  # not contiguous: left to the lists
    means = [torch.zeros(1003), torch.zeros(2006)[::2]]
    for gradient in gradients:
        counts = []
        for w, mean in ((fast, means[0]), (slow, means[1])):
            counts += update(
                [w], [mean], [torch.from_numpy(gradient)], [signs] if cost else None,
                rate=0.2, threshold=threshold, flip_cost=cost,
            )  # fmt: skip
        assert torch.equal(fast, slow)
        assert torch.equal(means[0], means[1])
        assert int(counts[0]) == int(counts[1])
    assert not np.array_equal(fast.numpy(), weights)


def test_channels_last_weights_and_gradients_of_another_layout():
    generator = torch.Generator().manual_seed(0)
    plain = torch.randn((8, 6, 3, 3), generator=generator)
    nhwc = nn.Parameter(plain.clone().to(memory_format=torch.channels_last))
    nchw = nn.Parameter(plain.clone())
    steps = [Bop([p], 0.2, 1e-2, flip_cost=1e-2) for p in (nhwc, nchw)]
    for _ in range(5):
        gradient = torch.randn(plain.shape, generator=generator)
        nhwc.grad, nchw.grad = gradient, gradient.clone(memory_format=torch.channels_last)
        for bop in steps:
            bop.step()
        assert torch.equal(nhwc, nchw)
        assert int(steps[0].flips) == int(steps[1].flips)
    assert not torch.equal(plain, nchw)


@pytest.mark.parametrize("cost", [0.0, 1e-3])
def test_weights_with_nan_never_flip(cost):
    weight = torch.tensor([1.0, float("nan"), 0.0, -1.0, 1.0])
    gradient = torch.tensor([float("nan"), 1.0, float("nan"), float("-inf"), 1.0])
    for layout in (weight.clone(), weight.repeat_interleave(2)[::2]):  # the kernel, and the lists
        parameter = nn.Parameter(layout)
        bop = Bop([parameter], 1.0, 0.5, flip_cost=cost)
        parameter.grad = gradient.clone()
        bop.step()
        assert int(bop.flips) == 2
        assert parameter[[0, 2, 3, 4]].tolist() == [1.0, 0.0, 1.0, -1.0]
        assert not torch.signbit(parameter[1:3]).any()


def test_a_layout_that_changes_in_mid_run():
    generator = torch.Generator().manual_seed(1)
    one, two = (nn.Parameter(torch.ones(8, 6, 3, 3)) for _ in range(2))
    steps = [Bop([p], 0.2, 1e-2, flip_cost=1e-2) for p in (one, two)]
    for step in range(6):
        one.grad = torch.randn((8, 6, 3, 3), generator=generator)
        two.grad = one.grad.clone()
        if step == 3:
            two.data = two.data.to(memory_format=torch.channels_last)
        for bop in steps:
            bop.step()
        assert torch.equal(one, two)
    assert (one != 1).any()


def test_a_step_is_seen_by_autograd():
    parameter = nn.Parameter(torch.ones(3))
    product = (parameter * parameter).sum()
    parameter.grad = torch.ones(3)
    Bop([parameter]).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_initial_signs_are_drawn_again_after_flips():
    net = pabzip.init_(nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 8)), 1)
    drawn = {name: w.detach().clone() for name, w in pabzip.seeded_parameters(net).items()}
    with torch.no_grad():
        net[0].weight[0] *= -1
        net[1].weight[:, 0] = 0.0
    signs = seed_signs(net)
    for name, weight in drawn.items():
        assert torch.equal(signs[name], weight.sign().to(torch.int8))
    bop = Bop(net, 1.0, 1e-6, flip_cost=1.0)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    bop.step()
    assert int(bop.flips) == 16
    assert torch.equal(net[0].weight, drawn["0.weight"])
    assert total_flipped(net, signs) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_round_trip_goes_on_bit_for_bit(dtype, tmp_path):
    weights, gradients = random_problem(7)
    one = nn.Parameter(torch.from_numpy(weights).to(dtype))
    bop = Bop([one], 0.2, 1e-5, flip_cost=1e-5)
    for gradient in gradients[:6]:
        one.grad = torch.from_numpy(gradient).to(dtype)
        bop.step()
    assert (bop.state[one]["initial_sign"] * one.detach().sign() < 0).any()
    for way in ("pickle", "torch"):
        two = nn.Parameter(one.detach().clone())
        other = Bop([two])
        if way == "pickle":
            other.load_state_dict(pickle.loads(pickle.dumps(bop.state_dict())))
        else:
            torch.save(bop.state_dict(), tmp_path / "bop.pt")
            other.load_state_dict(torch.load(tmp_path / "bop.pt", weights_only=True))
        assert other.param_groups[0]["flip_cost"] == 1e-5
        assert other.state[two]["initial_sign"].dtype == torch.int8
        reference = nn.Parameter(one.detach().clone())
        plain = Bop([reference])
        plain.load_state_dict(bop.state_dict())
        for gradient in gradients[6:]:
            for parameter, optimizer in ((reference, plain), (two, other)):
                parameter.grad = torch.from_numpy(gradient).to(dtype)
                optimizer.step()
            assert torch.equal(reference, two)
            assert torch.equal(plain.flips, other.flips)


def test_pruning_later_changes_the_price():
    parameter = nn.Parameter(torch.ones(100))
    bop = Bop([parameter], 1.0, 1e-3, flip_cost=2e-3)
    gradient = torch.zeros(100)
    gradient[:25] = 1.0
    parameter.grad = gradient
    bop.step()
    with torch.no_grad():
        parameter[50:] = 0.0  # 25 of 50 are flipped now: a bit costs nothing
    parameter.grad = torch.full((100,), 1.1e-3)
    bop.step()
    assert parameter.tolist() == [-1.0] * 50 + [0.0] * 50
    assert not torch.signbit(parameter[50:]).any()


@pytest.mark.parametrize("cost", [-1e-9, float("inf"), float("nan")])
def test_a_cost_out_of_range(cost):
    parameter = nn.Parameter(torch.ones(2))
    with pytest.raises(RecipeError, match="flip_cost: expected zero or more, and finite, found"):
        Bop([parameter], flip_cost=cost)
    with pytest.raises(RecipeError, match="flip_cost: expected zero or more, and finite, found"):
        Bop([{"params": [parameter], "flip_cost": cost}])


def test_prices_are_float32_whatever_torchs_default():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        found = price(torch.tensor([1, 3]), torch.tensor([8, 8]))
    finally:
        torch.set_default_dtype(before)
    assert found.dtype == torch.float32
