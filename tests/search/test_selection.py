"""The largest of many values: exact, whatever the sample says."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pabzip.search import keep_largest
from pabzip.search.masks import DOUBT


def largest(values, among, count, exact=None):
    """Where the largest are, of tensors named by their numbers."""
    found = keep_largest(dict(enumerate(values)), dict(enumerate(among)), count, exact=exact)
    return list(found.values())


def expected(values, among, count):
    flat = np.where(among, values, -np.inf)
    result = np.zeros(len(flat), bool)
    result[np.argsort(-flat, kind="stable")[:count]] = True
    return result


def parts_of(array, cut):
    return [torch.from_numpy(part.copy()) for part in np.split(array, [cut])]


@pytest.mark.parametrize("kind", ["normal", "few", "periodic", "rising", "spike", "heavy"])
@pytest.mark.parametrize("share", [1e-5, 0.1, 0.5, 0.97, 1.0])
def test_many_values(kind, share):
    rng = np.random.default_rng(1)
    size = 210_000
    draws = {
        "normal": lambda: rng.normal(size=size),
        "few": lambda: rng.integers(0, 4, size).astype(float),
        "periodic": lambda: (np.arange(size) % 11 == 0) + rng.normal(size=size) * 1e-3,
        "rising": lambda: np.arange(size, dtype=float),
        "spike": lambda: np.where(np.arange(size) // 1000 == 77, 1e30, rng.random(size)),
        "heavy": lambda: np.exp(20 * rng.normal(size=size)),
    }
    values = draws[kind]().astype(np.float32)
    among = rng.random(size) < 0.6
    count = max(1, int(share * among.sum()))
    found = largest(parts_of(values, 70_001), parts_of(among, 70_001), count)
    assert np.array_equal(torch.cat(found).numpy(), expected(values, among, count))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000), count=st.integers(0, 300), spread=st.sampled_from([1e-9, 1e-6, 1e-3])
)
def test_rounded_values_are_settled_by_what_they_stand_for(seed, count, spread):
    rng = np.random.default_rng(seed)
    exact = 1.0 + spread * rng.random(300)
    rounded = exact.astype(np.float32)
    asked = []

    def settle(places):
        asked.extend(places.values())
        return {number: parts_of(exact, 90)[number][place] for number, place in places.items()}

    among = np.ones(300, bool)
    found = largest(parts_of(rounded, 90), parts_of(among, 90), count, settle)
    assert np.array_equal(torch.cat(found).numpy(), expected(exact, among, count))
    if count and spread == 1e-3:
        assert sum(len(place) for place in asked) <= 4 * DOUBT / spread * 300 + 30


def test_columns_of_a_transposed_tensor_count_in_row_major_order():
    values = torch.tensor([[1.0, 2.0, 2.0], [2.0, 2.0, 0.0]])
    among = torch.ones(2, 3, dtype=torch.bool)
    for layout in (values, values.t().contiguous().t()):
        (found,) = largest([layout], [among.t().contiguous().t()], 3)
        assert found.tolist() == [[False, True, True], [True, False, False]]


def test_tensors_of_several_dtypes():
    values = [torch.tensor([1.0, 3.0], dtype=torch.bfloat16), torch.tensor([2.0, 1.0000001])]
    among = [torch.ones(2, dtype=torch.bool)] * 2
    found = largest(values, among, 3)
    assert [part.tolist() for part in found] == [[False, True], [True, True]]
