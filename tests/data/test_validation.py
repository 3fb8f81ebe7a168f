"""Training images that are held out: which ones, how many of each label, and nothing else."""

from __future__ import annotations

import dataclasses
import hashlib
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pabzip.data import ImageFiles, Images, Splits, hold_out, load
from pabzip.errors import RecipeError, SeedError

# Of the digits, by seed 0: how many of each label, and the first digits of their pixels' SHA-256.
HELD_OUT, DIGEST = [13, 15, 13, 15, 13, 14, 14, 14, 14, 15], "5f3911dcb4580c6b"


def splits_of(labels: list[int], classes: int) -> Splits:
    """A dataset with these labels, in which the pixel of each image is its place."""
    pixels = torch.arange(len(labels)).view(-1, 1, 1, 1).to(torch.uint8)
    train = Images(pixels, torch.tensor(labels), 255, (0.5,), (0.25,))
    return Splits("made up", train, train, classes)


def places(images: Images) -> list[int]:
    """The places of images in what they were taken from."""
    return images.images.flatten().tolist()


@settings(max_examples=50, deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    percent=st.integers(1, 99),
    seed=st.integers(0, 2**64 - 1),
)
def test_each_label_gives_its_share_and_every_image_is_in_one_part(labels, percent, seed):
    splits = splits_of(labels, classes=5)
    total = len(labels) * percent // 100
    if not total:
        with pytest.raises(RecipeError, match="holds out at least one"):
            hold_out(splits, percent / 100, seed=seed)
        return
    found = hold_out(splits, percent / 100, seed=seed)
    assert isinstance(found.train, Images)
    assert isinstance(found.validation, Images)
    trained, held = places(found.train), places(found.validation)
    assert sorted(trained + held) == list(range(len(labels)))
    assert (sorted(trained), sorted(held)) == (trained, held)
    assert len(held) == total
    assert found.validation.labels.tolist() == [labels[place] for place in held]
    for label in range(5):
        share = Fraction(percent, 100) * labels.count(label)
        assert abs(found.validation.labels.tolist().count(label) - share) < 1
    again = hold_out(splits, percent / 100, seed=seed).validation
    assert isinstance(again, Images)
    assert places(again) == held


def test_the_same_digits_on_every_machine():
    found = hold_out(load("digits"), 0.1, seed=0)
    assert isinstance(found.validation, Images)
    assert (len(found.train), len(found.validation)) == (1260, 140)
    assert found.validation.labels.bincount().tolist() == HELD_OUT
    pixels = found.validation.images.numpy().tobytes()
    assert hashlib.sha256(pixels).hexdigest()[:16] == DIGEST
    other = hold_out(load("digits"), 0.1, seed=1).validation
    assert isinstance(other, Images)
    assert not torch.equal(other.images, found.validation.images)


def test_a_fraction_is_the_number_that_was_written():
    held = hold_out(splits_of([0] * 10, 1), 0.3, seed=0).validation  # 0.3 as a float is less
    assert held is not None
    assert len(held) == 3


def test_the_largest_remainders_are_rounded_up_and_lower_labels_first():
    held = hold_out(splits_of([0] * 5 + [1] * 7 + [2] * 5 + [3] * 3, 4), 0.25, seed=3).validation
    assert held is not None  # shares of 1.25, 1.75, 1.25 and 0.75; together 5
    assert held.labels.bincount(minlength=4).tolist() == [1, 2, 1, 1]
    held = hold_out(splits_of([0, 1, 2, 0, 1, 2], 3), 0.25, seed=3).validation
    assert held is not None  # three shares of 0.5; together 1
    assert held.labels.tolist() == [0]


def test_all_else_of_a_dataset_stays():
    splits = load("digits")
    found = hold_out(splits, 0.2, seed=0)
    assert found.validation is not None
    assert found.test is splits.test
    for part in (found.train, found.validation):
        assert (part.mean, part.std, part.peak) == (splits.mean, splits.std, splits.train.peak)
    assert (found.name, found.num_classes) == (splits.name, splits.num_classes)


def test_images_in_files_are_held_out_too():
    train = ImageFiles(("a", "b", "c", "d"), torch.tensor([0, 1, 0, 1]), size=8, resized=9)
    found = hold_out(Splits("files", train, train, 2), 0.5, seed=0)
    assert isinstance(found.train, ImageFiles)
    assert isinstance(found.validation, ImageFiles)
    assert sorted(found.train.paths + found.validation.paths) == ["a", "b", "c", "d"]
    for part in (found.train, found.validation):
        assert part.labels.tolist() == ["abcd".index(path) % 2 for path in part.paths]
        assert sorted(part.labels.tolist()) == [0, 1]
        assert (part.size, part.resized) == (8, 9)


def test_what_cannot_be_held_out_is_refused():
    splits = splits_of([0, 1] * 5, 2)
    with pytest.raises(RecipeError, match=r"at least one of the 10 training images .*found 0\.09"):
        hold_out(splits, 0.09, seed=0)
    for fraction in (0.0, 1.0, -0.5, float("nan")):
        with pytest.raises(RecipeError, match="above 0 and below 1"):
            hold_out(splits, fraction, seed=0)
    with pytest.raises(SeedError):
        hold_out(splits, 0.5, seed=-1)
    whole = dataclasses.replace(splits, validation=splits.test)
    with pytest.raises(RecipeError, match="expected 0 for made up, which brings 10"):
        hold_out(whole, 0.5, seed=0)
