"""Networks by name, their options, and what each takes as input.

A network registers where it is defined, and every fact but two is an argument of its constructor
that the name decides::

    @register_network("resnet18", options={"width": 64}, depths=(2, 2, 2, 2))
    @register_network("resnet20", options={"width": 16}, depths=(3, 3, 3))
    class ResNet(nn.Module):
        def __init__(self, *, depths, num_classes, in_channels, image_size, width): ...

``options`` holds what a caller may set, with its defaults: whole numbers, or true and false. Every
network has ``num_classes``, ``in_channels`` and ``image_size`` besides, by default 10, 3 and 32.
``variants`` holds further options, true or false, that are recorded only where they are not at
their default: files of the plain network stay as they were before a variant came. ``binary_with``
names the options that binary activations need. ``least`` holds the smallest valid value where that
is more than 1. The constructor, a class or a function, is called with all options as keywords.

The networks that files may name have three variants in common, which change the network that the
constructor made and are no arguments of it: ``affine``, ``bias`` and ``binary_activations``.

A file may name the networks of `pabzip.formats.ARCHITECTURES` alone. One that another package
registers is built and trained by its name, and is a custom network to files and checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pabzip._optional import require
from pabzip.errors import ArchitectureError
from pabzip.formats.limits import ARCHITECTURES
from pabzip.registry import NETWORKS
from pabzip.seeds import check_seed

if TYPE_CHECKING:
    import torch
    from torch import nn


OptionValue = int | bool

_IMAGES: dict[str, OptionValue] = {"num_classes": 10, "in_channels": 3, "image_size": 32}

_COMMON: dict[str, OptionValue] = {"affine": True, "bias": True, "binary_activations": False}

# The upper bounds keep every parameter count below 2**53, so that options read from a file
# can never overflow a size.
_RANGES: dict[str, tuple[int, int]] = {
    "num_classes": (1, 2**20),
    "in_channels": (1, 2**12),
    "image_size": (1, 2**12),
    "width": (1, 2**14),
    "widen": (1, 2**6),
}
_NO_ARGUMENTS = ("options", "variants", "binary_with", "least")  # facts beside the constructor's
_OTHER_RANGE = (1, 2**20)  # of an option that no network of pabzip's has


def names() -> tuple[str, ...]:
    """Return the names of all registered networks. Does not load torch."""
    return NETWORKS.names


def defaults(name: str) -> dict[str, OptionValue]:
    """Return the options of a network with their default values. Does not load torch.

    Raises:
        ArchitectureError: no such network; the message lists them.
    """
    return {**_IMAGES, **NETWORKS.facts(name).get("options", {}), **_variants(name)}


def _variants(name: str) -> dict[str, OptionValue]:
    """Return the options of a network that are recorded only where they differ from these."""
    common = _COMMON if name in ARCHITECTURES else {}
    return {**NETWORKS.facts(name).get("variants", {}), **common}


def input_shape(name: str, options: Mapping[str, Any] | None = None) -> tuple[int, int, int]:
    """Return the shape ``(channels, height, width)`` of one input image. Does not load torch.

    Networks with global average pooling take any height and width; for them the option
    ``image_size`` records the size that the network was made for.

    Args:
        name: a registered network.
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
    """Build a registered network, in float32 and training mode.

    All parameters are initialized from ``dense_seed``, by torch's defaults or, for the ImageNet
    forms, by torchvision's own rules; `pabzip.init_` then draws the weights that are to be seeded.
    The caller's random state and default dtype play no part and are left alone. The network
    remembers what it is as ``net.pabzip_arch``: its name (``"custom"`` if no file may name it) and
    its options as JSON values, all of them but variants at their default.

    Args:
        name: one of `names`.
        options: any of `defaults`: ``num_classes``, ``in_channels``, ``image_size`` (pixels),
            ``width`` (of the first layer or stage; the others follow in proportion) but for the
            ImageNet forms, and what the network's class says. Options that come from a file belong
            here. Every network also takes ``affine=False`` (batch norm without weight and bias),
            ``bias=False`` (no biases in convolutions and Linear layers) and
            ``binary_activations=True``; see `pabzip.models.binary.apply_variants`.
        dense_seed: seed of torch's CPU generator for the initial dense parameters (biases),
            ``0 <= dense_seed < 2**64``.
        device: where the network ends up; None takes torch's default device. ``"meta"`` allocates
            nothing, to compare shapes first.
        **more: options as keywords; they win over ``options``.

    Raises:
        ArchitectureError: unknown name or option, a value out of range, or a variant of what the
            network does not have.
        SeedError: ``dense_seed`` out of range.
        MissingDependencyError: an ImageNet form, and no torchvision that matches torch.
    """
    require("torch", extra="torch", purpose="pabzip.models.build")
    import torch

    resolved = _resolved(name, {**(options or {}), **more})
    facts = NETWORKS.facts(name)
    fixed = {key: value for key, value in facts.items() if key not in _NO_ARGUMENTS}
    common = {key: bool(resolved[key]) for key in _COMMON} if name in ARCHITECTURES else {}
    given = {key: value for key, value in resolved.items() if key not in common}
    construct = NETWORKS.get(name)
    target = torch.get_default_device() if device is None else torch.device(device)
    # Always constructed on the CPU, so that one dense_seed gives the same bits on every device.
    first = torch.device("meta" if target.type == "meta" else "cpu")
    with own_rng(check_seed(dense_seed)), _float32(), first:
        net: nn.Module = construct(**fixed, **given)
    if common:
        from pabzip.models.binary import apply_variants

        apply_variants(net, **common)
    variants = _variants(name)
    net.pabzip_arch = (  # type: ignore[assignment]
        name if name in ARCHITECTURES else "custom",
        {k: v for k, v in resolved.items() if k not in variants or v != variants[k]},
    )
    return net.to(target)


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


@contextmanager
def _float32() -> Iterator[None]:
    """Make float32 the default dtype inside the block."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _resolved(name: str, given: Mapping[str, object]) -> dict[str, OptionValue]:
    """Return all options of a network: the caller's, each checked, and the rest by default."""
    known = defaults(name)
    for option in given:
        if option not in known:
            raise ArchitectureError(
                f"architecture {name!r}: expected options among {', '.join(known)}, "
                f"found {option!r}"
            )
    least = NETWORKS.facts(name).get("least", {})
    resolved: dict[str, OptionValue] = {}
    for option, default in known.items():
        value = given.get(option, default)
        if isinstance(default, bool):
            valid, expected = isinstance(value, bool), "true or false"
        else:
            low, high = _RANGES.get(option, _OTHER_RANGE)
            low = max(low, least.get(option, low))
            whole = isinstance(value, int) and not isinstance(value, bool)
            valid = whole and low <= value <= high  # type: ignore[operator]
            expected = f"a whole number from {low} to {high}"
        if not valid:
            raise ArchitectureError(
                f"architecture {name!r}: option {option}: expected {expected}, found {value!r}"
            )
        resolved[option] = value  # type: ignore[assignment]
    if resolved.get("binary_activations"):
        for option, needed in NETWORKS.facts(name).get("binary_with", {}).items():
            if given.get(option, needed) != needed:
                raise ArchitectureError(
                    f"architecture {name!r}: option binary_activations: expected {option} "
                    f"{needed} with it, found {given[option]}; leave {option} out"
                )
            resolved[option] = needed
    return resolved
