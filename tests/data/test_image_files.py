"""Images in files: decoding, order, random parts, and damaged files."""

from __future__ import annotations

import dataclasses
import gc
import os
import threading

import numpy as np
import pytest
import torch

from pabzip.data import ImageFiles, RandomResizedCrop, batches, crop_and_flip
from pabzip.data.augment import WORDS_PER_IMAGE
from pabzip.data.image_files import read_ahead
from pabzip.data.order import random_words
from pabzip.errors import DataError
from pabzip.train import evaluate

v2 = pytest.importorskip("torchvision.transforms.v2")


@pytest.fixture
def files(tmp_path, write_noise):
    """Eleven images of several sizes; the label is the number."""
    for i in range(11):
        write_noise(tmp_path / f"{i}.png", i, 16 + 3 * i, 40 - 2 * i)
    paths = tuple(str(tmp_path / f"{i}.png") for i in range(11))
    return ImageFiles(paths, torch.arange(11), size=12, resized=14, workers=2)


def collect(*args, **options):
    found = list(batches(*args, **options))
    return torch.cat([inputs for inputs, _ in found]), torch.cat([labels for _, labels in found])


def test_threads_where_the_system_tells_no_affinity(monkeypatch):
    # macOS and Windows have no os.sched_getaffinity.
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    for processors, threads in ((3, 3), (64, 16), (None, 1)):
        monkeypatch.setattr(os, "cpu_count", lambda found=processors: found)
        assert ImageFiles((), torch.arange(0), size=1, resized=1).workers == threads


def test_without_augmentation_the_middle_is_taken(files):
    from PIL import Image

    inputs, labels = collect(files, 4)
    assert labels.tolist() == list(range(11))
    assert inputs.shape == (11, *files.input_shape) == (11, 3, 12, 12)
    evaluation = v2.Compose([v2.Resize(14), v2.CenterCrop(12), v2.PILToTensor()])
    for path, found in zip(files.paths, inputs, strict=True):
        pixels = evaluation(Image.open(path)).double() / 255
        mean, std = (torch.tensor(c).double().view(3, 1, 1) for c in (files.mean, files.std))
        torch.testing.assert_close(found.double(), (pixels - mean) / std, rtol=1e-5, atol=1e-5)


def test_parts_depend_on_seed_epoch_and_image_alone(files):
    options = {"shuffle_seed": 3, "epoch": 2, "augmentation": RandomResizedCrop()}
    inputs, labels = collect(files, 4, **options)
    assert sorted(labels.tolist()) == list(range(11))
    for other in (1, 5, 11):
        assert torch.equal(collect(files, other, **options)[0], inputs)
    alone = dataclasses.replace(files, workers=1)
    assert torch.equal(collect(alone, 4, **options)[0], inputs)
    assert torch.equal(collect(files, 4, start=1, **options)[0], inputs[4:])
    slices = [list(batches(files, 4, shard=(rank, 3), **options)) for rank in range(3)]
    joined = [part for step in zip(*slices, strict=True) for part, _ in step]
    assert torch.equal(torch.cat(joined), inputs)
    assert not torch.equal(collect(files, 4, **{**options, "epoch": 3})[0], inputs)


def test_a_slice_may_be_empty(files):
    *_, (inputs, labels) = batches(files, 10, shard=(0, 4))
    assert (inputs.shape, labels.shape) == ((0, 3, 12, 12), (0,))


def test_global_random_state_is_neither_read_nor_changed(files):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    options = {"shuffle_seed": 3, "augmentation": RandomResizedCrop()}
    first, _ = collect(files, 4, **options)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(collect(files, 4, **options)[0], first)


