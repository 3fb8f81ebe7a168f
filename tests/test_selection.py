"""Kinds of weights beyond Conv and Linear: drawn, searched, trained, packed and loaded."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pabzip
from pabzip.errors import RecipeError, SearchError, SeedError
from pabzip.search import grasp, magnitude, random, snip, synflow
from pabzip.seeds import Frozen, scheme_spec, weights
from pabzip.selection import DEFAULT_KINDS, WEIGHT_KINDS
from pabzip.supermask import Biprop, EdgePopup
from pabzip.unmask import Bop, LatentSigns, SignSgd, apply_psg

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported")

STEPS, SIZE, CLASSES = 5, 8, 3


class Conv1D(nn.Module):
    """As transformers defines it: the weight is [inputs, outputs]."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.flatten(0, -2), self.weight).view(*x.shape[:-1], -1)


Conv1D.__module__ = "transformers.pytorch_utils"


class Classifier(nn.Module):
    """A layer of some kind over sequences [N, STEPS, SIZE], then logits of its mean over time."""

    def __init__(self, layer: nn.Module, outputs: int) -> None:
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(outputs, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.layer, nn.MultiheadAttention):
            kdim, vdim = self.layer.kdim, self.layer.vdim
            x, _ = self.layer(x, x[..., :kdim], x[..., :vdim], need_weights=False)
        elif isinstance(self.layer, nn.RNNBase):
            x, _ = self.layer(x)
        elif isinstance(self.layer, nn.RNNCellBase):
            state, outputs = None, []
            for step in x.unbind(1):
                state = self.layer(step, state)
                outputs.append(state[0] if isinstance(state, tuple) else state)
            x = torch.stack(outputs, 1)
        elif isinstance(self.layer, nn.Bilinear):
            x = torch.relu(self.layer(x[:, 1:], x[:, :-1]))
        else:
            x = torch.relu(self.layer(x))
        logits: Tensor = self.head(x.mean(1))
        return logits


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "rnn": lambda: Classifier(nn.RNN(SIZE, 6, batch_first=True), 6),
    "lstm": lambda: Classifier(nn.LSTM(SIZE, 6, 2, batch_first=True, bidirectional=True), 12),
    "projected": lambda: Classifier(nn.LSTM(SIZE, 6, batch_first=True, proj_size=4), 4),
    "gru": lambda: Classifier(nn.GRU(SIZE, 6, batch_first=True), 6),
    "rnn cell": lambda: Classifier(nn.RNNCell(SIZE, 6), 6),
    "lstm cell": lambda: Classifier(nn.LSTMCell(SIZE, 6), 6),
    "attention": lambda: Classifier(nn.MultiheadAttention(SIZE, 2, batch_first=True), SIZE),
    "attention apart": lambda: Classifier(
        nn.MultiheadAttention(SIZE, 2, batch_first=True, kdim=6, vdim=5), SIZE
    ),
    "bilinear": lambda: Classifier(nn.Bilinear(SIZE, SIZE, 6), 6),
    "Conv1D": lambda: Classifier(Conv1D(6, SIZE), 6),
}
EVERY = pytest.mark.parametrize("name", NETWORKS)


@pytest.fixture
def inputs() -> Tensor:
    return torch.randn(12, STEPS, SIZE, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def targets() -> Tensor:
    return torch.arange(12) % CLASSES


def network(name: str, **options: object) -> nn.Module:
    return pabzip.init_(NETWORKS[name](), 7, gain=1.0, **options)  # type: ignore[arg-type]


def expect_round_trip(net: nn.Module, name: str, inputs: Tensor) -> None:
    file = io.BytesIO()
    pabzip.pack(net, file)
    loaded = pabzip.load_into(NETWORKS[name](), file.getvalue(), verify=True)
    for key, value in net.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    assert list(pabzip.seeding(loaded).specs.items()) == list(pabzip.seeding(net).specs.items())
    with torch.no_grad():
        assert torch.equal(loaded.eval()(inputs), net.eval()(inputs))


def train(net: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    sgd = torch.optim.SGD(pabzip.dense_parameters(net).values(), 0.1)
    net.train()
    for _ in range(3):
        optimizer.zero_grad()
        sgd.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
        sgd.step()


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("rnn", "recurrent", ["weight_ih_l0", "weight_hh_l0"]),
        ("projected", "recurrent", ["weight_ih_l0", "weight_hh_l0", "weight_hr_l0"]),
        ("lstm cell", "recurrent", ["weight_ih", "weight_hh"]),
        ("attention", "attention", ["in_proj_weight"]),
        ("attention apart", "attention", ["q_proj_weight", "k_proj_weight", "v_proj_weight"]),
        ("bilinear", "bilinear", ["weight"]),
        ("Conv1D", "hf_conv1d", ["weight"]),
    ],
)
def test_each_kind_is_drawn_from_streams_after_conv_and_linear(
    name: str, kind: str, expected: list[str]
) -> None:
    net = network(name)
    record = pabzip.seeding(net)
    own = [key.removeprefix("layer.") for key in record.specs if key.startswith("layer.")]
    own = [key for key in own if not key.startswith("out_proj")]  # a Linear layer
    assert own == expected
    assert [spec.stream for spec in record.specs.values()] == list(range(len(record.specs)))
    for key, weight in pabzip.seeded_parameters(net).items():
        drawn = weights(7, record.specs[key], 0, weight.numel())
        assert np.array_equal(weight.detach().numpy().reshape(-1), drawn)
    # Without them, Conv and Linear weights are the same.
    plain = network(name, kinds=("conv", "linear"))
    assert list(pabzip.seeding(plain).specs.items()) == list(record.specs.items())[: -len(expected)]
    assert torch.equal(plain.head.weight, net.head.weight)
    assert list(pabzip.seeding(network(name, kinds=kind)).specs) == [f"layer.{n}" for n in expected]


