"""Synaptic flow through every kind of operation, against its linear form written out by hand."""

import copy
import io
import math

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
    """The weights of the Linear and Conv layers, by name."""
    return {
        f"{name}.weight": module.weight
        for name, module in net.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }


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


PRODUCTS = {
    "gate": (lambda net, h: h * torch.sigmoid(net.gate(h)), lambda net, h: h + net.gate(h)),
    "gate first": (lambda net, h: net.gate(h).tanh().mul(h), lambda net, h: h + net.gate(h)),
    "in place": (lambda net, h: h.clone().mul_(net.gate(h)), lambda net, h: h + net.gate(h)),
    "operator": (lambda net, h: _times(h.clone(), net.gate(h)), lambda net, h: h + net.gate(h)),
    "square": (lambda net, h: h * h, lambda net, h: 2 * h),
    "quotient": (lambda net, h: h / net.gate(h), lambda net, h: h + net.gate(h)),
    "difference": (lambda net, h: h - net.gate(h), lambda net, h: h + net.gate(h)),
    "complement": (lambda net, h: 1 - net.gate(h).sigmoid(), lambda net, h: 1 + net.gate(h)),
    "inverse": (lambda net, h: 2 / net.gate(h), lambda net, h: 2 * net.gate(h)),
    "difference with a number": (lambda net, h: (h - 0.5) * 3, lambda net, h: (h - 0.5) * 3),
    "parameter": (lambda net, h: h * net.gate.bias, lambda net, h: h * net.gate.bias),
    "function of parameters": (
        lambda net, h: h * torch.tanh(net.gate.weight).sum(0),
        lambda net, h: h * torch.tanh(net.gate.weight).sum(0),
    ),
    "detached gate": (
        lambda net, h: h * net.gate(h).detach(), lambda net, h: h * net.gate(h).detach(),
    ),
    "GLU": (
        lambda net, h: F.glu(torch.cat([h, net.gate(h)], -1)), lambda net, h: h + net.gate(h),
    ),
    "GLU module": (
        lambda net, h: nn.GLU(1)(torch.cat([h, net.gate(h)], 1)), lambda net, h: h + net.gate(h),
    ),
    "written into another tensor": (
        lambda net, h: _written(h) * net.gate(h), lambda net, h: h + net.gate(h),
    ),
    "einsum": (
        lambda net, h: torch.einsum("bi,bj->bi", h, net.gate(h)),
        lambda net, h: h + net.gate(h).mean(1, keepdim=True),
    ),
    "custom function": (
        lambda net, h: _Doubled.apply(h) * net.gate(h), lambda net, h: 2 * h + net.gate(h),
    ),
}  # fmt: skip


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
def test_products_of_activations_are_sums(name):
    assert_scores(Net(PRODUCTS[name][0]), PRODUCTS[name][1])


def test_squeeze_and_excitation_leaves_its_trunk_and_scores_its_own_weights():
    def seen(run):
        return lambda net, h: run(net, h.view(1, 6, 1, 1).expand(1, 6, 4, 4)).mean((2, 3))

    def linear(net, h):
        squeezed = h.mean((2, 3), keepdim=True)
        return h + net.layer.fc2(net.layer.fc1(squeezed))

    net = Net(seen(lambda net, h: net.layer(h)), SqueezeExcitation(6, 2))
    assert "layer.fc2.weight" in weights_of(net)
    assert_scores(net, seen(linear))


NORMS = {
    "LayerNorm": (nn.LayerNorm(6), lambda n, h: h * n.weight + n.bias),
    "LayerNorm without weights": (nn.LayerNorm(6, elementwise_affine=False), lambda n, h: h),
    "RMSNorm": (nn.RMSNorm(6), lambda n, h: h * n.weight),
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
        centred = h - h.mean(-1, keepdim=True)
        return centred / (h.std(-1, keepdim=True) + 1e-5)

    def rms_norm(net, h):
        return h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1.0)

    assert_scores(Net(layer_norm), lambda net, h: h + 2 * h.mean(-1, keepdim=True) + 1e-5)
    assert_scores(Net(rms_norm), lambda net, h: h + h.mean(-1, keepdim=True) + 1.0)
    assert_scores(Net(lambda net, h: h / h.norm()), lambda net, h: h + h.mean())


