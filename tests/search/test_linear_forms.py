"""Synaptic flow through every kind of operation, against its linear form written out by hand."""

import copy
import io
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import ConvNeXt, VisionTransformer, efficientnet_b0, mobilenet_v2
from torchvision.models.convnext import CNBlockConfig
from torchvision.ops import SqueezeExcitation

import pabzip
from pabzip.search import FastSynFlowScorer, SynFlowScorer, synflow


class Net(nn.Module):
    """first -> middle -> last, where a function says what the middle does with three layers."""

    def __init__(self, forward, layer=None, width=6):
        super().__init__()
        self.first, self.last = nn.Linear(5, width), nn.Linear(width, 3)
        self.gate = nn.Linear(width, width)
        self.layer = layer
        self.middle = forward

    def forward(self, x):
        return self.last(self.middle(self, self.first(x)))


def drawn(net, seed=0):
    """Parameters far from 0 and 1, so that whatever saturates does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(3 * torch.randn(parameter.shape, generator=generator))
    return net.eval()


def weights_of(net):
    """All matrices and kernels, by name."""
    return {name: weight for name, weight in net.named_parameters() if weight.dim() > 1}


def opened(gate, value=1.0):
    """A gate that is open, of which autograd says what a path into it contributes.

    Called with a gate that is computed from detached activations, so that its flow ends there.
    """
    alive = gate != 0
    return value * torch.where(alive, gate / torch.where(alive, gate.detach(), 1.0), 1.0)


def by_hand(net, linear, shape):
    """The scores of a network whose middle is ``linear``, as autograd derives them."""
    net = copy.deepcopy(net).double()
    with torch.no_grad():
        for tensor in (*net.parameters(), *net.buffers()):
            tensor.abs_()
    net.middle = linear
    net(torch.ones(1, *shape, dtype=torch.float64)).sum().backward()
    return {
        name: torch.zeros_like(w) if w.grad is None else (w.grad * w).abs().detach()
        for name, w in weights_of(net).items()
    }


def assert_scores(net, linear, shape=(5,)):
    """Both scorers give the scores of the linear form, the float32 one up to a power of two."""
    drawn(net)
    weights = weights_of(net)
    expected = by_hand(net, linear, shape)
    assert bool((expected["first.weight"] > 0).all())
    alive = {name: weight.detach() != 0 for name, weight in weights.items()}
    for scorer, rtol in ((SynFlowScorer, 1e-11), (FastSynFlowScorer, 1e-5)):
        found = scorer(net, weights, shape).scores(alive)
        factor = float(expected["last.weight"].max() / found["last.weight"].max())
        assert scorer is FastSynFlowScorer or factor == pytest.approx(1, rel=1e-11)
        for name, scores in expected.items():
            torch.testing.assert_close(found[name].double() * factor, scores, rtol=rtol, atol=0)


def identity(net, h):
    return h


ACTIVATIONS = {
    **{
        kind.__name__: kind()
        for kind in (
            nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU,
            nn.SiLU, nn.Mish, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.Hardshrink,
            nn.Softshrink, nn.Tanhshrink, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Sigmoid,
            nn.Tanh,
        )
    },
    "Threshold": nn.Threshold(1e6, 0.0),
    "Softmax": nn.Softmax(-1),
    "LogSoftmax": nn.LogSoftmax(-1),
    "Softmin": nn.Softmin(-1),
    "in place": nn.ReLU6(inplace=True),
    "approximate": nn.GELU("tanh"),
}  # fmt: skip


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_modules_are_the_identity(name):
    module = ACTIVATIONS[name]
    assert_scores(Net(lambda net, h: net.layer(h), module), identity)


FUNCTIONS = {
    "F.relu6": F.relu6,
    "F.silu of a keyword": lambda h: F.silu(input=h),
    "F.gelu": lambda h: F.gelu(h, approximate="tanh"),
    "Tensor.sigmoid": lambda h: h.sigmoid(),
    "torch.sigmoid": torch.sigmoid,
    "torch.special.expit": torch.special.expit,
    "torch.tanh": torch.tanh,
    "sigmoid_": lambda h: h.sigmoid_(),
    "clamp": lambda h: h.clamp(0, 6),
    "clamp_": lambda h: torch.clamp_(h, max=1.0),
    "exp": lambda h: (-h).exp(),
    "erf": torch.erf,
    "power": lambda h: h**0.5,
    "power of a number": lambda h: 2.0**h,
    "round": lambda h: h.round().sign(),
    "normalize": F.normalize,
    "softmax": lambda h: h.softmax(-1),
    "F.softmax": lambda h: F.softmax(h, dim=-1),
    "masked softmax": lambda h: torch.cat([h, h.new_full((1, 2), -math.inf)], 1).softmax(1)[:, :6],
    "log_softmax": lambda h: h.log_softmax(-1),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_activation_functions_are_the_identity(name):
    assert_scores(Net(lambda net, h: FUNCTIONS[name](h)), identity)


def test_what_an_activation_gives_can_be_written_to_alone():
    def middle(net, h):
        act = F.silu(h)
        act += 7.0
        return act + h

    assert_scores(Net(middle), lambda net, h: (h + 7.0) + h)


def through(h, gate):
    return h * opened(gate)


PRODUCTS = {
    "gate": (
        lambda net, h: h * torch.sigmoid(net.gate(h)),
        lambda net, h: through(h, net.gate(h.detach())),
    ),
    "gate first": (
        lambda net, h: net.gate(h).tanh().mul(h), lambda net, h: through(h, net.gate(h.detach())),
    ),
    "gate in place": (
        lambda net, h: h.clone().mul_(net.gate(h).sigmoid_()),
        lambda net, h: through(h, net.gate(h.detach())),
    ),
    "gate of another shape": (
        lambda net, h: h * F.hardsigmoid(net.gate(h).mean(1)).view(1, 1).expand_as(h),
        lambda net, h: through(h, net.gate(h.detach()).mean(1, keepdim=True)),
    ),
    "sigmoid of a tanh": (
        lambda net, h: net.gate(h).sigmoid() * h.tanh(),
        lambda net, h: through(h, net.gate(h.detach())),
    ),
    "gate of two": (
        lambda net, h: h * (net.gate(h).sigmoid() * net.gate(h).sigmoid()),
        lambda net, h: through(h, net.gate(h.detach())),
    ),
    "gate in a gate": (
        lambda net, h: h * torch.sigmoid(net.gate(h) * torch.sigmoid(net.gate(2 * h))),
        lambda net, h: through(h, through(net.gate(h.detach()), net.gate(2 * h.detach()))),
    ),
    "complement as a gate": (
        lambda net, h: h * (1 - net.gate(h).sigmoid()),
        lambda net, h: through(h, 1 + net.gate(h.detach())),
    ),
    "both sides of a gate": (
        lambda net, h: _mixed(net.gate(h).sigmoid(), h, 2 * h),
        lambda net, h: through(h, net.gate(h.detach()))
        + through(2 * h, 1 + net.gate(h.detach())),
    ),
    "lerp": (
        lambda net, h: torch.lerp(h, 2 * h, net.gate(h).sigmoid()),
        lambda net, h: through(3 * h, net.gate(h.detach())),
    ),
    "tanh moved to 0 .. 1": (
        lambda net, h: 0.5 * h * (1 + net.gate(h).tanh()),
        lambda net, h: through(h, 1 + net.gate(h.detach())),
    ),
    "sigmoid moved to -1 .. 1": (
        lambda net, h: h * (2 * net.gate(h).sigmoid() - 1),
        lambda net, h: through(h, 2 * net.gate(h.detach()) - 1),
    ),
    "hard sigmoid written out": (
        lambda net, h: h * F.relu6(net.gate(h) + 3) / 6,
        lambda net, h: through(h, net.gate(h.detach()) + 3),
    ),
    "clamp as a gate": (
        lambda net, h: h * net.gate(h).clamp(min=0, max=1),
        lambda net, h: through(h, net.gate(h.detach())),
    ),
    "addcmul": (
        lambda net, h: torch.addcmul(h, h, net.gate(h).sigmoid(), value=0.5),
        lambda net, h: h + 0.5 * through(h, net.gate(h.detach())),
    ),
    "SiLU written out": (lambda net, h: h * h.sigmoid(), identity),
    "hard swish written out": (lambda net, h: h * F.relu6(h + 3) / 6, identity),
    "GELU written out": (
        lambda net, h: 0.5 * h * (1 + torch.erf(h / math.sqrt(2))), identity,
    ),
    "GPT-2's GELU": (
        lambda net, h: 0.5 * h * (1 + torch.tanh(0.8 * (h + 0.045 * torch.pow(h, 3.0)))), identity,
    ),
    "Mish written out": (lambda net, h: h * torch.tanh(F.softplus(h)), identity),
    "softmax over branches": (
        lambda net, h: (torch.stack([h, 3 * h]) * _branches(net, h).softmax(0)).sum(0),
        lambda net, h: (
            torch.stack([h, 3 * h]) * opened(_branches(net, h.detach()), 0.5)
        ).sum(0),
    ),
    "gumbel softmax": (
        lambda net, h: h * F.gumbel_softmax(net.gate(h), 1, hard=True),
        lambda net, h: through(h, net.gate(h.detach())) / 6,
    ),
    "product": (lambda net, h: h * net.gate(h), lambda net, h: (h * net.gate(h)).sqrt()),
    "in place": (
        lambda net, h: h.clone().mul_(net.gate(h)), lambda net, h: (h * net.gate(h)).sqrt(),
    ),
    "operator": (
        lambda net, h: _times(h.clone(), net.gate(h)), lambda net, h: (h * net.gate(h)).sqrt(),
    ),
    "SwiGLU": (
        lambda net, h: F.silu(net.gate(h)) * h, lambda net, h: (h * net.gate(h)).sqrt(),
    ),
    "square": (lambda net, h: h * h, identity),
    "quotient": (
        lambda net, h: h / net.gate(h), lambda net, h: through(h, net.gate(h.detach())),
    ),
    "times an inverse": (
        lambda net, h: h * net.gate(h).reciprocal(),
        lambda net, h: through(h, net.gate(h.detach())),
    ),
    "times a negative power": (
        lambda net, h: h * net.gate(h) ** -0.5, lambda net, h: through(h, net.gate(h.detach())),
    ),
    "difference": (lambda net, h: h - net.gate(h), lambda net, h: h + net.gate(h)),
    "complement": (lambda net, h: 1 - net.gate(h).sigmoid(), lambda net, h: 1 + net.gate(h)),
    "inverse": (lambda net, h: 2 / net.gate(h), lambda net, h: 2 * net.gate(h)),
    "difference with a number": (lambda net, h: (h - 0.5) * 3, lambda net, h: (h + 0.5) * 3),
    "negative factor": (lambda net, h: h * -3 / -2, lambda net, h: h * 3 / 2),
    "negative matrix": (
        lambda net, h: h @ -torch.ones(6, 6, dtype=h.dtype),
        lambda net, h: h @ torch.ones(6, 6, dtype=h.dtype),
    ),
    "standardized weight": (
        lambda net, h: F.linear(h, net.gate.weight - net.gate.weight.mean()),
        lambda net, h: F.linear(h, (net.gate.weight - net.gate.weight.mean()).abs()),
    ),
    "parameter": (lambda net, h: h * net.gate.bias, lambda net, h: h * net.gate.bias),
    "function of parameters": (
        lambda net, h: h * torch.tanh(net.gate.weight).sum(0),
        lambda net, h: h * torch.tanh(net.gate.weight).sum(0),
    ),
    "detached gate": (
        lambda net, h: h * net.gate(h).detach(), lambda net, h: h * net.gate(h).detach(),
    ),
    "GLU": (
        lambda net, h: F.glu(torch.cat([h, net.gate(h)], -1)),
        lambda net, h: through(h, net.gate(h.detach())),
    ),
    "GLU module": (
        lambda net, h: nn.GLU(1)(torch.cat([h, net.gate(h)], 1)),
        lambda net, h: through(h, net.gate(h.detach())),
    ),
    "written into another tensor": (
        lambda net, h: _written(h) * net.gate(h), lambda net, h: (h * net.gate(h)).sqrt(),
    ),
    "einsum": (
        lambda net, h: torch.einsum("bi,bj->bi", h, net.gate(h)),
        lambda net, h: (h * net.gate(h).mean(1, keepdim=True)).sqrt(),
    ),
    "matrix product": (
        lambda net, h: (h[:, :, None] @ net.gate(h)[:, None]).mean(1),
        lambda net, h: (h[:, :, None] * net.gate(h)[:, None]).sqrt().mean(1),
    ),
    "custom function": (
        lambda net, h: _Doubled.apply(h) * net.gate(h), lambda net, h: (2 * h * net.gate(h)).sqrt(),
    ),
    "keywords": (
        lambda net, h: torch.mul(input=h, other=net.gate(h).sigmoid()).div(other=net.gate(h)),
        lambda net, h: through(through(h, net.gate(h.detach())), net.gate(h.detach())),
    ),
    "matrices of experts": (
        lambda net, h: F.grouped_mm(
            h.expand(5, 6), net.gate.weight.view(2, 3, 6).mT - 0.5, offs=torch.tensor([2, 5])
        ).sum((0, 1)).expand(1, 6),
        lambda net, h: (
            h @ (net.gate.weight.view(2, 3, 6).mT - 0.5).abs() * h.new_tensor([[[2.0]], [[3.0]]])
        ).sum((0, 1, 2)).expand(1, 6),
    ),
    "smaller of an activation and a bound": (
        lambda net, h: torch.minimum(net.gate(h), torch.tensor(0.1)) + h.min(h.new_zeros(6)),
        lambda net, h: net.gate(h) + h,
    ),
    "larger of a bound and an activation": (
        lambda net, h: torch.maximum(torch.full((1, 6), 1e9), net.gate(h)[:, :1]) + h.max(1)[0],
        lambda net, h: net.gate(h)[:, :1].expand(1, 6) + h.max(1)[0],
    ),
    "minus a constant, and the reverse": (
        lambda net, h: (net.gate(h) - 1e3) + (h - torch.tensor(-2.0)) + (-3.0 - h),
        lambda net, h: (net.gate(h) + 1e3) + (h + 2.0) + (3.0 + h),
    ),
    "half precision": (lambda net, h: h.half().to(h.dtype).float(), identity),
}  # fmt: skip


def _mixed(share, one, other):
    return share * one + (1 - share) * other


def _branches(net, h):
    return torch.stack([net.gate(h), 2 * net.gate(h)])


def _times(a, b):
    a *= b
    return a


def _written(h):
    room = torch.zeros_like(h)
    room[:, :] = h
    return room


class _Doubled(torch.autograd.Function):
    """Out of sight of whatever watches torch's functions."""

    @staticmethod
    def forward(ctx, x):
        return torch.from_numpy(2 * x.detach().numpy())

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_of_activations(name):
    assert_scores(Net(PRODUCTS[name][0]), PRODUCTS[name][1])


