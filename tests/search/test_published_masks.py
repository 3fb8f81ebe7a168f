"""Masks against a plain restatement of the published procedure, weight for weight.

The restatement follows the code of Peek-a-Boo (VITA-Group/Peek-a-Boo: prune.py, pruners, generator
and masked_layers), which took its loop from that of Tanaka et al. 2020: the network in double
precision and in evaluation mode; masks that multiply the weights in every layer; round i of n
removes all scores up to the ``int((1 - keep ** (i / n)) * N)``-th smallest of all N. Masks stay
from search to search, and a later search begins its schedule anew.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import pabzip
from pabzip import models
from pabzip.errors import SearchError
from pabzip.search import grasp, magnitude, snip, synflow

SHAPE = (3, 32, 32)


def network(name, seed):
    """A network with a dense classifier, as published, whose batch norm has seen images."""
    net = models.build(name, num_classes=10, dense_seed=seed)
    pabzip.init_(net, seed, skip=lambda module, _: isinstance(module, nn.Linear))
    generator = torch.Generator().manual_seed(seed)
    net.train()
    with torch.no_grad():
        net(torch.randn(16, *SHAPE, generator=generator))
    return net


class Published:
    """The published procedure on a copy of a network, with masks that stay between searches."""

    def __init__(self, net):
        self.net = copy.deepcopy(net).double().eval()
        names = list(pabzip.seeded_parameters(net))
        self.weights = {name: self.net.get_parameter(name) for name in names}
        self.masks = {name: torch.ones_like(w) for name, w in self.weights.items()}

    def _masked(self):
        return {name: w * self.masks[name] for name, w in self.weights.items()}

    def synflow(self):
        signs = {}
        with torch.no_grad():
            for name, value in self.net.state_dict().items():
                signs[name] = torch.sign(value)
                value.abs_()
        ones = torch.ones(1, *SHAPE, dtype=torch.float64)
        torch.func.functional_call(self.net, self._masked(), ones).sum().backward()
        with torch.no_grad():
            scores = {name: (w.grad * w).abs() for name, w in self.weights.items()}
            for name, value in self.net.state_dict().items():
                value.mul_(signs[name])
        self.net.zero_grad()
        return scores

    def magnitude(self):
        return {name: w.detach().abs() for name, w in self.weights.items()}

    def losses(self, temperature, parts):
        """The losses of batches of images, batch norm by running statistics."""
        for inputs, labels in parts:
            logits = torch.func.functional_call(self.net, self._masked(), inputs.double())
            yield nn.functional.cross_entropy(logits / temperature, labels)

    def snip(self, parts):
        for mask in self.masks.values():
            mask.requires_grad_()
        for loss in self.losses(1.0, parts):
            loss.backward()
        scores = {name: mask.grad.abs() for name, mask in self.masks.items()}
        self.masks = {name: mask.detach() for name, mask in self.masks.items()}
        total = sum(score.sum() for score in scores.values())
        return {name: score / total for name, score in scores.items()}

    def grasp(self, parts):
        weights = list(self.weights.values())
        first = [torch.zeros_like(w) for w in weights]
        for loss in self.losses(200.0, parts):
            gradients = torch.autograd.grad(loss, weights)
            first = [one + other for one, other in zip(first, gradients, strict=True)]
        for loss in self.losses(200.0, parts):
            gradients = torch.autograd.grad(loss, weights, create_graph=True)
            sum((one * g).sum() for one, g in zip(first, gradients, strict=True)).backward()
        return {name: (w.grad * w).detach() for name, w in self.weights.items()}

    def prune(self, score, keep, rounds, schedule="exponential", scope="global"):
        for i in range(1, rounds + 1):
            scores = score()
            kept = keep ** (i / rounds)
            if schedule == "linear":
                kept = 1.0 - (1.0 - keep) * (i / rounds)
            for names in [list(scores)] if scope == "global" else [[name] for name in scores]:
                together = torch.cat([scores[name].flatten() for name in names])
                count = int((1.0 - kept) * together.numel())
                if count >= 1:
                    threshold = torch.kthvalue(together, count).values
                    for name in names:
                        self.masks[name] = (scores[name] > threshold).double()
        return {name: mask.bool() for name, mask in self.masks.items()}


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, mask in found.items():
        assert torch.equal(mask, expected[name]), name


@pytest.mark.parametrize("keep", [0.1, 0.05])
@pytest.mark.parametrize(
    ("name", "rounds"), [("resnet20", 40), pytest.param("resnet18", 10, marks=pytest.mark.slow)]
)
def test_synflow_finds_the_published_mask(name, rounds, keep):
    """With scores in float64 and in float32.

    The 100 rounds of the paper find the same masks too, of all 11,164,352 weights of ResNet-18, but
    take minutes; ``benchmarks/search_speed.py`` compares them.
    """
    net = network(name, 3)
    published = Published(net)
    expected = published.prune(published.synflow, keep, rounds)
    for dtype in (torch.float64, torch.float32):
        found = synflow(copy.deepcopy(net), keep, input_shape=SHAPE, iterations=rounds, dtype=dtype)
        assert_same(found, expected)


@pytest.mark.parametrize(("schedule", "scope"), [("linear", "global"), ("exponential", "layer")])
def test_the_other_schedule_and_scope(schedule, scope):
    net = network("resnet20", 4)
    published = Published(net)
    expected = published.prune(published.synflow, 0.2, 5, schedule, scope)
    found = synflow(net, 0.2, input_shape=SHAPE, iterations=5, schedule=schedule, scope=scope)
    assert_same(found, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_synflow_in_several_shots(dtype):
    """Two shots of Table 4, with signs that training has flipped between them."""
    net = network("resnet20", 5)
    published = Published(net)
    for keep in (1 - 0.9 / 2, 0.1):
        expected = published.prune(published.synflow, keep, 20)
        found = synflow(net, keep, input_shape=SHAPE, iterations=20, dtype=dtype)
        assert_same(found, expected)
        with torch.no_grad():
            for name, weight in pabzip.seeded_parameters(net).items():
                generator = torch.Generator().manual_seed(weight.numel())
                flips = torch.randint(2, weight.shape, generator=generator) * 2 - 1
                weight.mul_(flips)
                published.weights[name].mul_(flips)
            for theirs, own in zip(published.net.modules(), net.modules(), strict=True):
                if isinstance(own, nn.BatchNorm2d):
                    own.bias.uniform_(-1, 1)
                    theirs.bias.copy_(own.bias)


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_magnitude_finds_the_published_mask(scope):
    net = network("resnet20", 6)
    published = Published(net)
    expected = published.prune(published.magnitude, 0.3, 1, scope=scope)
    assert_same(magnitude(net, 0.3, input_shape=SHAPE, scope=scope), expected)


def images(count=20):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, *SHAPE, generator=generator)
    return [(inputs[half], torch.arange(count)[half] % 10) for half in (slice(8), slice(8, 16))]


@pytest.mark.parametrize("search", [snip, grasp])
@pytest.mark.parametrize("trained", [False, True])
def test_snip_and_grasp_find_the_published_masks(search, trained):
    """In evaluation mode, in double precision; statistics as they were made, or as trained."""
    net = network("resnet20", 7)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d) and not trained:
            module.reset_running_stats()
    published = Published(net)
    score = published.snip if search is snip else published.grasp
    expected = published.prune(lambda: score(images()), 0.1, 1)
    how = {"example_inputs": images(), "dtype": torch.float64}
    found = search(copy.deepcopy(net), 0.1, batch_norm="running", **how)
    assert_same(found, expected)
    if search is snip:
        assert_same(snip(copy.deepcopy(net), 0.1, **how), expected)
    by_batch = search(net, 0.1, batch_norm="batch", **how)
    assert any(not torch.equal(mask, expected[name]) for name, mask in by_batch.items())


@pytest.mark.parametrize("search", [snip, grasp])
def test_a_batch_norm_that_is_not_there(search):
    with pytest.raises(SearchError, match=r"batch_norm: expected one of batch, running, found 3"):
        search(network("resnet20", 7), 0.1, batch_norm=3, example_inputs=images())
