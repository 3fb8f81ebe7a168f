"""The handwritten digits that ship with scikit-learn: nothing to download."""

from __future__ import annotations

import torch

from pabzip.data.download import Root
from pabzip.data.images import Images, Splits
from pabzip.data.order import permutation
from pabzip.errors import MissingDependencyError
from pabzip.registry import register_dataset

TRAIN_IMAGES = 1400
"""Number of training images; the other 397 of the 1,797 are the test images."""

_SPLIT_SEED = 1797
_PEAK = 16
# Of the training images; a test recomputes them.
_MEAN = (0.3059,)
_STD = (0.3762,)


@register_dataset("digits", classes=10, shape=(1, 8, 8))
def load_digits(name: str, *, root: Root = None, download: bool = False) -> Splits:
    """Load 1,797 images of handwritten digits, one channel of 8x8 pixels, 10 classes.

    1,400 train, 397 test. The split is a fixed permutation from pabzip's own generator, so it is
    the same everywhere and always. They come with scikit-learn: ``root`` and ``download`` are not
    used.

    Raises:
        MissingDependencyError: scikit-learn is not installed.

    Source: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
    Repository, 1998 (its test part, which scikit-learn carries).
    """
    train, test = read_digits()
    return Splits(name=name, train=train, test=test, num_classes=10)


def read_digits() -> tuple[Images, Images]:
    """Return the training and the test images; see `load_digits`."""
    try:
        from sklearn import datasets
    except ImportError as error:
        raise MissingDependencyError(
            "data 'digits': expected scikit-learn, which carries the images, found none; "
            "install it with: pip install 'pabzip[train]'"
        ) from error
    bunch = datasets.load_digits()
    images = torch.from_numpy(bunch.images).to(torch.uint8)[:, None]
    labels = torch.from_numpy(bunch.target).to(torch.int64)
    order = torch.from_numpy(permutation(len(labels), seed=_SPLIT_SEED, stream=0))

    def part(indices: torch.Tensor) -> Images:
        return Images(images[indices], labels[indices], _PEAK, _MEAN, _STD)

    return part(order[:TRAIN_IMAGES]), part(order[TRAIN_IMAGES:])
