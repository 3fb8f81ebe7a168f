"""Searches compute float32 as such, whatever torch rounds by default, and set nothing else."""

import contextlib

import pytest
import torch
from torch import nn
from torch.backends import cudnn

import pabzip.init
from pabzip.search import LossNetwork, SnipScorer, grasp, isolation, snip, synflow
from pabzip.search.linearized import Product

FLAGS = ("enabled", "benchmark", "deterministic")


class Watched(torch.autograd.Function):
    """Notes the settings of the backward pass."""

    @staticmethod
    def forward(ctx, x, seen):
        ctx.seen = seen
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        ctx.seen.append(state())
        return Watched.apply(gradient, ctx.seen), None


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.grouped = nn.Conv2d(2, 4, 3, groups=2, bias=False)
        self.head = nn.Linear(4, 3)
        self.seen = []

    def forward(self, x):
        self.seen.append(state())
        return self.head(Watched.apply(self.grouped(x), self.seen).relu().mean((2, 3)))


def state():
    return (cudnn.conv.fp32_precision, *(getattr(cudnn, name) for name in FLAGS))


@pytest.fixture
def net():
    return pabzip.init.init_(Net(), 3)


@pytest.fixture(params=[True, False])
def rounding(request):
    """TF32 on, as by default, and another choice of the caller's for every flag beside it."""
    with cudnn.flags(enabled=request.param, benchmark=True, deterministic=True, allow_tf32=True):
        yield ("tf32", request.param, True, True)


@pytest.mark.parametrize("method", [snip, grasp, synflow])
def test_convolutions_are_float32_and_no_other_flag_changes(net, rounding, method, monkeypatch):
    whole = Product.add_to

    def add_to(self, *arguments, **options):
        net.seen.append(state())
        whole(self, *arguments, **options)

    monkeypatch.setattr(Product, "add_to", add_to)
    assert state() == rounding
    if method is synflow:
        synflow(net, 0.5, input_shape=(2, 5, 5), iterations=2, dtype=torch.float32)
    else:
        method(net, 0.5, example_inputs=[(torch.ones(4, 2, 5, 5), torch.arange(4) % 3)])
    assert len(net.seen) >= 2
    assert set(net.seen) == {("ieee", *rounding[1:])}
    assert state() == rounding
    assert cudnn.allow_tf32


class Rounding(nn.Module):
    """Two layers that round their factors to 10 bits where cuDNN would, as a GPU does in TF32."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Conv2d(2, 16, 3, bias=False), nn.Linear(144, 3)

    def forward(self, x):
        if cudnn.conv.fp32_precision != "ieee" and x.dtype == torch.float32:
            hidden = torch.conv2d(rounded(x), rounded(self.first.weight))
        else:
            hidden = self.first(x)
        return self.head(hidden.relu().flatten(1))


def rounded(values):
    """The values with 10 bits of mantissa; their gradient passes."""
    bits = (values.detach().view(torch.int32) + 0x1000) & ~0x1FFF
    return values + (bits.view(torch.float32) - values).detach()


def samples(device="cpu"):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(20, 2, 5, 5, generator=generator)
    return {"example_inputs": inputs.to(device), "targets": (torch.arange(20) % 3).to(device)}


def snip_scores(net):
    weights = pabzip.init.seeded_parameters(net)
    batches = [tuple(samples(weights["head.weight"].device).values())]
    exact, single = (
        SnipScorer(LossNetwork(net, weights, batches, dtype)).scores(
            {name: weight.detach() != 0 for name, weight in weights.items()}
        )
        for dtype in (torch.float64, torch.float32)
    )
    largest = max(float(scores.max()) for scores in exact.values())
    return max(float((single[name] - exact[name]).abs().max()) for name in exact) / largest


def test_scores_are_those_of_float32(monkeypatch):
    net = pabzip.init.init_(Rounding(), 3)
    with cudnn.flags(enabled=True, allow_tf32=True):
        assert snip_scores(net) < 2e-6
        monkeypatch.setattr(isolation, "full_float32", contextlib.nullcontext)
        assert snip_scores(net) > 2e-5  # so the bound above tells float32 from TF32


@pytest.mark.gpu
def test_scores_are_those_of_float32_on_a_gpu(monkeypatch):
    net = nn.Sequential()
    net.add_module("first", nn.Conv2d(2, 16, 3, bias=False))
    net.add_module("flat", nn.Flatten())
    net.add_module("head", nn.Linear(144, 3))
    pabzip.init.init_(net, 3).cuda()
    with cudnn.flags(enabled=True, allow_tf32=True):
        assert snip_scores(net) < 2e-6
        monkeypatch.setattr(isolation, "full_float32", contextlib.nullcontext)
        assert snip_scores(net) > 2e-5


def test_settings_return_on_an_exception(net, rounding):
    with pytest.raises(RuntimeError, match="mine"):
        snip(
            net,
            0.5,
            example_inputs=[(torch.ones(4, 2, 5, 5), torch.arange(4) % 3)],
            on_iteration=_fail,
        )
    assert state() == rounding


def test_a_network_may_set_flags_of_its_own_within(net):
    whole = net.forward

    def forward(x):
        with cudnn.flags(enabled=False, allow_tf32=cudnn.allow_tf32):
            return whole(x)

    net.forward = forward
    snip(net, 0.5, example_inputs=[(torch.ones(4, 2, 5, 5), torch.arange(4) % 3)])


def test_convolutions_that_the_caller_sets_apart(net):
    recurrent = cudnn.rnn
    try:
        cudnn.conv.fp32_precision, recurrent.fp32_precision = "tf32", "ieee"
        with pytest.raises(RuntimeError):
            cudnn.allow_tf32  # noqa: B018 (torch refuses to tell)
        snip(net, 0.5, example_inputs=[(torch.ones(4, 2, 5, 5), torch.arange(4) % 3)])
        assert {seen[0] for seen in net.seen} == {"ieee"}
        assert (cudnn.conv.fp32_precision, recurrent.fp32_precision) == ("tf32", "ieee")
    finally:
        cudnn.allow_tf32 = True


def _fail(*_):
    raise RuntimeError("mine")
