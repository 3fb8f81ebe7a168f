"""Inputs that are not images and outputs that are not logits, in all searches."""

import copy
from collections import UserDict
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

import pabzip
from pabzip.calls import Call
from pabzip.errors import SearchError
from pabzip.search import (
    FastSynFlowScorer,
    LossNetwork,
    SynFlowScorer,
    grasp,
    layerwise_random,
    magnitude,
    random,
    snip,
    synflow,
)

TOKENS = torch.tensor([[3, 1, 4, 1], [5, 0, 2, 6]])


def weights_of(net, *kinds):
    """Return the weights of a network's modules of some kinds; of Linear ones by default."""
    kinds = kinds or (nn.Linear,)
    return {f"{n}.weight": m.weight for n, m in net.named_modules() if isinstance(m, kinds)}


def scores(net, example, *, weights=None, scorer=SynFlowScorer):
    weights = weights or weights_of(net)
    masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    return scorer(net, weights, Call.of(example, net)).scores(masks)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


class Body(nn.Module):
    """What comes after an embedding."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, hidden):
        return self.last(F.relu(self.first(hidden)).mean(1))


class Language(nn.Module):
    """A body after an embedding, which is looked up in some way."""

    def __init__(self, look_up=F.embedding, **extra):
        super().__init__()
        self.table = nn.Parameter(torch.randn(7, 6))
        self.body = Body()
        self.look_up = look_up

    def forward(self, tokens):
        return self.body(self.look_up(tokens, self.table))


@pytest.mark.parametrize(
    "look_up",
    [
        F.embedding,
        lambda tokens, table: F.embedding(input=tokens.flip(1), weight=table),
        lambda tokens, table: table[tokens],
        lambda tokens, table: table.index_select(0, tokens.flatten()).view(2, 4, 6),
        lambda tokens, table: F.embedding(tokens * 2 % 7, table).mul_(1),
        lambda tokens, table: F.embedding_bag(tokens, table)[:, None].expand(2, 4, 6),
    ],
    ids=["embedding", "keyword", "index", "index_select", "in_place", "bag"],
)
@pytest.mark.parametrize("scorer", [SynFlowScorer, FastSynFlowScorer])
def test_flow_starts_as_ones_at_what_tokens_look_up(look_up, scorer):
    net = Language(look_up)
    expected = scores(net.body, (torch.randn(2, 4, 6),), scorer=scorer)
    found = scores(net, TOKENS, scorer=scorer)
    for name, score in expected.items():
        torch.testing.assert_close(found[f"body.{name}"], score)


def test_only_the_shape_of_tokens_counts():
    net = Language()
    assert same(scores(net, TOKENS), scores(net, torch.zeros_like(TOKENS)))


class Positions(nn.Module):
    """Token and position embeddings, and a mask that closes some positions."""

    def __init__(self):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(7, 6), nn.Embedding(9, 6)
        self.register_buffer("turns", torch.rand(9, 6))
        self.body = Body()

    def forward(self, tokens, float_mask=None, position_ids=None, *, scale=1):
        if position_ids is None:
            position_ids = torch.arange(tokens.shape[1])
        hidden = self.tokens(tokens)
        hidden += self.positions(position_ids)
        hidden = hidden * self.turns[position_ids] * scale
        if float_mask is not None:
            hidden = hidden * (1 - float_mask)[..., None]
        return self.body(hidden)


def test_positions_and_masks_stay_as_they_are():
    net = Positions().double()
    mask = torch.zeros(2, 4)
    mask[:, 3] = 1
    positions = torch.tensor([[0, 5, 8, 2]])
    found = scores(
        net, {"tokens": TOKENS, "float_mask": mask, "position_ids": positions, "scale": 3}
    )
    hidden = 1 + net.positions.weight.detach().abs()[positions]
    hidden = (hidden * net.turns[positions] * 3).expand(2, 4, 6) * (1 - mask.double())[..., None]
    first, last = net.body.first, net.body.last
    weight, bias = first.weight.detach().abs(), first.bias.detach().abs()
    after = F.linear(hidden, weight, bias).mean(1).sum(0)  # [5], of both samples
    torch.testing.assert_close(found["body.last.weight"], last.weight.detach().abs() * after)
    outward = last.weight.detach().abs().sum(0)  # [5]
    expected = weight * outward[:, None] * hidden.mean(1).sum(0)
    torch.testing.assert_close(found["body.first.weight"], expected)


def test_searched_embedding_is_scored_in_all_its_rows():
    net = Positions().double()
    weights = weights_of(net, nn.Linear, nn.Embedding)
    found = scores(net, TOKENS, weights=weights)
    assert found["tokens.weight"].shape == (7, 6)
    # R is linear in a row, and every row counts as much.
    ratio = found["tokens.weight"] / net.tokens.weight.detach().abs()
    torch.testing.assert_close(ratio, ratio[:1].expand(7, 6))
    assert bool((found["positions.weight"] > 0).all())
    assert same(found, scores(net, torch.zeros_like(TOKENS), weights=weights))


def test_tied_embedding_is_scored_in_both_its_uses():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(7, 6), nn.Linear(6, 7, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, tokens):
            return self.head(self.embedding(tokens))

    net = Tied().double()
    found = scores(net, TOKENS[:1], weights={"head.weight": net.head.weight})["head.weight"]
    table = net.head.weight.detach().abs()
    by_head = 4 * table * table.mean(0)  # four positions, the mean row goes in
    by_lookup = 4 * table * table.sum(0) / 7
    torch.testing.assert_close(found, by_head + by_lookup)


class Towers(nn.Module):
    """Two inputs, one of them among others in a list of a dictionary; an object comes out."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(3, 4), nn.Linear(2, 4)

    def forward(self, left, rest, flag=True):
        return (
            {"count": torch.tensor(1), "sum": self.left(left) + self.right(rest["parts"][0])}
            if flag
            else None
        )