def test_reversed_layers_of_a_recurrent_network_are_drawn() -> None:
    names = list(pabzip.seeding(network("lstm")).specs)
    assert names[:2] == ["head.weight", "layer.weight_ih_l0"]
    assert names[-1] == "layer.weight_hh_l1_reverse"
    assert len(names) == 9


def test_fans_of_conv1d_are_read_as_it_stores_them() -> None:
    net = network("Conv1D")
    assert net.layer.weight.shape == (SIZE, 6)
    expected = scheme_spec("kaiming_normal", (6, SIZE), stream=1, gain=1.0)
    assert pabzip.seeding(net).specs["layer.weight"] == expected
    # Scores begin by the same fan.
    scores = EdgePopup(net, lambda s: torch.optim.SGD(s, 0.1), keep_ratio=0.5).scores
    assert 0.3 < float(scores["layer.weight"].abs().max()) <= SIZE**-0.5 < 6**-0.5


def test_transformers_own_conv1d_is_known() -> None:
    utils = pytest.importorskip("transformers.pytorch_utils")
    net = pabzip.init_(nn.Sequential(utils.Conv1D(6, SIZE)), 0)
    assert list(pabzip.seeding(net).specs) == ["0.weight"]


@EVERY
@pytest.mark.parametrize("search", [synflow, snip, grasp, magnitude, random])
def test_each_kind_is_searched_and_packed(
    name: str, search: Callable[..., dict[str, Tensor]], inputs: Tensor, targets: Tensor
) -> None:
    net = network(name)
    given = {
        synflow: {"input_shape": (STEPS, SIZE), "iterations": 10},
        snip: {"example_inputs": inputs, "targets": targets},
        grasp: {"example_inputs": inputs, "targets": targets},
    }
    masks = search(net, 0.6, **given.get(search, {}))
    assert list(masks) == list(pabzip.seeding(net).specs)
    total = sum(mask.numel() for mask in masks.values())
    assert sum(int(mask.sum()) for mask in masks.values()) == total - int(0.4 * total)
    for key, weight in pabzip.seeded_parameters(net).items():
        assert torch.equal(weight != 0, masks[key])
    expect_round_trip(net, name, inputs)


@EVERY
@pytest.mark.parametrize(
    "rule",
    [
        lambda net: Bop(net, 0.5, 1e-9),
        lambda net: Bop(net, 0.5, 1e-9, flip_cost=1e-9),
        lambda net: LatentSigns(net, 1.0, start=1e-3),
        lambda net: EdgePopup(net, lambda s: torch.optim.SGD(s, 100.0), keep_ratio=0.5),
        lambda net: Biprop(net, lambda s: torch.optim.SGD(s, 100.0), keep_ratio=0.5),
    ],
    ids=["bop", "bop by cost", "latent", "edge-popup", "biprop"],
)
def test_each_kind_is_trained_and_packed(
    name: str,
    rule: Callable[[nn.Module], torch.optim.Optimizer],
    inputs: Tensor,
    targets: Tensor,
) -> None:
    net = network(name)
    optimizer = rule(net)
    before = {key: weight.detach().clone() for key, weight in pabzip.seeded_parameters(net).items()}
    train(net, optimizer, inputs, targets)
    moved = [key for key, weight in pabzip.seeded_parameters(net).items() if key.startswith("layer")
             and not torch.equal(weight, before[key])]  # fmt: skip
    assert moved
    expect_round_trip(net, name, inputs)


