"""The comparison itself: which batches, which differences, which ties."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pabzip.errors import ExportError
from pabzip.export.parity import check_batches, check_parity

SHAPE = (2, 3, 3)
FINITE = st.floats(-1e3, 1e3, width=32)
LOGITS = arrays.arrays(np.float32, st.tuples(st.just(4), st.integers(1, 5)), elements=FINITE)


def replay(logits):
    """Return a model that answers with the rows of ``logits``, as they stand."""
    return lambda rows: logits[rows[:, 0].astype(int)]


def compare(found, expected, **options):
    rows = np.arange(len(expected), dtype=np.float32)[:, None]
    options = {"tolerance": 1e-4, **options}
    return check_parity(replay(np.asarray(found)), np.split(rows, [1]), expected, **options)


def test_drawn_batches_are_always_the_same_and_begin_with_one_image():
    batches = check_batches(SHAPE)
    assert [batch.shape for batch in batches] == [(1, *SHAPE), (2, *SHAPE), (5, *SHAPE)]
    again = check_batches(SHAPE)
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))
    drawn = np.concatenate(batches)
    assert drawn.dtype == np.float32
    assert abs(drawn.mean()) < 0.3
    assert 0.7 < drawn.std() < 1.3


def test_drawn_batches_for_a_fixed_batch_hold_one_image_each():
    assert [len(batch) for batch in check_batches(SHAPE, dynamic_batch=False)] == [1] * 8


@pytest.mark.parametrize(("count", "sizes"), [(1, [1]), (3, [1, 2]), (130, [1, 64, 64, 1])])
def test_samples_are_all_used(count, sizes):
    samples = torch.arange(count * 18, dtype=torch.float64).reshape(count, *SHAPE)
    batches = check_batches(SHAPE, samples)
    assert [len(batch) for batch in batches] == sizes
    assert np.array_equal(np.concatenate(batches), samples.numpy().astype(np.float32))


@pytest.mark.parametrize("shape", [(0, *SHAPE), SHAPE, (4, 3, 3, 3)])
def test_samples_of_another_shape_are_refused(shape):
    with pytest.raises(ExportError, match=r"samples: expected at least one image of shape \[2, 3"):
        check_batches(SHAPE, np.zeros(shape))


@given(LOGITS)
def test_equal_logits_agree_exactly(logits):
    assert compare(logits, logits) == 0


@given(LOGITS, st.data())
def test_one_difference_beyond_the_tolerance_is_named(logits, data):
    image = data.draw(st.integers(0, logits.shape[0] - 1))
    label = data.draw(st.integers(0, logits.shape[1] - 1))
    smallest = float(np.finfo(np.float32).tiny)  # a hundredth of less could round to nothing
    largest = max(float(np.abs(logits).max()), smallest) if logits.any() else 1.0
    found = logits.copy()
    found[image, label] += 0.01 * largest
    with pytest.raises(ExportError, match=f"at image {image}, class {label} .*nothing was written"):
        compare(found, logits)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_never_agree(bad):
    expected = np.float32([[1, 2], [3, 4]])
    found = expected.copy()
    found[1, 0] = bad
    with pytest.raises(ExportError, match="found a difference of inf at image 1, class 0"):
        compare(found, expected, tolerance=0.5)


def test_another_class_is_refused_though_its_logits_are_within_the_tolerance():
    expected = np.float32([[1, 1.00005], [0, 1]])
    found = np.float32([[1.00006, 1.00005], [0, 1]])
    with pytest.raises(ExportError, match=r"found 1 of 2 images in another class, image 0 first"):
        compare(found, expected)


def test_a_tie_of_torch_itself_may_fall_either_way():
    expected = np.float32([[1, 1], [0, 1]])
    found = np.float32([[1, 1.0000001], [0, 1]])
    assert compare(found, expected) < 1e-6


def test_a_tie_is_wider_in_float16():
    expected = np.float32([[1, 1.004], [0, 1]])
    found = np.float32([[1.003, 1.002], [0, 1]])
    assert compare(found, expected, tolerance=1e-2, float16=True) < 1e-2
    with pytest.raises(ExportError, match="in another class"):
        compare(found, expected, tolerance=1e-2)


def test_zero_logits_must_be_matched():
    zero = np.zeros((2, 3), np.float32)
    assert compare(zero, zero) == 0
    with pytest.raises(ExportError, match="parity: expected logits within"):
        compare(zero + 1e-3, zero)


def test_logits_of_another_shape_are_refused():
    zero = np.zeros((2, 3), np.float32)
    with pytest.raises(ExportError, match=r"logits of shape \[2, 3\], found \[2, 2\]"):
        compare(zero[:, :2], zero)
