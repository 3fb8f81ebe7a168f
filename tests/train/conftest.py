"""Small data, and one thread: tiny networks gain nothing from more where others share the cores."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch

from pabzip import data
from pabzip.data import Images, Splits


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Run each test on one thread of torch's, and give the caller's number back."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def splits() -> Splits:
    """A tenth of the digits."""
    whole = data.load("digits")

    def part(images: Images, count: int) -> Images:
        return dataclasses.replace(
            images, images=images.images[:count], labels=images.labels[:count]
        )

    return dataclasses.replace(
        whole, train=part(whole.train, 130), test=part(whole.test, 50), augmentation=None
    )
