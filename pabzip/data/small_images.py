"""MNIST, Fashion-MNIST and SVHN from a local folder, through torchvision."""

from __future__ import annotations

import torch

from pabzip._optional import require
from pabzip.data.augment import RandomCrop
from pabzip.data.download import Root, check_files, dataset_root, reading, torchvision_datasets
from pabzip.data.images import Images, Splits
from pabzip.errors import DataError
from pabzip.registry import register_dataset

# Mean and standard deviation of the 73,257 training images of SVHN, the field's usual constants.
_SVHN_MEAN = (0.4377, 0.4438, 0.4728)
_SVHN_STD = (0.1980, 0.2010, 0.1970)
# torchvision's class, and mean and standard deviation of the 60,000 training images.
_KINDS = {
    "mnist": ("MNIST", (0.1307,), (0.3081,)),
    "fashion-mnist": ("FashionMNIST", (0.2860,), (0.3530,)),
}


@register_dataset("mnist", classes=10, shape=(1, 28, 28), augmented=True)
@register_dataset("fashion-mnist", classes=10, shape=(1, 28, 28), augmented=True)
def load_mnist(name: str, *, root: Root = None, download: bool = False) -> Splits:
    """Load 60,000 training and 10,000 test images, one channel of 28x28 pixels, 10 classes.

    The files are the four of the dataset's home page, in ``MNIST/raw`` or ``FashionMNIST/raw``
    under ``root``, unpacked or as ``.gz``; the latter are checked by MD5 and unpacked there.

    The augmentation shifts by up to 2 pixels, and mirrors clothes but no digits.

    Arguments and errors are those of `pabzip.data.load`.

    Source: LeCun et al. 1998, Gradient-based learning applied to document recognition; Xiao et al.
    2017, Fashion-MNIST. The constants are the field's usual ones.
    """
    class_name, mean, std = _KINDS[name]
    dataset = getattr(torchvision_datasets(), class_name)
    folder = dataset_root(root)
    raw = folder / class_name / "raw"
    archives = {f"{class_name}/raw/{file}": md5 for file, md5 in dataset.resources}
    files = {archive.removesuffix(".gz"): None for archive in archives}
    # With good archives in place torchvision's download only unpacks them.
    fetch = download or check_files(name, folder, files, archives)

    def part(*, train: bool) -> Images:
        with reading(name, "the four files", dataset.mirrors[0], raw):
            read = dataset(folder, train=train, download=fetch)
        pixels, labels = read.data, read.targets
        # torchvision checks no unpacked file.
        labeled = labels.ndim == 1 and len(labels) == len(pixels) > 0
        if not labeled or tuple(pixels.shape[1:]) != (28, 28) or int(labels.max()) > 9:
            raise DataError(
                f"data {name!r}: expected images of 28x28 pixels with a label 0 to 9 each in "
                f"{raw}, found images {list(pixels.shape)} and labels {list(labels.shape)}; remove "
                "the folder and fetch the files again with download=True (--download)"
            )
        return Images(pixels[:, None].contiguous(), labels.long(), 255, mean, std)

    return Splits(
        name=name,
        train=part(train=True),
        test=part(train=False),
        num_classes=10,
        augmentation=RandomCrop(padding=2, mirror=name == "fashion-mnist"),
    )


@register_dataset("svhn", classes=10, shape=(3, 32, 32), augmented=True)
def load_svhn(name: str, *, root: Root = None, download: bool = False) -> Splits:
    """Load 73,257 training and 26,032 test images, three channels of 32x32 pixels, 10 classes.

    The files are ``train_32x32.mat`` and ``test_32x32.mat`` of the dataset's home page, checked by
    MD5 before they are read; the label of the digit 0 is 0. The 531,131 extra images are not used.

    The augmentation shifts by up to 4 pixels and mirrors nothing: a mirrored digit is no digit.

    Arguments and errors are those of `pabzip.data.load`; reading the files needs scipy.

    Source: Netzer et al. 2011, Reading Digits in Natural Images with Unsupervised Feature Learning.
    """
    require("scipy", extra="train", purpose="data 'svhn'")
    dataset = torchvision_datasets().SVHN
    folder = dataset_root(root)
    listed = {split: dataset.split_list[split] for split in ("train", "test")}
    if not download:
        check_files(name, folder, {file: md5 for _, file, md5 in listed.values()})

    def part(split: str) -> Images:
        url, file, _ = listed[split]
        with reading(name, file, url, folder):
            read = dataset(folder, split=split, download=download)
        pixels = torch.from_numpy(read.data).contiguous()
        return Images(pixels, torch.from_numpy(read.labels), 255, _SVHN_MEAN, _SVHN_STD)

    return Splits(
        name=name,
        train=part("train"),
        test=part("test"),
        num_classes=10,
        augmentation=RandomCrop(padding=4, mirror=False),
    )
