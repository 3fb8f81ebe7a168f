"""Every way a weight can be used scores as autograd says, and float32 finds float64's mask."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pabzip.init
from pabzip.search import FastSynFlowScorer, SynFlowScorer, synflow


class Everything(nn.Module):
    """Convolutions of all kinds, and uses of weights that are no plain product."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=4, bias=False)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8)
        self.words = nn.Conv2d(8, 8, 3, padding="same", bias=False)
        self.reflected = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.pointwise = nn.Conv2d(8, 6, 1)
        self.norm = nn.BatchNorm2d(6)
        self.up = nn.ConvTranspose2d(6, 5, 2, stride=2)
        self.line = nn.Conv1d(5, 4, 3, stride=2, padding=1)
        self.volume = nn.Conv3d(1, 3, (2, 3, 1), padding=(1, 0, 0))
        self.shared = nn.Linear(7, 7)
        self.head = nn.Linear(7, 10)
        self.apart = nn.Linear(4, 4)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.act(self.stem(x))
        x = self.act(self.grouped(x))
        x = x + self.words(self.depthwise(x)).relu_()
        x = self.act(self.pointwise(self.reflected(x)))
        x = self.up(self.norm(x)).flatten(2)
        x = self.line(x).view(len(x), 1, 4, -1, 2)
        x = self.act(self.volume(x)).mean((2, 4))
        x = F.adaptive_avg_pool1d(x, 7)
        x = self.act(self.shared(self.act(self.shared(x))))
        x = F.linear(input=x, weight=self.head.weight, bias=self.head.bias)
        gate = torch.tanh(self.apart.weight / 10).sum()  # transformed before use
        with torch.no_grad():
            zero = 0 * self.apart(x[..., :4]).sum()
        return x.sum(1) * (1 + gate + zero)


def drawn(net, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*net.named_parameters(), *net.named_buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
            if "running_var" in name:
                tensor.abs_().add_(0.1)
    return net.eval()


def weights_of(net):
    return {name: p for name, p in net.named_parameters() if p.dim() > 1}


def alive(net):
    return {name: p.detach() != 0 for name, p in weights_of(net).items()}


def by_autograd(net, shape):
    """The scores as torch derives them, from a copy with absolute values."""
    net = copy.deepcopy(net).double().eval()
    with torch.no_grad():
        for tensor in (*net.parameters(), *net.buffers()):
            tensor.abs_()
    net(torch.ones(1, *shape, dtype=torch.float64)).sum().backward()
    return {name: (p.grad * p).abs().detach() for name, p in weights_of(net).items()}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_every_use_of_a_weight(layout):
    net = drawn(Everything())
    for parameter in net.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=layout)
    expected = by_autograd(net, (3, 12, 12))
    scorer = SynFlowScorer(net, weights_of(net), (3, 12, 12))
    found = scorer.scores(alive(net))
    fast = FastSynFlowScorer(net, weights_of(net), (3, 12, 12))
    rounded = fast.scores(alive(net))
    exact = fast.exact({name: torch.arange(p.numel()) for name, p in weights_of(net).items()})
    factors = []
    for name, scores in expected.items():
        assert bool((scores > 0).any()), name
        torch.testing.assert_close(found[name], scores, rtol=1e-11, atol=0)
        torch.testing.assert_close(exact[name].view(scores.shape), scores, rtol=1e-11, atol=0)
        nonzero = scores > 0
        factors.append((rounded[name].double() / scores)[nonzero].flatten())
        assert not bool(rounded[name][~nonzero].any())
    together = torch.cat(factors)
    assert float(together.min()) == pytest.approx(float(together.max()), rel=1e-5)
    mantissa, _ = np.frexp(float(together.median()))
    assert mantissa == pytest.approx(0.5, rel=1e-5) or mantissa == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("positions", [1, 2, 11, 12])
def test_both_ways_to_convolve(positions):
    # 11 x 11 outputs are few enough for the product of matrices, 12 x 12 are not.
    net = drawn(
        nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 1))
    )
    shape = (2, positions, positions)
    expected = by_autograd(net, shape)
    found = SynFlowScorer(net, weights_of(net), shape).scores(alive(net))
    for name, scores in expected.items():
        torch.testing.assert_close(found[name], scores, rtol=1e-12, atol=0)