def test_weights_in_one_flat_block_as_cudnn_lays_them(inputs: Tensor, targets: Tensor) -> None:
    flat = NETWORKS["lstm"]()
    parameters = list(flat.layer.parameters())
    block = torch.zeros(sum(value.numel() for value in parameters))
    for value, part in zip(parameters, block.split([p.numel() for p in parameters]), strict=True):
        value.data = part.view_as(value)
    pabzip.init_(flat, 7, gain=1.0)
    net = network("lstm")
    assert torch.equal(block[:192], net.layer.weight_ih_l0.flatten())
    flat.load_state_dict(net.state_dict())  # the biases
    for each in (flat, net):
        train(each, Bop(each, 0.5, 1e-9), inputs, targets)
    for key, value in net.state_dict().items():
        assert torch.equal(flat.state_dict()[key], value), key
    assert torch.equal(block[:192], net.layer.weight_ih_l0.flatten())
    expect_round_trip(flat, "lstm", inputs)


def test_signsgd_moves_them_as_any_parameter(inputs: Tensor, targets: Tensor) -> None:
    net = network("lstm")
    before = net.layer.weight_hh_l0.detach().clone()
    train(net, SignSgd(pabzip.seeded_parameters(net).values(), 0.01), inputs, targets)
    assert not torch.equal(net.layer.weight_hh_l0, before)


@EVERY
def test_psg_takes_the_conv_and_linear_layers_among_them(
    name: str, inputs: Tensor, targets: Tensor
) -> None:
    net = network(name)
    layers = apply_psg(net).modules
    assert [type(layer).__mro__[1].__name__.removeprefix("NonDynamicallyQuantizable")
            for layer in layers.values()] == ["Linear"] * len(layers)  # fmt: skip
    assert "head" in layers
    train(net, Bop(net, 0.5, 1e-9), inputs, targets)
    expect_round_trip(net, name, inputs)


def test_wrapped_networks_are_scored(inputs: Tensor, targets: Tensor) -> None:
    net = network("Conv1D")
    rule = EdgePopup(nn.DataParallel(net), lambda s: torch.optim.SGD(s, 0.1), keep_ratio=0.5)
    train(net, rule, inputs, targets)
    expect_round_trip(net, "Conv1D", inputs)


def test_psg_on_other_kinds_alone_is_refused() -> None:
    net = network("lstm", only=["layer"])
    with pytest.raises(RecipeError, match="expected a seeded weight of a Conv or Linear layer"):
        apply_psg(net)


def test_grasp_derives_attention_twice(inputs: Tensor, targets: Tensor) -> None:
    layer = nn.TransformerEncoderLayer(SIZE, 2, 16, dropout=0.0, batch_first=True)
    net = pabzip.init_(Classifier(nn.TransformerEncoder(layer, 1), SIZE), 3)
    assert "layer.layers.0.self_attn.in_proj_weight" in pabzip.seeding(net).specs
    assert grasp(net, 0.7, example_inputs=inputs, targets=targets)


def test_a_recurrent_weight_without_a_path_is_named() -> None:
    class Last(Classifier):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(self.layer(x)[0][:, -1])
            return logits

    # The last output of the way back is its first step, which no state has reached.
    net = pabzip.init_(Last(nn.GRU(SIZE, 6, batch_first=True, bidirectional=True), 12), 0)
    with pytest.raises(SearchError, match=r"layer\.weight_hh_l0_reverse'.*skip="):
        synflow(net, 0.5, input_shape=(STEPS, SIZE))


class Words(nn.Module):
    """An embedding that the classifier shares, as in language models."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 8)
        self.bags = nn.EmbeddingBag(10, 8)
        self.body = nn.Linear(8, 8)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.words.weight


def seeded(**options: object) -> list[str]:
    return list(pabzip.seeding(pabzip.init_(Words(), 0, **options)).specs)  # type: ignore[arg-type]


def test_embeddings_are_drawn_by_kind() -> None:
    assert seeded() == ["body.weight", "head.weight"]
    assert seeded(kinds="all") == ["words.weight", "bags.weight", "body.weight"]
    assert seeded(kinds=["embedding"]) == ["words.weight", "bags.weight"]
    assert seeded(only="bags") == ["bags.weight"]


def test_a_tied_weight_is_chosen_by_any_of_its_names() -> None:
    assert seeded(skip=["head"]) == ["body.weight"]
    assert seeded(skip=["words"]) == ["body.weight"]
    assert seeded(kinds="all", skip=["head.weight"]) == ["bags.weight", "body.weight"]
    assert seeded(kinds="all", only=["head"]) == ["words.weight"]


@pytest.mark.parametrize(
    ("kinds", "found"), [("convolution", "'convolution'"), (["linear", "?"], r"'\?'"), ((), "none")]
)
def test_unknown_kinds_are_refused(kinds: object, found: str) -> None:
    with pytest.raises(SeedError, match=f"kinds: expected 'all' or some of conv, .* found {found}"):
        seeded(kinds=kinds)
    assert set(WEIGHT_KINDS) == {*DEFAULT_KINDS, "embedding"}


def test_names_and_predicates_choose_recurrent_weights() -> None:
    def names(**options: object) -> list[str]:
        return list(pabzip.seeding(network("rnn", **options)).specs)

    assert names(only=["layer"]) == ["layer.weight_ih_l0", "layer.weight_hh_l0"]
    assert names(skip=["layer.weight_hh_l0"]) == ["head.weight", "layer.weight_ih_l0"]
    assert names(skip=lambda module, _name: isinstance(module, nn.RNN)) == ["head.weight"]
    with pytest.raises(SeedError, match=r"only= names 'layer', expected a weight to draw \(linear"):
        names(only=["layer"], kinds="linear")


class Projected(nn.Module):
    """A random projection that nothing trains, then a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("projection", torch.zeros(300, 400))
        self.register_buffer("scratch", torch.zeros(2, 2), persistent=False)
        self.norm = nn.BatchNorm1d(400)
        self.head = nn.Linear(400, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(torch.relu(x @ self.projection)))
        return logits


