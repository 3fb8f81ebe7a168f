"""Networks with gates, norms and attention, against the same networks with identities by hand."""

import copy

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.ops import SqueezeExcitation

import pabzip
from pabzip.search import SynFlowScorer, synflow

ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.GELU)


def opened(gate):
    """One, through which the gate's layers are scored by what they contribute to it."""
    alive = gate != 0
    return torch.where(alive, gate / torch.where(alive, gate.detach(), 1.0), 1.0)


def without_activations(net):
    """A copy of a network with identities; squeeze-and-excitation multiplies by one."""
    net = copy.deepcopy(net)
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, ACTIVATIONS):
                setattr(module, name, nn.Identity())
        if isinstance(module, SqueezeExcitation):
            module.forward = lambda x, own=module: x * opened(own._scale(x.detach()))
    return net


def published(net, names, keep, rounds, shape):
    """The masks of SynFlow as published, of a network that is linear as it is."""
    net = net.double().eval()
    with torch.no_grad():
        for tensor in (*net.parameters(), *net.buffers()):
            if tensor.is_floating_point():
                tensor.abs_()
    weights = {name: net.get_parameter(name) for name in names}
    total = sum(weight.numel() for weight in weights.values())
    for i in range(1, rounds + 1):
        net.zero_grad()
        net(torch.ones(1, *shape, dtype=torch.float64)).sum().backward()
        scores = {name: (w.grad * w).abs().detach() for name, w in weights.items()}
        together = torch.cat([score.flatten() for score in scores.values()])
        threshold = together.kthvalue(int((1.0 - keep ** (i / rounds)) * total)).values
        masks = {name: score > threshold for name, score in scores.items()}
        with torch.no_grad():
            for name, weight in weights.items():
                weight.mul_(masks[name])
    return masks


def assert_same_masks(found, expected):
    assert list(found) == list(expected)
    for name, mask in found.items():
        assert float(mask.double().mean()) == pytest.approx(
            float(expected[name].double().mean()), rel=0.01
        ), name
        assert torch.equal(mask, expected[name]), name