class Attention(nn.Module):
    """Queries, keys and values of their own, two heads."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)

    def heads(self, h):
        tokens = torch.stack([h, 2 * h, 3 * h], 1)  # [1, 3, 6]
        return [
            part(tokens).unflatten(-1, (2, 3)).transpose(1, 2) for part in (self.q, self.k, self.v)
        ]


def attention_by_hand(net, h):
    q, k, v = net.layer.heads(h)
    logits = (q.mean(-1, keepdim=True) + k.mean((-1, -2), keepdim=True)) / math.sqrt(3)
    return (v.mean(-2, keepdim=True) + logits).transpose(1, 2).flatten(2).sum(1)


def fused(net, h):
    return F.scaled_dot_product_attention(*net.layer.heads(h), is_causal=True)


def written_out(net, h):
    q, k, v = net.layer.heads(h)
    logits = (q @ k.transpose(-1, -2)) / math.sqrt(3)
    later = torch.ones(3, 3, dtype=torch.bool).triu(1)
    return logits.masked_fill(later, -math.inf).softmax(-1) @ v


def test_attention_passes_the_mean_of_its_values_and_scores_queries_and_keys():
    def joined(attend):
        return lambda net, h: attend(net, h).transpose(1, 2).flatten(2).sum(1)

    assert_scores(Net(joined(fused), Attention()), attention_by_hand)

    def unmasked(net, h):
        q, k, v = net.layer.heads(h)
        return torch.matmul(torch.softmax(q.matmul(k.mT) / math.sqrt(3), -1), v)

    assert_scores(Net(joined(unmasked), Attention()), attention_by_hand)
    net = drawn(Net(joined(written_out), Attention()))
    alive = {name: weight.detach() != 0 for name, weight in weights_of(net).items()}
    scores = SynFlowScorer(net, weights_of(net), (5,)).scores(alive)
    assert all(bool((score > 0).all()) for name, score in scores.items() if name != "gate.weight")


@pytest.mark.parametrize("need_weights", [True, False])
def test_the_attention_module(need_weights):
    def middle(net, h):
        tokens = torch.stack([h, 2 * h, 3 * h], 1)
        return net.layer(tokens, tokens, tokens, need_weights=need_weights)[0].sum(1)

    def linear(net, h):
        tokens = torch.stack([h, 2 * h, 3 * h], 1)
        together = F.linear(tokens, net.layer.in_proj_weight, net.layer.in_proj_bias)
        q, k, v = (part.unflatten(-1, (2, 3)).transpose(1, 2) for part in together.chunk(3, -1))
        # With weights to return, torch scales the queries before their product with the keys.
        scale = 1 if need_weights else math.sqrt(1 / 3)
        logits = q.mean(-1, keepdim=True) / math.sqrt(3) + scale * k.mean((-1, -2), keepdim=True)
        mixed = (v.mean(-2, keepdim=True) + logits).transpose(1, 2).flatten(2)
        return net.layer.out_proj(mixed).sum(1)

    net = Net(middle, nn.MultiheadAttention(6, 2, batch_first=True))
    assert "layer.out_proj.weight" in weights_of(net)
    assert_scores(net, linear)


def test_the_encoder_layer_and_its_fast_path():
    layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True)

    def linear(net, h):
        layer = net.layer
        q, k, v = F.linear(h, layer.self_attn.in_proj_weight, layer.self_attn.in_proj_bias).chunk(
            3, -1
        )
        logits = (q + k).unflatten(-1, (2, 3)).mean(-1, keepdim=True) / math.sqrt(3)
        mixed = (v.unflatten(-1, (2, 3)) + logits).flatten(1)
        h = (h + layer.self_attn.out_proj(mixed)) * layer.norm1.weight + layer.norm1.bias
        h = h + layer.linear2(layer.linear1(h))
        return h * layer.norm2.weight + layer.norm2.bias

    assert_scores(Net(lambda net, h: net.layer(h[:, None])[:, 0], layer), linear)


def cell_by_hand(kind, x, h, c, weights):
    w_ih, w_hh, b_ih, b_hh = weights[:4]
    parts = (x @ w_ih.T + b_ih + h @ w_hh.T + b_hh).chunk({"LSTM": 4, "GRU": 3, "RNN": 1}[kind], -1)
    if kind == "LSTM":
        c = c + parts[0] + parts[1] + parts[2]
        h = c + parts[3]
        return (h @ weights[4].T if len(weights) == 5 else h), c
    return (h if kind == "GRU" else 0) + sum(parts), c


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