def test_floating_inputs_are_ones_wherever_they_are():
    net = Towers().double()
    rest = {"parts": [torch.randn(5, 2), "text"]}
    expected = {name: 5 * weight.detach().abs() for name, weight in weights_of(net).items()}
    for example in (
        (torch.randn(5, 3), rest),
        {"left": torch.randn(5, 3), "rest": rest, "flag": True},
        UserDict({"left": torch.randn(5, 3), "rest": UserDict(rest)}),
    ):
        found = scores(net, example)
        for name, score in expected.items():
            torch.testing.assert_close(found[name], score)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_packed_sequences_of_several_lengths_flow_each_on_its_own(kind):
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = kind(3, 2, 2, bidirectional=True, batch_first=True)

        def forward(self, inputs, lengths):
            steps = pack_padded_sequence(inputs, lengths, batch_first=True, enforce_sorted=False)
            return pad_packed_sequence(self.layer(steps)[0], batch_first=True)[0]

    net = Reader().double()
    weights = {name: p for name, p in net.named_parameters() if p.dim() == 2}
    lengths = torch.tensor([2, 4, 1])
    found = scores(net, (torch.zeros(3, 4, 3), lengths), weights=weights)
    alone = [
        scores(net, (torch.zeros(1, length, 3), torch.tensor([length])), weights=weights)
        for length in lengths.tolist()
    ]
    for name, score in found.items():
        torch.testing.assert_close(score, sum(part[name] for part in alone))


@pytest.mark.parametrize("method", [synflow, magnitude, random, layerwise_random])
def test_searches_without_data_take_tokens(method):
    net = pabzip.init_(Language(), 3)
    masks = method(net, 0.5, example_inputs=TOKENS)
    assert sum(int(mask.sum()) for mask in masks.values()) in (22, 23)


def test_tokens_tell_whether_an_empty_layer_cuts_the_network():
    class Bypass(Language):
        def __init__(self):
            super().__init__()
            self.side = nn.Linear(6, 6)

        def forward(self, tokens):
            hidden = F.embedding(tokens, self.table)
            return self.body(hidden + self.side(hidden))

    net = Bypass()
    with torch.no_grad():
        net.side.weight.mul_(1e-6)
    weights = weights_of(net)
    with pytest.raises(SearchError, match=r"'side.weight'; .* input_shape= or example_inputs="):
        magnitude(net, 0.5, weights=weights)
    with pytest.warns(UserWarning, match="nothing is left of .side.weight.; the network has a way"):
        masks = magnitude(net, 0.5, weights=weights, example_inputs=TOKENS)
    assert not masks["side.weight"].any()