def test_a_buffer_is_drawn_last_and_costs_next_to_nothing() -> None:
    net = pabzip.init_(Projected(), 3, buffers=["projection"])
    record = pabzip.seeding(net)
    assert list(record.specs) == ["head.weight", "projection"]
    assert torch.equal(net.head.weight, pabzip.init_(Projected(), 3).head.weight)
    assert float(net.projection.std()) == pytest.approx((2 / 400) ** 0.5, rel=0.01)
    assert list(pabzip.seeded_parameters(net)) == ["head.weight"]

    file = io.BytesIO()
    report = pabzip.pack(net, file)
    with pabzip.open(file.getvalue()) as ticket:
        assert ticket.kind("projection") == "seeded"
    assert report.bytes < 3000  # 480,000 as float32
    loaded = pabzip.load_into(Projected(), file.getvalue(), verify=True)
    assert torch.equal(loaded.projection, net.projection)
    assert pabzip.seeding(loaded).specs["projection"] == record.specs["projection"]

    checkpoint = io.BytesIO()
    pabzip.save_checkpoint(net, checkpoint)
    checkpoint.seek(0)
    again = io.BytesIO()
    pabzip.pack(pabzip.load_checkpoint(checkpoint), again)
    assert again.getvalue() == file.getvalue()


def test_rules_leave_a_seeded_buffer_alone() -> None:
    x, y = torch.randn(12, 300), torch.arange(12) % 3
    for rule in (
        lambda net: Bop(net, 0.5, 1e-9, flip_cost=1e-9),
        lambda net: Biprop(net, lambda s: torch.optim.SGD(s, 0.1), keep_ratio=0.5),
        lambda net: EdgePopup(
            net, lambda s: torch.optim.SGD(s, 0.1), keep_ratio=0.5, frozen=Frozen.of(0.2, 0.2)
        ),
    ):
        net = pabzip.init_(Projected(), 3, buffers="projection")
        before, spec = net.projection.clone(), pabzip.seeding(net).specs["projection"]
        train(net, rule(net), x, y)
        assert torch.equal(net.projection, before)
        assert pabzip.seeding(net).specs["projection"] == spec
        file = io.BytesIO()
        pabzip.pack(net, file)
        loaded = pabzip.load_into(Projected(), file.getvalue()).eval()
        with torch.no_grad():
            assert torch.equal(loaded(x), net.eval()(x))


def test_a_buffer_that_is_changed_is_refused_by_pack() -> None:
    net = pabzip.init_(Projected(), 3, buffers="projection")
    net.projection[0, 0] += 1
    with pytest.raises(pabzip.PabzError, match="projection: expected every surviving weight"):
        pabzip.pack(net, io.BytesIO())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("scratch", "expected a buffer in the state_dict of Projected, found one that is not pers"),
        ("nothing", r"found none; it has projection, norm\.running_mean"),
        ("head.weight", "buffers= names 'head.weight'.* found none"),
        ("norm.running_mean", r"norm\.running_mean: shape: expected two or more dimensions"),
        ("norm.num_batches_tracked", r"num_batches_tracked: .* found torch\.int64"),
    ],
)
def test_buffers_that_cannot_be_drawn_are_refused(name: str, message: str) -> None:
    with pytest.raises(SeedError, match=message):
        pabzip.init_(Projected(), 3, buffers=[name])


def test_a_ternary_buffer_loads_into_a_network() -> None:
    net = pabzip.init_(Projected(), 3)
    net.projection.fill_(0.5)[:, ::3] = 0.0
    net.projection[::2] *= -1
    file = io.BytesIO()
    pabzip.pack(net, file, ternary=True)
    assert torch.equal(pabzip.load_into(Projected(), file.getvalue()).projection, net.projection)
