"""SNIP and GraSP against plain numpy statements of their equations, derived by hand."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from pabzip.errors import SearchError, SeedError
from pabzip.search import GraspScorer, LossNetwork, SnipScorer, grasp, snip


def weights_of(net):
    return {name: p for name, p in net.named_parameters() if p.dim() > 1}


def alive(net):
    return {name: p.detach() != 0 for name, p in weights_of(net).items()}


def perceptron(seed=0):
    rng = np.random.default_rng(seed)
    net = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 4))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.from_numpy(rng.normal(size=parameter.shape)))
    return net.double()


def samples(seed=1, sizes=(6, 3, 2), shape=(5,), classes=4):
    rng = np.random.default_rng(seed)
    return [
        (torch.from_numpy(rng.normal(size=(size, *shape))),
         torch.from_numpy(rng.integers(0, classes, size)))
        for size in sizes
    ]  # fmt: skip


def together(batches):
    return tuple(
        np.concatenate([part.numpy() for part in parts]) for parts in zip(*batches, strict=True)
    )


def softmax(logits):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def arrays(net):
    return [p.detach().numpy().copy() for p in net.parameters()]


def perceptron_gradient(parameters, inputs, labels, temperature):
    """Gradient of the mean cross-entropy by both weights, by the chain rule."""
    w1, b1, w2, b2 = parameters
    before = inputs @ w1.T + b1
    hidden = np.maximum(before, 0)
    chances = softmax((hidden @ w2.T + b2) / temperature)
    error = (chances - np.eye(4)[labels]) / (temperature * len(labels))
    return ((error @ w2) * (before > 0)).T @ inputs, error.T @ hidden


def perceptron_product(parameters, inputs, labels, temperature, direction):
    """Hessian times a direction: the gradient above, differentiated once more, line by line."""
    w1, b1, w2, b2 = parameters
    v1, v2 = direction
    before = inputs @ w1.T + b1
    gate = before > 0
    hidden, hidden_dot = np.maximum(before, 0), gate * (inputs @ v1.T)
    chances = softmax((hidden @ w2.T + b2) / temperature)
    logits_dot = (hidden_dot @ w2.T + hidden @ v2.T) / temperature
    chances_dot = chances * (logits_dot - (chances * logits_dot).sum(1, keepdims=True))
    scale = 1.0 / (temperature * len(labels))
    error, error_dot = scale * (chances - np.eye(4)[labels]), scale * chances_dot
    first = ((error_dot @ w2 + error @ v2) * gate).T @ inputs
    return first, error_dot.T @ hidden + error.T @ hidden_dot


def test_the_oracle_agrees_with_differences_of_gradients():
    parameters, (inputs, labels) = arrays(perceptron()), together(samples())
    direction = perceptron_gradient(parameters, inputs, labels, 2.0)
    step = 1e-6
    moved = [
        perceptron_gradient(
            [parameters[0] + sign * step * direction[0], parameters[1],
             parameters[2] + sign * step * direction[1], parameters[3]],
            inputs, labels, 2.0,
        )
        for sign in (1, -1)
    ]  # fmt: skip
    products = perceptron_product(parameters, inputs, labels, 2.0, direction)
    for one, other, product in zip(*moved, products, strict=True):
        np.testing.assert_allclose((one - other) / (2 * step), product, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_snip_is_gradient_times_weight(seed):
    net, batches = perceptron(seed), samples(seed + 10)
    found = SnipScorer(LossNetwork(net, weights_of(net), batches, torch.float64)).scores(alive(net))
    parameters = arrays(net)
    gradients = perceptron_gradient(parameters, *together(batches), 1.0)
    for name, gradient, weight in zip(found, gradients, parameters[::2], strict=True):
        np.testing.assert_allclose(found[name].numpy(), np.abs(gradient * weight), rtol=1e-11)


@pytest.mark.parametrize("temperature", [1.0, 200.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_grasp_is_hessian_gradient_times_weight(seed, temperature):
    net, batches = perceptron(seed), samples(seed + 10)
    network = LossNetwork(net, weights_of(net), batches, torch.float64, temperature)
    found = GraspScorer(network).scores(alive(net))
    parameters = arrays(net)
    inputs, labels = together(batches)
    direction = perceptron_gradient(parameters, inputs, labels, temperature)
    products = perceptron_product(parameters, inputs, labels, temperature, direction)
    for name, product, weight in zip(found, products, parameters[::2], strict=True):
        np.testing.assert_allclose(
            found[name].numpy(), product * weight, rtol=1e-9, atol=1e-16 / temperature**3
        )


def test_grasp_against_an_explicit_hessian():
    rng = np.random.default_rng(3)
    net = nn.Linear(3, 4, bias=False).double()
    with torch.no_grad():
        net.weight.copy_(torch.from_numpy(rng.normal(size=(4, 3))))
    batches = samples(4, shape=(3,))
    network = LossNetwork(net, {"weight": net.weight}, batches, torch.float64, 5.0)
    found = GraspScorer(network).scores(alive(net))["weight"].numpy()
    inputs, labels = together(batches)
    (weight,) = arrays(net)
    chances = softmax(inputs @ weight.T / 5.0)
    gradient = (chances - np.eye(4)[labels]).T @ inputs / (5.0 * len(labels))
    hessian = np.zeros((12, 12))
    for p, x in zip(chances, inputs, strict=True):
        hessian += np.kron(np.diag(p) - np.outer(p, p), np.outer(x, x)) / (25.0 * len(labels))
    product = (hessian @ gradient.ravel()).reshape(4, 3)
    np.testing.assert_allclose(found, product * weight, rtol=1e-10)


def test_grasp_keeps_what_helps_the_gradient_flow():
    # Without the pruned weights the gradient is larger than without as many of the kept ones.
    def flow(net, mask):
        inputs, labels = together(batches)
        w1, b1, w2, b2 = arrays(net)
        flat = np.concatenate([w1.ravel(), w2.ravel()]) * mask
        parameters = [flat[:35].reshape(7, 5), b1, flat[35:].reshape(4, 7), b2]
        parts = perceptron_gradient(parameters, inputs, labels, 200.0)
        return sum((part**2).sum() for part in parts)

    batches = samples(11)
    net = perceptron(1)
    pruned = copy.deepcopy(net)
    masks = grasp(
        pruned, 62 / 63, example_inputs=batches, weights=weights_of(pruned), dtype=torch.float64
    )
    kept = np.concatenate([mask.numpy().ravel() for mask in masks.values()])
    scores = GraspScorer(LossNetwork(net, weights_of(net), batches, torch.float64, 200.0)).scores(
        alive(net)
    )
    flat = np.concatenate([score.numpy().ravel() for score in scores.values()])
    assert np.flatnonzero(~kept).tolist() == [int(flat.argmin())]
    best = np.ones(63, bool)
    best[flat.argmax()] = False
    assert flow(net, kept) > flow(net, np.ones(63, bool)) > flow(net, best)


def convolution(seed=0):
    rng = np.random.default_rng(seed)
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(3), nn.ReLU(),
        nn.Flatten(), nn.Linear(12, 4, bias=False),
    )  # fmt: skip
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.from_numpy(rng.normal(size=parameter.shape)))
    return net.double()


def convolution_gradient(net, inputs, labels):
    """Conv -> batch norm by the batch's statistics -> ReLU -> linear, forwards and backwards."""
    kernel, gamma, beta, head = arrays(net)
    count = len(labels)
    padded = np.pad(inputs, ((0, 0), (0, 0), (1, 1), (1, 1)))
    out = np.zeros((count, 3, 2, 2))
    for n, o, y, x in np.ndindex(out.shape):
        out[n, o, y, x] = (kernel[o] * padded[n, :, 2 * y : 2 * y + 3, 2 * x : 2 * x + 3]).sum()
    mean = out.mean((0, 2, 3), keepdims=True)
    deviation = np.sqrt(out.var((0, 2, 3), keepdims=True) + 1e-5)
    normal = (out - mean) / deviation
    before = normal * gamma.reshape(1, 3, 1, 1) + beta.reshape(1, 3, 1, 1)
    hidden = np.maximum(before, 0).reshape(count, -1)
    error = (softmax(hidden @ head.T) - np.eye(4)[labels]) / count
    back = (error @ head).reshape(out.shape) * (before > 0) * gamma.reshape(1, 3, 1, 1)
    back = (
        back
        - back.mean((0, 2, 3), keepdims=True)
        - normal * (back * normal).mean((0, 2, 3), keepdims=True)
    ) / deviation
    gradient = np.zeros_like(kernel)
    for n, o, y, x in np.ndindex(out.shape):
        gradient[o] += back[n, o, y, x] * padded[n, :, 2 * y : 2 * y + 3, 2 * x : 2 * x + 3]
    return gradient, error.T @ hidden


