"""From a recipe to a device and to a network whose weights are drawn from the seed."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from pabzip import models
from pabzip.data import Splits, batches
from pabzip.errors import ArchitectureError, RecipeError
from pabzip.init import Seeding, attach_seeding, init_, seeding
from pabzip.train.modes import evaluation_mode
from pabzip.train.recipes import Recipe


def pick_device(name: str, local_rank: int | None = None) -> torch.device:
    """Return the device that a recipe names; ``"auto"`` takes CUDA where there is one.

    Args:
        name: as in a recipe.
        local_rank: which process of this machine asks: with ``"auto"`` and ``"cuda"`` each takes
            the device of its number.

    Raises:
        RecipeError: a CUDA device that this machine does not have.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and local_rank is not None:
        name = f"cuda:{local_rank}"
    device = torch.device(name)
    if device.type != "cuda":
        return device
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (device.index or 0) >= count:
        raise RecipeError(
            f"device: expected one of this machine's {count} CUDA devices, found {name!r}; "
            "use auto or cpu"
        )
    return torch.device("cuda", device.index or 0)


def build_network(recipe: Recipe, splits: Splits) -> nn.Module:
    """Build the recipe's architecture for its data and draw its weights from the seed.

    A registered architecture gets the number of classes, the channels and the image size from the
    data, unless the recipe's ``arch_options`` say otherwise. The caller's own ``module:callable``
    gets exactly the recipe's ``arch_options``. Dense parameters start as the architecture draws
    them, from the recipe's seed.

    Args:
        recipe: ``arch``, ``arch_options``, ``seed``, ``scheme`` and ``classifier`` matter.
        splits: the data; one image is passed through to check that the network fits.

    Returns:
        The network on the CPU, in float32 and training mode, with its seeding on record.

    Raises:
        ArchitectureError: options that do not fit, or a network that does not turn the data's
            images into one logit a class.
        SeedError: nothing in the network can be seeded.
    """
    if recipe.own_architecture:
        net = models.resolve(recipe.arch, recipe.arch_options, dense_seed=recipe.seed)
        net.to("cpu", torch.float32).train()
    else:
        from_data = {
            "num_classes": splits.num_classes,
            "in_channels": splits.in_channels,
            "image_size": splits.image_size,
        }
        options = {**from_data, **recipe.arch_options}
        net = models.build(recipe.arch, dense_seed=recipe.seed, **options)
    _check_fit(net, splits, recipe.arch)
    return seed_network(net, recipe)


def seed_network(net: nn.Module, recipe: Recipe) -> nn.Module:
    """Draw the weights of ``net`` that the recipe seeds; returns ``net``.

    With ``classifier = "dense"`` the classifier of a network that has convolutions stays dense.
    All other Conv and Linear weights are seeded.

    Raises:
        SeedError: nothing is left to seed.

    Source: the published code of Peek-a-Boo, which seeds every convolution and trains the
    classifier by SGD.
    """
    classifier = classifier_name(net)
    convolutional = any(isinstance(module, _ConvNd) for module in net.modules())
    dense = recipe.classifier == "dense" and convolutional and classifier is not None
    skip = [f"{classifier}.weight"] if dense else None
    return init_(net, recipe.seed, recipe.scheme, skip=skip)


def forget_seeding(net: nn.Module) -> None:
    """Record on ``net`` that none of its weights is its seed's any more; the seed stays on record.

    For networks whose magnitudes were trained: a checkpoint of them names no seeded weight, and a
    file stores all of them as dense tensors.
    """
    attach_seeding(net, Seeding(seeding(net).seed, {}))


def classifier_name(net: nn.Module) -> str | None:
    """Return the name of the classifier: the last ``nn.Linear`` in module order, if any."""
    names = [name for name, module in net.named_modules() if isinstance(module, nn.Linear)]
    return names[-1] if names else None


def _check_fit(net: nn.Module, splits: Splits, arch: str) -> None:
    """Pass one image through, so that a network that does not fit fails before the search."""
    inputs, _ = next(batches(splits.train, 1, device="cpu"))
    wanted = f"architecture {arch!r}: expected logits [1, {splits.num_classes}] for an image "
    wanted += f"{list(inputs.shape)} of {splits.name}"
    with evaluation_mode(net), torch.no_grad():
        try:
            logits = net(inputs)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise ArchitectureError(f"{wanted}, found {type(error).__name__}: {error}") from error
    shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if shape != (1, splits.num_classes):
        found = list(shape) if isinstance(shape, tuple) else shape
        raise ArchitectureError(f"{wanted}, found {found}; set num_classes in arch_options")
