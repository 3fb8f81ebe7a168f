"""MNIST and Fashion-MNIST from a local folder, through torchvision."""

from __future__ import annotations

from pabzip.data.augment import RandomCrop
from pabzip.data.download import Root, check_files, dataset_root, reading, torchvision_datasets
from pabzip.data.images import Images, Splits
from pabzip.errors import DataError
from pabzip.registry import register_dataset

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