def numpy_convolution_scores(net, size):
    """Synaptic flow of conv -> relu -> conv (stride 2) -> linear on ones, in loops."""
    w1, b1, w2, _, w3, _ = (np.abs(p.detach().double().numpy()) for p in net.parameters())
    padded = np.zeros((2, size + 2, size + 2))
    padded[:, 1:-1, 1:-1] = 1.0
    hidden = np.zeros((len(w1), size, size))
    for o, y, x in np.ndindex(hidden.shape):
        hidden[o, y, x] = (w1[o] * padded[:, y : y + 3, x : x + 3]).sum() + b1[o]
    half = (size - 2) // 2 + 1
    back = w3.sum(0).reshape(len(w2), half, half)
    out = np.zeros_like(back)
    g2, ghidden = np.zeros_like(w2), np.zeros_like(hidden)
    b2 = np.abs(net[2].bias.detach().double().numpy())
    for o, y, x in np.ndindex(back.shape):
        patch = hidden[:, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2]
        out[o, y, x] = (w2[o] * patch).sum() + b2[o]
        g2[o] += back[o, y, x] * patch
        ghidden[:, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2] += back[o, y, x] * w2[o]
    g1 = np.zeros_like(w1)
    for o, y, x in np.ndindex(hidden.shape):
        g1[o] += (hidden[o, y, x] > 0) * ghidden[o, y, x] * padded[:, y : y + 3, x : x + 3]
    g3 = np.broadcast_to(out.ravel(), w3.shape)
    return {"0.weight": g1 * w1, "2.weight": g2 * w2, "4.weight": g3 * w3}


def test_convolutions_match_numpy():
    net = drawn(nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 4, 2, stride=2), nn.Flatten(),
        nn.Linear(16, 5),
    ))  # fmt: skip
    found = SynFlowScorer(net, weights_of(net), (2, 5, 5)).scores(alive(net))
    for name, expected in numpy_convolution_scores(net, 5).items():
        np.testing.assert_allclose(found[name].numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_mask_is_that_of_float64(seed, scope):
    masks = [
        synflow(
            net,
            0.5,
            input_shape=(3, 12, 12),
            iterations=12,
            weights=weights_of(net),
            scope=scope,
            dtype=dtype,
        )
        for dtype in (torch.float64, torch.float32)
        for net in [drawn(Everything(), seed)]
    ]
    assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[0])


def test_a_deep_network_that_overflows_float32():
    layers = [module for _ in range(60) for module in (nn.Linear(24, 24), nn.ReLU())]
    net = pabzip.init.init_(nn.Sequential(*layers, nn.Linear(24, 3)), 5)
    with torch.no_grad():
        absolute = copy.deepcopy(net)
        for parameter in absolute.parameters():
            parameter.abs_()
        assert torch.isinf(absolute(torch.ones(1, 24))).all()
    one = synflow(copy.deepcopy(net), 0.3, input_shape=(24,), iterations=20)
    other = synflow(net, 0.3, input_shape=(24,), iterations=20, dtype=torch.float32)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_deep_network_that_underflows_float32():
    net = pabzip.init.init_(nn.Sequential(*(nn.Linear(6, 6, bias=False) for _ in range(40))), 5)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(2.0**-20)
    one = synflow(copy.deepcopy(net), 0.5, input_shape=(6,), iterations=5)
    other = synflow(net, 0.5, input_shape=(6,), iterations=5, dtype=torch.float32)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_scores_that_float32_cannot_tell_apart_are_settled():
    places = np.random.default_rng(0).permutation(500)
    net = nn.Linear(500, 1, bias=False).double()
    with torch.no_grad():
        net.weight.copy_(1.0 + torch.from_numpy(places * 1e-11)[None])
    masks = synflow(
        net,
        0.2,
        input_shape=(500,),
        iterations=3,
        weights={"weight": net.weight},
        dtype=torch.float32,
    )
    assert np.array_equal(masks["weight"][0].numpy(), places >= 400)


def test_ties_that_are_exact_are_settled_by_position():
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(-1.0)
    masks = synflow(
        net, 21 / 32, input_shape=(4,), iterations=1, weights=weights_of(net), dtype=torch.float32
    )
    assert masks["0.weight"].all()
    assert masks["1.weight"].flatten().tolist() == [True] * 5 + [False] * 11


def test_weights_that_reach_nothing_score_zero():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used = nn.Linear(3, 3)
            self.idle = nn.Linear(3, 3)

        def forward(self, x):
            self.idle(x)
            return self.used(x)

    net = drawn(Idle())
    for kind in (SynFlowScorer, FastSynFlowScorer):
        scorer = kind(net, weights_of(net), (3,))
        for _ in range(2):  # memory is used again
            scores = scorer.scores(alive(net))
            assert not bool(scores["idle.weight"].any())
            assert bool((scores["used.weight"] > 0).all())