def test_snip_with_convolution_and_batch_norm():
    net, batches = convolution(), samples(sizes=(6, 5), shape=(2, 4, 4))
    network = LossNetwork(net, weights_of(net), batches, torch.float64)
    found = SnipScorer(network).scores(alive(net))
    parts = [
        [len(labels) / 11 * part for part in convolution_gradient(net, x.numpy(), labels.numpy())]
        for x, labels in batches
    ]
    for name, *gradients in zip(found, *parts, strict=True):
        weight = weights_of(net)[name].detach().numpy()
        np.testing.assert_allclose(
            found[name].numpy(), np.abs(sum(gradients) * weight), rtol=1e-9, atol=1e-14
        )


@pytest.mark.parametrize("method", [snip, grasp])
def test_masks_are_the_largest_scores_round_by_round(method):
    net, batches = perceptron(2), samples(5)
    parameters = arrays(net)
    inputs, labels = together(batches)
    keep = np.ones(63, bool)
    for step in (1, 2, 3):
        flat = np.concatenate([parameters[0].ravel(), parameters[2].ravel()]) * keep
        now = [flat[:35].reshape(7, 5), parameters[1], flat[35:].reshape(4, 7), parameters[3]]
        temperature = 200.0 if method is grasp else 1.0
        gradient = perceptron_gradient(now, inputs, labels, temperature)
        if method is grasp:
            kept = [keep[:35].reshape(7, 5), keep[35:].reshape(4, 7)]
            direction = [g * k for g, k in zip(gradient, kept, strict=True)]
            gradient = perceptron_product(now, inputs, labels, temperature, direction)
        scores = np.concatenate([part.ravel() for part in gradient]) * flat
        scores = np.where(keep, scores if method is grasp else np.abs(scores), -np.inf)
        keep = np.zeros(63, bool)
        pruned = int((1 - (1 - 0.6 * (step / 3))) * 63)
        keep[np.argsort(-scores, kind="stable")[: 63 - pruned]] = True
    masks = method(
        net,
        0.4,
        example_inputs=batches,
        iterations=3,
        weights=weights_of(net),
        schedule="linear",
        dtype=torch.float64,
    )
    found = np.concatenate([mask.numpy().ravel() for mask in masks.values()])
    assert np.array_equal(found, keep)


