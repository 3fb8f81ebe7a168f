"""The threshold, the schedule and the application of masks."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pabzip.errors import SearchError
from pabzip.search import apply_masks, exponential_schedule, keep_largest


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.integers(0, 5), min_size=1, max_size=40),
    alive=st.lists(st.booleans(), min_size=40, max_size=40),
    cut=st.integers(0, 40),
    count=st.integers(0, 45),
)
def test_keep_largest_is_a_stable_sort(values, alive, cut, count):
    scores = np.array(values, dtype=np.float64)
    mask = np.array(alive[: len(values)])
    positions = np.flatnonzero(mask)
    order = positions[np.argsort(-scores[positions], kind="stable")]
    expected = np.zeros(len(values), bool)
    expected[order[:count]] = True
    parts = {"a": slice(0, cut), "b": slice(cut, None)}
    masks = {name: torch.from_numpy(mask[part]) for name, part in parts.items()}
    before = {name: m.clone() for name, m in masks.items()}
    by_name = {name: torch.from_numpy(scores[part]) for name, part in parts.items()}
    found = keep_largest(by_name, masks, count)
    assert np.array_equal(torch.cat(list(found.values())).numpy(), expected)
    assert all(torch.equal(masks[name], before[name]) for name in masks)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_not_finite(bad):
    scores = {"a": torch.ones(3), "b": torch.tensor([1.0, bad])}
    masks = {"a": torch.ones(3, dtype=torch.bool), "b": torch.ones(2, dtype=torch.bool)}
    with pytest.raises(SearchError, match=r"scores of 'b': expected finite values, found 1 of 2"):
        keep_largest(scores, masks, 2)


@given(keep=st.floats(0.01, 1.0), iterations=st.integers(1, 200), weights=st.integers(100, 10**8))
def test_schedule_falls_to_the_exact_count(keep, iterations, weights):
    counts = exponential_schedule(keep, iterations, weights)
    assert len(counts) == iterations
    assert counts[-1] == weights - int((1 - keep) * weights)
    assert counts == sorted(counts, reverse=True)
    assert counts[0] <= weights


def test_schedule_of_the_paper():
    counts = exponential_schedule(0.1, 100, 11_164_352)
    assert counts[-1] == 1_116_436  # 10,047,916.8 are to be pruned
    assert counts[0] == 10_910_221
    assert counts[49] == 3_530_479


def test_apply_masks_writes_positive_zero_and_keeps_survivors():
    net = nn.Linear(2, 2)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[-1.5, -2.5], [3.5, -0.25]]))
    apply_masks(net, {"weight": torch.tensor([[True, False], [False, True]])})
    assert net.weight.tolist() == [[-1.5, 0.0], [0.0, -0.25]]
    assert not torch.signbit(net.weight)[0, 1]
    assert net.weight.requires_grad


@pytest.mark.parametrize(
    ("masks", "problem"),
    [
        ({"nothing": torch.ones(2, 2, dtype=torch.bool)}, r"masks\['nothing'\]: expected the name"),
        ({"weight": torch.ones(2, 2)}, r"expected a bool tensor of shape \(2, 2\), found torch.fl"),
        ({"weight": torch.ones(2, 3, dtype=torch.bool)}, r"found torch.bool of shape \(2, 3\)"),
    ],
)
def test_apply_masks_checks_all_before_it_changes_any(masks, problem):
    net = nn.Linear(2, 2)
    before = net.bias.detach().clone()
    with pytest.raises(SearchError, match=problem):
        apply_masks(net, {"bias": torch.zeros(2, dtype=torch.bool), **masks})
    assert torch.equal(net.bias, before)