def test_integers_that_look_nothing_up_are_refused():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, counts):
            return self.layer(counts.double())

    net = Counts().double()
    with pytest.raises(
        SearchError, match=r"Counts on inputs of shape \(2, 4\): expected a floating "
    ):
        synflow(net, 0.5, example_inputs=TOKENS, weights=weights_of(net))


@pytest.mark.parametrize("example", [[TOKENS], (), {"a": 1}, {3: TOKENS}, "tokens", iter([TOKENS])])
def test_what_is_no_call_is_refused(example):
    net = Language()
    with pytest.raises(SearchError, match=r"example_inputs: expected a tensor, a tuple .* found "):
        synflow(net, 0.5, example_inputs=example, weights=weights_of(net))


def test_arguments_that_the_network_does_not_take_are_refused():
    net = Language()
    with pytest.raises(
        SearchError, match=r"Language on ids \[2, 4\]: the forward pass failed .*ids"
    ):
        synflow(net, 0.5, example_inputs={"ids": TOKENS}, weights=weights_of(net))
    with pytest.raises(SearchError, match=r"forward pass failed \(index out of range"):
        synflow(net, 0.5, example_inputs=TOKENS + 9, weights=weights_of(net))


@dataclass
class Result:
    """What a network may return."""

    aside: Tensor
    logits: Tensor


class Returning(nn.Module):
    """A classifier that hands its logits out in some form."""

    def __init__(self, form):
        super().__init__()
        self.first, self.last, self.form = nn.Linear(4, 5), nn.Linear(5, 3), form

    def forward(self, inputs):
        return self.form(self.last(F.relu(self.first(inputs))))


FORMS = [
    lambda logits: Result(logits.sum() * 7, logits),
    lambda logits: {"aside": logits.sum() * 7, "logits": logits},
    lambda logits: {"labels": logits.argmax(1), "out": logits, "aside": logits * 7},
    lambda logits: (logits, logits * 7),
    lambda logits: [logits.argmax(1), (logits, 2)],
]


@pytest.mark.parametrize("form", FORMS, ids=["dataclass", "logits", "first", "tuple", "nested"])
def test_logits_are_found_in_what_a_network_returns(form):
    net = Returning(lambda logits: logits)
    odd = Returning(form)
    odd.load_state_dict(net.state_dict())
    inputs, labels = torch.randn(6, 4), torch.arange(6) % 3
    for method, how in (
        (synflow, {}),
        (snip, {"targets": labels}),
        (grasp, {"targets": labels}),
    ):
        one, two = copy.deepcopy(net), copy.deepcopy(odd)
        expected = method(one, 0.5, example_inputs=inputs, weights=weights_of(one), **how)
        found = method(two, 0.5, example_inputs=inputs, weights=weights_of(two), **how)
        assert same(expected, found)


def test_a_hook_says_which_output_counts():
    net = Returning(lambda logits: (logits[:, :1], {"all": logits}))
    plain = Returning(lambda logits: logits)
    plain.load_state_dict(net.state_dict())
    expected = synflow(plain, 0.5, input_shape=(4,), weights=weights_of(plain))
    other = copy.deepcopy(net)
    first = synflow(other, 0.5, input_shape=(4,), weights=weights_of(other))
    found = synflow(
        net, 0.5, input_shape=(4,), weights=weights_of(net), output=lambda out: out[1]["all"]
    )
    assert same(found, expected)
    assert not same(found, first)
    with pytest.raises(SearchError, match="floating tensor from output=, found tuple of 0 torch.f"):
        synflow(net, 0.5, input_shape=(4,), weights=weights_of(net), output=lambda out: out)


