"""Architectures by name, their options, and what each takes as input."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pabzip.errors import ArchitectureError
from pabzip.seeds import check_seed

if TYPE_CHECKING:
    import torch
    from torch import nn


OptionValue = int | bool

# The upper bounds keep every parameter count below 2**53, so that options read from a file
# can never overflow a size.
_RANGES: dict[str, tuple[int, int]] = {
    "num_classes": (1, 2**20),
    "in_channels": (1, 2**12),
    "image_size": (1, 2**12),
    "width": (1, 2**14),
    "widen": (1, 2**6),
}


def resolve_options(
    name: str,
    known: Mapping[str, OptionValue],
    given: Mapping[str, object],
    least: Mapping[str, int],
) -> dict[str, OptionValue]:
    """Return ``known`` updated by ``given``, every value checked.

    Args:
        name: the architecture, for messages.
        known: the options that the architecture has, with their defaults.
        given: options of the caller.
        least: smallest values where the architecture needs more than 1.

    Raises:
        ArchitectureError: an option that the architecture does not have, a value of another kind
            or out of range; the message lists what is valid.
    """
    for option in given:
        if option not in known:
            raise ArchitectureError(
                f"architecture {name!r}: expected options among {', '.join(known)}, "
                f"found {option!r}"
            )
    return {
        option: _checked(name, option, given.get(option, default), default, least)
        for option, default in known.items()
    }


def _checked(
    name: str, option: str, value: object, default: OptionValue, least: Mapping[str, int]
) -> OptionValue:
    """Return one value if it has the kind of its default and lies in range."""
    if isinstance(default, bool):
        if isinstance(value, bool):
            return value
        expected = "true or false"
    else:
        low, high = _RANGES[option]
        low = max(low, least.get(option, low))
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            return value
        expected = f"a whole number from {low} to {high}"
    raise ArchitectureError(
        f"architecture {name!r}: option {option}: expected {expected}, found {value!r}"
    )


@contextmanager
def own_rng(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator inside the block and give the caller's state back after it.

    Only the CPU generator is seeded: ``torch.manual_seed`` would also reseed every accelerator,
    whose state could not be given back without starting it.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


@dataclass(frozen=True)
class _Architecture:
    """One entry: its constructor, its options with defaults, and smallest values above 1."""

    construct: Callable[..., nn.Module]
    options: Mapping[str, OptionValue]
    least: Mapping[str, int] = field(default_factory=dict)


def names() -> tuple[str, ...]:
    """Return the names of all architectures. Does not load torch."""
    return tuple(_ARCHITECTURES)


def defaults(name: str) -> dict[str, OptionValue]:
    """Return the options of an architecture with their default values. Does not load torch.

    Raises:
        ArchitectureError: no such architecture; the message lists them.
    """
    return dict(_architecture(name).options)


def input_shape(name: str, options: Mapping[str, Any] | None = None) -> tuple[int, int, int]:
    """Return the shape ``(channels, height, width)`` of one input image. Does not load torch.

    Networks with global average pooling take any height and width; for them the option
    ``image_size`` records the size that the network was made for.

    Args:
        name: an architecture.
        options: options that differ from `defaults`.

    Raises:
        ArchitectureError: unknown name or option, or a value out of range.
    """
    resolved = _resolved(name, options or {})
    size = resolved["image_size"]
    return resolved["in_channels"], size, size


def build(
    name: str,
    options: Mapping[str, Any] | None = None,
    *,
    dense_seed: int = 0,
    device: torch.device | str | None = None,
    **more: OptionValue,
) -> nn.Module:
    """Build an architecture by name, in float32 and training mode.

    All parameters are initialized from ``dense_seed``, by torch's defaults or, for the ImageNet
    forms, by torchvision's own rules; `pabzip.init_` then draws the weights that are to be seeded.
    The caller's random state and default dtype play no part and are left alone. The network
    remembers what it is as ``net.pabzip_arch``: its name and its options, all of them, as JSON
    values.

    Args:
        name: one of `names`.
        options: any of `defaults`: ``num_classes``, ``in_channels``, ``image_size`` (pixels),
            ``width`` (of the first layer or stage; the others follow in proportion) but for the
            ImageNet forms, ``batch_norm`` of the Conv family, and ``widen`` and ``late_stride`` of
            WideResNet-28. Options that come from a file belong here.
        dense_seed: seed of torch's CPU generator for the initial dense parameters (biases),
            ``0 <= dense_seed < 2**64``.
        device: where the network ends up; None takes torch's default device. ``"meta"`` allocates
            nothing, to compare shapes first.
        **more: options as keywords; they win over ``options``.

    Raises:
        ArchitectureError: unknown name or option, or a value out of range.
        SeedError: ``dense_seed`` out of range.
        MissingDependencyError: an ImageNet form, and no torchvision that matches torch.
    """
    import torch

    resolved = _resolved(name, {**(options or {}), **more})
    target = torch.get_default_device() if device is None else torch.device(device)
    # Always constructed on the CPU, so that one dense_seed gives the same bits on every device.
    first = "meta" if target.type == "meta" else "cpu"
    with own_rng(check_seed(dense_seed)):
        net = _architecture(name).construct(**resolved, device=first)
    net.pabzip_arch = (name, resolved)  # type: ignore[assignment]
    return net.to(target)


def _architecture(name: str) -> _Architecture:
    """Return the entry called ``name``."""
    found = _ARCHITECTURES.get(name) if isinstance(name, str) else None
    if found is None:
        raise ArchitectureError(
            f"architecture: expected one of {', '.join(_ARCHITECTURES)}, found {name!r}"
        )
    return found


def _resolved(name: str, options: Mapping[str, Any]) -> dict[str, OptionValue]:
    """Return all options of an architecture, the caller's checked and the rest by default."""
    entry = _architecture(name)
    return resolve_options(name, entry.options, options, entry.least)


