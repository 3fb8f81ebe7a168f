"""SynFlow against a plain numpy statement of it, and what it leaves of the caller's network."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import pabzip.init
from pabzip.errors import SearchError, SeedError
from pabzip.search import SynFlowScorer, synflow


def weights_of(net):
    """Every Conv and Linear weight, by name."""
    return {name: p for name, p in net.named_parameters() if p.dim() > 1}


def small_net(seed=0, bias=True):
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Linear(5, 7, bias), nn.ReLU(), nn.Linear(7, 4, bias))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return net


class Block(nn.Module):
    """A residual block with a projection, as in the CIFAR ResNets."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
        )

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResidualNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.blocks = nn.Sequential(Block(8, 8, 1), Block(8, 16, 2))
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        x = self.blocks(torch.relu(self.bn(self.stem(x))))
        return self.head(self.dropout(x.mean((2, 3))))


def trained_residual_net(seed=7):
    """A ResNet-like network whose every kind of state is away from its default."""
    net = pabzip.init.init_(ResidualNet(), seed, skip=["head"])
    with torch.no_grad():
        for name, tensor in (*net.named_parameters(), *net.named_buffers()):
            if tensor.dim() == 1:
                tensor.copy_(torch.linspace(-0.5, 1.5, tensor.numel()))
            if "running_var" in name:
                tensor.abs_().add_(0.1)
    net.train()
    net.blocks[0].bn1.eval()
    net.head.bias.requires_grad_(False)
    net.stem.weight.grad = torch.full_like(net.stem.weight, 3.0)
    return net


def snapshot(net):
    """Everything that a search must put back."""
    return {
        "state": {name: tensor.clone() for name, tensor in net.state_dict().items()},
        "modes": [module.training for module in net.modules()],
        "asks": [p.requires_grad for p in net.parameters()],
        "gradients": [None if p.grad is None else p.grad.clone() for p in net.parameters()],
        "identities": [p.data_ptr() for p in (*net.parameters(), *net.buffers())],
        "random": torch.get_rng_state(),
        "dtype": torch.get_default_dtype(),
    }


def assert_same(before, after, but=()):
    for name, tensor in before["state"].items():
        if name not in but:
            assert after["state"][name].dtype == tensor.dtype
            assert after["state"][name].numpy().tobytes() == tensor.numpy().tobytes(), name
    for key in ("modes", "asks", "identities", "dtype"):
        assert before[key] == after[key], key
    for one, other in zip(before["gradients"], after["gradients"], strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)
    assert torch.equal(before["random"], after["random"])


def numpy_scores(net):
    """Synaptic flow of linear -> relu -> linear on ones, written out by hand."""
    w1, b1, w2, _ = (np.abs(p.detach().double().numpy()) for p in net.parameters())
    hidden = w1 @ np.ones(w1.shape[1]) + b1
    back = np.ones(w2.shape[0]) @ w2 * (hidden > 0)
    return {
        "0.weight": np.outer(back, np.ones(w1.shape[1])) * w1,
        "2.weight": np.outer(np.ones(w2.shape[0]), np.maximum(hidden, 0)) * w2,
    }


def test_scores_match_numpy():
    net = small_net()
    weights = weights_of(net)
    masks = {name: p != 0 for name, p in weights.items()}
    scores = SynFlowScorer(net, weights, (5,)).scores(masks)
    for name, expected in numpy_scores(net).items():
        assert scores[name].dtype == torch.float64
        np.testing.assert_allclose(scores[name].numpy(), expected, rtol=1e-13)


def test_whole_search_matches_numpy():
    net = small_net(3)
    reference = copy.deepcopy(net)
    total = 5 * 7 + 7 * 4
    for step in range(1, 11):
        scores = np.concatenate([s.ravel() for s in numpy_scores(reference).values()])
        keep = np.zeros(total, bool)
        keep[
            np.argsort(-scores, kind="stable")[: total - int((1 - 0.3 ** (step / 10)) * total)]
        ] = True
        with torch.no_grad():
            reference[0].weight.mul_(torch.from_numpy(keep[:35].reshape(7, 5)))
            reference[2].weight.mul_(torch.from_numpy(keep[35:].reshape(4, 7)))
    masks = synflow(net, 0.3, input_shape=(5,), iterations=10, weights=weights_of(net))
    assert np.array_equal(masks["0.weight"].numpy().ravel(), keep[:35])
    assert np.array_equal(masks["2.weight"].numpy().ravel(), keep[35:])


def test_batch_norm_statistics_count_by_absolute_value():
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2, eps=0.0))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, -2.0], [-3.0, 4.0]]))
        net[1].weight.copy_(torch.tensor([-0.5, 2.0]))
        net[1].running_var.copy_(torch.tensor([4.0, 16.0]))
    weights = weights_of(net)
    masks = {name: p != 0 for name, p in weights.items()}
    scores = SynFlowScorer(net, weights, (2,)).scores(masks)["0.weight"]
    assert torch.equal(scores, torch.tensor([[0.25, 0.5], [1.5, 2.0]], dtype=torch.float64))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), keep=st.floats(0.2, 1.0), iterations=st.integers(1, 6))