@pytest.mark.parametrize("method", [snip, grasp])
def test_data_may_be_tokens_tuples_and_mappings(method):
    labels = torch.tensor([2, 0])
    net = Positions()
    mask = torch.zeros(2, 4)

    def found(examples, **how):
        own = copy.deepcopy(net)
        return method(own, 0.5, example_inputs=examples, weights=weights_of(own), **how)

    expected = found(TOKENS, targets=labels)
    assert same(expected, found((TOKENS, mask), targets=labels))
    assert same(expected, found({"tokens": TOKENS, "float_mask": mask}, targets=labels))
    assert same(expected, found([({"tokens": TOKENS}, labels)]))
    assert same(expected, found([((TOKENS, mask), labels)]))
    assert same(expected, found([{"tokens": TOKENS}], targets=[labels]))
    with pytest.raises(SearchError, match=r"scalar from the network's own loss, found NoneType"):
        found({"tokens": TOKENS})
    with pytest.raises(SearchError, match=r"batches\[0\]: .*, and other targets, or none, need lo"):
        found(TOKENS, targets=labels.float())


@pytest.mark.parametrize("method", [snip, grasp])
def test_a_loss_of_ones_own(method):
    labels = torch.tensor([2, 0])
    net = Positions().double()
    how = {"temperature": 1.0} if method is grasp else {}

    def found(examples, **options):
        own = copy.deepcopy(net)
        return method(
            own,
            0.5,
            example_inputs=examples,
            weights=weights_of(own),
            dtype=torch.float64,
            **options,
        )

    expected = found(TOKENS, targets=labels, **how)
    assert same(expected, found(TOKENS, targets=labels, loss=F.cross_entropy))
    assert same(expected, found(TOKENS, loss=lambda out: F.cross_entropy(out, labels)))
    assert same(expected, found((TOKENS, None), loss=lambda out: F.cross_entropy(out, labels)))
    assert same(expected, found([TOKENS], loss=lambda out: F.cross_entropy(out, labels)))
    assert same(expected, found(TOKENS, targets={"y": labels},
                                loss=lambda out, y: F.cross_entropy(out, y["y"])))  # fmt: skip
    # The loss gets what output= makes of what the network returns.
    assert same(expected, found(TOKENS, targets=labels, output=lambda out: out.flip(1),
                                loss=lambda out, y: F.cross_entropy(out.flip(1), y)))  # fmt: skip
    squares = found(TOKENS, targets=torch.ones(2, 3), loss=F.mse_loss)
    assert not same(expected, squares)
    # Batches count by their samples.
    apart = found([TOKENS[:1], TOKENS[1:]], targets=[torch.ones(1, 3)] * 2, loss=F.mse_loss)
    assert same(squares, apart)
    with pytest.raises(SearchError, match=r"scalar from loss=, found torch.float64 \[2, 3\]; pass"):
        found(TOKENS, loss=lambda out: out)
    with pytest.raises(SearchError, match="expected an output that depends on the weights"):
        found(TOKENS, loss=lambda out: out.detach().sum())


def test_grasp_goes_through_attention():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix, self.last = nn.Linear(8, 24), nn.Linear(8, 3)

        def forward(self, hidden):
            query, key, value = self.mix(hidden)[:, None].chunk(3, -1)
            return self.last(F.scaled_dot_product_attention(query, key, value)[:, 0].mean(1))

    net = Attention()
    masks = grasp(net, 0.5, example_inputs=torch.randn(2, 4, 8), targets=torch.tensor([0, 2]),
                  weights=weights_of(net))  # fmt: skip
    assert sum(int(mask.sum()) for mask in masks.values()) == 108


SIZES = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
}  # fmt: skip


class FromZeros(nn.Module):
    """A recurrent layer from a state of its own, a timestep, and constants of several types."""

    def __init__(self):
        super().__init__()
        self.steps = nn.LSTM(8, 16, 2, batch_first=True)
        self.time = nn.Linear(1, 16)
        self.place = nn.Linear(4, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, x, timestep):
        state = torch.zeros(2, x.size(0), 16), torch.zeros(2, x.size(0), 16, dtype=torch.float32)
        x = self.steps(x, state)[0][:, -1] + self.time(timestep.float()[:, None])
        x = x + self.place(torch.arange(4.0)) + self.place(timestep[0].new_ones(4).half())
        return self.head(x @ torch.eye(16).to(torch.float32))


