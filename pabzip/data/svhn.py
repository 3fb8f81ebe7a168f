"""SVHN, house numbers from street views, from a local folder through torchvision."""

from __future__ import annotations

import torch

from pabzip._optional import require
from pabzip.data.augment import RandomCrop
from pabzip.data.download import Root, check_files, dataset_root, reading, torchvision_datasets
from pabzip.data.images import Images, Splits
from pabzip.registry import register_dataset

# The field's usual constants, of the 73,257 training images.
_MEAN = (0.4377, 0.4438, 0.4728)
_STD = (0.1980, 0.2010, 0.1970)


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
        return Images(pixels, torch.from_numpy(read.labels), 255, _MEAN, _STD)

    return Splits(
        name=name,
        train=part("train"),
        test=part("test"),
        num_classes=10,
        augmentation=RandomCrop(padding=4, mirror=False),
    )
