"""PSG against the paper's equations alone, written out as sums over every index.

For y = w x the paper replaces (x, w, g) in g_w = g x^T and g_x = w^T g by quantized versions,
passes g_x on, and treats g_w where it is small against a threshold that adapts to the layer
(Sections 3.3 and 4.4; Wang et al. 2019, Section 3.3). A convolution is such a map from every window
to every output place, so its products are stated here place by place, with nothing but loops.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from pabzip.unmask import PsgConfig, apply_psg, quantize


def levels(values, bits):
    """Round to the nearest of the 2**bits - 1 multiples of a step that reach the largest value."""
    largest = max(abs(value) for value in values.flat)
    if largest == 0:
        return np.zeros_like(values)
    top = 2 ** (bits - 1) - 1
    grid = np.arange(-top, top + 1) * (largest / top)
    return grid[np.abs(values.reshape(-1, 1) - grid).argmin(1)].reshape(values.shape)


def windows(output_shape, weight_shape, stride, padding, dilation, groups):
    """Yield every (output place, weight place, input place) that a convolution multiplies."""
    samples, channels, high, wide = output_shape
    _, per_group, tall, broad = weight_shape
    for n, o, i, j in product(range(samples), range(channels), range(high), range(wide)):
        group = o // (channels // groups)
        for c, a, b in product(range(per_group), range(tall), range(broad)):
            row = i * stride[0] + a * dilation[0] - padding[0]
            column = j * stride[1] + b * dilation[1] - padding[1]
            yield (n, o, i, j), (o, c, a, b), (n, group * per_group + c, row, column)


def products(x, w, g, **geometry):
    """Return g_w and g_x, term by term."""
    of_weight, of_input = np.zeros_like(w), np.zeros_like(x)
    for out, at, source in windows(g.shape, w.shape, **geometry):
        if 0 <= source[2] < x.shape[2] and 0 <= source[3] < x.shape[3]:
            of_weight[at] += g[out] * x[source]
            of_input[source] += g[out] * w[at]
    return of_weight, of_input


def treated(predicted, exact, threshold, behavior, adaptive):
    """Treat the small predictions, one by one."""
    limit = threshold * max(abs(value) for value in predicted.flat) if adaptive else threshold
    result = predicted.copy()
    for at in np.ndindex(predicted.shape):
        if abs(predicted[at]) < limit:
            result[at] = {"all": predicted[at], "remove": 0.0, "correct": exact[at]}[behavior]
    return result


def published_levels(values, bits, role):
    """The published quantizer, value by value: shift to zero, divide, cut off, round, undo."""
    if role == "input":
        largest = np.mean([max(abs(value) for value in sample.flat) for sample in values])
        signed = any(value < 0 for value in values.flat)
    elif role == "weight":
        return np.stack([published_levels(each, bits, "gradient") for each in values])
    else:
        largest, signed = max(abs(value) for value in values.flat), True
    lowest = -largest if signed else 0.0
    step = (largest - lowest) / 2**bits
    result = np.zeros_like(values)
    for at in np.ndindex(values.shape):
        if values[at] != 0:
            level = min(max((values[at] - lowest) / step, 0), 2**bits - 1)
            result[at] = round(level) * step + lowest
    return result


GEOMETRIES = {
    "plain": {"shape": (4, 6), "kernel": (3, 3)},
    "stride, padding": {"shape": (4, 6), "kernel": (3, 3), "stride": (2, 1), "padding": (1, 2)},
    "dilation": {"shape": (4, 6), "kernel": (3, 2), "dilation": (1, 3), "padding": (0, 1)},
    "grouped": {"shape": (4, 6), "kernel": (3, 3), "groups": 2, "padding": (1, 1)},
    "depthwise": {"shape": (4, 4), "kernel": (3, 3), "groups": 4, "stride": (2, 2)},
    "depthwise, twice": {"shape": (3, 6), "kernel": (2, 2), "groups": 3, "dilation": (2, 2)},
    "pointwise": {"shape": (4, 6), "kernel": (1, 1), "stride": (2, 2)},
}


def layer_of(shape, kernel, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1):
    layer = nn.Conv2d(*shape, kernel, stride, padding, dilation, groups, dtype=torch.float64)
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return layer, geometry


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("behavior", ["all", "remove", "correct"])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_convolutions(name, behavior, channels_last):
    torch.manual_seed(len(name))
    layer, geometry = layer_of(**GEOMETRIES[name])
    apply_psg(layer, PsgConfig(5, 4, 6, 0.15, behavior), weights=["weight"])
    inputs = torch.randn(2, layer.in_channels, 6, 7, dtype=torch.float64)
    if channels_last:
        layer.to(memory_format=torch.channels_last)
        inputs = inputs.to(memory_format=torch.channels_last)
    output = layer(inputs.requires_grad_())
    gradient = torch.randn(output.shape, dtype=torch.float64)
    output.backward(gradient)
    x, w, g = inputs.detach().numpy(), layer.weight.detach().numpy(), gradient.numpy()
    predicted, of_input = products(levels(x, 5), levels(w, 4), levels(g, 6), **geometry)
    exact, _ = products(x, w, g, **geometry)
    wanted = treated(predicted, exact, 0.15, behavior, adaptive=True)
    found = layer.weight.grad.numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(inputs.grad.numpy(), of_input, rtol=1e-11, atol=1e-12)
    assert not np.allclose(predicted, exact, rtol=1e-3)
    assert np.count_nonzero(wanted == predicted) > 0
    if behavior != "all":
        assert np.count_nonzero(wanted != predicted) > 0


@pytest.mark.parametrize("input_gradient", ["quantized", "exact"])
@pytest.mark.parametrize("quantizer", ["symmetric", "published"])
@pytest.mark.parametrize("rectified", [False, True])
@pytest.mark.parametrize("name", ["plain", "grouped", "stride, padding"])
def test_published_choices(name, rectified, quantizer, input_gradient):
    torch.manual_seed(len(name))
    layer, geometry = layer_of(**GEOMETRIES[name])
    config = PsgConfig(4, 3, 6, 0.15, "correct", input_gradient=input_gradient, quantizer=quantizer)
    apply_psg(layer, config, weights=["weight"])
    inputs = torch.randn(3, layer.in_channels, 6, 7, dtype=torch.float64)
    inputs[1] *= 3  # so that the mean of the samples' largest is far from the largest of all
    if rectified:
        inputs.relu_()
    output = layer(inputs.requires_grad_())
    gradient = torch.randn(output.shape, dtype=torch.float64)
    output.backward(gradient)
    x, w, g = inputs.detach().numpy(), layer.weight.detach().numpy(), gradient.numpy()
    if quantizer == "symmetric":
        rough = levels(x, 4), levels(w, 3), levels(g, 6)
    else:
        rough = (
            published_levels(x, 4, "input"),
            published_levels(w, 3, "weight"),
            published_levels(g, 6, "gradient"),
        )
    predicted, rough_input = products(*rough, **geometry)
    exact, exact_input = products(x, w, g, **geometry)
    found = layer.weight.grad.numpy()
    wanted = treated(predicted, exact, 0.15, "correct", adaptive=True)
    np.testing.assert_allclose(found, wanted, rtol=1e-11, atol=1e-12)
    of_input = exact_input if input_gradient == "exact" else rough_input
    np.testing.assert_allclose(inputs.grad.numpy(), of_input, rtol=1e-11, atol=1e-12)
    assert not np.allclose(rough_input, exact_input, rtol=1e-2)
    assert np.count_nonzero(wanted != predicted) > 0


@pytest.mark.parametrize("role", ["input", "weight", "gradient"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_published_quantizer(role, bits, dtype):
    values = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(bits), dtype=dtype)
    values[2] *= 4
    values[0, 0] = 0.0
    for given in (values, values.relu()):
        found = quantize(given, bits, quantizer="published", role=role)
        wanted = published_levels(given.double().numpy(), bits, role)
        assert found.dtype == dtype
        tolerance = 1e-12 if dtype == torch.float64 else 3e-6
        np.testing.assert_allclose(found.double().numpy(), wanted, rtol=tolerance, atol=1e-12)
        assert not found[0, 0].any()


def test_published_quantizer_uses_every_level_and_cuts_off():
    ramp = torch.linspace(0, 1, 1001).reshape(1, -1)
    assert len(quantize(ramp, 4, quantizer="published", role="input").unique()) == 16
    assert len(quantize(ramp, 4).unique()) == 8
    assert len(quantize(ramp * 2 - 1, 4, quantizer="published").unique()) == 16
    assert quantize(ramp, 4, quantizer="published", role="input").max() == 15 / 16
    assert quantize(ramp, 4, quantizer="published").max() == 7 / 8
    two = torch.tensor([[1.0], [3.0]])  # mean of the largest: 2
    found = quantize(two, 8, quantizer="published", role="input")
    assert found.tolist() == [[1.0], [2 * 255 / 256]]


def test_published_quantizer_at_the_edges():
    for role in ("input", "weight", "gradient"):
        zeros = quantize(torch.zeros(2, 3), 4, quantizer="published", role=role)
        assert zeros.tolist() == [[0.0] * 3] * 2
        lost = quantize(torch.tensor([[1.0, float("nan")]]), 4, quantizer="published", role=role)
        assert lost.isnan().all()
    pruned = torch.tensor([[0.0, 0.0], [4.0, -4.0]])
    found = quantize(pruned, 3, quantizer="published", role="weight")
    assert found.tolist() == [[0.0, 0.0], [3.0, -4.0]]
    single = torch.tensor([1.0, -0.5])  # without a batch, as a linear map takes it
    assert quantize(single, 2, quantizer="published", role="input").tolist() == [0.5, -0.5]


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("behavior", ["all", "remove", "correct"])
def test_the_papers_one_layer_network(behavior, adaptive):
    torch.manual_seed(3)
    layer = nn.Linear(5, 4, bias=False, dtype=torch.float64)
    # Between two products of levels: 0.4 of the largest, 7 x 15, would be 6 x 7 to the last bit.
    limit = 0.41
    apply_psg(layer, PsgConfig(4, 3, 5, limit, behavior, adaptive), weights=["weight"])
    inputs = torch.randn(1, 5, dtype=torch.float64, requires_grad=True)
    gradient = torch.randn(1, 4, dtype=torch.float64)
    layer(inputs).backward(gradient)
    x, w, g = inputs.detach().numpy()[0], layer.weight.detach().numpy(), gradient.numpy()[0]
    predicted = np.array([[gi * xj for xj in levels(x, 4)] for gi in levels(g, 5)])
    exact = np.array([[gi * xj for xj in x] for gi in g])
    wanted = treated(predicted, exact, limit, behavior, adaptive)
    np.testing.assert_allclose(layer.weight.grad.numpy(), wanted, rtol=1e-12)
    of_input = [sum(levels(w, 3)[i, j] * levels(g, 5)[i] for i in range(4)) for j in range(5)]
    np.testing.assert_allclose(inputs.grad.numpy()[0], of_input, rtol=1e-12)
    assert (behavior == "all") == bool((wanted == predicted).all())


def test_predicted_input_gradients_reach_the_layers_before():
    torch.manual_seed(5)
    net = nn.Sequential(*(nn.Linear(3, 3, bias=False, dtype=torch.float64) for _ in range(2)))
    apply_psg(net, PsgConfig(4, 3, 5, 0.0, "all"), weights=["0.weight", "1.weight"])
    inputs = torch.randn(1, 3, dtype=torch.float64)
    gradient = torch.randn(1, 3, dtype=torch.float64)
    net(inputs).backward(gradient)
    x, g = inputs.numpy()[0], gradient.numpy()[0]
    first, second = (layer.weight.detach().numpy() for layer in net)
    hidden = first @ x  # the forward pass is exact
    passed_on = levels(second, 3).T @ levels(g, 5)
    np.testing.assert_allclose(net[1].weight.grad, np.outer(levels(g, 5), levels(hidden, 4)))
    np.testing.assert_allclose(net[0].weight.grad, np.outer(levels(passed_on, 5), levels(x, 4)))


@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_quantizer_takes_the_nearest_level(bits, dtype):
    values = torch.randn(6, 7, generator=torch.Generator().manual_seed(bits), dtype=torch.float64)
    values[0, 0] = 0.0
    found = quantize(values.to(dtype), bits).double().numpy()
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    np.testing.assert_allclose(found, levels(values.numpy(), bits), rtol=tolerance)
    assert found[0, 0] == 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_quantizer_rounds_half_precision_once_at_the_end(dtype):
    values = torch.randn(400, generator=torch.Generator().manual_seed(1)).to(dtype)
    exact = levels(values.double().numpy(), 8)
    found = quantize(values, 8)
    assert found.dtype == dtype
    spacing = torch.finfo(dtype).eps * np.abs(exact)
    assert (np.abs(found.double().numpy() - exact) <= spacing * 0.51).all()