@pytest.mark.parametrize("scorer", [SynFlowScorer, FastSynFlowScorer])
def test_tensors_that_a_network_makes_are_float64_like_its_weights(scorer):
    net = FromZeros()
    example = torch.randn(2, 5, 8), torch.tensor([2, 3])
    found = scores(net, example, weights=dict(net.named_parameters()), scorer=scorer)
    assert torch.get_default_dtype() == torch.float32
    net.double()

    def by_hand(x, timestep):  # a default that its maker has to set
        torch.set_default_dtype(torch.float64)
        try:
            state = (torch.zeros(2, len(x), 16),) * 2
            x = net.steps(x, state)[0][:, -1] + net.time(timestep.double()[:, None])
            x = x + net.place(torch.arange(4.0)) + net.place(torch.ones(4))
            return net.head(x)
        finally:
            torch.set_default_dtype(torch.float32)

    net.forward = by_hand
    expected = scores(net, example, weights=dict(net.named_parameters()), scorer=scorer)
    for name, score in expected.items():
        torch.testing.assert_close(found[name], score)
    assert float(found["time.weight"].min()) > 0


def test_the_default_type_returns_after_an_error():
    net = FromZeros()
    with pytest.raises(SearchError, match="forward pass failed"):
        scores(net, (torch.randn(2, 5, 9), torch.tensor([2, 3])))
    assert torch.get_default_dtype() == torch.float32


class StepsFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.steps = nn.LSTM(8, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.steps(x)[0][-1])


@pytest.mark.parametrize("method", [synflow, snip, grasp])
def test_the_first_dimension_of_a_sequence_may_be_time(method):
    net, masks = pabzip.init_(StepsFirst(), 0), []
    drawn, steps = copy.deepcopy(net.state_dict()), torch.randn(5, 4, 8)
    for example in (steps, {"x": steps}):
        net.load_state_dict(drawn)
        masks.append(method(net, 0.5, example_inputs=example, targets=torch.tensor([0, 1, 2, 0])))
    assert same(*masks)
    assert all(bool(mask.any()) for mask in masks[0].values())


def test_sequences_of_several_sizes_count_by_their_labels():
    net = StepsFirst()
    batches = [(torch.randn(t, b, 8), torch.arange(b) % 3) for t, b in ((5, 4), (2, 6))]
    found = LossNetwork(net, weights_of(net), batches, torch.float64).gradients()
    net.double()
    losses = [F.cross_entropy(net(x.double()), y, reduction="sum") for x, y in batches]
    (expected,) = torch.autograd.grad(sum(losses) / 10, [net.head.weight])
    torch.testing.assert_close(found["head.weight"], expected)


@pytest.mark.parametrize("shape", [(7, 3, 6, 6), (7, 108)])
def test_a_batch_gives_the_mask_of_one_sample(shape):
    first = nn.Linear(108, 20) if len(shape) == 2 else nn.Conv2d(3, 8, 3)
    last = nn.Linear(20 if len(shape) == 2 else 128, 5)
    net, masks = pabzip.init_(nn.Sequential(first, nn.ReLU(), nn.Flatten(), last), 0), []
    drawn = copy.deepcopy(net.state_dict())
    for options in ({"example_inputs": torch.randn(shape)}, {"input_shape": shape[1:]}):
        net.load_state_dict(drawn)
        masks.append(synflow(net, 0.1, **options))
    assert same(*masks)


class Checkpointed(nn.Module):
    """A network whose first layers are computed again in the backward pass, or are not."""

    def __init__(self, reentrant):
        super().__init__()
        self.reentrant = reentrant
        self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16))
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        if self.reentrant is None:
            return self.head(self.body(x).relu())
        return self.head(checkpoint(self.body, x, use_reentrant=self.reentrant).relu())