def test_squeeze_and_excitation_leaves_its_trunk_and_scores_its_own_weights():
    def seen(run):
        return lambda net, h: run(net, h.view(1, 6, 1, 1).expand(1, 6, 4, 4)).mean((2, 3))

    def linear(net, h):
        squeezed = h.detach().mean((2, 3), keepdim=True)
        return through(h, net.layer.fc2(net.layer.fc1(squeezed)))

    net = Net(seen(lambda net, h: net.layer(h)), SqueezeExcitation(6, 2))
    assert "layer.fc2.weight" in weights_of(net)
    assert_scores(net, seen(linear))


class _Called(nn.LayerNorm):
    """A layer norm that is called in a way of its own."""

    def __init__(self, call):
        super().__init__(6)
        self.call = call

    def forward(self, h):
        return self.call(self, h)


NORMS = {
    "LayerNorm": (nn.LayerNorm(6), lambda n, h: h * n.weight + n.bias),
    "LayerNorm without weights": (nn.LayerNorm(6, elementwise_affine=False), lambda n, h: h),
    "RMSNorm": (nn.RMSNorm(6), lambda n, h: h * n.weight),
    "LayerNorm by keywords": (
        _Called(lambda own, h: F.layer_norm(h, normalized_shape=(6,), weight=own.weight)),
        lambda n, h: h * n.weight,
    ),
    "GroupNorm": (nn.GroupNorm(2, 6), lambda n, h: h * n.weight + n.bias),
    "BatchNorm without statistics": (
        nn.BatchNorm1d(6, track_running_stats=False), lambda n, h: h * n.weight + n.bias,
    ),
    "BatchNorm": (
        nn.BatchNorm1d(6), lambda n, h: h / math.sqrt(1 + 1e-5) * n.weight + n.bias,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NORMS)
def test_norms_over_the_sample_are_affine(name):
    layer, form = NORMS[name]
    net = Net(lambda net, h: net.layer(h), copy.deepcopy(layer))
    assert_scores(net, lambda net, h: form(net.layer, h))


@pytest.mark.parametrize(
    "layer", [nn.InstanceNorm2d(6, affine=True), nn.GroupNorm(3, 6)], ids=["instance", "group"]
)
def test_norms_of_images_are_affine_along_the_channels(layer):
    def images(h):
        return h.view(1, 6, 1, 1) * torch.arange(1, 5, dtype=h.dtype).view(1, 1, 2, 2)

    def form(net, h):
        return images(h) * net.layer.weight.view(6, 1, 1) + net.layer.bias.view(6, 1, 1)

    net = Net(lambda net, h: net.layer(images(h)).mean((2, 3)), layer)
    assert_scores(net, lambda net, h: form(net, h).mean((2, 3)))


def test_norms_written_out():
    def layer_norm(net, h):
        centered = h - h.mean(-1, keepdim=True)
        return centered / (h.std(-1, keepdim=True) + 1e-5)

    def convnext_norm(net, h):
        mean = h.mean(-1, keepdim=True)
        variance = (h - mean).pow(2).mean(-1, keepdim=True)
        return (h - mean) / torch.sqrt(variance + 1e-5)

    def rms_norm(net, h):
        return h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1.0)

    def positional(net, h):
        return (h - h.mean(-1, True)) * torch.var(h, -1, False, True).add(1e-5).rsqrt()

    def in_place(net, h):
        h = h.clone()
        h -= h.mean(-1, keepdim=True)
        h /= h.square().mean().sqrt_()
        return h

    for norm in (
        layer_norm,
        convnext_norm,
        rms_norm,
        in_place,
        positional,
        lambda net, h: h / h.norm(),
    ):
        assert_scores(Net(norm), identity)