def test_count_is_exact_and_survivors_keep_their_bits(seed, keep, iterations):
    net = small_net(seed)
    before = {name: p.detach().clone() for name, p in weights_of(net).items()}
    masks = synflow(net, keep, input_shape=(5,), iterations=iterations, weights=weights_of(net))
    assert sum(int(mask.sum()) for mask in masks.values()) == 63 - int((1 - keep) * 63)
    for name, p in weights_of(net).items():
        expected = torch.where(masks[name], before[name], torch.zeros(()))
        assert torch.equal(p.detach().view(torch.int32), expected.view(torch.int32))


def test_ties_are_settled_by_position():
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(-1.0)
    masks = synflow(net, 21 / 32, input_shape=(4,), iterations=1, weights=weights_of(net))
    assert masks["0.weight"].all()
    assert masks["1.weight"].flatten().tolist() == [True] * 5 + [False] * 11


def test_residual_network_is_pruned_and_nothing_else_moves():
    net = trained_residual_net()
    before = snapshot(net)
    seen = []
    masks = synflow(
        net,
        0.1,
        input_shape=(3, 8, 8),
        iterations=20,
        on_iteration=lambda i, n: seen.append((i, n)),
    )
    seeded = pabzip.init.seeded_parameters(net)
    assert list(masks) == list(seeded)
    assert "head.weight" not in masks
    total = sum(p.numel() for p in seeded.values())
    assert sum(int(mask.sum()) for mask in masks.values()) == total - int(0.9 * total)
    assert seen == [(i, 20) for i in range(1, 21)]
    assert_same(before, snapshot(net), but=masks)
    for name, mask in masks.items():
        expected = torch.where(mask, before["state"][name], torch.zeros(()))
        assert torch.equal(seeded[name].detach().view(torch.int32), expected.view(torch.int32))


def test_signs_do_not_matter():
    net, other = trained_residual_net(), trained_residual_net()
    other.load_state_dict(net.state_dict())
    with torch.no_grad():
        other.blocks[0].conv1.weight.neg_()
    one, two = (synflow(n, 0.2, input_shape=(3, 8, 8), iterations=5) for n in (net, other))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_second_search_keeps_what_the_first_pruned():
    net = small_net()
    first = synflow(net, 0.6, input_shape=(5,), iterations=5, weights=weights_of(net))
    second = synflow(net, 0.3, input_shape=(5,), iterations=5, weights=weights_of(net))
    assert all(not bool((second[name] & ~first[name]).any()) for name in first)
    with pytest.raises(SearchError, match=r"asks for 32 survivors, found only 19 weights"):
        synflow(net, 0.5, input_shape=(5,), iterations=5, weights=weights_of(net))


def test_works_inside_other_modes():
    plain, inside = small_net(), small_net()
    expected = synflow(plain, 0.4, input_shape=(5,), iterations=4, weights=weights_of(plain))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = synflow(
            inside,
            0.4,
            input_shape=(5,),
            iterations=4,
            weights=weights_of(inside),
            dtype=torch.float32,
        )
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_half_precision_network_is_searched_in_float64():
    net = trained_residual_net().to(torch.bfloat16)
    masks = synflow(net, 0.3, input_shape=(3, 8, 8), iterations=3)
    assert net.stem.weight.dtype == torch.bfloat16
    assert sum(int((p != 0).sum()) for p in pabzip.init.seeded_parameters(net).values()) == sum(
        int(mask.sum()) for mask in masks.values()
    )


def test_shared_weight_is_one_weight():
    shared = nn.Linear(4, 4, bias=False)
    net = nn.Sequential(shared, nn.ReLU(), shared)
    masks = synflow(net, 0.5, input_shape=(4,), iterations=3, weights={"2.weight": shared.weight})
    assert int(masks["2.weight"].sum()) == 8
    assert int((shared.weight != 0).sum()) == 8
    with pytest.raises(SearchError, match=r"weights\['2.weight'\]: the same tensor as '0.weight'"):
        synflow(
            net,
            0.5,
            input_shape=(4,),
            weights={"0.weight": shared.weight, "2.weight": shared.weight},
        )


def test_layer_collapse_names_the_layer_and_restores():
    # Every layer carries the same flow, so pruning in one round takes the widest one whole.
    net = nn.Sequential(nn.Linear(1, 30), nn.Linear(30, 30), nn.Linear(30, 1))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(-1.0)
    before = snapshot(net)
    with pytest.raises(SearchError, match=r"layer collapse: nothing is left of '1.weight', and no"):
        synflow(net, 60 / 960, input_shape=(1,), iterations=1, weights=weights_of(net))
    assert_same(before, snapshot(net))
    synflow(net, 60 / 960, input_shape=(1,), iterations=100, weights=weights_of(net))