@pytest.mark.parametrize("method", [snip, grasp])
def test_checkpointed_activations_give_the_same_masks(method):
    images, labels = torch.randn(32, 8), torch.randint(0, 4, (32,))
    net, masks = pabzip.init_(Checkpointed(None), 0), []
    drawn = copy.deepcopy(net.state_dict())
    for net.reentrant in (None, False):
        net.load_state_dict(drawn)
        masks.append(method(net, 0.2, example_inputs=images, targets=labels, iterations=5))
    assert same(*masks)


@pytest.mark.parametrize(
    ("method", "reentrant"), [(snip, True), (grasp, True), (synflow, True), (synflow, False)]
)
def test_what_cannot_be_computed_again_is_refused(method, reentrant):
    net = pabzip.init_(Checkpointed(reentrant), 0)
    before = copy.deepcopy(net.state_dict())
    options = {"example_inputs": torch.randn(3, 8), "targets": torch.tensor([0, 1, 2])}
    with pytest.raises(
        SearchError,
        match=r"Checkpointed: expected a network that keeps its activations for the backward pass, "
        r"found one that computes them again \(activation checkpointing\) or moves them by hooks; "
        "turn that off for the search",
    ):
        method(net, 0.2, **options)
    assert same(before, net.state_dict())


class TestTransformers:
    """Models of transformers from small random configurations."""

    @pytest.fixture
    def bert(self):
        transformers = pytest.importorskip("transformers")
        config = transformers.BertConfig(**SIZES, vocab_size=50, num_labels=3)
        return pabzip.init_(transformers.BertForSequenceClassification(config), 1)

    @pytest.mark.parametrize("name", ["synflow", "snip", "grasp"])
    def test_bert(self, bert, name):
        tokens = torch.randint(0, 50, (3, 7))
        batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        if name != "synflow":
            batch["labels"] = torch.tensor([0, 1, 2])
        masks = getattr(pabzip.search, name)(bert, 0.5, example_inputs=batch)
        weights = sum(mask.numel() for mask in masks.values())
        assert sum(int(mask.sum()) for mask in masks.values()) == weights - int(0.5 * weights)

    def test_labels_may_be_given_as_targets(self, bert):
        tokens, labels = torch.randint(0, 50, (3, 7)), torch.tensor([0, 1, 2])
        other = copy.deepcopy(bert)
        one = snip(bert, 0.5, example_inputs={"input_ids": tokens, "labels": labels})
        two = snip(other, 0.5, example_inputs={"input_ids": tokens}, targets=labels)
        assert same(one, two)

    def test_gpt2_starts_at_its_tokens_and_not_at_its_positions(self):
        transformers = pytest.importorskip("transformers")
        config = transformers.GPT2Config(
            n_embd=16, n_layer=2, n_head=2, vocab_size=50, n_positions=32, bos_token_id=0,
            eos_token_id=0,
        )  # fmt: skip
        net = transformers.GPT2LMHeadModel(config)
        net.lm_head.weight = nn.Parameter(net.lm_head.weight.detach().clone())
        weights = {name: p for name, p in net.named_parameters() if name.endswith("c_fc.weight")}
        assert len(weights) == 2
        tokens = torch.randint(0, 50, (1, 7))
        before = copy.deepcopy(scores(net, {"input_ids": tokens}, weights=weights))
        with torch.no_grad():
            net.transformer.wte.weight.add_(1)
            net.transformer.wpe.weight[7:].add_(1)  # beyond the tokens' positions
        assert same(before, scores(net, {"input_ids": tokens.flip(1)}, weights=weights))
        with torch.no_grad():
            net.transformer.wpe.weight[:7].add_(1)
        assert not same(before, scores(net, {"input_ids": tokens}, weights=weights))

    def test_vit(self):
        transformers = pytest.importorskip("transformers")
        config = transformers.ViTConfig(**SIZES, image_size=16, patch_size=4, num_labels=3)
        net = pabzip.init_(transformers.ViTForImageClassification(config), 1)
        images = torch.randn(2, 3, 16, 16)
        other = copy.deepcopy(net)
        one = synflow(net, 0.5, input_shape=(3, 16, 16), iterations=3)
        two = synflow(other, 0.5, example_inputs={"pixel_values": images[:1]}, iterations=3)
        assert same(one, two)
