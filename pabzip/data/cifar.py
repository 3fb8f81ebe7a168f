"""CIFAR-10 and CIFAR-100 from a local folder, through torchvision."""

from __future__ import annotations

import torch

from pabzip.data.augment import crop_and_flip
from pabzip.data.download import Root, check_files, dataset_root, reading, torchvision_datasets
from pabzip.data.images import Images, Splits
from pabzip.data.registry import geometry
from pabzip.registry import register_dataset

_PUBLISHED = "-published"

# Mean and standard deviation of each channel over all pixels of the 50,000 training images. The
# deviations that Peek-a-Boo and many others use for CIFAR-10 are another quantity: each image's own
# deviation, averaged over the images, which leaves out how images differ from one another.
_CONSTANTS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar10-published": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


@register_dataset("cifar10", classes=10, shape=(3, 32, 32), augmented=True)
@register_dataset("cifar10-published", classes=10, shape=(3, 32, 32), augmented=True)
@register_dataset("cifar100", classes=100, shape=(3, 32, 32), augmented=True)
def load_cifar(name: str, *, root: Root = None, download: bool = False) -> Splits:
    """Load 50,000 training and 10,000 test images, three channels of 32x32 pixels.

    ``root`` holds the "python version" of the dataset's home page, whose files are checked by MD5
    before they are read; an archive that is there but not yet unpacked is unpacked. CIFAR-100 has
    its 100 fine labels. ``"cifar10-published"`` is CIFAR-10 normalized as in Peek-a-Boo's code.

    Arguments and errors are those of `pabzip.data.load`.

    Source: Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images.
    """
    dataset = getattr(torchvision_datasets(), name.removesuffix(_PUBLISHED).upper())
    folder = dataset_root(root)
    listed = [*dataset.train_list, *dataset.test_list]
    listed.append((dataset.meta["filename"], dataset.meta["md5"]))
    files = {f"{dataset.base_folder}/{file}": md5 for file, md5 in listed}
    # With a good archive in place torchvision's download only unpacks it.
    fetch = download or check_files(name, folder, files, {dataset.filename: dataset.tgz_md5})

    def part(*, train: bool) -> Images:
        with reading(name, dataset.filename, dataset.url, folder):
            read = dataset(folder, train=train, download=fetch and train)
        pixels = torch.from_numpy(read.data).permute(0, 3, 1, 2).contiguous()
        labels = torch.tensor(read.targets, dtype=torch.int64)
        return Images(pixels, labels, 255, *_CONSTANTS[name])

    return Splits(
        name=name,
        train=part(train=True),
        test=part(train=False),
        num_classes=geometry(name).num_classes,
        augmentation=crop_and_flip,
    )