def test_an_empty_layer_with_a_way_around_it_is_no_collapse():
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.main = nn.Linear(4, 4, bias=False)
            self.side = nn.Linear(4, 4, bias=False)

        def forward(self, x):
            return self.main(x) + self.side(x)

    net = Around()
    with torch.no_grad():
        net.main.weight.fill_(1.0)
        net.side.weight.fill_(0.01)
    masks = synflow(net, 0.5, input_shape=(4,), iterations=1, weights=weights_of(net))
    assert masks["main.weight"].all()
    assert not masks["side.weight"].any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_overflow_names_the_layer(dtype):
    net = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(9)))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(1e38)
    with pytest.raises(
        SearchError, match=r"scores of '0.weight': expected finite values, found 16"
    ):
        synflow(net, 0.5, input_shape=(4,), iterations=2, weights=weights_of(net), dtype=dtype)


def test_weights_that_are_not_finite_are_named():
    net = small_net()
    with torch.no_grad():
        net[2].weight[0, 1] = float("nan")
    with pytest.raises(SearchError, match=r"weights\['2.weight'\]: .* found 1 of 28"):
        synflow(net, 0.5, input_shape=(5,), weights=weights_of(net))


@pytest.mark.parametrize("keep", [0.0, -0.1, 1.1, float("nan"), True])
def test_keep_ratio_out_of_range(keep):
    net = small_net()
    with pytest.raises(
        SearchError, match=r"keep_ratio: expected a fraction with 0 < keep_ratio <="
    ):
        synflow(net, keep, input_shape=(5,), weights=weights_of(net))


def test_keep_ratio_that_leaves_nothing():
    net = small_net()
    with pytest.raises(SearchError, match=r"1e-17 of 63 weights leaves none"):
        synflow(net, 1e-17, input_shape=(5,), weights=weights_of(net))


@pytest.mark.parametrize("iterations", [0, -1, 2.0, True])
def test_iterations_out_of_range(iterations):
    net = small_net()
    with pytest.raises(SearchError, match=r"iterations: expected an integer of at least 1"):
        synflow(net, 0.5, input_shape=(5,), iterations=iterations, weights=weights_of(net))


@pytest.mark.parametrize("shape", [(), 5, (5, 0), (2.0,), "ab"])
def test_input_shape_that_is_no_shape(shape):
    net = small_net()
    with pytest.raises(SearchError, match=r"input_shape: expected the sizes of one input"):
        synflow(net, 0.5, input_shape=shape, weights=weights_of(net))


def test_input_shape_that_does_not_fit_restores_everything():
    net = trained_residual_net()
    before = snapshot(net)
    with pytest.raises(
        SearchError, match=r"ResidualNet on inputs of shape \(1, 4, 8, 8\): .* input_"
    ):
        synflow(net, 0.5, input_shape=(4, 8, 8))
    assert_same(before, snapshot(net))


def test_an_interrupt_restores_everything():
    net = trained_residual_net()
    before = snapshot(net)

    def interrupt(iteration, iterations):
        if iteration == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synflow(net, 0.5, input_shape=(3, 8, 8), iterations=3, on_iteration=interrupt)
    assert_same(before, snapshot(net))


def test_an_exception_of_the_network_restores_everything():
    class Breaking(ResidualNet):
        def forward(self, x):
            self.bn.running_mean.add_(1.0)
            super().forward(x)
            torch.rand(3)
            raise KeyError("mine")

    net = Breaking().train()
    before = snapshot(net)
    with pytest.raises(KeyError, match="mine"):
        synflow(net, 0.5, input_shape=(3, 8, 8), weights=weights_of(net))
    assert_same(before, snapshot(net))


@pytest.mark.parametrize(
    ("result", "problem"),
    [
        (lambda x: (1, "x"), "expected one floating tensor as output, .* found tuple; output= is"),
        (lambda x: [x.argmax(1)], "expected one floating .* found list of 0 torch.int64;"),
        (lambda x: x.argmax(1), "expected one floating tensor as output, .* found torch.int64;"),
        (lambda x: x.detach(), "expected an output that depends on the weights"),
    ],
)
def test_outputs_that_cannot_be_summed(result, problem):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(5, 2)

        def forward(self, x):
            return result(self.layer(x))

    net = Odd()
    with pytest.raises(SearchError, match=problem):
        synflow(net, 0.5, input_shape=(5,), weights=weights_of(net))


def test_network_without_a_seed():
    with pytest.raises(SeedError, match=r"call pabzip.init_\(net, seed=...\) first"):
        synflow(small_net(), 0.5, input_shape=(5,))


def test_weights_of_another_network():
    net = small_net()
    with pytest.raises(SearchError, match=r"weights\['0.weight'\]: expected a parameter of Sequen"):
        synflow(net, 0.5, input_shape=(5,), weights=weights_of(small_net()))
    with pytest.raises(SearchError, match="expected at least one weight to search"):
        synflow(net, 0.5, input_shape=(5,), weights={})


@pytest.mark.parametrize("dtype", [torch.int64, torch.bfloat16])
def test_dtype_of_scores(dtype):
    net = small_net()
    problem = rf"dtype: expected torch.float64 or torch.float32, found {dtype}"
    with pytest.raises(SearchError, match=problem):
        synflow(net, 0.5, input_shape=(5,), weights=weights_of(net), dtype=dtype)