class Attention(nn.Module):
    """Queries, keys and values of their own, two heads."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.register_buffer("mask", torch.full((3, 3), -math.inf).triu(1))

    def heads(self, h):
        tokens = torch.stack([h, 2 * h, 3 * h], 1)  # [1, 3, 6]
        return [
            part(tokens).unflatten(-1, (2, 3)).transpose(1, 2) for part in (self.q, self.k, self.v)
        ]


def attended(q, k, v, causal=False):
    """Equal weights over the keys, through which the logits flow."""
    logits = (q @ k.mT / q.shape[-1]).sqrt()
    kept = torch.ones_like(logits.detach())
    kept = kept.tril() if causal else kept
    return (opened(logits, kept / kept.sum(-1, keepdim=True)) @ v).transpose(1, 2).flatten(2)


def fused(net, h, **options):
    return F.scaled_dot_product_attention(*net.layer.heads(h), **options)


def fused_with_a_mask(net, h):
    later = torch.full((3, 3), -math.inf, dtype=h.dtype).triu(1)
    return fused(net, h, attn_mask=later)


def fused_with_kept_keys(net, h):
    return fused(net, h, attn_mask=torch.ones(3, 3, dtype=torch.bool).tril())


def written_out(net, h):
    q, k, v = net.layer.heads(h)
    logits = (q @ k.transpose(-1, -2)) / math.sqrt(3)
    later = torch.ones(3, 3, dtype=torch.bool).triu(1)
    return logits.masked_fill(later, -math.inf).softmax(-1) @ v


def with_an_additive_mask(net, h):
    """As Swin and transformers write it: a large negative number, which no logit outweighs."""
    q, k, v = net.layer.heads(h)
    logits = 1e9 * torch.matmul(q, k.mT) + torch.full((3, 3), -100.0, dtype=h.dtype).triu(1)
    return torch.matmul(F.dropout(F.softmax(logits, -1, dtype=torch.float32), 0.1, False), v)


def with_a_mask_in_a_buffer(net, h):
    q, k, v = net.layer.heads(h)
    return torch.matmul((torch.matmul(q, k.mT) + net.layer.mask).softmax(dim=-1), v)


def unmasked(net, h):
    q, k, v = net.layer.heads(h)
    return torch.einsum("bhqk,bhkd->bhqd", torch.softmax(q.matmul(k.mT) / math.sqrt(3), -1), v)


ATTENTION = {
    "fused": (fused, False),
    "fused, causal": (lambda net, h: fused(net, h, is_causal=True), True),
    "fused with a mask": (fused_with_a_mask, True),
    "fused with kept keys": (fused_with_kept_keys, True),
    "written out": (written_out, True),
    "with an additive mask": (with_an_additive_mask, True),
    "with a mask in a buffer": (with_a_mask_in_a_buffer, True),
    "unmasked": (unmasked, False),
}


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_passes_the_mean_of_its_values_and_scores_queries_and_keys(name):
    attend, causal = ATTENTION[name]

    def linear(net, h):
        q, k, _ = net.layer.heads(h.detach())
        return attended(q, k, net.layer.heads(h)[2], causal).sum(1)

    net = Net(lambda net, h: attend(net, h).transpose(1, 2).flatten(2).sum(1), Attention())
    assert_scores(net, linear)


def heads_of_one_matrix(attention, tokens):
    """Queries and keys of a layer with one matrix, by which their flow ends, and values."""
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    inputs = [tokens.detach(), tokens.detach(), tokens]
    parts = zip(inputs, weight.chunk(3), bias.chunk(3), strict=True)
    return [F.linear(*part).unflatten(-1, (2, 3)).transpose(1, 2) for part in parts]


@pytest.mark.parametrize("need_weights", [True, False])
def test_the_attention_module(need_weights):
    def middle(net, h):
        tokens = torch.stack([h, 2 * h, 3 * h], 1)
        return net.layer(tokens, tokens, tokens, need_weights=need_weights)[0].sum(1)

    def linear(net, h):
        tokens = torch.stack([h, 2 * h, 3 * h], 1)
        return net.layer.out_proj(attended(*heads_of_one_matrix(net.layer, tokens))).sum(1)

    net = Net(middle, nn.MultiheadAttention(6, 2, batch_first=True))
    assert {"layer.in_proj_weight", "layer.out_proj.weight"} <= weights_of(net).keys()
    assert_scores(net, linear)


def test_the_encoder_layer_and_its_fast_path():
    layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True)

    def linear(net, h):
        layer = net.layer
        mixed = attended(*heads_of_one_matrix(layer.self_attn, h[:, None]))[:, 0]
        h = (h + layer.self_attn.out_proj(mixed)) * layer.norm1.weight + layer.norm1.bias
        h = h + layer.linear2(layer.linear1(h))
        return h * layer.norm2.weight + layer.norm2.bias

    assert_scores(Net(lambda net, h: net.layer(h[:, None])[:, 0], layer), linear)


def cell_by_hand(kind, x, h, c, weights):
    w_ih, w_hh, b_ih, b_hh = weights[:4]
    number = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    from_x, from_h = (x @ w_ih.T + b_ih).chunk(number, -1), (h @ w_hh.T + b_hh).chunk(number, -1)
    gates = [
        opened(one + other)
        for one, other in zip(
            (x.detach() @ w_ih.T + b_ih).chunk(number, -1),
            (h.detach() @ w_hh.T + b_hh).chunk(number, -1),
            strict=True,
        )
    ]
    if kind == "LSTM":
        c = gates[1] * c + gates[0] * (from_x[2] + from_h[2])
        h = gates[3] * c
        return (h @ weights[4].T if len(weights) == 5 else h), c
    if kind == "GRU":
        return gates[1] * h + gates[1] * (from_x[2] + gates[0] * from_h[2]), c
    return from_x[0] + from_h[0], c


RECURRENT = {
    "LSTM": nn.LSTM(6, 6, batch_first=True),
    "LSTM of two layers, both ways": nn.LSTM(6, 3, 2, batch_first=True, bidirectional=True),
    "LSTM with projections": nn.LSTM(6, 8, proj_size=6, batch_first=True),
    "GRU": nn.GRU(6, 6, batch_first=True),
    "RNN": nn.RNN(6, 6, 2, batch_first=True),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers_with_open_gates(name, packed):
    def sequence(h):
        return torch.stack([h, 2 * h, 3 * h], 1)

    def middle(net, h):
        if not packed:
            return net.layer(sequence(h))[0].sum(1)
        steps = nn.utils.rnn.pack_padded_sequence(sequence(h), [3], batch_first=True)
        found = nn.utils.rnn.pad_packed_sequence(net.layer(steps)[0], batch_first=True)
        return found[0].sum(1)

    def linear(net, h):
        steps = list(sequence(h).unbind(1))
        directions = 1 + net.layer.bidirectional
        for layer in range(net.layer.num_layers):
            found = []
            own = net.layer.all_weights[layer * directions : (layer + 1) * directions]
            for backwards, weights in enumerate(own):
                size = weights[1].shape[1]
                now, cell, outputs = h.new_zeros(1, size), h.new_zeros(1, len(weights[1]) // 4), []
                for step in steps[::-1] if backwards else steps:
                    now, cell = cell_by_hand(name[:4].strip(), step, now, cell, weights)
                    outputs.append(now)
                found.append(outputs[::-1] if backwards else outputs)
            steps = [torch.cat(parts, -1) for parts in zip(*found, strict=True)]
        return sum(steps)

    assert_scores(Net(middle, copy.deepcopy(RECURRENT[name])), linear)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_recurrent_cells(kind):
    cell = getattr(nn, f"{kind}Cell")(6, 6)

    def middle(net, h):
        state = net.layer(h)
        state = net.layer(2 * h, state)
        return state[0] if kind == "LSTM" else state

    def linear(net, h):
        weights = [net.layer.weight_ih, net.layer.weight_hh, net.layer.bias_ih, net.layer.bias_hh]
        now = cell_by_hand(kind, h, h.new_zeros(1, 6), h.new_zeros(1, 6), weights)
        return cell_by_hand(kind, 2 * h, *now, weights)[0]

    assert_scores(Net(middle, cell), linear)


class _Squared(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


def scripted(x):
    return torch.sigmoid(x) + torch.cdist(x, x + 1).sum()


UNKNOWN = {
    "cumprod": (lambda net, h: h.cumprod(1), "found 'Cumprod' on the way"),
    "custom function": (lambda net, h: _Squared.apply(h), "found '_Squared' on the way"),
    "in a gate": (lambda net, h: h * h.cumprod(1).sigmoid(), "found 'Cumprod' on the way"),
    "TorchScript": (lambda net, h: net.layer(h), "found .*'Sigmoid' on the way"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_operation_without_a_linear_form_is_named(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch advises against TorchScript
        layer = torch.jit.script(scripted) if name == "TorchScript" else None
    net = drawn(Net(UNKNOWN[name][0]))
    net.layer = layer
    weights = weights_of(net)
    alive = {key: torch.ones_like(weight, dtype=torch.bool) for key, weight in weights.items()}
    scorer = SynFlowScorer(net, weights, (5,))
    with pytest.warns(UserWarning, match=UNKNOWN[name][1]):
        scorer.scores(alive)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough, and a function of parameters is no matter
        scorer.scores(alive)
        quiet = Net(lambda net, h: h * net.gate.weight.sigmoid().cumprod(0).sum())
        SynFlowScorer(drawn(quiet), weights_of(quiet), (5,)).scores(alive)


def test_an_operation_without_a_linear_form_is_named_once():
    net = pabzip.init_(Net(lambda net, h: h + F.cosine_similarity(h, net.gate(h))[:, None]), 0)
    with torch.no_grad():
        net.gate.weight.zero_()  # is empty then, so that the paths are asked for once more
    with pytest.warns(UserWarning, match="without a linear form") as told:
        pabzip.search.synflow(net, 0.3, input_shape=(5,), iterations=2)
    assert sum("without a linear form" in str(one.message) for one in told) == 1


def test_a_constant_taken_from_the_input_stops_no_flow():
    class Centered(nn.Sequential):
        def forward(self, x):
            return super().forward(x - 1.0)

    net = pabzip.init_(Centered(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)), 0)
    masks = pabzip.search.synflow(net, 0.5, input_shape=(5,))
    assert all(bool(mask.any()) for mask in masks.values())


class LstmClassifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.inputs = nn.Linear(8, 12)
        self.lstm = nn.LSTM(12, 16, 2, batch_first=True)
        self.hidden, self.head = nn.Linear(16, 24), nn.Linear(24, 4)

    def forward(self, x):
        last = self.lstm(torch.tanh(self.inputs(x)))[0][:, -1]
        return self.head(F.gelu(self.hidden(last)))


class CausalBlock(nn.Module):
    """Causal attention written out, and a SwiGLU: the block of a language model."""

    def __init__(self, width=16, heads=4):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.gate = nn.Linear(width, 4 * width), nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.register_buffer("allowed", torch.ones(8, 8).tril())

    def forward(self, x):
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        logits = (q @ k.transpose(-2, -1)) * k.shape[-1] ** -0.5
        weights = logits.masked_fill(self.allowed == 0, -math.inf)
        weights = F.softmax(weights, -1, dtype=torch.float32).to(q.dtype)
        x = x + self.out((weights @ v).transpose(1, 2).flatten(2))
        h = self.norm2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


def language_model():
    blocks = nn.Sequential(CausalBlock(), CausalBlock())
    return nn.Sequential(nn.Linear(6, 16), blocks, nn.Flatten(), nn.Linear(128, 5))


def convnext():
    """convnext_tiny at an eighth of its width."""
    stages = [
        CNBlockConfig(12, 24, 3), CNBlockConfig(24, 48, 3), CNBlockConfig(48, 96, 9),
        CNBlockConfig(96, None, 3),
    ]  # fmt: skip
    return ConvNeXt(stages, stochastic_depth_prob=0.1, num_classes=10)


NETWORKS = {
    "mobilenet_v2": (lambda: mobilenet_v2(num_classes=10), (3, 64, 64)),
    "efficientnet_b0": (lambda: efficientnet_b0(num_classes=10), (3, 32, 32)),
    "convnext": (convnext, (3, 32, 32)),
    "vision_transformer": (
        lambda: VisionTransformer(
            image_size=32, patch_size=8, num_layers=2, num_heads=4, hidden_dim=64, mlp_dim=128
        ),
        (3, 32, 32),
    ),
    "lstm": (LstmClassifier, (12, 8)),
    "language_model": (language_model, (8, 6)),
}


def bits(net):
    return {name: value.numpy().tobytes() for name, value in net.state_dict().items()}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_with_gates_keep_a_path_and_are_packed(name):
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    net = pabzip.init_(make(), seed=3)
    other = copy.deepcopy(net)
    masks = synflow(net, 0.2, input_shape=shape, iterations=3)
    fast = synflow(other, 0.2, input_shape=shape, iterations=3, dtype=torch.float32)
    assert all(torch.equal(masks[key], fast[key]) for key in masks)
    total = sum(mask.numel() for mask in masks.values())
    assert sum(int(mask.sum()) for mask in masks.values()) == total - int(0.8 * total)
    # ConvNeXt multiplies its blocks by 1e-6: some are emptied, and their bypasses are left.
    assert any(not mask.any() for mask in masks.values()) == (name == "convnext")
    with torch.no_grad():
        one, two = net.eval()(torch.randn(2, *shape)).split(1)
    assert not torch.allclose(one, two, rtol=1e-4)
    file = io.BytesIO()
    pabzip.pack(net, file)
    file.seek(0)
    torch.manual_seed(1)
    fresh = make()
    assert bits(fresh) != bits(net)
    assert bits(pabzip.load_into(fresh, file)) == bits(net)
