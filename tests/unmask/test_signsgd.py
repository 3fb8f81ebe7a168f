"""SignSGD and Signum against a plain numpy statement of Bernstein et al., step by step."""

import copy
import io

import numpy as np
import pytest
import torch
from torch import nn

from pabzip.errors import RecipeError
from pabzip.unmask import SignSgd


def numpy_signsgd(weight, gradients, rate, momentum, decay):
    """Yield the weights after each gradient, in float32."""
    average = np.zeros_like(weight)
    for gradient in gradients:
        average = np.float32(momentum) * average + np.float32(1 - momentum) * gradient
        shrunk = np.float32(1 - rate * decay) * weight
        weight = shrunk - np.float32(rate) * np.sign(average)
        yield weight


@pytest.mark.parametrize(("momentum", "decay"), [(0.0, 0.0), (0.0, 0.1), (0.9, 0.0), (0.9, 0.1)])
def test_every_step_matches_numpy(momentum, decay):
    generator = np.random.default_rng(0)
    weight = generator.normal(size=400).astype(np.float32)
    gradients = generator.normal(size=(8, 400)).astype(np.float32)
    gradients[:, :5] = 0
    parameter = nn.Parameter(torch.from_numpy(weight.copy()))
    optimizer = SignSgd([parameter], 0.01, momentum, decay)
    for gradient, expected in zip(
        gradients, numpy_signsgd(weight, gradients, 0.01, momentum, decay), strict=True
    ):
        parameter.grad = torch.from_numpy(gradient.copy())
        assert optimizer.step(lambda: 2.0) == 2.0
        found = parameter.detach().numpy()
        np.testing.assert_allclose(found, expected, rtol=3e-7, atol=2e-8)
        assert momentum or decay or np.array_equal(found, expected)


def test_a_weight_of_zero_without_gradient_stays_plus_zero():
    parameter = nn.Parameter(torch.zeros(4))
    optimizer = SignSgd([parameter], 0.5, 0.5, 0.1)
    for _ in range(3):
        parameter.grad = torch.tensor([0.0, -0.0, 0.0, 1.0])
        optimizer.step()
    assert torch.equal(parameter[:3].view(torch.int32), torch.zeros(3, dtype=torch.int32))
    assert float(parameter.detach()[3]) < -1


def test_the_state_comes_back_to_the_bit():
    parameter = nn.Parameter(torch.linspace(-1, 1, 50))
    optimizer = SignSgd([parameter], 0.1, 0.9, 0.01)
    gradients = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    for gradient in gradients[:3]:
        parameter.grad = gradient.clone()
        optimizer.step()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    twin = copy.deepcopy(parameter)
    resumed = SignSgd([twin])
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for gradient in gradients[3:]:
        parameter.grad, twin.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        resumed.step()
    assert torch.equal(parameter, twin)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": -1.0}, r"lr: expected zero or more, and finite, found -1"),
        ({"weight_decay": float("inf")}, r"weight_decay: .*found inf"),
        ({"momentum": -0.1}, r"momentum: expected 0 <= momentum < 1, found -0\.1"),
    ],
)
def test_values_out_of_range_are_refused(arguments, message):
    with pytest.raises(RecipeError, match=f"SignSgd: {message}"):
        SignSgd([nn.Parameter(torch.zeros(2))], **arguments)