def _lenet(**options: Any) -> nn.Module:
    """Construct LeNet-300-100."""
    from pabzip.models.lenet import LeNet300100

    return LeNet300100(**options)


def _conv(blocks: int) -> _Architecture:
    """Return the entry of the Conv network with ``blocks`` blocks."""

    def construct(**options: Any) -> nn.Module:
        from pabzip.models.lenet import ConvNet

        return ConvNet(blocks=blocks, **options)

    options = {**_IMAGES, "width": 64, "batch_norm": True}
    return _Architecture(construct, options, least={"image_size": 2**blocks})


def _resnet(*depths: int, width: int = 64, bottleneck: bool = False) -> _Architecture:
    """Return the entry of a residual network.

    It takes any image size, as all with global average pooling do: the option ``image_size`` is
    kept for the record alone.
    """

    def construct(*, image_size: int, **options: Any) -> nn.Module:
        from pabzip.models.resnet import BasicBlock, Bottleneck, ResNet

        del image_size
        return ResNet(block=Bottleneck if bottleneck else BasicBlock, depths=depths, **options)

    return _Architecture(construct, {**_IMAGES, "width": width})


def _wide_resnet28(*, image_size: int, **options: Any) -> nn.Module:
    """Construct WideResNet-28; any image size will do."""
    from pabzip.models.wide_resnet import WideResNet

    del image_size
    return WideResNet(depth=4, **options)


def _vgg(*depths: int, width: int = 64, growth: int = 8) -> _Architecture:
    """Return the entry of a VGG network."""

    def construct(**options: Any) -> nn.Module:
        from pabzip.models.vgg import VGG

        return VGG(depths=depths, growth=growth, **options)

    options = {**_IMAGES, "width": width}
    return _Architecture(construct, options, least={"image_size": 2 ** len(depths)})


def _mobilenet(*, image_size: int, **options: Any) -> nn.Module:
    """Construct MobileNetV2; any image size will do."""
    from pabzip.models.mobilenet import MobileNetV2

    del image_size
    return MobileNetV2(**options)


def _imagenet(constructor: str) -> _Architecture:
    """Return the entry of a network of torchvision's; any image size will do."""

    def construct(*, image_size: int, **options: Any) -> nn.Module:
        from pabzip.models.imagenet import imagenet_resnet

        del image_size
        return imagenet_resnet(constructor, **options)

    return _Architecture(construct, {"num_classes": 1000, "in_channels": 3, "image_size": 224})


_IMAGES: dict[str, OptionValue] = {"num_classes": 10, "in_channels": 3, "image_size": 32}

_ARCHITECTURES: dict[str, _Architecture] = {
    "lenet-300-100": _Architecture(_lenet, {**_IMAGES, "width": 300}, least={"width": 3}),
    "conv2": _conv(1),
    "conv4": _conv(2),
    "conv6": _conv(3),
    "conv8": _conv(4),
    "resnet18": _resnet(2, 2, 2, 2),
    "resnet20": _resnet(3, 3, 3, width=16),
    "resnet34": _resnet(3, 4, 6, 3),
    "resnet50": _resnet(3, 4, 6, 3, bottleneck=True),
    "wideresnet28": _Architecture(
        _wide_resnet28, {**_IMAGES, "width": 16, "widen": 10, "late_stride": False}
    ),
    "vgg11": _vgg(1, 1, 2, 2, 2),
    "vgg13": _vgg(2, 2, 2, 2, 2),
    "vgg16": _vgg(2, 2, 3, 3, 3),
    "vgg19": _vgg(2, 2, 4, 4, 4),
    "vgg-small": _vgg(2, 2, 2, width=128, growth=4),
    "mobilenetv2": _Architecture(_mobilenet, {**_IMAGES, "width": 32}),
    "resnet18-imagenet": _imagenet("resnet18"),
    "resnet34-imagenet": _imagenet("resnet34"),
    "resnet50-imagenet": _imagenet("resnet50"),
    "wideresnet50-imagenet": _imagenet("wide_resnet50_2"),
}
