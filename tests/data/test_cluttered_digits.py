"""Cluttered digits: pinned bits, exact arithmetic, and no test digit among the training images."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pabzip import data
from pabzip.data import cluttered_digits as kernels
from pabzip.data.cluttered_digits import paint
from pabzip.data.digits import read_digits

# A change would make every recorded result on the dataset incomparable.
TRAIN = "3b2718c0e3ca87abfd7212914ae5c293b2a66efaa908b632a236076dbe977fbc"
TEST = "bac9c91ad563a3c7b89b3b20575f9fbef977d26a9161b2d6eec8cd9005e40308"


@pytest.fixture(scope="module")
def cluttered():
    return data.load("cluttered-digits")


@pytest.fixture(scope="module")
def digits():
    train, test = read_digits()
    return {"train": train, "test": test}


def test_every_bit_is_pinned(cluttered):
    for part, digest in ((cluttered.train, TRAIN), (cluttered.test, TEST)):
        assert hashlib.sha256(part.images.numpy().tobytes()).hexdigest() == digest


def test_shapes_labels_and_constants(cluttered):
    assert cluttered.name == "cluttered-digits"
    shape = (cluttered.num_classes, cluttered.in_channels, cluttered.image_size)
    assert shape == (10, 3, 32)
    assert (len(cluttered.train), len(cluttered.test)) == (50_000, 10_000)
    for part in (cluttered.train, cluttered.test):
        assert part.images.dtype == torch.uint8
        assert torch.equal(part.labels, torch.arange(len(part)) % 10)
    for channel in range(3):
        pixels = cluttered.train.images[:, channel].numpy()
        share = np.bincount(pixels.ravel(), minlength=256) / pixels.size
        mean = (share * np.arange(256)).sum() / 255
        std = np.sqrt((share * (np.arange(256) / 255 - mean) ** 2).sum())
        assert (cluttered.mean[channel], cluttered.std[channel]) == (round(mean, 4), round(std, 4))


def test_digits_are_shifted_and_never_mirrored(cluttered):
    assert cluttered.augmentation == data.RandomCrop(padding=2, mirror=False)


@pytest.mark.parametrize(("part", "first"), [("train", 0), ("test", 50_000)])
def test_images_show_the_digits_of_their_own_part_alone(cluttered, digits, part, first):
    own = digits[part]
    assert np.array_equal(paint(own, first, 40), getattr(cluttered, part).images[:40].numpy())
    other = digits["test" if part == "train" else "train"]
    assert not np.array_equal(paint(other, first, 40), paint(own, first, 40))


def test_any_image_can_be_painted_alone(cluttered, digits):
    assert np.array_equal(
        paint(digits["train"], 1234, 3), cluttered.train.images[1234:1237].numpy()
    )


def test_labels_name_the_digit(digits):
    # One digit a class, all cells of which hold the label: the higher, the more ink.
    images = torch.arange(10, dtype=torch.uint8)[:, None, None, None].expand(10, 1, 8, 8)
    own = dataclasses.replace(digits["train"], images=images.clone(), labels=torch.arange(10))
    blank = dataclasses.replace(own, images=torch.zeros_like(own.images))
    change = np.abs(paint(own, 0, 2000).astype(int) - paint(blank, 0, 2000).astype(int))
    middle = change[:, :, 15:17, 15:17].mean(axis=(1, 2, 3)).reshape(-1, 10).mean(axis=0)
    assert (np.diff(middle) > 0).all()


def words(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**32, count, dtype=np.uint32)


def plain_canvas(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (3, 32, 32)).astype(np.int64)


def as_integers(drawn: np.ndarray, low: int, high: int) -> list[int]:
    return [low + int(word) % (high - low + 1) for word in drawn]


@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_compiled_code_equals_python_with_its_unbounded_integers(seed):
    drawn = words(seed, 40)
    places = as_integers(drawn[:8], 0, 31 << 8)
    colors = [np.array(as_integers(drawn[8 + 3 * i : 11 + 3 * i], -60, 315)) for i in range(3)]
    matrix = kernels.pose(*as_integers(drawn[20:21], -4096, 4096), 60, 500, 850)
    assert matrix == kernels.pose.py_func(*as_integers(drawn[20:21], -4096, 4096), 60, 500, 850)
    digit = (words(seed, 64) % 17).astype(np.uint8).reshape(8, 8)
    calls = [
        (kernels.paint_gradient, (*colors[:2], *as_integers(drawn[21:23], -256, 256))),
        (kernels.add_texture, (words(seed, 81), 4, colors[2])),
        (kernels.paint_digit, (digit, matrix, tuple(places[:2]), (1, 2, 6, 5), colors[0], 200)),
        (kernels.paint_stroke, (tuple(places[:4]), 100, colors[1], 99)),
    ]
    for kernel, arguments in calls:
        compiled, python = plain_canvas(seed), plain_canvas(seed)
        kernel(compiled, *arguments)
        kernel.py_func(python, *arguments)
        assert np.array_equal(compiled, python), kernel.__name__
        assert not np.array_equal(compiled, plain_canvas(seed)), kernel.__name__


def test_a_digit_upright_is_the_digit_enlarged(digits):
    digit = digits["train"].images[0, 0].numpy()
    canvas, white = np.zeros((3, 32, 32), dtype=np.int64), np.full(3, 256)
    kernels.paint_digit(
        canvas, digit, kernels.pose(0, 0, 512, 512), (15 << 8, 15 << 8), (0, 0, 8, 8), white, 256
    )
    # Cells are two pixels apart; the middle of the grid lies between cells 3 and 4.
    found = canvas[0, 8:24:2, 8:24:2]
    assert np.array_equal(found, digit.astype(int) * 16)


def test_noise_has_the_strength_that_is_stated():
    canvas, out = np.full((3, 32, 32), 128), np.empty((3, 32, 32), dtype=np.uint8)
    kernels.finish(canvas, words(0, 3072), 40, out)
    assert abs(out.std() - 0.577 * 40) < 1
    assert abs(out.mean() - 127.5) < 1.5


def test_the_most_clutter_fits_its_words():
    from pabzip.data import cluttered_digits as clutter

    items = clutter._PIECES[1] + clutter._STROKES[1]
    assert clutter._CLUTTER + 2 + clutter._ITEM * items <= 4 * clutter._SCENE_BLOCKS