def test_boxes_lie_inside_with_area_and_ratio_in_range():
    crop = RandomResizedCrop(scale=(0.2, 0.9), ratio=(0.5, 2.0))
    words = random_words(1, 0, 0, 500 * WORDS_PER_IMAGE).reshape(500, -1)
    shares, ratios = [], []
    for drawn in words:
        top, left, tall, wide = crop.box(320, 240, drawn)
        assert 0 <= top <= top + tall <= 240
        assert 0 <= left <= left + wide <= 320
        shares.append(tall * wide / (320 * 240))
        ratios.append(wide / tall)
    assert 0.19 < min(shares) < 0.25
    assert 0.8 < max(shares) < 0.91
    assert 0.49 < min(ratios) < 0.6
    assert 1.7 < max(ratios) < 2.02


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [(1000, 10, (0, 493, 10, 13)), (10, 1000, (493, 0, 13, 10)), (1, 1, (0, 0, 1, 1))],
)
def test_images_too_narrow_for_any_part_give_their_middle(width, height, expected):
    large = np.full(WORDS_PER_IMAGE, 2**31 - 1, dtype=np.uint32)
    assert RandomResizedCrop(scale=(0.9, 1.0)).box(width, height, large) == expected


def test_half_are_mirrored_and_none_without_mirror(tmp_path, write_noise):
    from PIL import Image

    write_noise(tmp_path / "a.png", 0, 8, 8)
    image = Image.open(tmp_path / "a.png")
    whole = RandomResizedCrop(scale=(1.0, 1.0), ratio=(1.0, 1.0))
    plain, mirrored = np.asarray(image), np.asarray(image)[:, ::-1]
    for last, expected in ((2, plain), (3, mirrored)):
        words = np.full(WORDS_PER_IMAGE, last, dtype=np.uint32)
        assert np.array_equal(np.asarray(whole(image, 8, words)), expected)
        still = dataclasses.replace(whole, mirror=False)
        assert np.array_equal(np.asarray(still(image, 8, words)), plain)


def test_damaged_and_missing_files_are_named(files, tmp_path):
    from pathlib import Path

    Path(files.paths[5]).write_bytes(Path(files.paths[5]).read_bytes()[:200])
    walk = batches(files, 4)
    next(walk)
    with pytest.raises(DataError, match=r"5\.png: expected an image, found .*; remove the file"):
        next(walk)
    Path(files.paths[5]).unlink()
    with pytest.raises(DataError, match=r"5\.png: expected an image, found FileNotFound"):
        collect(files, 4)


def test_gray_and_palette_images_become_color(tmp_path, write_image):
    write_image(tmp_path / "gray.png", 77, (12, 12))
    gray = ImageFiles((str(tmp_path / "gray.png"),), torch.tensor([0]), size=12, resized=12)
    inputs, _ = collect(dataclasses.replace(gray, mean=(0.0,) * 3, std=(1.0,) * 3), 1)
    assert torch.equal(inputs, torch.full((1, 3, 12, 12), 77 / 255))


def test_augmentation_of_another_kind(files):
    with pytest.raises(TypeError, match="RandomResizedCrop for images in files, found"):
        batches(files, 2, shuffle_seed=0, augmentation=crop_and_flip)


def test_evaluate_reads_all_files(files):
    def model(inputs: torch.Tensor) -> torch.Tensor:
        return torch.eye(11)[inputs.new_zeros(len(inputs)).long()]

    found = evaluate(model, files, batch_size=3)
    assert (found.samples, found.accuracy) == (11, 1 / 11)


def test_batches_of_moved_files_go_to_the_device(files):
    moved = files.to("meta")
    assert (files.device.type, moved.device.type) == ("cpu", "meta")
    inputs, labels = next(batches(moved, 2))
    assert (inputs.device.type, labels.device.type) == ("meta", "meta")


def test_reading_ahead_is_bounded_and_ends_with_its_reader():
    drawn, lock = [], threading.Lock()

    def groups():
        for i in range(100):
            with lock:
                drawn.append(i)
            yield [2 * i, 2 * i + 1]

    before = threading.active_count()
    walk = read_ahead(lambda item: item * 10, groups(), ahead=3, workers=2)
    for i in range(5):
        assert next(walk) == [20 * i, 20 * i + 10]
        assert len(drawn) <= i + 1 + 3
    del walk
    gc.collect()
    assert threading.active_count() == before
