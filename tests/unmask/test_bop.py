"""Bop against a plain numpy statement of equations (5) and (6), step by step."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import pabzip.init
from pabzip.errors import RecipeError, SeedError
from pabzip.unmask import AdaptivityDecay, Bop


def numpy_bop(weights, gradients, rate, threshold, start):
    """Yield weights, averages and the number of flips after each gradient."""
    w = weights.astype(np.float64)
    average = None
    for gradient in gradients:
        g = gradient.astype(np.float64)
        if average is None:
            average = g if start == "first-gradient" else rate * g
        else:
            average = (1 - rate) * average + rate * g
        flip = (np.abs(average) >= threshold) & (average * w > 0)
        w = np.where(flip, -w, w)
        yield w, average, int(flip.sum())


def random_problem(seed, steps=8, size=500):
    generator = np.random.default_rng(seed)
    weights = generator.normal(size=size).astype(np.float32)
    weights[generator.random(size) < 0.5] = 0.0
    return weights, generator.normal(scale=1e-4, size=(steps, size)).astype(np.float32)


@pytest.mark.parametrize("start", ["first-gradient", "zero"])
@pytest.mark.parametrize(("rate", "threshold"), [(1e-3, 1e-7), (0.3, 2e-5), (1.0, 0.0)])
def test_every_step_matches_numpy(start, rate, threshold):
    weights, gradients = random_problem(0)
    parameter = nn.Parameter(torch.from_numpy(weights.copy()))
    bop = Bop([parameter], rate, threshold, start)
    assert int(bop.flips) == 0
    expected = numpy_bop(weights, gradients, rate, threshold, start)
    total = 0
    for gradient, (w, average, flips) in zip(gradients, expected, strict=True):
        parameter.grad = torch.from_numpy(gradient.copy())
        bop.step()
        assert np.array_equal(parameter.detach().numpy(), w)
        assert int(bop.flips) == flips
        found = bop.state[parameter]["moving_average"].numpy()
        np.testing.assert_allclose(found, average, rtol=1e-5, atol=1e-11)
        total += flips
    assert total > 0


def test_the_threshold_itself_flips():
    parameter = nn.Parameter(torch.tensor([1.0, 1.0, -1.0, 1.0, 0.0]))
    parameter.grad = torch.tensor([0.5, 0.49999997, 0.5, -0.5, 0.5])
    Bop([parameter], 0.1, 0.5).step()
    assert parameter.tolist() == [-1.0, 1.0, -1.0, 1.0, 0.0]


def test_tiny_weights_and_averages_flip_though_their_product_underflows():
    parameter = nn.Parameter(torch.tensor([1e-30, -1e-30]))
    parameter.grad = torch.tensor([1e-30, -1e-30])
    bop = Bop([parameter], 0.1, 0.0)
    bop.step()
    assert int(bop.flips) == 2
    assert torch.equal(torch.signbit(parameter), torch.tensor([True, False]))


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rate=st.floats(1e-4, 1.0),
    threshold=st.sampled_from([0.0, 1e-6, 1e-4]),
    start=st.sampled_from(["first-gradient", "zero"]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
)
def test_magnitudes_never_change_and_zeros_stay_positive(seed, rate, threshold, start, dtype):
    weights, gradients = random_problem(seed, size=64)
    before = torch.from_numpy(weights).to(dtype)
    parameter = nn.Parameter(before.clone())
    bop = Bop([parameter], rate, threshold, start)
    for gradient in gradients:
        parameter.grad = torch.from_numpy(gradient).to(dtype)
        bop.step()
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    after = parameter.detach()
    assert torch.equal(after.abs().view(bits), before.abs().view(bits))
    assert not torch.signbit(after[before == 0]).any()


def test_takes_the_seeded_weights_of_a_network():
    net = pabzip.init.init_(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)), 1)
    bop = Bop(net)
    (group,) = bop.param_groups
    assert [id(p) for p in group["params"]] == [id(net[0].weight), id(net[2].weight)]
    assert (group["lr"], group["threshold"]) == (1e-3, 1e-6)
    assert group["start"] == "first-gradient"
    assert bop.flips.shape == ()
    assert bop.flips.dtype == torch.int64


def test_groups_have_their_own_values_and_absent_gradients_are_left_out():
    one, two, three = (nn.Parameter(torch.ones(3)) for _ in range(3))
    bop = Bop([{"params": one}, {"params": [two, three], "threshold": 10.0, "start": "zero"}], 0.5)
    one.grad = torch.ones(3)
    two.grad = torch.ones(3)
    bop.step()
    assert one.tolist() == [-1.0] * 3
    assert two.tolist() == [1.0] * 3
    assert int(bop.flips) == 3
    assert bop.state[two]["moving_average"].tolist() == [0.5] * 3
    assert three not in bop.state
    bop.zero_grad()
    bop.step()
    assert int(bop.flips) == 0


def test_a_weight_that_is_nan_in_its_gradient_never_flips_again():
    parameter = nn.Parameter(torch.ones(2))
    bop = Bop([parameter], 0.5, 1e-6)
    for gradient in ([float("nan"), 1.0], [1.0, 1.0]):
        parameter.grad = torch.tensor(gradient)
        bop.step()
    assert parameter.tolist() == [1.0, -1.0]


def test_closure_is_evaluated_with_gradients():
    parameter = nn.Parameter(torch.tensor([2.0, -3.0]))
    bop = Bop([parameter])

    def closure():
        bop.zero_grad()
        loss = (parameter * torch.tensor([1.0, 1.0])).sum()
        loss.backward()
        return loss.item()

    assert bop.step(closure) == -1.0
    assert parameter.tolist() == [-2.0, -3.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_round_trip_goes_on_bit_for_bit(dtype):
    weights, gradients = random_problem(5)
    one = nn.Parameter(torch.from_numpy(weights).to(dtype))
    bop = Bop([one], 0.1, 1e-5)
    for gradient in gradients[:4]:
        one.grad = torch.from_numpy(gradient).to(dtype)
        bop.step()
    two = nn.Parameter(one.detach().clone())
    other = Bop([two])
    other.load_state_dict(pickle.loads(pickle.dumps(bop.state_dict())))
    assert other.param_groups[0]["lr"] == 0.1
    assert other.state[two]["moving_average"].dtype == torch.float32
    for gradient in gradients[4:]:
        for parameter, optimizer in ((one, bop), (two, other)):
            parameter.grad = torch.from_numpy(gradient).to(dtype)
            optimizer.step()
        assert torch.equal(one, two)
        assert torch.equal(bop.flips, other.flips)
        assert torch.equal(bop.state[one]["moving_average"], other.state[two]["moving_average"])


def test_copies_and_pickles():
    parameter = nn.Parameter(torch.ones(2))
    bop = Bop([parameter])
    parameter.grad = torch.ones(2)
    bop.step()
    for other in (copy.deepcopy(bop), pickle.loads(pickle.dumps(bop))):
        assert int(other.flips) == 0
        assert other.param_groups[0]["threshold"] == 1e-6


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"adaptivity_rate": 0.0}, "adaptivity_rate: expected 0 < rate <= 1, found 0.0"),
        ({"adaptivity_rate": 1.5}, "adaptivity_rate: expected 0 < rate <= 1, found 1.5"),
        ({"adaptivity_rate": float("nan")}, "adaptivity_rate: .* found nan"),
        ({"threshold": -1e-9}, "threshold: expected zero or more, and finite, found -1e-09"),
        ({"threshold": float("inf")}, "threshold: .* found inf"),
        ({"start": "second"}, "start: expected one of first-gradient, zero, found 'second'"),
    ],
)
def test_values_out_of_range(values, problem):
    parameter = nn.Parameter(torch.ones(2))
    with pytest.raises(RecipeError, match=problem):
        Bop([parameter], **values)
    with pytest.raises(RecipeError, match=problem):
        Bop([{"params": [parameter], **values}])


def test_a_parameter_claimed_twice():
    parameter = nn.Parameter(torch.ones(2, 3))
    with pytest.raises(RecipeError, match=r"parameter 1 of group 0, of shape \(2, 3\), is claimed"):
        Bop([parameter, parameter])
    with pytest.raises(RecipeError, match=r"parameter 0 of group 1.* is claimed twice"):
        Bop([{"params": [parameter]}, {"params": [parameter]}])


def test_a_parameter_that_is_not_floating():
    with pytest.raises(RecipeError, match=r"expected a floating tensor, found torch.int64"):
        Bop([torch.ones(2, dtype=torch.int64)])


def test_network_without_a_seed():
    with pytest.raises(SeedError, match=r"call pabzip.init_"):
        Bop(nn.Linear(2, 2))


def test_decay_of_the_paper():
    bop = Bop([nn.Parameter(torch.ones(2))])
    decay = AdaptivityDecay(bop)
    rates = []
    for _ in range(180):
        rates.append(bop.param_groups[0]["lr"])
        decay.step()
    expected = [1e-3 * 0.15 ** (epoch // 45) for epoch in range(180)]
    np.testing.assert_allclose(rates, expected, rtol=1e-14)


def test_decay_of_the_published_imagenet_code():
    """It decays before the epochs with the indices 29, 59 and 89."""
    bop = Bop([nn.Parameter(torch.ones(2))])
    decay = AdaptivityDecay(bop, 30, 0.5, 29)
    decayed, before = [], bop.param_groups[0]["lr"]
    for epoch in range(100):
        if bop.param_groups[0]["lr"] != before:
            decayed.append(epoch)
            before = bop.param_groups[0]["lr"]
        decay.step()
    assert decayed == [29, 59, 89]


def test_decay_resumes():
    def run(steps, bop, decay):
        for _ in range(steps):
            decay.step()
        return bop.param_groups[0]["lr"]

    bop = Bop([nn.Parameter(torch.ones(2))])
    decay = AdaptivityDecay(bop, 3, 0.5)
    whole = run(7, bop, decay)
    first = Bop([nn.Parameter(torch.ones(2))])
    decay = AdaptivityDecay(first, 3, 0.5)
    run(4, first, decay)
    second = Bop([nn.Parameter(torch.ones(2))])
    resumed = AdaptivityDecay(second, 3, 0.5)
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(decay.state_dict())
    assert run(3, second, resumed) == whole == 0.25e-3


def test_torchs_own_schedulers_set_the_rate():
    weights, gradients = random_problem(8, steps=7)
    runs = []
    for scheduler in (
        lambda bop: AdaptivityDecay(bop, 2, 0.15),
        lambda bop: torch.optim.lr_scheduler.StepLR(bop, 2, 0.15),
    ):
        parameter = nn.Parameter(torch.from_numpy(weights.copy()))
        bop = Bop([{"params": [parameter], "adaptivity_rate": 0.5}], 1e-3, 1e-5, "zero")
        decay = scheduler(bop)
        rates = []
        for gradient in gradients:
            parameter.grad = torch.from_numpy(gradient.copy())
            bop.step()
            rates.append(bop.param_groups[0]["lr"])
            decay.step()
        runs.append((parameter.detach(), bop.state[parameter]["moving_average"], rates))
    assert runs[0][2] == runs[1][2]
    assert runs[0][2] == [
        0.5,
        0.5,
        *[0.5 * 0.15] * 2,
        *[0.5 * 0.15 * 0.15] * 2,
        0.5 * 0.15**2 * 0.15,
    ]
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])
    assert not np.array_equal(runs[0][0].numpy(), weights)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ((0, 0.5), "every: expected an integer of at least 1, found 0"),
        ((1.5, 0.5), "every: expected an integer of at least 1, found 1.5"),
        ((1, 0.5, 0), "first: expected an integer of at least 1, found 0"),
        ((1, 0.0), "ratio: expected 0 < ratio <= 1, found 0.0"),
        ((1, 2.0), "ratio: expected 0 < ratio <= 1, found 2.0"),
    ],
)
def test_decay_out_of_range(values, problem):
    with pytest.raises(RecipeError, match=problem):
        AdaptivityDecay(Bop([nn.Parameter(torch.ones(2))]), *values)


def test_decay_of_another_optimizer():
    with pytest.raises(RecipeError, match="AdaptivityDecay: expected Bop, found SGD; for a lear"):
        AdaptivityDecay(torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1))
