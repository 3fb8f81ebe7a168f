"""Expected bytes against the files that are packed."""

import io

import pytest
import torch
from torch import nn

import pabzip
from pabzip.checkpoint import save_checkpoint
from pabzip.errors import PackError, SearchError, SeedError
from pabzip.seeds import Frozen
from pabzip.supermask import EdgePopup
from pabzip.train import Recipe, to_dict
from pabzip.train.file_size import ExpectedBytes, sign_bits


def ticket(arch="resnet20", options=None, keep_ratio=0.3):
    """Return a pruned network and its masks; no sign is flipped yet."""
    options = {"width": 4} if options is None else options
    net = pabzip.init_(pabzip.models.build(arch, options, dense_seed=1), 3)
    options = net.pabzip_arch[1]
    shape = (options["in_channels"], options["image_size"], options["image_size"])
    return net, pabzip.search.synflow(net, keep_ratio, input_shape=shape, iterations=5)


def train_a_little(net, flips):
    """Flip a fraction of the signs, and move the dense tensors away from their first values."""
    generator = torch.Generator().manual_seed(0)
    seeded = pabzip.seeded_parameters(net)
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if name in seeded:
                chosen = torch.rand(value.shape, generator=generator) < flips
                value.mul_(torch.where(chosen, -1.0, 1.0)).add_(0.0)
            elif value.is_floating_point():
                value.add_(torch.rand(value.shape, generator=generator))


@pytest.mark.parametrize("flips", [0.0, 0.02, 0.1, 0.3, 0.5, 1.0])
@pytest.mark.parametrize(
    ("arch", "options"),
    [("resnet20", {"width": 4}), ("lenet-300-100", {"in_channels": 1, "image_size": 8})],
)
def test_close_to_the_file(arch, options, flips):
    net, masks = ticket(arch, options)
    expected = ExpectedBytes(net, masks)
    train_a_little(net, flips)
    allowed = 0.02 if flips in (0.0, 1.0) else 0.01  # signs that need no coding save its bytes
    size = pabzip.pack(net, io.BytesIO())["bytes"]
    assert expected.bytes() == pytest.approx(size, rel=allowed)


def test_a_random_mask_and_plain_bits_cost_what_they_cost():
    net = pabzip.init_(pabzip.models.build("resnet20", {"width": 4}, dense_seed=1), 3)
    generator = torch.Generator().manual_seed(5)
    masks = {
        name: torch.rand(weight.shape, generator=generator) < 0.5
        for name, weight in pabzip.seeded_parameters(net).items()
    }
    pabzip.search.apply_masks(net, masks)
    expected = ExpectedBytes(net, masks)
    for flips in (0.1, 0.5):
        train_a_little(net, flips)
        assert expected.bytes() == pytest.approx(pabzip.pack(net, io.BytesIO())["bytes"], rel=0.01)


def test_the_header_of_a_checkpoint(tmp_path):
    net, masks = ticket("lenet-300-100", {"in_channels": 1, "image_size": 8}, 0.1)
    recipe = Recipe(keep_ratio=0.1)
    expected = ExpectedBytes(net, masks, recipe)
    train_a_little(net, 0.2)
    results = {"data": "digits", "method": "pab-bop", "keep_ratio": 0.1, "epochs": 20}
    save_checkpoint(
        net,
        tmp_path / "m.pt",
        settings=to_dict(recipe),
        results={**results, "test_accuracy": 1 / 3},
    )
    size = pabzip.pack(tmp_path / "m.pt", tmp_path / "m.pabz")["bytes"]
    assert expected.bytes() == pytest.approx(size, rel=0.01)
    assert expected.bytes() > ExpectedBytes(net, masks).bytes() + 20


def test_it_starts_from_the_seed_and_not_from_the_signs_of_the_moment():
    net, masks = ticket()
    train_a_little(net, 0.1)
    expected = ExpectedBytes(net, masks)
    size = pabzip.pack(net, io.BytesIO())["bytes"]
    assert expected.bytes() == pytest.approx(size, rel=0.01)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    expected.bytes()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_weight_of_two_names_costs_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(64, 32)
            self.inner = nn.Linear(32, 32, bias=False)
            self.head = nn.Linear(32, 64, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, tokens):
            return self.head(self.inner(self.embedding(tokens)))

    net = pabzip.init_(Tied(), 1)
    masks = {name: weight.abs() > 0.2 for name, weight in pabzip.seeded_parameters(net).items()}
    pabzip.search.apply_masks(net, masks)
    expected = ExpectedBytes(net, masks)
    with torch.no_grad():
        net.head.weight[::3] *= -1
        net.head.weight += 0.0
    assert expected.bytes() == pytest.approx(pabzip.pack(net, io.BytesIO())["bytes"], rel=0.01)


def test_weights_that_are_pruned_already_do_not_survive():
    net, masks = ticket()
    every = {name: torch.ones_like(mask) for name, mask in masks.items()}
    assert ExpectedBytes(net, every).bytes() == ExpectedBytes(net, masks).bytes()


def test_a_wrapped_network():
    net, masks = ticket("lenet-300-100", {"in_channels": 1, "image_size": 8})
    wrapped = nn.DataParallel(net)
    assert ExpectedBytes(wrapped, masks).bytes() == ExpectedBytes(net, masks).bytes()


def test_sign_bits():
    assert sign_bits(0, 100) == sign_bits(100, 100) == sign_bits(0, 0) == 0.0
    assert sign_bits(50, 100) == 100.0
    assert sign_bits(10, 100) == pytest.approx(46.8996, abs=1e-4)
    assert sign_bits(90, 100) == pytest.approx(sign_bits(10, 100))


def test_refusals():
    net, masks = ticket("lenet-300-100", {"in_channels": 1, "image_size": 8})
    name = next(iter(masks))
    with pytest.raises(SearchError, match=r"masks: expected one for each seeded weight.*; found"):
        ExpectedBytes(net, {key: mask for key, mask in masks.items() if key != name})
    with pytest.raises(SearchError, match=r"of its shape: .*; found .* \[1\]"):
        ExpectedBytes(net, {**masks, name: torch.ones(1, dtype=torch.bool)})
    with pytest.raises(SearchError, match="found none"):
        ExpectedBytes(net, {})
    with pytest.raises(SeedError, match=r"call pabzip.init_"):
        ExpectedBytes(nn.Linear(2, 2), {})
    expected = ExpectedBytes(net, masks)
    with torch.no_grad():
        next(iter(pabzip.seeded_parameters(net).values())).mul_(1.5)
    with pytest.raises(PackError, match="expected every surviving weight to be plus or minus"):
        expected.bytes()


@pytest.mark.parametrize("flips", [0.1, 0.5])
def test_places_that_the_seed_freezes_cost_nothing(flips):
    net = pabzip.init_(pabzip.models.build("lenet-300-100", {}, dense_seed=1), 3)
    frozen = Frozen.of(0.4, 0.3)
    rule = EdgePopup(net, lambda scores: torch.optim.SGD(scores, 0.1), 0.5, frozen=frozen)
    expected = ExpectedBytes(net, rule.masks)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in pabzip.seeded_parameters(net).items():
            chosen = torch.rand(weight.shape, generator=generator) < flips
            weight.mul_(torch.where(chosen & ~rule.frozen[name], -1.0, 1.0)).add_(0.0)
    size = pabzip.pack(net, io.BytesIO())["bytes"]
    assert expected.bytes() == pytest.approx(size, rel=0.01)