@pytest.mark.parametrize(
    "name", ["mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "regnet_y_400mf"]
)
def test_masks_are_those_of_identities_by_hand(name):
    """Weight for weight, those of squeeze-and-excitation among them, which keep a path."""
    torch.manual_seed(0)
    net = pabzip.init_(getattr(torchvision.models, name)(num_classes=10), seed=3)
    names, shape = list(pabzip.seeded_parameters(net)), (3, 32, 32)
    assert_same_masks(
        synflow(copy.deepcopy(net), 0.1, input_shape=shape, iterations=3),
        published(without_activations(net), names, 0.1, 3, shape),
    )
    gates = {key for key in names if "fc1" in key or "fc2" in key}
    assert bool(gates) == (name != "mobilenet_v2")
    if name == "mobilenet_v3_small":  # without gates among the weights, gates of one do
        linear = without_activations(net)
        for module in linear.modules():
            if isinstance(module, SqueezeExcitation):
                module.forward = lambda x: x * 1.0
        trunk = [key for key in names if key not in gates]
        assert_same_masks(
            synflow(net, 0.1, input_shape=shape, iterations=3, skip=sorted(gates)),
            published(linear, trunk, 0.1, 3, shape),
        )


class FromEmbeddings(nn.Module):
    """A network of transformers, from embeddings to its first output."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(inputs_embeds=x).to_tuple()[0]


SIZES = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "vocab_size": 12, "max_position_embeddings": 16, "pad_token_id": 0,
}  # fmt: skip


def bert(transformers, attention):
    config = transformers.BertConfig(**SIZES, attn_implementation=attention)
    return transformers.BertForSequenceClassification(config)


def llama(transformers, attention):
    config = transformers.LlamaConfig(**SIZES, num_key_value_heads=2, attn_implementation=attention)
    return transformers.LlamaForCausalLM(config)


def gpt2(transformers, attention):
    config = transformers.GPT2Config(
        n_embd=16, n_layer=2, n_head=4, vocab_size=12, n_positions=16, bos_token_id=0,
        eos_token_id=0, attn_implementation=attention,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def matrices(net):
    return {
        name: weight
        for name, weight in net.named_parameters()
        if weight.dim() == 2 and "embed" not in name and "wte" not in name and "wpe" not in name
    }


@pytest.mark.parametrize("make", [bert, llama, gpt2])
def test_every_layer_of_a_transformer_carries_the_flow(make):
    """Values, queries with keys, and both halves of an MLP carry as much as the layer after them.

    Biases, shortcuts and embeddings of positions take a part of it.
    """
    transformers = pytest.importorskip("transformers")
    masks = {}
    for attention in ("eager", "sdpa"):
        torch.manual_seed(0)
        net = FromEmbeddings(make(transformers, attention))
        weights = matrices(net)
        scorer = SynFlowScorer(net, weights, (6, 16))
        scores = scorer.scores({name: w.detach() != 0 for name, w in weights.items()})
        assert all(bool((score > 0).all()) for score in scores.values())
        flow = {name: float(score.sum()) for name, score in scores.items()}
        for block in ("layer.0.", "layer.1.", "layers.0.", "layers.1.", "h.0.", "h.1."):
            own = {name: value for name, value in flow.items() if block in name}

            def of(*parts, own=own):
                return sum(v for name, v in own.items() if any(part in name for part in parts))

            if make is gpt2 and own:  # whose queries, keys and values are one matrix
                assert 1.7 < of("c_attn") / of("attn.c_proj") < 2.1
                assert 0.9 < of("c_fc") / of("mlp.c_proj") < 1.1
            elif own:
                values = of("value", "v_proj")
                assert 0.9 < of("query", "q_proj", "key", "k_proj") / values < 1.1
                assert 0.9 < values / of("attention.output", "o_proj") < 1.1
                after = of("down_proj") if make is llama else of("output") - of("attention.output")
                assert 0.9 < of("intermediate", "gate_proj", "up_proj") / after < 1.1
        masks[attention] = synflow(net, 0.2, input_shape=(6, 16), iterations=5, weights=weights)
        assert all(bool(mask.any()) for mask in masks[attention].values())
    for name, mask in masks["eager"].items():
        assert torch.equal(mask, masks["sdpa"][name])


def test_llama_is_scored_as_with_its_norms_gates_and_attention_by_hand(monkeypatch):
    transformers = pytest.importorskip("transformers")
    from transformers.models.llama import modeling_llama

    torch.manual_seed(0)
    net = FromEmbeddings(llama(transformers, "sdpa"))
    weights = {
        name: w
        for name, w in matrices(net).items()
        if "q_proj" not in name and "k_proj" not in name
    }
    other = copy.deepcopy(net)
    found = synflow(net, 0.2, input_shape=(6, 16), iterations=5, weights=weights)

    def mean_of_values(query, key, value, attn_mask=None, enable_gqa=False, **_):
        assert attn_mask is None  # causal
        value = value.repeat_interleave(query.shape[1] // value.shape[1], 1)
        sums = torch.ones(query.shape[2], value.shape[2], dtype=value.dtype).tril()
        return (sums / sums.sum(-1, keepdim=True)) @ value

    def mean_of_products(mlp, x):
        product = mlp.gate_proj(x) * mlp.up_proj(x)
        alive = product != 0
        return mlp.down_proj(torch.where(alive, torch.where(alive, product, 1.0).sqrt(), 0.0))

    monkeypatch.setattr(F, "scaled_dot_product_attention", mean_of_values)
    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", mean_of_products)
    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", lambda norm, x: norm.weight * x)
    assert_same_masks(found, published(other, list(weights), 0.2, 5, (6, 16)))