@pytest.mark.parametrize("method", [snip, grasp])
@pytest.mark.parametrize(
    ("batches", "problem"),
    [
        ([], r"batches: expected at least one pair of inputs and labels, found none"),
        ([torch.ones(2, 5)], r"batches\[0\]: expected a pair .* found torch.float32 \[2, 5\]"),
        ([(torch.ones(2, 5), torch.ones(2))], r"batches\[0\]: .* found .*torch.float32 \[2\]"),
        ([(torch.ones(2, 5), torch.ones(3, dtype=torch.int64))], r"torch.int64 \[3\]"),
        ([(torch.ones(2, 4), torch.ones(2, dtype=torch.int64))], r"inputs of shape \(2, 4\)"),
        ([(torch.ones(2, 5), torch.tensor([0, 4]))], r"labels from 0 to 3 for this .* 0 to 4"),
        (["ab"], r"batches\[0\]: expected a pair of inputs .* found str; inputs are a tensor"),
    ],
)  # fmt: skip
def test_batches_that_do_not_fit(method, batches, problem):
    net = perceptron()
    with pytest.raises(SearchError, match=problem):
        method(net, 0.5, example_inputs=batches, weights=weights_of(net))


def test_a_step_without_a_second_derivative():
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, again=True):
            ctx.again = again
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            if not ctx.again:
                raise RuntimeError("no second derivative")
            return Once.apply(gradient, False), None

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = perceptron()

        def forward(self, x):
            return self.layers[2](torch.relu(Once.apply(self.layers[0](x))))

    net = Net()
    with pytest.raises(SearchError, match="Net: expected operations that can be derived twice"):
        grasp(net, 0.5, example_inputs=samples(), weights=weights_of(net), dtype=torch.float64)
    assert snip(net, 0.5, example_inputs=samples(), weights=weights_of(net), dtype=torch.float64)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_temperature_out_of_range(temperature):
    net = perceptron()
    with pytest.raises(SearchError, match="temperature: expected a number above 0"):
        grasp(net, 0.5, example_inputs=samples(), weights=weights_of(net), temperature=temperature)


@pytest.mark.parametrize("method", [snip, grasp])
def test_scores_that_overflow_name_the_layer(method):
    net = perceptron().float()
    with torch.no_grad():
        net[2].weight.fill_(1e38)
    with pytest.raises(SearchError, match=r"scores of '\d.weight': expected finite values"):
        method(net, 0.5, example_inputs=samples(), weights=weights_of(net))


def test_a_network_without_a_seed_needs_weights():
    with pytest.raises(SeedError, match="call pabzip.init_"):
        snip(perceptron(), 0.5, example_inputs=samples())


def test_snip_of_a_recurrent_network_runs_on_copies():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = nn.LSTM(3, 6, batch_first=True), nn.Linear(6, 4)

        def forward(self, x):
            return self.head(self.lstm(x)[0][:, -1])

    net, batches = Recurrent(), samples(shape=(5, 3))
    everything = {name: p for name, p in net.named_parameters() if p.dim() > 1}
    copies = dict(net.state_dict())
    network = LossNetwork(net, everything, batches, torch.float64)
    found = SnipScorer(network).scores({name: p != 0 for name, p in everything.items()})
    plain = copy.deepcopy(net).double()
    together = [torch.cat(part) for part in zip(*batches, strict=True)]
    nn.functional.cross_entropy(plain(together[0]), together[1]).backward()
    for name, parameter in plain.named_parameters():
        if parameter.dim() > 1:
            expected = (parameter.grad * parameter).abs().detach()
            torch.testing.assert_close(found[name], expected, rtol=1e-9, atol=1e-15)
    assert all(
        found is p for found, p in zip(net.lstm._flat_weights, net.lstm.parameters(), strict=True)
    )
    assert all(torch.equal(value, copies[name]) for name, value in net.state_dict().items())
