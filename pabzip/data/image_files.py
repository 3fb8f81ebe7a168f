"""Images in files, decoded when a batch needs them."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, ClassVar, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from pabzip.data.augment import WORDS_PER_IMAGE, RandomResizedCrop
from pabzip.data.order import Words
from pabzip.errors import DataError
from pabzip.seeds.generation import thread_count

if TYPE_CHECKING:
    from PIL.Image import Image


_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_MOST_WORKERS = 16


def default_workers() -> int:
    """Return how many threads decode: one a core that this process may use, at most 16."""
    return min(thread_count(None), _MOST_WORKERS)


def open_image(path: str) -> Image:
    """Read an image of any kind that Pillow knows, in red, green and blue.

    Raises:
        DataError: the file is missing, damaged or no image; names it.
    """
    from PIL import Image

    try:
        with Image.open(path) as file:
            return file.convert("RGB")
    # Pillow promises no kinds: damaged files show as any of these.
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{path}: expected an image, found {type(error).__name__}: {error}; "
            "remove the file or fetch it again"
        ) from error


def read_ahead(
    load: Callable[[_Item], _Result],
    groups: Iterable[Sequence[_Item]],
    *,
    ahead: int,
    workers: int,
) -> Iterator[list[_Result]]:
    """Yield the results of each group in order, with threads at work on the next groups.

    No more than ``ahead`` groups are held besides the one that the caller has, so memory stays
    flat. The threads end with the iterator, also when it is dropped half-way.

    ``load`` turns one item into its result, on any of ``workers`` threads. What it raises comes up
    in the place of the group that holds the item.
    """
    remaining = iter(groups)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="pabzip-decode")
    try:
        waiting: deque[list[Future[_Result]]] = deque()
        for group in islice(remaining, ahead):
            waiting.append([pool.submit(load, item) for item in group])
        while waiting:
            done = [future.result() for future in waiting.popleft()]
            for group in islice(remaining, 1):
                waiting.append([pool.submit(load, item) for item in group])
            yield done
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Mean of each channel of ImageNet's training images; the field's constants for photographs."""
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Standard deviation of each channel, likewise."""


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Images that are decoded on use: paths, labels, and how files become inputs.

    Without an augmentation the short side is resized to ``resized`` pixels and the middle of
    ``size`` by ``size`` pixels is taken (256 and 224 are the field's evaluation on ImageNet).

    Attributes:
        paths: one an image; any kind of file that Pillow reads, made red, green and blue.
        labels: ``int64[N]``, values 0 to number of classes less one.
        size: height and width of an input in pixels.
        resized: short side before the middle is taken, in pixels, at least ``size``.
        mean: mean of each channel, after division by 255.
        std: standard deviation of each channel, likewise.
        device: where batches go by default.
        workers: threads that decode.
        peak: the pixel value of full intensity.
    """

    paths: tuple[str, ...]
    labels: torch.Tensor
    size: int
    resized: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    workers: int = field(default_factory=default_workers)
    peak: ClassVar[int] = 255

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Channels, height and width of an input."""
        return (3, self.size, self.size)

    def to(self, device: torch.device | str) -> ImageFiles:
        """Return the same images, whose batches go to ``device``; the files stay where they are."""
        return dataclasses.replace(self, device=torch.device(device))

    def take(self, places: NDArray[np.int64]) -> ImageFiles:
        """Return the images at some places, in that order."""
        paths = tuple(self.paths[place] for place in places)
        return dataclasses.replace(
            self, paths=paths, labels=self.labels[torch.from_numpy(places).to(self.labels.device)]
        )

    def read(
        self,
        order: NDArray[np.int64],
        bounds: Sequence[tuple[int, int]],
        augmentation: RandomResizedCrop | None,
        words: Words | None,
        device: torch.device,
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield pixels and labels for places of an order, as `pabzip.data.Images.read` does.

        Files are decoded on `workers` threads, at least two batches ahead. The augmentation takes
        a part of each image, from 23 words a place in ``order``; None takes its middle.

        Raises:
            DataError: a file is missing, damaged or no image; names it.
        """
        from torchvision.transforms.v2 import functional

        def load(place: int) -> torch.Tensor:
            image = open_image(self.paths[order[place]])
            if augmentation is not None and words is not None:
                first = place * WORDS_PER_IMAGE
                drawn = words(first, first + WORDS_PER_IMAGE)
                image = augmentation(image, self.size, drawn)
            else:
                image = functional.resize(image, [self.resized])
                image = functional.center_crop(image, [self.size, self.size])
            pixels: torch.Tensor = functional.pil_to_tensor(image)
            return pixels

        largest = max((end - begin for begin, end in bounds), default=1)
        ahead = max(2, -(-2 * self.workers // max(largest, 1)))
        groups = (range(begin, end) for begin, end in bounds)
        walk = read_ahead(load, groups, ahead=ahead, workers=self.workers)
        for (begin, end), decoded in zip(bounds, walk, strict=True):
            pixels = torch.empty(0, *self.input_shape, dtype=torch.uint8)
            if decoded:
                pixels = torch.stack(decoded)
            labels = self.labels[torch.from_numpy(order[begin:end])]
            if device.type == "cuda":  # page-locked, so that the copy runs beside the network
                pixels, labels = pixels.pin_memory(), labels.pin_memory()
            yield pixels.to(device, non_blocking=True), labels.to(device, non_blocking=True)
